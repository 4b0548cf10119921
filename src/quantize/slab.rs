//! Slabs: parts of an array that are treated one after the other, so that memory stays bounded.

use std::ops::Range;

use super::layout::Grouping;
use super::plan::groups_in_tiles;
use super::{Scaling, Spec};
use crate::view::View;

/// The numbers by which an array counts the elements of a slab: rows of `row` elements, `step` apart from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Words {
    pub first: usize,
    pub row: usize,
    pub step: usize,
}

impl Words {
    pub const WHOLE: Words = Words { first: 0, row: usize::MAX, step: 0 };
}

/// Elements per slab, about.
const SLAB: usize = 1 << 20;

/// Groups per slab whose scales the caller has no room for: with offsets, half a MiB.
const GROUPS: usize = 1 << 16;

/// A part of an array that is treated alone: so that scales nobody asked for take little memory, and the second pass finds
/// the numbers in cache.
pub(super) struct Slab {
    /// Along which axis the array is cut.
    pub axis: usize,
    /// Which part of the axis this is.
    pub range: Range<usize>,
    /// Where its random words are.
    pub words: Words,
}

/// How an array is cut into slabs of whole groups, if it is: along which axis, and how many of its indices make one.
/// Without `room` for scales any axis will do; else the slabs, their scales and their packed codes must lie one after the
/// other, the codes in whole bytes.
fn slab_step(shape: &[usize], grouping: Grouping, bits: u32, room: bool) -> Option<(usize, usize)> {
    if shape.contains(&0) || groups_in_tiles(shape, grouping, bits).is_some() {
        return None;
    }
    let outermost = shape.iter().position(|length| *length > 1)?;
    let elements: usize = shape.iter().product();
    let groups = grouping.scale_shape(shape);
    let all: usize = groups.iter().product();
    // What the smallest slab along an axis holds: indices, elements and groups.
    let least = |axis: usize| {
        let size = match grouping {
            Grouping::Blocks { axis: blocked, size } if blocked == axis => size,
            _ => 1,
        };
        let indices = if room { size.saturating_mul(8) } else { size };
        (indices, (elements / shape[axis]).saturating_mul(indices), all / groups[axis] * (indices / size))
    };
    let axis = match grouping {
        Grouping::Blocks { .. } => {
            let few = |axis: &usize| room || least(*axis).2 <= GROUPS;
            (outermost..shape.len()).find(few).unwrap_or(outermost)
        }
        Grouping::Axis(axis) if !room && all > GROUPS => axis,
        _ => return None,
    };
    let (indices, elements, groups) = least(axis);
    let by_groups = if room { usize::MAX } else { GROUPS / groups };
    let by_elements = if matches!(grouping, Grouping::Axis(_)) { usize::MAX } else { SLAB / elements };
    let step = by_groups.min(by_elements).max(1).saturating_mul(indices);
    (step < shape[axis]).then_some((axis, step))
}

/// Calls `work` on each slab of an array that is cut into slabs, or once on the whole. Codes packed to so many bits must
/// lie one after the other.
pub(super) fn by_slabs(
    x: &View,
    spec: Spec,
    scaling: Scaling,
    packed: Option<u32>,
    mut work: impl FnMut(Option<&Slab>, &View, Scaling),
) {
    let (rule, scale, offset) = match scaling {
        Scaling::Rule(rule, scale, offset) => (rule, scale, offset),
        Scaling::Given(_) => return work(None, x, scaling),
    };
    let room = packed.is_some() || !scale.is_empty() || !offset.is_empty();
    let shape = x.shape();
    let Some((axis, step)) = slab_step(shape, spec.grouping, packed.unwrap_or(8), room) else {
        return work(None, x, Scaling::Rule(rule, scale, offset));
    };
    let scale_unit: usize = spec.grouping.scale_shape(shape)[axis + 1..].iter().product();
    let unit: usize = shape[axis + 1..].iter().product();
    let scales_before = |index: usize| match spec.grouping {
        Grouping::Blocks { axis: blocked, size } if blocked == axis => index.div_ceil(size) * scale_unit,
        _ => index * scale_unit,
    };
    for start in (0..shape[axis]).step_by(step) {
        let range = start..shape[axis].min(start + step);
        let scales = scales_before(range.start)..scales_before(range.end);
        let words = Words { first: start * unit, row: range.len() * unit, step: shape[axis] * unit };
        let slab = Slab { axis, words, range: range.clone() };
        let scaling = Scaling::Rule(rule, part(scale, scales.clone()), part(offset, scales));
        work(Some(&slab), &x.slice(axis, range), scaling);
    }
}

/// A range of a slice that may be left out.
fn part(slice: &mut [f32], range: Range<usize>) -> &mut [f32] {
    if slice.is_empty() { slice } else { &mut slice[range] }
}
