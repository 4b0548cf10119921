//! The fast Walsh-Hadamard transform, and the randomized rotation that is made of it.
//!
//! The order of additions is part of the contract: butterflies `(a, b) -> (a + b, a - b)` of elements
//! 1, 2, 4, ... apart, every sum one float32 rounding. Which butterfly is computed when is free, so the passes below may
//! follow the caches and the vector width without changing a bit.

mod arrays;
mod blocks;
mod randomized;
mod stages;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use blocks::{BLOCK_MIN, Blocks};

use crate::cpu::Level;
use crate::stream::{Key, Stream};

pub use arrays::hadamard_transform;
pub use randomized::randomized_hadamard_transform;
use stages::{Flips, in_place};

/// The longest block that is rotated as one: 256 KiB of float32, half of a second-level cache.
pub const BLOCK_MAX: usize = 1 << 16;

/// The most rounds a rotation can have.
pub const ROUNDS_MAX: u32 = 8;

/// Numbers in a cache line.
const LINE: usize = 16;

/// `n` numbers that start with a cache line, in `memory`.
pub(crate) fn aligned(memory: &mut Vec<f32>, n: usize) -> &mut [f32] {
    memory.resize(n + LINE - 1, 0.0);
    let skip = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
    &mut memory[skip..skip + n]
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

    #[inline(always)]
    fn flips(&self, round: usize, start: u64) -> Flips {
        Flips { stream: self.streams[round], start }
    }
}

/// Rotates a block in place: every round flips signs and transforms. The result is [`root`] times too long.
///
/// The length is a power of two, at most [`BLOCK_MAX`]. `start` is the position of the block (see [`Blocks`]), by which its
/// signs are found: a multiple of its length, or of 64 if that is less. Fastest where the block is aligned to 64 bytes.
///
/// # Panics
/// If the length is not a power of two.
pub fn rotate(level: Level, signs: &Signs, start: u64, block: &mut [f32]) {
    let k = block.len().ilog2();
    level.run(
        #[inline(always)]
        || {
            for round in 0..signs.rounds {
                in_place(level, k, block, Some(signs.flips(round, start)), None);
            }
        },
    );
}

/// Undoes [`rotate`]: the rounds backwards, each one transforms and flips signs. Again [`root`] times too long.
///
/// # Panics
/// As [`rotate`].
pub fn rotate_back(level: Level, signs: &Signs, start: u64, block: &mut [f32]) {
    let k = block.len().ilog2();
    level.run(
        #[inline(always)]
        || {
            // The signs of a round are flipped on the way into the next one.
            let mut flips = None;
            for round in (0..signs.rounds).rev() {
                in_place(level, k, block, flips, None);
                flips = Some(signs.flips(round, start));
            }
            if let Some(flips) = flips {
                flips.apply(block);
            }
        },
    );
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
        for k in 0..=17 {
            let x = numbers(1 << k);
            let mut want = x.clone();
            slow(&mut want);
            for level in Level::supported() {
                let mut y = x.clone();
                level.run(
                    #[inline(always)]
                    || in_place(level, k, &mut y, None, None),
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
            for (k, start) in [(0, 3), (1, 2), (4, 48), (5, 32), (6, 64), (7, 128), (9, 1 << 40), (12, 65_536)] {
                let x: Vec<f32> = numbers(1 << k).iter().map(|x| (x * 64.0).round()).collect();
                let mut want = x.clone();
                for round in 0..rounds {
                    let stream = key.fold(u64::from(round)).stream();
                    for (p, x) in (start..).zip(&mut want) {
                        *x = if stream.word(p / 32) >> (p % 32) & 1 == 1 { -*x } else { *x };
                    }
                    slow(&mut want);
                }
                let scale = root(k, rounds);
                for level in Level::supported() {
                    let what = format!("2^{k} at {start}, {rounds} rounds, {level:?}");
                    let mut y = x.clone();
                    rotate(level, &signs, start, &mut y);
                    assert_eq!(y, want, "{what}");
                    rotate_back(level, &signs, start, &mut y);
                    let error = x.iter().zip(&y).map(|(x, y)| (f64::from(*y) / scale / scale - f64::from(*x)).abs());
                    assert!(error.fold(0.0, f64::max) < 64.0 * 1e-6, "{what}: there and back");
                }
            }
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
