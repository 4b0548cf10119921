//! The first of two passes: scales of groups too large, or too scattered, to be observed on the spot.

use super::layout::Grouping;
use crate::cpu::Level;
use crate::formats::Format;
use crate::parallel::{self, Shared};
use crate::scale::{Observed, PIECE, Rule};
use crate::view::View;

/// Pieces observed before they are merged, which bounds the memory: 640 KiB for 64 million numbers.
const WAVE: usize = 1 << 14;

/// Pieces per parallel chunk.
const PIECES: usize = 4;

/// Writes the scale (and offset) of every group, in C order of the scales' shape.
pub(super) fn observe(x: &View, grouping: Grouping, rule: &Rule, format: &Format, scale: &mut [f32], offset: &mut [f32]) {
    let shape = x.shape();
    // Seen as rows of whole groups, with the index of group `g` of row `r` in the scales.
    let (rows, group, inner) = match grouping {
        Grouping::Array => (x.clone(), x.len(), 1),
        Grouping::Axis(axis) => (x.with_axis_at(axis, 0), x.len() / shape[axis].max(1), 1),
        Grouping::Blocks { axis, size } => {
            (x.with_axis_at(axis, shape.len() - 1), size.min(shape[axis].max(1)), shape[axis + 1..].iter().product())
        }
    };
    let row = match grouping {
        Grouping::Blocks { axis, .. } => shape[axis],
        _ => group,
    };
    let level = Level::current();
    let finish = |seen: &Observed| level.run(#[inline(always)] || rule.finish(seen, format));
    let mut put = |place: usize, seen: &Observed| {
        let (this_scale, this_offset) = finish(seen);
        if let Some(slot) = scale.get_mut(place) {
            *slot = this_scale;
        }
        if let Some(slot) = offset.get_mut(place) {
            *slot = this_offset;
        }
    };
    if x.is_empty() {
        (0..grouping.scale_shape(shape).iter().product()).for_each(|place| put(place, &Observed::NOTHING));
        return;
    }
    let groups_per_row = row.div_ceil(group);
    let pieces_per_group = group.div_ceil(PIECE);
    let pieces = x.len() / row * groups_per_row * pieces_per_group;
    let mut wave = vec![Observed::NOTHING; pieces.min(WAVE)];
    let mut seen = Observed::NOTHING;
    for first in (0..pieces).step_by(WAVE) {
        let count = WAVE.min(pieces - first);
        let shared = Shared::new(&mut wave);
        parallel::for_each(count.div_ceil(PIECES), |chunk| {
            let part = chunk * PIECES..count.min((chunk + 1) * PIECES);
            // SAFETY: chunks are disjoint; `wave` is borrowed until `for_each` returns.
            let slots = unsafe { shared.part(part.clone()) };
            level.run(#[inline(always)] || {
                let mut buffer = [0.0; PIECE];
                for (slot, piece) in slots.iter_mut().zip(part.start + first..) {
                    let (place, piece) = (piece / pieces_per_group, piece % pieces_per_group);
                    let start = place % groups_per_row * group;
                    let end = row.min(start + group);
                    let base = place / groups_per_row * row;
                    let range = end.min(start + piece * PIECE)..end.min(start + (piece + 1) * PIECE);
                    *slot = rule.statistic.observe(rows.read(base + range.start..base + range.end, &mut buffer));
                }
            });
        });
        for (piece, observed) in (first..).zip(&wave[..count]) {
            let (place, part) = (piece / pieces_per_group, piece % pieces_per_group);
            seen = if part == 0 { Observed::NOTHING.merge(*observed) } else { seen.merge(*observed) };
            if part + 1 == pieces_per_group {
                // Row (outer, inner) and group j belong at (outer, j, inner).
                let (row, j) = (place / groups_per_row, place % groups_per_row);
                put((row / inner * groups_per_row + j) * inner + row % inner, &seen);
            }
        }
    }
}
