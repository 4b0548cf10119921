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

/// The rows of a pass beyond a piece. They lie in one set of a first-level cache, which has room for eight lines.
pub(super) const RADIX: usize = 8;

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

/// Flips signs, transforms every `2^k` numbers of `block` and, where there is a `scale`, [`finish`]es them.
///
/// # Panics
/// If the block is not a multiple of so many.
#[inline(always)]
pub(super) fn in_place(level: Level, k: u32, block: &mut [f32], flips: Option<Flips>, scale: Option<f32>) {
    assert!(block.len().is_multiple_of(1 << k), "{} numbers by 2^{k}", block.len());
    let start = block.as_mut_ptr();
    // SAFETY: all of the block is read and written, a multiple of 2^k.
    unsafe { transform(level, k, start, start, block.len(), flips, scale) };
}

/// Transforms every `2^k` numbers of `from` into `to`.
///
/// # Panics
/// If the lengths differ or are not a multiple of so many.
#[inline(always)]
pub(super) fn out_of_place(level: Level, k: u32, from: &[f32], to: &mut [f32], scale: Option<f32>) {
    assert!(from.len() == to.len() && to.len().is_multiple_of(1 << k), "{} numbers by 2^{k}", to.len());
    // SAFETY: slices do not overlap, and all of both is touched, a multiple of 2^k.
    unsafe { transform(level, k, from.as_ptr(), to.as_mut_ptr(), to.len(), None, scale) };
}

/// # Safety
/// `n` numbers, a multiple of `2^k`, can be read at `from` and written at `to`: the same place, or apart.
#[inline(always)]
unsafe fn transform(
    level: Level,
    k: u32,
    from: *const f32,
    to: *mut f32,
    n: usize,
    flips: Option<Flips>,
    scale: Option<f32>,
) {
    let mut end = 0;
    while end < n {
        let start = end;
        end = n.min(start + PIECE);
        let len = end - start;
        // SAFETY: `start..end` and `end - span..end` are parts of `0..n`.
        unsafe {
            tiles(level, k.min(6), from.add(start), to.add(start), len, start / TILE, flips);
            let piece = to.add(start);
            if k > 6 {
                let radix = 16.min(1 << (k - 6));
                for group in (0..len).step_by(radix * TILE) {
                    pass(radix, piece.add(group), TILE, TILE, scale.filter(|_| k <= 10));
                }
            } else if let Some(scale) = scale {
                for x in std::slice::from_raw_parts_mut(piece, len) {
                    *x = finish(*x, scale);
                }
            }
            // The passes whose numbers are now all there.
            let mut stride = PIECE;
            while stride < 1 << k {
                let span = (RADIX * stride).min(1 << k);
                if end % span != 0 {
                    break;
                }
                pass(span / stride, to.add(end - span), stride, stride, scale.filter(|_| span == 1 << k));
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
    if stages > 3 {
        // SAFETY: rows of 8 numbers, 2 to 8 of them a group.
        unsafe {
            let radix = 1 << (stages - 3);
            for group in (0..TILE).step_by(8 * radix) {
                pass(radix, x.as_mut_ptr().add(group), 8, 8, None);
            }
        }
    }
}

/// The stages of strides `stride`, ..., `radix / 2 * stride` (2, 4, 8 or 16 rows) over so many columns.
///
/// # Safety
/// The columns can be read and written in rows `stride` apart from `start` on.
#[inline(always)]
pub(super) unsafe fn pass(radix: usize, start: *mut f32, count: usize, stride: usize, scale: Option<f32>) {
    // SAFETY: by the caller's promise.
    unsafe {
        match (radix, scale) {
            (2, None) => columns::<2>(start, count, stride, |x| x),
            (4, None) => columns::<4>(start, count, stride, |x| x),
            (8, None) => columns::<8>(start, count, stride, |x| x),
            (_, None) => columns::<16>(start, count, stride, |x| x),
            (2, Some(scale)) => columns::<2>(start, count, stride, |x| finish(x, scale)),
            (4, Some(scale)) => columns::<4>(start, count, stride, |x| finish(x, scale)),
            (8, Some(scale)) => columns::<8>(start, count, stride, |x| finish(x, scale)),
            (_, Some(scale)) => columns::<16>(start, count, stride, |x| finish(x, scale)),
        }
    }
}

/// R rows. This loop becomes vector instructions as it stands, two additions a cycle at every level.
///
/// # Safety
/// As for [`pass`].
#[inline(always)]
unsafe fn columns<const R: usize>(start: *mut f32, count: usize, stride: usize, finish: impl Fn(f32) -> f32) {
    for column in 0..count {
        let mut x = [0.0; R];
        for (row, x) in x.iter_mut().enumerate() {
            // SAFETY: a number of row `row`.
            *x = unsafe { start.add(column + row * stride).read() };
        }
        butterflies(&mut x);
        for (row, x) in x.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { start.add(column + row * stride).write(finish(x)) };
        }
    }
}

/// The product, and every NaN the same one: which sign and payload a sum of NaNs has depends on the CPU.
#[inline(always)]
pub(super) fn finish(x: f32, scale: f32) -> f32 {
    let bits = (x * scale).to_bits();
    let nan = bits & (u32::MAX >> 1) > f32::INFINITY.to_bits();
    f32::from_bits(if nan { f32::NAN.to_bits() } else { bits })
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
