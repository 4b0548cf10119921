//! Integers: equal steps from a lowest to a highest value.

use super::{Codes, Format, Grid, Sawb, moves_away};

/// The integers `lowest..=highest`, coded as `(value + shift) mod 2^bits`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int {
    /// The lowest value.
    pub lowest: f32,
    /// The highest value.
    pub highest: f32,
    /// What is added to a value to make its code.
    shift: f32,
    /// `2^bits - 1`.
    mask: u32,
    /// The sign bit of two's complement codes, zero for unsigned ones.
    sign: u32,
}

/// Adding 1.5 2^23 rounds a float32 below 2^22 in magnitude to an integer, ties to even, and leaves that integer in the
/// low bits (mod 2^22).
pub(crate) const ROUNDER: f32 = 12_582_912.0;

impl Int {
    /// Two's complement integers of `bits` bits, without the lowest one if `symmetric`.
    pub const fn signed(bits: u32, symmetric: bool) -> Self {
        let half = (1_u32 << (bits - 1)) as f32;
        let lowest = if symmetric { 1.0 - half } else { -half };
        Int { lowest, highest: half - 1.0, shift: 0.0, mask: (1 << bits) - 1, sign: 1 << (bits - 1) }
    }

    /// Unsigned integers of `bits` bits.
    pub const fn unsigned(bits: u32) -> Self {
        let mask = (1_u32 << bits) - 1;
        Int { lowest: 0.0, highest: mask as f32, shift: 0.0, mask, sign: 0 }
    }

    /// The integers from `-highest` to `highest`, with codes of `bits` bits counted from the lowest.
    pub const fn around_zero(highest: u32, bits: u32) -> Self {
        let highest = highest as f32;
        Int { lowest: -highest, highest, shift: highest, mask: (1 << bits) - 1, sign: 0 }
    }

    /// The number of values.
    pub fn levels(self) -> f32 {
        self.highest - self.lowest + 1.0
    }

    /// The same codes with values counted from 0: the grid of an affine scale, whose offset the lowest code stands for.
    #[must_use]
    pub fn counted_from_lowest(self) -> Self {
        Int { lowest: 0.0, highest: self.highest - self.lowest, shift: self.shift + self.lowest, ..self }
    }

    #[inline(always)]
    fn clamp(self, t: f32) -> f32 {
        let t = if t < self.lowest { self.lowest } else { t };
        if t > self.highest { self.highest } else { t }
    }
}

impl Grid for Int {
    fn uniform(&self) -> Option<Int> {
        Some(*self)
    }

    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        (self.clamp(t) + ROUNDER) - ROUNDER
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let t = self.clamp(t);
        let magnitude = t.abs();
        let rounded = (magnitude + ROUNDER) - ROUNDER;
        let floor = if rounded > magnitude { rounded - 1.0 } else { rounded };
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        let step = f32::from_bits(moves_away(magnitude - floor, word, negative) & 1.0_f32.to_bits());
        // Adding zero turns -0, which integers lack, into 0.
        (floor + step).copysign(t) + 0.0
    }
}

impl Codes for Int {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        (value + self.shift + ROUNDER).to_bits() & self.mask
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        // The code, its sign bit flipped, is an integer from 0 to mask; 2^23 plus it has it in its low bits.
        let ordered = f32::from_bits((code & self.mask ^ self.sign) | 0x4b00_0000);
        ordered - (8_388_608.0 + self.sign as f32) - self.shift
    }
}

/// SAWB's fit for 15 levels from -alpha to alpha ("403" of IBM's published code; facts/fourbit.md 2.1).
const SAWB_15_LEVELS: Sawb = Sawb { rms_factor: 12.035, mean_factor: 12.03, levels: 7.0 };

const INT4: Format = Format {
    name: "int4",
    bits: 4,
    reference: 7.0,
    default_scale: "amax",
    default_block: None,
    sawb: Some(SAWB_15_LEVELS),
    source: "Sun et al., NeurIPS 2020 (INT4 weights and activations)",
    grid: super::AnyGrid::Int(Int::signed(4, false)),
};

/// The formats of this family.
pub const FORMATS: &[Format] = &[
    INT4,
    Format {
        name: "int4_symmetric",
        source: "Choi et al., arXiv:1807.06964 (SAWB, 15 levels)",
        grid: super::AnyGrid::Int(Int::signed(4, true)),
        ..INT4
    },
    Format {
        name: "uint4",
        reference: 15.0,
        sawb: None,
        source: "Choi et al., arXiv:1805.06085 (PACT: activations in 16 levels from 0)",
        grid: super::AnyGrid::Int(Int::unsigned(4)),
        ..INT4
    },
];
