//! Radix-4 FP4 `[1,3,0]`: a sign and a power of four, the gradients of 4-bit training.
//!
//! Source: Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020: figure 2c and equation 1
//! for the even phase, section 3.3 and figure 4a for the odd one.

use super::{Codes, Format, Grid, choose, moves_away};

/// Zero and sign times power: code 0 is zero, `sign << 3 | e` with e = 1..7 is `+-4^(e - 4)`, or half of that in the odd
/// phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Radix4 {
    /// The largest magnitude: 64 or 32.
    largest: f32,
    /// The smallest magnitude: 1/64 or 1/128.
    smallest: f32,
    /// The lowest exponent bit of the powers, in place: even powers of two have odd biased exponents.
    parity: u32,
}

/// Exponent bits without the lowest one: what is left tells powers of four apart.
const PAIR_OF_EXPONENTS: u32 = 0x7f00_0000;

impl Radix4 {
    const fn phase(odd: bool) -> Self {
        let largest = if odd { 32.0 } else { 64.0 };
        Radix4 { largest, smallest: largest / 4096.0, parity: if odd { 0 } else { 1 << 23 } }
    }

    /// The bits of the power at or below `y`, for `y` at least the smallest one.
    #[inline(always)]
    fn power_at_or_below(self, y: f32) -> u32 {
        (y.to_bits().wrapping_sub(self.parity) & PAIR_OF_EXPONENTS) + self.parity
    }
}

#[inline(always)]
fn with_sign(magnitude: u32, t: f32) -> f32 {
    f32::from_bits(magnitude | t.to_bits() & 0x8000_0000)
}

impl Grid for Radix4 {
    /// Multiplying by 1.6 brings every threshold, 0.625 times a power, to that power; float32 does so without error at the
    /// thresholds, so a tie goes away from zero and one ulp less does not.
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let y = t.abs() * 1.6;
        let y = if y > self.largest { self.largest } else { y };
        with_sign(if y >= self.smallest { self.power_at_or_below(y) } else { 0 }, t)
    }

    /// The fraction of the way from a power to the next is `(a / power - 1) / 3`; only the multiplication by 1/3 rounds, so
    /// it is within 2^-24 of exact.
    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let a = t.abs();
        let a = if a > self.largest { self.largest } else { a };
        let below = self.power_at_or_below(a);
        // The reciprocal of a power of two has the mirrored exponent.
        let ratio = a * f32::from_bits(0x7f00_0000_u32.wrapping_sub(below));
        let normal = a >= self.smallest;
        let q = if normal { (ratio - 1.0) * (1.0 / 3.0) } else { a * (1.0 / self.smallest) };
        let near = if normal { below } else { 0 };
        let far = if normal { below.wrapping_add(1 << 24) } else { self.smallest.to_bits() };
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        with_sign(choose(moves_away(q, word, negative), far, near), t)
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (-self.largest, self.smallest, self.largest)
    }
}

impl Codes for Radix4 {
    /// Both phases: halving the biased exponent of `4^(e - 4)`, 2 e + 119, or of half of it, 2 e + 118, gives e + 59.
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        let bits = value.to_bits();
        let half = bits >> 24 & 0x7f;
        half.saturating_sub(59) | bits >> 28 & 8
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let e = code & 7;
        let magnitude = if e > 0 { ((e + 59) << 24) + self.parity } else { 0 };
        f32::from_bits(magnitude | (code & 8) << 28)
    }
}

pub(super) fn even() -> Format {
    let source = "Sun et al., NeurIPS 2020, figure 2c and equation 1 (the even phase)";
    Format::new("radix4", 4, Radix4::phase(false), "amax", source)
}

/// The two phases of two-phase rounding. Both scale `amax` to 64, so the odd phase clips the largest number to 32: at one
/// shared scale their errors have opposite signs, which is the point. (Their factory is that of [`super::radix`].)
pub fn formats() -> Vec<Format> {
    let source = "Sun et al., NeurIPS 2020, section 3.3, figure 4a (the odd phase: half of the even grid)";
    let odd = Format::new("radix4_odd", 4, Radix4::phase(true), "amax", source);
    vec![even(), Format { reference: even().reference, ..odd }]
}
