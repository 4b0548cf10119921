//! The stages of a transform whose numbers a cache holds.
//!
//! Tiles of 64 numbers go through their first six stages in registers; passes over 16 or 8 columns follow, depth first,
//! so that a pass reads what was written a moment ago.

use crate::cpu::Level;
use crate::stream::Stream;

#[cfg(target_arch = "x86_64")]
use super::x86_64;

/// How many numbers are in registers at once.
pub(super) const TILE: usize = 64;

/// How many go through two passes before the next ones are read: 4 KiB.
const PIECE: usize = 1 << 10;

/// The signs to flip before the first stage: those of the positions from `start` on.
#[derive(Clone, Copy)]
pub(super) struct Flips {
    pub stream: Stream,
    pub start: u64,
}

impl Flips {
    /// The signs of a tile: bit i is that of its number i. (A block shorter than a tile starts at a multiple of its length,
    /// so its bits are those of one pair of words too.)
    #[inline(always)]
    pub fn of_tile(self, tile: usize) -> u64 {
        self.stream.pair(self.start / TILE as u64 + tile as u64) >> (self.start % TILE as u64)
    }

    /// Flips the signs of a block.
    #[inline(always)]
    pub fn apply(self, block: &mut [f32]) {
        let (tiles, rest) = block.as_chunks_mut::<TILE>();
        let whole = tiles.len();
        for (tile, numbers) in tiles.iter_mut().enumerate() {
            flip(self.of_tile(tile), numbers);
        }
        if !rest.is_empty() {
            flip(self.of_tile(whole), rest);
        }
    }
}

/// Bit 1 flips a sign.
#[inline(always)]
fn flip(bits: u64, numbers: &mut [f32]) {
    for (half, word) in numbers.chunks_mut(32).zip([bits as u32, (bits >> 32) as u32]) {
        for (i, x) in half.iter_mut().enumerate() {
            *x = f32::from_bits(x.to_bits() ^ (word >> i) << 31);
        }
    }
}

/// Transforms every `2^k` numbers of `block`, after flipping signs.
///
/// # Panics
/// If the block is not a multiple of so many.
#[inline(always)]
pub(super) fn in_place(level: Level, k: u32, block: &mut [f32], flips: Option<Flips>) {
    assert!(block.len().is_multiple_of(1 << k), "{} numbers by 2^{k}", block.len());
    // SAFETY: all of the block is read and written, a multiple of 2^k.
    unsafe { transform(level, k, block.as_ptr(), block.as_mut_ptr(), block.len(), flips) };
}

/// Transforms every `2^k` numbers of `from` into `to`.
///
/// # Panics
/// If the lengths differ or are not a multiple of so many.
#[inline(always)]
pub(super) fn out_of_place(level: Level, k: u32, from: &[f32], to: &mut [f32]) {
    assert!(from.len() == to.len() && to.len().is_multiple_of(1 << k), "{} numbers by 2^{k}", to.len());
    // SAFETY: slices do not overlap, and all of both is touched, a multiple of 2^k.
    unsafe { transform(level, k, from.as_ptr(), to.as_mut_ptr(), to.len(), None) };
}

/// # Safety
/// `n` numbers, a multiple of `2^k`, can be read at `from` and written at `to`: the same place, or apart.
#[inline(always)]
unsafe fn transform(level: Level, k: u32, from: *const f32, to: *mut f32, n: usize, flips: Option<Flips>) {
    let mut end = 0;
    while end < n {
        let start = end;
        end = n.min(start + PIECE);
        let len = end - start;
        // SAFETY: `start..end` and `end - radix * stride..end` are parts of `0..n`.
        unsafe {
            tiles(level, k.min(6), from.add(start), to.add(start), len, start / TILE, flips);
            let piece = to.add(start);
            match k {
                0..7 => {}
                7 => columns::<2>(piece, len, TILE),
                8 => columns::<4>(piece, len, TILE),
                9 => columns::<8>(piece, len, TILE),
                _ => columns::<16>(piece, len, TILE),
            }
            // The passes whose numbers are now all there. Sixteen rows so far apart would share one set of a cache.
            let mut stride = PIECE;
            while stride < 1 << k {
                let span = (8 * stride).min(1 << k);
                if end % span != 0 {
                    break;
                }
                let first = to.add(end - span);
                match span / stride {
                    2 => columns::<2>(first, span, stride),
                    4 => columns::<4>(first, span, stride),
                    _ => columns::<8>(first, span, stride),
                }
                stride = span;
            }
        }
    }
}

/// The first `stages` of every tile, at most six. The first of them is tile number `first` of its block.
///
/// # Safety
/// As for [`transform`].
#[inline(always)]
unsafe fn tiles(
    level: Level,
    stages: u32,
    from: *const f32,
    to: *mut f32,
    n: usize,
    first: usize,
    flips: Option<Flips>,
) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() && stages == 6 {
        // SAFETY: the level says that AVX2 and FMA are there; the rest by the caller's promise.
        return unsafe { x86_64::tiles(from, to, n / TILE, first, flips) };
    }
    let _ = level;
    for (tile, start) in (first..).zip((0..n).step_by(TILE)) {
        let len = TILE.min(n - start);
        let mut x = [0.0; TILE];
        // SAFETY: `start..start + len` is part of `0..n`.
        unsafe { from.add(start).copy_to_nonoverlapping(x.as_mut_ptr(), len) };
        if let Some(flips) = flips {
            flip(flips.of_tile(tile), &mut x);
        }
        plain_tile(stages, &mut x);
        // SAFETY: as above.
        unsafe { to.add(start).copy_from_nonoverlapping(x.as_ptr(), len) };
    }
}

/// The first `stages` of one tile.
#[inline(always)]
fn plain_tile(stages: u32, x: &mut [f32; TILE]) {
    match stages {
        0 => {}
        1 => x.as_chunks_mut::<2>().0.iter_mut().for_each(butterflies),
        2 => x.as_chunks_mut::<4>().0.iter_mut().for_each(butterflies),
        _ => x.as_chunks_mut::<8>().0.iter_mut().for_each(butterflies),
    }
    let start = x.as_mut_ptr();
    // SAFETY: 64 numbers from there on.
    unsafe {
        match stages {
            0..4 => {}
            4 => columns::<2>(start, TILE, 8),
            5 => columns::<4>(start, TILE, 8),
            _ => columns::<8>(start, TILE, 8),
        }
    }
}

/// The stages of strides `stride`, ..., `R / 2 * stride` over `n` numbers, a multiple of `R * stride`. This loop becomes
/// vector instructions as it stands, two additions a cycle at every level.
///
/// # Safety
/// `n` numbers can be read and written at `start`.
#[inline(always)]
pub(super) unsafe fn columns<const R: usize>(start: *mut f32, n: usize, stride: usize) {
    for group in (0..n).step_by(R * stride) {
        for column in group..group + stride {
            let mut x = [0.0; R];
            for (row, x) in x.iter_mut().enumerate() {
                // SAFETY: less than `group + R * stride`.
                *x = unsafe { start.add(column + row * stride).read() };
            }
            butterflies(&mut x);
            for (row, x) in x.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { start.add(column + row * stride).write(x) };
            }
        }
    }
}

/// All stages of R numbers.
#[inline(always)]
fn butterflies<const R: usize>(x: &mut [f32; R]) {
    let mut stride = 1;
    while stride < R {
        for i in 0..R {
            if i & stride == 0 {
                (x[i], x[i + stride]) = (x[i] + x[i + stride], x[i] - x[i + stride]);
            }
        }
        stride *= 2;
    }
}
