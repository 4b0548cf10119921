//! Keys and the shared random stream, version 1 (`docs/stream.md`).
//!
//! Element `i` of the stream of a key is one 32-bit word, a pure function of `(key, i)`: `SplitMix64` read at any
//! place. The generator and its finalizer are Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators" (OOPSLA 2014); `rand_xoshiro::SplitMix64` seeds the keys and is the oracle of the tests.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};

/// The golden-ratio increment of `SplitMix64`, `floor(2^64 / phi)` made odd.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The version of everything in this module; other bytes would be version 2.
pub const STREAM_VERSION: u8 = 1;

/// `SplitMix64`'s finalizer (a bijection of 64 bits).
#[inline(always)]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Two 64-bit words that name one random stream. Not a secret in the cryptographic sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The first word: where the stream starts.
    pub k0: u64,
    /// The second word: the step it walks by.
    pub k1: u64,
}

/// What a stream is used for. Each use folds its label into the key, so that no two uses share words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Signs of a randomized Hadamard transform (shared).
    Rotation,
    /// Shared thresholds and subtractive dither (shared).
    Dither,
    /// A sender's own coin (private: a receiver never reads it).
    Coin,
    /// Stochastic rounding (private).
    Rounding,
    /// The keys of the arrays of a mapping.
    Array,
    /// The id that tells one key from another.
    Id,
}

impl Purpose {
    /// The label's hash: BLAKE2b-128 of its UTF-8, person `lowbit.label.v1`, as two little-endian words.
    const fn words(self) -> (u64, u64) {
        match self {
            Purpose::Rotation => (0xd4eb_a00a_a1b6_740a, 0x4121_2a93_527e_8d0d),
            Purpose::Dither => (0xa48a_b16e_4182_0b6a, 0xc837_f353_cf40_3175),
            Purpose::Coin => (0x5a5a_84e2_cd6b_dd26, 0x947c_23c7_baf2_c1ff),
            Purpose::Rounding => (0xa33d_400a_fd22_6b4d, 0x47c3_1ffc_3436_b413),
            Purpose::Id => (0x5286_9039_4165_46bb, 0x5bbc_cd50_d942_e30a),
            Purpose::Array => (0x903d_6c15_281e_3362, 0xe352_0377_cff5_e905),
        }
    }
}

impl Key {
    /// The key of an integer seed: the first two outputs of `SplitMix64` started there.
    pub fn from_seed(seed: u64) -> Self {
        let mut generator = SplitMix64::from_seed(seed.to_le_bytes());
        Key { k0: generator.next_u64(), k1: generator.next_u64() }
    }

    /// The key of child `i`.
    #[must_use]
    pub const fn fold(self, i: u64) -> Self {
        let k0 = mix(self.k0.wrapping_add(GOLDEN.wrapping_mul(i.wrapping_add(1))));
        Key { k0, k1: mix(self.k1 ^ k0) }
    }

    /// The key of one purpose: two integer folds with the hash of its label.
    #[must_use]
    pub const fn purpose(self, purpose: Purpose) -> Self {
        let (h0, h1) = purpose.words();
        self.fold(h0).fold(h1)
    }

    /// The stream of this key.
    pub const fn stream(self) -> Stream {
        // SplittableRandom's rule: a step whose bits change too seldom makes a weak progression.
        let odd = self.k1 | 1;
        let weak = (odd ^ (odd >> 1)).count_ones() < 24;
        Stream { start: self.k0, step: if weak { odd ^ 0xaaaa_aaaa_aaaa_aaaa } else { odd } }
    }
}

/// A random stream that can be read at any place.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    start: u64,
    step: u64,
}

impl Stream {
    /// The 64-bit word that serves elements `2 j` (its low half) and `2 j + 1` (its high half).
    #[inline(always)]
    pub const fn pair(self, j: u64) -> u64 {
        mix(self.start.wrapping_add(j.wrapping_add(1).wrapping_mul(self.step)))
    }

    /// The word of one element.
    #[inline(always)]
    pub const fn word(self, element: u64) -> u32 {
        (self.pair(element / 2) >> (32 * (element % 2))) as u32
    }

    /// Writes the words of elements `first..first + words.len()`.
    #[inline(always)]
    pub fn fill(self, first: u64, words: &mut [u32]) {
        let odd = (first % 2) as usize;
        let (head, body) = words.split_at_mut(odd.min(words.len()));
        if let [word] = head {
            *word = self.word(first);
        }
        let first_pair = first.div_ceil(2);
        let (pairs, tail) = body.as_chunks_mut::<2>();
        let mut counter = self.start.wrapping_add(first_pair.wrapping_add(1).wrapping_mul(self.step));
        let next = first_pair.wrapping_add(pairs.len() as u64);
        for pair in pairs {
            let word = mix(counter);
            *pair = [word as u32, (word >> 32) as u32];
            counter = counter.wrapping_add(self.step);
        }
        if let [word] = tail {
            *word = self.pair(next) as u32;
        }
    }
}

/// A word as a number inside (0, 1): an odd multiple of `2^-24`, exact.
#[inline(always)]
pub(crate) fn fraction(word: u32) -> f32 {
    (2 * (word >> 9) as i32 + 1) as f32 * (1.0 / 16_777_216.0)
}

/// A word as a number inside (-1/2, 1/2): its high 24 bits plus a half, over 2^24, less a half; exact, never zero.
#[inline(always)]
pub(crate) fn centred(word: u32) -> f32 {
    // 2^23 plus the high 23 bits, as a float, less 2^23 and 2^22; then the 24th bit and the half. All exact.
    let high = f32::from_bits(word >> 9 | 0x4b00_0000) - 12_582_912.0;
    let last = if word & 256 == 0 { 0.25 } else { 0.75 };
    (high + last) * (1.0 / 8_388_608.0)
}

/// Elements per parallel chunk: 64 KiB of words.
const CHUNK: usize = 1 << 14;

/// Writes the words of elements `start..start + words.len()` of the stream of `key`, which has 2^64.
pub fn random_bits(key: Key, start: u64, words: &mut [u32]) -> Result<()> {
    let (stream, level, n) = (key.stream(), Level::current(), words.len());
    if start.checked_add((n as u64).saturating_sub(1)).is_none() {
        let most = u64::MAX - (n as u64 - 1);
        return Err(Error::argument(
            "start",
            format!("{n} words from element {start} on would pass 2**64, where the stream ends; give at most {most}"),
        ));
    }
    let words = Shared::new(words);
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        let first = chunk * CHUNK;
        // SAFETY: chunks are disjoint, and `words` is borrowed until `for_each` returns.
        let part = unsafe { words.part(first..n.min(first + CHUNK)) };
        level.run(
            #[inline(always)]
            || stream.fill(start + first as u64, part),
        );
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_golden_step_the_stream_is_splitmix64() {
        let stream = Stream { start: 42, step: GOLDEN };
        let mut oracle = SplitMix64::from_seed(42_u64.to_le_bytes());
        for j in 0..1000 {
            assert_eq!(stream.pair(j), oracle.next_u64(), "pair {j}");
        }
    }

    #[test]
    fn any_block_alone_is_the_same_words() {
        let stream = Key::from_seed(7).fold(3).stream();
        let whole: Vec<u32> = (0..300).map(|i| stream.word(i)).collect();
        for first in 0..40_usize {
            for len in [0, 1, 2, 3, 31, 64, 201] {
                let mut block = vec![0; len];
                stream.fill(first as u64, &mut block);
                assert_eq!(block, whole[first..first + len], "block {first}+{len}");
            }
        }
    }

    #[test]
    fn the_stream_ends_at_two_to_the_64() {
        let key = Key::from_seed(7);
        let mut words = [0; 5];
        assert_eq!(random_bits(key, u64::MAX - 4, &mut words), Ok(()), "the last five");
        assert_eq!(words[4], key.stream().word(u64::MAX), "the last");
        assert!(random_bits(key, u64::MAX - 3, &mut words).is_err(), "one too far");
        assert_eq!(random_bits(key, u64::MAX, &mut []), Ok(()), "none at the end");
    }

    #[test]
    fn weak_steps_are_repaired() {
        for k1 in [0, 1, 2, 3, u64::MAX, 0xffff_ffff_0000_0000, 1 << 63] {
            let step = Key { k0: 0, k1 }.stream().step;
            assert_eq!(step % 2, 1, "an even step has a shorter period");
            assert!((step ^ (step >> 1)).count_ones() >= 24, "step {step:#x} of k1 {k1:#x} is weak");
        }
    }
}
