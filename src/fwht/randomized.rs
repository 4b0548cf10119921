//! The randomized transform of whole arrays: a rotation of any length.

use super::arrays::{Job, last_axis};
use super::stages::finish;
use super::{Blocks, ROUNDS_MAX, Signs, aligned, root, rotate, rotate_back};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel;
use crate::simd;
use crate::stream::Key;
use crate::view::{View, ViewMut};

/// The least numbers that are rotated together, where there are so many: in shorter blocks a rotation is far from uniform.
const LEAST: usize = 128;

/// Rotates along the last axis, every row by the same signs, or undoes that; orthonormal, and any length stays as it is.
///
/// The [`Blocks`] of a row are rotated, then, if its length is no multiple of the shortest block allowed (128, or the
/// largest power of two in shorter rows), its last numbers once more as one such block. `key` is already folded by its
/// purpose; `out` has x's shape and may be the very memory of `x`.
pub fn randomized_hadamard_transform(x: &View, key: Key, rounds: u32, inverse: bool, out: &mut ViewMut) -> Result<()> {
    let d = last_axis(x, out)?;
    if !(1..=ROUNDS_MAX).contains(&rounds) {
        let reason = format!("{rounds} rounds were asked for; give 1 to {ROUNDS_MAX}");
        return Err(Error::argument("rounds", reason));
    }
    if x.is_empty() {
        return Ok(());
    }
    let job = Job::new(x, out);
    let row = Row::new(d, Signs::new(key, rounds));
    let items = x.len() / d * row.blocks.len();
    let longest = row.blocks.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
    // One buffer for up to four long blocks.
    let chunk = ((1 << 14) / longest).max((items / 64).min(4)).max(1);
    parallel::for_each(items.div_ceil(chunk), |index| {
        let mut memory = Vec::new();
        let buffer = aligned(&mut memory, longest + LEAST);
        job.level.run(
            #[inline(always)]
            || {
                for item in index * chunk..items.min((index + 1) * chunk) {
                    let (start, block) = (item / row.blocks.len() * d, item % row.blocks.len());
                    // SAFETY: every item touches its own block, and the last one of a row what follows it too.
                    unsafe { row.rotate_block(&job, start, block, inverse, buffer) };
                }
                simd::stream_done();
            },
        );
    });
    Ok(())
}

/// How the rows of an array are rotated.
struct Row {
    signs: Signs,
    blocks: Vec<std::ops::Range<usize>>,
    /// The length of the block that is rotated last, or 0, and how much of it is in the block before.
    tail: usize,
    overlap: usize,
}

impl Row {
    fn new(d: usize, signs: Signs) -> Self {
        let least = LEAST.min(1 << d.ilog2());
        let rest = d % least;
        let tail = if rest == 0 { 0 } else { least };
        Row { signs, blocks: Blocks::new(d - rest, least).ranges().collect(), tail, overlap: tail - rest }
    }

    /// Rotates a block at this position of a row, or undoes that, and scales it.
    #[inline(always)]
    fn turn(&self, level: Level, inverse: bool, position: usize, block: &mut [f32]) {
        let turn = if inverse { rotate_back } else { rotate };
        turn(level, &self.signs, position as u64, block);
        let scale = (1.0 / root(block.len().ilog2(), self.signs.rounds as u32)) as f32;
        for x in block {
            *x = finish(*x, scale);
        }
    }

    /// Rotates one block of the row that starts at element `start`, and with the last block the tail.
    ///
    /// # Safety
    /// The row is in bounds, and nobody else touches this block of it.
    #[inline(always)]
    unsafe fn rotate_block(&self, job: &Job, start: usize, block: usize, inverse: bool, buffer: &mut [f32]) {
        let range = self.blocks[block].clone();
        let (y, rest) = buffer.split_at_mut(range.len());
        let z = &mut rest[..if block + 1 == self.blocks.len() { self.tail } else { 0 }];
        let (own, place) = (range.len() - self.overlap, start + range.start);
        // SAFETY: by the caller's promise; x is read no more after the first `put`.
        unsafe {
            if z.is_empty() {
                job.load(place, y);
                self.turn(job.level, inverse, range.start, y);
            } else if inverse {
                job.load(place + own, z);
                self.turn(job.level, inverse, range.end, z);
                job.load(place, &mut y[..own]);
                y[own..].copy_from_slice(&z[..self.overlap]);
                self.turn(job.level, inverse, range.start, y);
            } else {
                job.load(place, y);
                self.turn(job.level, inverse, range.start, y);
                z[..self.overlap].copy_from_slice(&y[own..]);
                job.load(place + y.len(), &mut z[self.overlap..]);
                // The tail's signs follow those of the blocks.
                self.turn(job.level, inverse, range.end, z);
                y[own..].copy_from_slice(&z[..self.overlap]);
            }
            job.put(place, y);
            if let Some(rest) = z.get(self.overlap..).filter(|rest| !rest.is_empty()) {
                job.put(place + y.len(), rest);
            }
        }
    }
}
