//! Transforms of whole arrays, along their last axis.
//!
//! What is longer than [`BLOCK_MAX`] numbers goes through memory twice (2^24 numbers): first its blocks, then, 64 columns
//! at a time, the stages between them.

use std::ops::Range;

use super::stages::{columns, in_place, out_of_place};
use super::{BLOCK_MAX, LINE, aligned, root};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel;
use crate::simd;
use crate::view::{View, ViewMut};

/// Columns that are gathered at once: four cache lines of each row.
const STRIP: usize = 4 * LINE;

/// Stages between blocks in one pass over memory: 2^8 rows of a strip take 64 KiB.
const FAR: u32 = 8;

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
    let job = Job::new(x, out);
    let scale = (1.0 / root(k, 1)) as f32;
    if d <= BLOCK_MAX {
        job.near(k, Some(scale));
        return Ok(());
    }
    // Short arrays in small blocks, so that there are enough for several threads.
    let mut done = if x.len() >= 16 * BLOCK_MAX { BLOCK_MAX.ilog2() } else { 13 };
    job.near(done, None);
    while done < k {
        let passes = (k - done).div_ceil(FAR);
        let stages = (k - done).div_ceil(passes);
        job.far(done, stages, (passes == 1).then_some(scale));
        done += stages;
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
    pub x: &'a View<'a>,
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

    /// Transforms every `2^k` numbers, k at most 16.
    fn near(&self, k: u32, scale: Option<f32>) {
        let (n, level) = (self.x.len(), self.level);
        let piece = (1 << k).max(1 << 12);
        let chunk = ((n >> 6).clamp(1 << 14, 1 << 18) / piece * piece).max(piece);
        let direct = self.out.is_plain() && !self.stream;
        parallel::for_each(n.div_ceil(chunk), |index| {
            let all = index * chunk..n.min((index + 1) * chunk);
            let mut memory = Vec::new();
            let buffer = if direct { &mut [][..] } else { aligned(&mut memory, piece.min(all.len())) };
            level.run(
                #[inline(always)]
                || {
                    for start in all.clone().step_by(piece) {
                        let range = start..all.end.min(start + piece);
                        let y = if direct {
                            // SAFETY: plain; pieces are disjoint, and if x is the same memory it is not read.
                            unsafe { self.out.part(range.clone()) }
                        } else {
                            &mut buffer[..range.len()]
                        };
                        if direct && self.in_place {
                            in_place(level, k, y, None);
                        } else if self.x.is_plain() {
                            out_of_place(level, k, self.x.read(range.clone(), &mut []), y);
                        } else {
                            self.x.copy(range.clone(), y);
                            in_place(level, k, y, None);
                        }
                        if let Some(scale) = scale {
                            finish(scale, y);
                        }
                        if !direct {
                            // SAFETY: pieces are disjoint, and x is read no more where it is the same memory.
                            unsafe { self.put(start, &buffer[..range.len()]) };
                        }
                    }
                    simd::stream_done();
                },
            );
        });
    }

    /// Writes numbers from element `start` on.
    ///
    /// # Safety
    /// They are in bounds, and nobody else touches them meanwhile.
    #[inline(always)]
    pub unsafe fn put(&self, start: usize, values: &[f32]) {
        if self.stream {
            // SAFETY: plain; the rest by the caller's promise.
            let part = unsafe { self.out.part(start..start + values.len()) };
            simd::stream_copy(self.level, bytemuck::cast_slice(values), bytemuck::cast_slice_mut(part));
        } else {
            // SAFETY: by the caller's promise.
            unsafe { self.out.write(start, values) };
        }
    }

    /// Goes on with the stages `done..done + stages` of what lies in the output, which is plain.
    fn far(&self, done: u32, stages: u32, scale: Option<f32>) {
        const STRIPS: usize = 8;
        let (level, width, rows) = (self.level, 1 << done, 1 << stages);
        // Strips begin with a cache line, except for the first.
        let head = self.out.start().cast::<f32>().align_offset(LINE * size_of::<f32>()) % STRIP;
        let strips = width / STRIP + 1;
        let chunks = strips.div_ceil(STRIPS);
        parallel::for_each(self.out.len() / (rows * width) * chunks, |index| {
            let start = index / chunks * rows * width;
            let first = index % chunks * STRIPS;
            let mut memory = Vec::new();
            let buffer = aligned(&mut memory, rows * STRIP);
            level.run(
                #[inline(always)]
                || {
                    for strip in first..strips.min(first + STRIPS) {
                        let end = strip * STRIP + head;
                        let range = start + end.saturating_sub(STRIP)..start + end.min(width);
                        // SAFETY: strips are disjoint, and every row of one is in bounds.
                        unsafe { self.strip(range, width, stages, scale, buffer) };
                    }
                    simd::stream_done();
                },
            );
        });
    }

    /// The next `stages` of the elements `range` and what lies under them in rows of `width`.
    ///
    /// # Safety
    /// The output is plain, all rows of the range are in it, and nobody else touches them meanwhile.
    #[inline(always)]
    unsafe fn strip(&self, range: Range<usize>, width: usize, stages: u32, scale: Option<f32>, buffer: &mut [f32]) {
        let rows = 1 << stages;
        // SAFETY: by the caller's promise.
        let row = |r: usize| unsafe { self.out.part(range.start + r * width..range.end + r * width) };
        // Each line's columns lie together: 16 KiB for 256 rows.
        for r in 0..rows {
            for (line, values) in row(r).chunks(LINE).enumerate() {
                let place = (line * rows + r) * LINE;
                buffer[place..place + values.len()].copy_from_slice(values);
            }
        }
        for block in buffer.chunks_exact_mut(rows * LINE).take(range.len().div_ceil(LINE)) {
            let (start, n) = (block.as_mut_ptr(), block.len());
            // SAFETY: the block has 2^stages rows of LINE numbers.
            unsafe {
                match stages {
                    1 => columns::<2>(start, n, LINE),
                    2 => columns::<4>(start, n, LINE),
                    3 => columns::<8>(start, n, LINE),
                    _ => columns::<16>(start, n, LINE),
                }
                match stages {
                    0..5 => {}
                    5 => columns::<2>(start, n, 16 * LINE),
                    6 => columns::<4>(start, n, 16 * LINE),
                    7 => columns::<8>(start, n, 16 * LINE),
                    _ => columns::<16>(start, n, 16 * LINE),
                }
            }
            if let Some(scale) = scale {
                finish(scale, block);
            }
        }
        let mut values = [0.0; STRIP];
        for r in 0..rows {
            let row = row(r);
            let values = &mut values[..row.len()];
            for (line, values) in values.chunks_mut(LINE).enumerate() {
                let place = (line * rows + r) * LINE;
                values.copy_from_slice(&buffer[place..place + values.len()]);
            }
            if self.stream {
                simd::stream_copy(self.level, bytemuck::cast_slice(values), bytemuck::cast_slice_mut(row));
            } else {
                row.copy_from_slice(values);
            }
        }
    }
}

/// Scales, and makes every NaN the same: the sign and payload of a sum of NaNs depend on the CPU.
#[inline(always)]
pub(super) fn finish(scale: f32, values: &mut [f32]) {
    for x in values {
        let bits = (*x * scale).to_bits();
        let nan = bits & (u32::MAX >> 1) > f32::INFINITY.to_bits();
        *x = f32::from_bits(if nan { f32::NAN.to_bits() } else { bits });
    }
}
