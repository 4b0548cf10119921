//! One block of a product, by one thread.

use std::cell::Cell;
use std::ops::Range;

use super::kernel::ROOM;
use super::operand::{Lane, Layout, Plane, Rows, pack};
use super::{Job, Place};
use crate::cpu::Level;
use crate::parallel::Shared;

/// Memory of a thread, kept for its next block.
#[derive(Default)]
pub(super) struct Space {
    a: Vec<u32>,
    b: Vec<u32>,
    sums: Vec<i32>,
    excess: Vec<i32>,
    wide: Vec<i64>,
    pub(super) bytes: Rows<u8>,
    pub(super) words: Rows<u16>,
}

thread_local! {
    static SPACE: Cell<Option<Box<Space>>> = const { Cell::new(None) };
}

/// `n` numbers of four bytes that start with a cache line, in `memory`.
fn aligned<T: Copy + Default>(memory: &mut Vec<T>, n: usize) -> &mut [T] {
    const LINE: usize = 64;
    let most = LINE / size_of::<T>();
    if memory.len() < n + most {
        memory.resize(n + most, T::default());
    }
    let skip = memory.as_ptr().align_offset(LINE).min(most);
    &mut memory[skip..skip + n]
}

/// What a block is computed in.
struct Work<'a, T> {
    /// Panels: rows of a, [`ROOM`] groups each; tiles' columns of b.
    a: &'a mut [u32],
    b: &'a mut [u32],
    /// Rows `stride` apart.
    sums: &'a mut [i32],
    stride: usize,
    /// What a bias of a has added to every row of sums.
    excess: &'a mut [i32],
    /// What is in the panels.
    packed: Range<usize>,
    /// So many places are packed at once: whole blocks that are scaled for themselves, where they are small enough and begin
    /// with a group; else 0, and every sum is packed for itself.
    span: usize,
    rows: Rows<T>,
}

/// Parts of a range, each of this size but the last.
#[inline(always)]
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start.saturating_add(size)))
}

impl Job<'_> {
    /// Computes a block of the result.
    #[inline(always)]
    pub(super) fn block<T: Lane>(&self, level: Level, mut place: Place, out: &Shared<f32>) {
        let k = self.a.codes.inner;
        let (tile_rows, tile_columns) = self.kernel.tile_shape();
        let height = place.rows.len().next_multiple_of(tile_rows);
        let stride = place.columns.len().next_multiple_of(tile_columns);
        let scaled = self.scaling.block().unwrap_or(k);
        let cut = self.exact < scaled.min(k);
        let (room, multiple) = (ROOM * T::GROUP, self.kernel.groups() * T::GROUP);
        let whole = scaled.is_multiple_of(multiple) && (!cut || self.exact.is_multiple_of(multiple));
        let planes: Vec<_> =
            self.passes.iter().map(|pass| (T::plane(self.a.steps, pass.a), T::plane(self.b.steps, pass.b))).collect();
        let mut space = SPACE.take().unwrap_or_default();
        let rows = std::mem::take(T::rows(&mut space));
        space.wide.clear();
        space.wide.resize(if cut { height * stride } else { 0 }, 0);
        let mut work = Work {
            a: aligned(&mut space.a, height * ROOM),
            b: aligned(&mut space.b, stride * ROOM),
            sums: aligned(&mut space.sums, height * stride),
            stride,
            excess: aligned(&mut space.excess, stride),
            packed: 0..0,
            span: if self.passes.len() == 1 && scaled <= room && whole { room - room % scaled } else { 0 },
            rows,
        };
        for (block, inner) in pieces(0..k, scaled).enumerate() {
            place.block = block;
            if !cut {
                self.sum(level, &place, inner, &planes, &mut work);
                let sum = |i: usize, j: usize| work.sums[i * stride + j].wrapping_sub(work.excess[j]) as f32;
                self.finish(&place, sum, out);
                continue;
            }
            space.wide.fill(0);
            for piece in pieces(inner, self.exact) {
                self.sum(level, &place, piece, &planes, &mut work);
                for (wide, sums) in space.wide.chunks_exact_mut(stride).zip(work.sums.chunks_exact(stride)) {
                    for ((wide, sum), excess) in wide.iter_mut().zip(sums).zip(&*work.excess) {
                        *wide += i64::from(sum.wrapping_sub(*excess));
                    }
                }
            }
            self.finish(&place, |i, j| space.wide[i * stride + j] as f32, out);
        }
        let rows = work.rows;
        *T::rows(&mut space) = rows;
        SPACE.set(Some(space));
    }

    /// Makes `work.sums` those of a run of places whose sums fit 32 bits, and the excess.
    #[inline(always)]
    fn sum<T: Lane>(
        &self,
        level: Level,
        place: &Place,
        inner: Range<usize>,
        planes: &[(Plane<T>, Plane<T>)],
        work: &mut Work<T>,
    ) {
        let (a, b) = (self.a, self.b);
        let multiple = self.kernel.groups() * T::GROUP;
        let columns = self.kernel.tile_shape().1;
        work.sums.fill(0);
        work.excess.fill(0);
        for (pass, (plane_a, plane_b)) in self.passes.iter().zip(planes) {
            if pass.shift > 0 {
                for sum in work.sums.iter_mut() {
                    *sum <<= pass.shift;
                }
            }
            for part in pieces(inner.clone(), ROOM * T::GROUP) {
                if work.span == 0 || !work.packed.contains(&part.start) {
                    work.packed = if work.span == 0 {
                        part.clone()
                    } else {
                        part.start..a.codes.inner.min(part.start + work.span)
                    };
                    let groups = work.packed.len().next_multiple_of(multiple) / T::GROUP;
                    let layout = Layout { groups, width: usize::MAX, panel: 0, line: ROOM, group: 1 };
                    let lines = (place.rows.clone(), work.packed.clone());
                    pack(level, a.matrix(place.matrix), plane_a, lines, layout, &mut work.rows, work.a);
                    let layout = Layout { groups, width: columns, panel: ROOM * columns, line: 1, group: columns };
                    let lines = (place.columns.clone(), work.packed.clone());
                    pack(level, b.matrix(place.matrix), plane_b, lines, layout, &mut work.rows, work.b);
                }
                let skip = (part.start - work.packed.start) / T::GROUP;
                self.multiply(skip, part.len().next_multiple_of(multiple) / T::GROUP, work);
            }
        }
    }

    /// Adds the products of so many groups of the panels, from `skip` on, to the sums.
    #[inline(always)]
    fn multiply<T>(&self, skip: usize, groups: usize, work: &mut Work<T>) {
        let (rows, columns) = self.kernel.tile_shape();
        let height = work.sums.len() / work.stride;
        for (p, b) in work.b.chunks_exact(ROOM * columns).enumerate() {
            let b = &b[skip * columns..(skip + groups) * columns];
            if self.bias != 0 {
                add_columns(b, self.bias, &mut work.excess[p * columns..][..columns]);
            }
            for i in (0..height).step_by(rows) {
                let (a, sums) = (&work.a[i * ROOM + skip..], &mut work.sums[i * work.stride + p * columns..]);
                // SAFETY: the kernel is of this CPU; both panels have room for `skip + groups` groups, and there are whole
                // tiles of sums.
                unsafe { self.kernel.tile(self.lanes, a.as_ptr(), b.as_ptr(), groups, sums.as_mut_ptr(), work.stride) };
            }
        }
    }
}

/// Adds the sums of columns of a panel of bytes, times the bias of what multiplies them.
#[inline(always)]
fn add_columns(panel: &[u32], bias: i32, excess: &mut [i32]) {
    for row in panel.chunks_exact(excess.len()) {
        for (excess, group) in excess.iter_mut().zip(row) {
            let byte = |i: u32| (*group << (24 - 8 * i)) as i32 >> 24;
            *excess = excess.wrapping_add(bias * (byte(0) + byte(1) + byte(2) + byte(3)));
        }
    }
}
