//! The fast Walsh-Hadamard transform, and the randomized rotation that is made of it.
//!
//! The order of additions is part of the contract (DESIGN section 2): butterflies `(a, b) -> (a + b, a - b)` of elements
//! 1, 2, 4, ... apart, every sum one float32 rounding. Which butterfly is computed when is free, so the passes below may
//! follow the caches and the vector width without changing a bit.

mod blocks;

use std::ops::Range;

pub use blocks::{BLOCK_MIN, Blocks};

use crate::cpu::Level;
use crate::stream::{Key, Stream};

/// The longest block that is rotated as one: 256 KiB of float32, half of a second-level cache.
pub const BLOCK_MAX: usize = 1 << 16;

/// The most rounds a rotation can have.
pub const ROUNDS_MAX: u32 = 8;

/// The positions of the blocks that `n` numbers are rotated in: as many of [`BLOCK_MAX`] as there are, then powers of two,
/// descending, down to `least` (a power of two, at most [`BLOCK_MAX`]). The last block alone may reach beyond `n`.
pub fn blocks(n: usize, least: usize) -> impl Iterator<Item = Range<usize>> {
    debug_assert!(least.is_power_of_two() && least <= BLOCK_MAX, "blocks of at least {least}");
    let total = n.next_multiple_of(least);
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = (total - start).min(BLOCK_MAX);
        let len = 1 << rest.checked_ilog2()?;
        start += len;
        Some(start - len..start)
    })
}

/// How many times too long `rounds` unnormalised transforms of `2^k` numbers leave a vector: `2^(k rounds / 2)`.
pub fn root(k: u32, rounds: u32) -> f64 {
    let halves = k * rounds;
    let power = f64::from_bits(u64::from(1023 + halves / 2) << 52);
    if halves % 2 == 1 { power * 2.0_f64.sqrt() } else { power }
}

/// The signs of every round of a rotation: bit `p % 32` of word `p / 32` of the round's stream is that of position `p`.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    streams: [Stream; ROUNDS_MAX as usize],
    rounds: usize,
}

impl Signs {
    /// The signs of a key that is already folded by its purpose and, where each sender rotates by itself, the sender.
    /// More than [`ROUNDS_MAX`] rounds count as so many.
    pub fn new(key: Key, rounds: u32) -> Self {
        Signs {
            streams: std::array::from_fn(|round| key.fold(round as u64).stream()),
            rounds: rounds.min(ROUNDS_MAX) as usize,
        }
    }

    /// Flips the signs of a block that starts at position `start`. A block of at least 32 numbers starts at a multiple of
    /// 32, and a shorter one at a multiple of its length, so that no word is split.
    #[inline(always)]
    fn flip(&self, round: usize, start: u64, block: &mut [f32]) {
        let stream = self.streams[round];
        let (words, rest) = block.as_chunks_mut::<32>();
        for (element, numbers) in (start / 32..).zip(words) {
            flip_by(stream.word(element), numbers);
        }
        if !rest.is_empty() {
            flip_by(stream.word(start / 32) >> (start % 32), rest);
        }
    }
}

#[inline(always)]
fn flip_by(word: u32, numbers: &mut [f32]) {
    for (i, x) in numbers.iter_mut().enumerate() {
        *x = f32::from_bits(x.to_bits() ^ (word >> i) << 31);
    }
}

/// Rotates a block in place: every round flips signs and transforms. The result is [`root`] times too long.
///
/// `start` is the position of the block, by which its signs are found: see [`blocks`]. The length is a power of two.
#[inline(always)]
pub fn rotate(level: Level, signs: &Signs, start: u64, block: &mut [f32]) {
    for round in 0..signs.rounds {
        signs.flip(round, start, block);
        transform(level, block);
    }
}

/// Undoes [`rotate`]: the rounds backwards, each one transforms and flips signs. Again [`root`] times too long.
#[inline(always)]
pub fn rotate_back(level: Level, signs: &Signs, start: u64, block: &mut [f32]) {
    for round in (0..signs.rounds).rev() {
        transform(level, block);
        signs.flip(round, start, block);
    }
}

/// The unnormalised transform of a block of a power of two numbers, in place.
#[inline(always)]
pub fn transform(_level: Level, block: &mut [f32]) {
    debug_assert!(block.len().is_power_of_two(), "{} numbers", block.len());
    // Pieces that the first-level cache holds go through their first stages alone.
    for piece in block.chunks_mut(1 << 12) {
        stages::<1>(piece);
        stages::<2>(piece);
        stages::<4>(piece);
        let mut stride = 8;
        while stride < piece.len() {
            stage(stride, piece);
            stride *= 2;
        }
    }
    let mut stride = 1 << 12;
    while stride < block.len() {
        stage(stride, block);
        stride *= 2;
    }
}

/// One stage of a stride that the compiler knows.
#[inline(always)]
fn stages<const STRIDE: usize>(block: &mut [f32]) {
    if STRIDE < block.len() {
        stage(STRIDE, block);
    }
}

#[inline(always)]
fn stage(stride: usize, block: &mut [f32]) {
    for pair in block.chunks_exact_mut(2 * stride) {
        let (low, high) = pair.split_at_mut(stride);
        for (a, b) in low.iter_mut().zip(high) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        let stream = Key::from_seed(n as u64).stream();
        (0..n as u64).map(|i| (stream.word(i) as i32 as f32) * 2.0_f32.powi(-31)).collect()
    }

    fn slow(x: &mut [f32]) {
        let mut h = 1;
        while h < x.len() {
            for i in (0..x.len()).filter(|i| i & h == 0) {
                (x[i], x[i + h]) = (x[i] + x[i + h], x[i] - x[i + h]);
            }
            h *= 2;
        }
    }

    #[test]
    fn the_additions_are_those_of_the_contract_at_every_level() {
        for k in 0..=16 {
            let x = numbers(1 << k);
            let mut want = x.clone();
            slow(&mut want);
            for level in Level::supported() {
                let mut y = x.clone();
                level.run(
                    #[inline(always)]
                    || transform(level, &mut y),
                );
                assert!(y.iter().zip(&want).all(|(y, w)| y.to_bits() == w.to_bits()), "2^{k} at {level:?}");
            }
        }
    }

    #[test]
    fn a_rotation_is_undone_and_its_signs_are_bits_of_the_stream() {
        let key = Key::from_seed(7);
        for rounds in 1..=ROUNDS_MAX {
            let signs = Signs::new(key, rounds);
            for (k, start) in [(0, 3), (1, 2), (4, 16), (7, 128), (12, 65_536)] {
                let x: Vec<f32> = numbers(1 << k).iter().map(|x| (x * 64.0).round()).collect();
                let mut want = x.clone();
                for round in 0..rounds {
                    let stream = key.fold(u64::from(round)).stream();
                    for (p, x) in (start..).zip(&mut want) {
                        *x = if stream.word(p / 32) >> (p % 32) & 1 == 1 { -*x } else { *x };
                    }
                    slow(&mut want);
                }
                let level = Level::current();
                let mut y = x.clone();
                rotate(level, &signs, start, &mut y);
                assert_eq!(y, want, "2^{k} at {start}, {rounds} rounds");
                rotate_back(level, &signs, start, &mut y);
                let scale = root(k, rounds);
                let error = x.iter().zip(&y).map(|(x, y)| (f64::from(*y) / scale / scale - f64::from(*x)).abs());
                assert!(error.fold(0.0, f64::max) < 64.0 * 1e-6, "2^{k} at {start}, {rounds} rounds: there and back");
            }
        }
    }

    #[test]
    fn blocks_cover_the_numbers_and_only_the_last_is_padded() {
        let lengths = |n, least| blocks(n, least).map(|block| block.len()).collect::<Vec<_>>();
        assert_eq!(lengths(0, 128), [0_usize; 0], "nothing");
        assert_eq!(lengths(1, 128), [128], "one number");
        assert_eq!(lengths(200, 128), [256], "padding makes a power of two");
        assert_eq!(lengths(65_536 * 2 + 300, 128), [65_536, 65_536, 256, 128], "descending");
        assert_eq!(lengths(70_000, 65_536), [65_536, 65_536], "the largest least");
        for n in 0..3000 {
            let mut end = 0;
            for block in blocks(n, 128) {
                assert!(block.start == end && block.start < n && block.len() >= 128, "{n}: {block:?}");
                end = block.end;
            }
            assert!((n..n + 128).contains(&end), "{n} numbers end at {end}");
        }
    }

    #[test]
    fn a_root_is_the_square_root_of_the_power() {
        for (k, rounds) in [(0, 1), (1, 1), (7, 2), (16, 8), (13, 3)] {
            let want = 2.0_f64.powf(f64::from(k * rounds) / 2.0);
            assert!((root(k, rounds) / want - 1.0).abs() < 1e-15, "2^{k}, {rounds} rounds");
        }
    }
}
