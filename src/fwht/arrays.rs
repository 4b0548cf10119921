//! Transforms of whole arrays, along their last axis.
//!
//! Rows longer than [`BLOCK_MAX`] are transformed in blocks, then in passes of eight rows over what the third-level cache
//! holds, and last over memory: eight streams side by side, which is what prefetchers are good at.

use std::ops::Range;

use super::stages::{RADIX, in_place, out_of_place, pass};
use super::{BLOCK_MAX, aligned, root};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel;
use crate::simd;
use crate::view::{View, ViewMut};

/// The numbers of a long row that are done with before the next are read: 8 MiB.
const SPAN: u32 = 21;

/// The orthonormal Hadamard transform along the last axis, whose length is a power of two. `out` has x's shape; it may be
/// the very memory of `x`. Beyond [`BLOCK_MAX`] it must be plain (see [`ViewMut::is_plain`]).
pub fn hadamard_transform(x: &View, out: &mut ViewMut) -> Result<()> {
    let d = last_axis(x, out)?;
    if !d.is_power_of_two() {
        let advice = match d.checked_next_power_of_two() {
            Some(next) if d > 0 => {
                format!("pad it to {next}, or use randomized_hadamard_transform, which takes any length")
            }
            _ => "give a power of two".into(),
        };
        return Err(Error::argument("x", format!("the last axis has length {d}, which is no power of two; {advice}")));
    }
    let k = d.ilog2();
    if d > BLOCK_MAX && !out.is_plain() {
        return Err(Error::argument("out", format!("rows of {d} need contiguous float32")));
    }
    let mut job = Job::new(x, out);
    let scale = (1.0 / root(k, 1)) as f32;
    if d <= BLOCK_MAX {
        job.blocks(0..x.len(), k, Some(scale));
    } else {
        // What is read again should stay in the caches.
        job.stream = false;
        job.rows(k, scale);
    }
    Ok(())
}

/// The length of the last axis; the other conditions that both transforms share.
pub(super) fn last_axis(x: &View, out: &ViewMut) -> Result<usize> {
    if x.len() != out.len() {
        return Err(Error::argument("out", format!("has room for {}, but {} are needed", out.len(), x.len())));
    }
    let none = || Error::argument("x", "has no axis to transform along; give an array of at least one dimension");
    x.shape().last().copied().ok_or_else(none)
}

/// A transform from one array into another.
pub(super) struct Job<'a> {
    x: &'a View<'a>,
    out: &'a ViewMut<'a>,
    pub level: Level,
    /// The input is the output's memory.
    in_place: bool,
    /// The output is written past the caches.
    stream: bool,
}

impl<'a> Job<'a> {
    pub fn new(x: &'a View, out: &'a ViewMut) -> Self {
        let in_place = std::ptr::eq(x.start(), out.start());
        let stream = out.is_plain() && !in_place && out.bytes() >= simd::STREAM_FROM;
        Job { x, out, level: Level::current(), in_place, stream }
    }

    /// Transforms every `2^k` numbers of a range, k at most 16.
    fn blocks(&self, range: Range<usize>, k: u32, scale: Option<f32>) {
        let level = self.level;
        let piece = (1 << k).max(1 << 11);
        let chunk = ((range.len() >> 6).clamp(1 << 14, 1 << 18) / piece * piece).max(piece);
        let direct = self.out.is_plain() && !self.stream;
        parallel::for_each(range.len().div_ceil(chunk), |index| {
            let start = range.start + index * chunk;
            let all = start..range.end.min(start + chunk);
            let mut memory = Vec::new();
            let buffer = if direct { &mut [][..] } else { aligned(&mut memory, piece.min(all.len())) };
            level.run(
                #[inline(always)]
                || {
                    for start in all.clone().step_by(piece) {
                        let part = start..all.end.min(start + piece);
                        let y = if direct {
                            // SAFETY: plain; pieces are disjoint, and if x is the same memory it is not read.
                            unsafe { self.out.part(part.clone()) }
                        } else {
                            &mut buffer[..part.len()]
                        };
                        if self.x.is_plain() && !self.in_place {
                            out_of_place(level, k, self.x.read(part, &mut []), y, scale);
                        } else {
                            if !(direct && self.in_place) {
                                self.x.copy(part, y);
                            }
                            in_place(level, k, y, None, scale);
                        }
                        if !direct {
                            // SAFETY: pieces are disjoint, and x is read no more where it is the same memory.
                            unsafe { self.put(start, y) };
                        }
                    }
                    simd::stream_done();
                },
            );
        });
    }

    /// Transforms every `2^k` numbers, more than a block holds; the output is plain.
    fn rows(&self, k: u32, scale: f32) {
        let n = self.x.len();
        // Short arrays in small blocks, so that there are enough for several threads.
        let block = if n >= 16 * BLOCK_MAX { BLOCK_MAX } else { 1 << 13 };
        let span = 1 << k.min(SPAN);
        for start in (0..n).step_by(span) {
            self.blocks(start..start + span, block.ilog2(), None);
            self.passes(start..start + span, block, span, (k <= SPAN).then_some(scale));
        }
        if k > SPAN {
            self.passes(0..n, span, 1 << k, Some(scale));
        }
    }

    /// Goes on with what is transformed by every `stride` numbers, until it is by every `end`.
    fn passes(&self, range: Range<usize>, mut stride: usize, end: usize, scale: Option<f32>) {
        const COLUMNS: usize = 1 << 13;
        let level = self.level;
        while stride < end {
            let radix = RADIX.min(end / stride);
            let parts = stride / COLUMNS;
            let scale = scale.filter(|_| radix * stride == end);
            parallel::for_each(range.len() / (radix * stride) * parts, |index| {
                let first = range.start + index / parts * radix * stride + index % parts * COLUMNS;
                // SAFETY: columns are disjoint, and all their rows are in the range of an output that is plain.
                level.run(
                    #[inline(always)]
                    || unsafe {
                        let start = self.out.start().cast::<f32>().cast_mut().add(first);
                        pass(radix, start, COLUMNS, stride, scale);
                    },
                );
            });
            stride *= radix;
        }
    }

    /// Reads elements `start..start + values.len()`.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    #[inline(always)]
    pub unsafe fn load(&self, start: usize, values: &mut [f32]) {
        let range = start..start + values.len();
        if !self.x.is_plain() {
            self.x.copy(range, values);
        } else if self.in_place {
            // SAFETY: what is plain as x is as out; the rest by the caller's promise.
            values.copy_from_slice(unsafe { self.out.part(range) });
        } else {
            values.copy_from_slice(self.x.read(range, &mut []));
        }
    }

    /// Writes numbers from element `start` on.
    ///
    /// # Safety
    /// They are in bounds, and nobody else touches them meanwhile.
    #[inline(always)]
    pub unsafe fn put(&self, start: usize, values: &[f32]) {
        if !self.out.is_plain() {
            // SAFETY: by the caller's promise.
            return unsafe { self.out.write(start, values) };
        }
        // SAFETY: plain; the rest by the caller's promise.
        let part = unsafe { self.out.part(start..start + values.len()) };
        if self.stream {
            simd::stream_copy(self.level, bytemuck::cast_slice(values), bytemuck::cast_slice_mut(part));
        } else {
            part.copy_from_slice(values);
        }
    }
}
