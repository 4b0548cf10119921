//! Integers: equal steps from a lowest to a highest value.

use std::borrow::Cow;

use super::{Call, Codes, Format, Grid, Sawb, moves_away};
use crate::error::{Error, Result};

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

    fn extremes(&self) -> (f32, f32, f32) {
        (self.lowest, 1.0, self.highest)
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

/// SAWB's fits for a zero and as many levels on either side of it ("103", "403", "703" and "803" of IBM's published code;
/// facts/fourbit.md 2.1).
const fn sawb(bits: u32) -> Option<Sawb> {
    let (rms_factor, mean_factor) = match bits {
        2 => (2.6, 1.71),
        4 => (12.035, 12.03),
        7 => (28.24, 30.81),
        8 => (31.76, 35.04),
        _ => return None,
    };
    Some(Sawb { rms_factor, mean_factor, levels: ((1_u32 << (bits - 1)) - 1) as f64 })
}

fn record(name: impl Into<Cow<'static, str>>, bits: u32, grid: Int, source: &'static str) -> Format {
    // The fit for two bits is for three levels, of which the two-bit integers have one too few or one too many.
    let sawb = if grid.lowest < 0.0 && bits > 2 { sawb(bits) } else { None };
    Format { sawb, ..Format::new(name, bits, grid, "amax", source) }
}

const SAWB: &str = "Choi et al., arXiv:1807.06964 (SAWB, 15 levels)";
const SAWB_8: &str = "Choi et al., arXiv:1807.06964 (SAWB, 255 levels)";
const PACT: &str = "Choi et al., arXiv:1805.06085 (PACT: activations in 16 levels from 0)";
const BITNET: &str = "Ma et al., arXiv:2402.17764 (BitNet b1.58: activations)";
const THREE: &str = "Ma et al., arXiv:2402.17764 (BitNet b1.58: absmean); Li et al., arXiv:1605.04711 (TWN)";

/// The formats of this family that have names.
pub fn formats() -> Vec<Format> {
    vec![
        record("int4", 4, Int::signed(4, false), "Sun et al., NeurIPS 2020 (INT4 weights and activations)"),
        record("int4_symmetric", 4, Int::signed(4, true), SAWB),
        record("uint4", 4, Int::unsigned(4), PACT),
        record("int8", 8, Int::signed(8, false), BITNET),
        record("int8_symmetric", 8, Int::signed(8, true), SAWB_8),
        record("uint8", 8, Int::unsigned(8), "ONNX QuantizeLinear (256 levels from 0)"),
        Format { sawb: sawb(2), ..Format::new("ternary", 2, Int::around_zero(1, 2), "mean", THREE) },
    ]
}

/// Integers of 2 to 8 bits.
pub fn integer(bits: u32, symmetric: bool, signed: bool) -> Result<Format> {
    if !(2..=8).contains(&bits) {
        let reason = format!("{bits} is out of range; give 2 to 8 (\"sign\" has 1, fixed_point up to 16)");
        return Err(Error::argument("bits", reason));
    }
    if symmetric && !signed {
        return Err(Error::argument("symmetric", "unsigned integers have no negative side; leave one of the two out"));
    }
    let grid = if signed { Int::signed(bits, symmetric) } else { Int::unsigned(bits) };
    let name = match (signed, symmetric) {
        (true, false) => format!("int{bits}"),
        (true, true) => format!("int{bits}_symmetric"),
        (false, _) => format!("uint{bits}"),
    };
    Ok(record(name, bits, grid, "two's complement, or unsigned: lowbit.int_format"))
}

/// Reads the names that this family's factory writes.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    if !call.arguments.is_empty() {
        return None;
    }
    let bits = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 1);
    if let Some(digits) = call.family.strip_prefix("uint") {
        return Some(integer(bits(digits)?, false, false));
    }
    let digits = call.family.strip_prefix("int")?;
    match digits.strip_suffix("_symmetric") {
        Some(digits) => Some(integer(bits(digits)?, true, true)),
        None => Some(integer(bits(digits)?, false, true)),
    }
}
