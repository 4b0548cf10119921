//! The first of two passes: scales of groups too large, or too scattered, to be observed on the spot.

use std::sync::Mutex;

use super::layout::Grouping;
use crate::cpu::Level;
use crate::parallel::{self, Shared};
use crate::scale::{Columns, Finisher, Observed, PIECE, Statistic};
use crate::view::View;

/// Writes the scale (and second number, if there is room) of every group, in C order of the scales' shape. There must be
/// room for both if the rule looks again.
pub(super) fn observe(x: &View, grouping: Grouping, finisher: Finisher, scale: &mut [f32], second: &mut [f32]) {
    look(x, grouping, finisher, scale, second);
    if !finisher.rule.looks_again() || x.is_empty() {
        return;
    }
    let (found, seconds) = (scale.to_vec(), second.to_vec());
    let first = |place: usize| (found[place], seconds[place]);
    let (scale, second) = (Shared::new(scale), Shared::new(second));
    in_order(
        x,
        grouping,
        #[inline(always)]
        |place, piece| finisher.look_again(piece, first(place)),
        |place, seen| {
            let (this_scale, this_second) = finisher.finish_again(seen, first(place));
            // SAFETY: every group is put once; the slices are borrowed until this function returns.
            unsafe {
                scale.put(place, this_scale);
                second.put(place, this_second);
            }
        },
    );
}

fn look(x: &View, grouping: Grouping, finisher: Finisher, scale: &mut [f32], second: &mut [f32]) {
    let (scale, second) = (Shared::new(scale), Shared::new(second));
    observe_groups(x, grouping, finisher.rule.statistic, |place, seen| {
        let (this_scale, this_second) = finisher.finish(seen);
        // SAFETY: every group is put once; the slices are borrowed until this function returns.
        unsafe {
            scale.put(place, this_scale);
            second.put(place, this_second);
        }
    });
}

/// Calls `put` for every group, once, with its number in C order of the scales' shape and what was seen in it. It is called
/// within `level.run`, which costs as much as finishing a group.
pub(crate) fn observe_groups(
    x: &View,
    grouping: Grouping,
    statistic: Statistic,
    put: impl Fn(usize, &Observed) + Sync,
) {
    let level = Level::current();
    let shape = x.shape();
    if x.is_empty() {
        let groups = grouping.scale_shape(shape).iter().product();
        return level.run(|| (0..groups).for_each(|place| put(place, &Observed::NOTHING)));
    }
    let ordered = statistic == Statistic::Moments;
    let before = |axis: usize| shape[..axis].iter().product::<usize>();
    let after = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    match grouping {
        Grouping::Blocks { axis, size } if after(axis) > 1 => {
            scattered_blocks(x, shape[axis], size, after(axis), statistic, put);
        }
        // As one block of all rows.
        Grouping::Axis(axis) if after(axis) == 1 && (before(axis) <= FEW_ROWS || ordered && shape[axis] >= NARROW) => {
            scattered_blocks(x, before(axis), before(axis), shape[axis], statistic, put);
        }
        Grouping::Axis(axis) if !ordered && after(axis) < LONG_RUN => {
            channels(x, shape[axis], after(axis), statistic, put);
        }
        _ => in_order(
            x,
            grouping,
            #[inline(always)]
            |_, piece| statistic.observe(piece),
            put,
        ),
    }
}

/// What is seen in the whole array.
pub fn observe_all(x: &View, statistic: Statistic) -> Observed {
    let whole = std::cell::Cell::new(Observed::NOTHING);
    if !x.is_empty() {
        in_order(
            x,
            Grouping::Array,
            #[inline(always)]
            |_, piece| statistic.observe(piece),
            |_, seen| whole.set(*seen),
        );
    }
    whole.get()
}

/// Columns that are observed side by side: one page of float32; fewer where each has sixteen sums.
const WIDTH: usize = 1024;
const WIDTH_OF_SUMS: usize = 256;

/// Numbers that one task of the parallel loops observes, about.
const TASK: usize = 1 << 16;

/// So few rows are one task.
const FEW_ROWS: usize = TASK / WIDTH;

/// Fewer channels than this are better read one after the other where order matters.
const NARROW: usize = 32;

/// Channels with longer runs of neighbours than this are better read one after the other.
const LONG_RUN: usize = 256;

/// Blocks of `size` along an axis of `length` whose neighbours lie `inner` apart: the rows of a block are read in memory
/// order, `WIDTH` blocks side by side.
fn scattered_blocks(
    x: &View,
    length: usize,
    size: usize,
    inner: usize,
    statistic: Statistic,
    put: impl Fn(usize, &Observed) + Sync,
) {
    let level = Level::current();
    let widest = if statistic == Statistic::Moments { WIDTH_OF_SUMS } else { WIDTH };
    let (blocks, strips) = (length.div_ceil(size), inner.div_ceil(widest));
    let panels = x.len() / length / inner * blocks;
    parallel::for_each(panels * strips, |task| {
        let (panel, first) = (task / strips, task % strips * widest);
        let width = widest.min(inner - first);
        let (outer, block) = (panel / blocks, panel % blocks);
        let mut columns = Columns::new(statistic, width);
        level.run(
            #[inline(always)]
            || {
                let mut buffer = [0.0; WIDTH];
                for row in block * size..length.min((block + 1) * size) {
                    let start = (outer * length + row) * inner + first;
                    columns.observe(x.read(start..start + width, &mut buffer));
                }
                for column in 0..width {
                    put(panel * inner + first + column, &columns.seen(column));
                }
            },
        );
    });
}

/// `channels` groups, each of runs of `inner` neighbours, once in every row: all are observed side by side, row by row.
fn channels(x: &View, channels: usize, inner: usize, statistic: Statistic, put: impl Fn(usize, &Observed) + Sync) {
    let level = Level::current();
    let row = channels * inner;
    let rows = x.len() / row;
    // Whole channels per strip.
    let width = (WIDTH / inner).max(1) * inner;
    for first in (0..row).step_by(width) {
        let width = width.min(row - first);
        let rows_per_task = (TASK / width).max(1);
        let seen = Mutex::new(vec![Observed::NOTHING; width / inner]);
        parallel::for_each(rows.div_ceil(rows_per_task), |task| {
            let mut columns = Columns::new(statistic, width);
            level.run(
                #[inline(always)]
                || {
                    let mut buffer = [0.0; WIDTH];
                    for row_index in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                        let start = row_index * row + first;
                        columns.observe(x.read(start..start + width, &mut buffer));
                    }
                },
            );
            // Extremes need no order, so whichever task comes first may go first.
            if let Ok(mut seen) = seen.lock() {
                for column in 0..width {
                    seen[column / inner] = seen[column / inner].merge(columns.seen(column));
                }
            }
        });
        let seen = seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        level.run(|| (first / inner..).zip(&seen).for_each(|(channel, seen)| put(channel, seen)));
    }
}

/// Pieces observed before they are merged, which bounds the memory: 384 KiB.
const WAVE: usize = 1 << 13;

/// Numbers per parallel chunk, about: many short pieces, or few long ones, but of a wave enough chunks to share.
const CHUNK: usize = 4 * PIECE;

/// Any grouping and way to look at (a piece of) a group: each group is read in its own C order, in pieces that are merged in
/// order.
fn in_order(
    x: &View,
    grouping: Grouping,
    look: impl Fn(usize, &[f32]) -> Observed + Sync,
    put: impl Fn(usize, &Observed),
) {
    let shape = x.shape();
    // Seen as rows of whole groups: `row` numbers in groups of `group`, for each of `inner` neighbours.
    let (rows, row, group, inner) = match grouping {
        Grouping::Array => (x.clone(), x.len(), x.len(), 1),
        Grouping::Axis(axis) => {
            let group = x.len() / shape[axis];
            (x.with_axis_at(axis, 0), group, group, 1)
        }
        Grouping::Blocks { axis, size } => {
            let rows = x.with_axis_at(axis, shape.len() - 1);
            (rows, shape[axis], size.min(shape[axis]), shape[axis + 1..].iter().product())
        }
    };
    let level = Level::current();
    let groups_per_row = row.div_ceil(group);
    let pieces_per_group = group.div_ceil(PIECE);
    let pieces = x.len() / row * groups_per_row * pieces_per_group;
    let per_chunk = (CHUNK / group.min(PIECE)).min(WAVE / 32);
    // Row (outer, inner) and group j belong at (outer, j, inner).
    let home = |place: usize| {
        let (row, j) = (place / groups_per_row, place % groups_per_row);
        (row / inner * groups_per_row + j) * inner + row % inner
    };
    let mut wave = vec![Observed::NOTHING; pieces.min(WAVE)];
    let mut seen = Observed::NOTHING;
    for first in (0..pieces).step_by(WAVE) {
        let count = WAVE.min(pieces - first);
        let shared = Shared::new(&mut wave);
        parallel::for_each(count.div_ceil(per_chunk), |chunk| {
            let part = chunk * per_chunk..count.min((chunk + 1) * per_chunk);
            // SAFETY: chunks are disjoint; `wave` is borrowed until `for_each` returns.
            let slots = unsafe { shared.part(part.clone()) };
            level.run(
                #[inline(always)]
                || {
                    let mut buffer = [0.0; PIECE];
                    for (slot, piece) in slots.iter_mut().zip(part.start + first..) {
                        let (place, piece) = (piece / pieces_per_group, piece % pieces_per_group);
                        let start = place % groups_per_row * group;
                        let end = row.min(start + group);
                        let base = place / groups_per_row * row;
                        let range = end.min(start + piece * PIECE)..end.min(start + (piece + 1) * PIECE);
                        *slot = look(home(place), rows.read(base + range.start..base + range.end, &mut buffer));
                    }
                },
            );
        });
        level.run(
            #[inline(always)]
            || {
                for (piece, observed) in (first..).zip(&wave[..count]) {
                    let (place, part) = (piece / pieces_per_group, piece % pieces_per_group);
                    seen = if part == 0 { Observed::NOTHING.merge(*observed) } else { seen.merge(*observed) };
                    if part + 1 == pieces_per_group {
                        put(home(place), &seen);
                    }
                }
            },
        );
    }
}
