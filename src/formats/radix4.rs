//! Radix-4 FP4 [1,3,0]: a sign and a power of four, the gradients of 4-bit training.
//!
//! Source: Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020, section 3.3, figure 2
//! and equation 1.

use super::{AnyGrid, Codes, Format, Grid, moves_away};

/// Zero and `+-4^n / gain`, n = -3..3. Code 0 is zero; `sign << 3 | e` with e = 1..7 is `+-4^(e - 4) / gain`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Radix4 {
    /// 1 for the even phase, 2 for the odd one: `Q_odd(x) = Q_even(2 x) / 2`.
    gain: f32,
}

/// The largest and the smallest magnitude of the even phase.
const LARGEST: f32 = 64.0;
const SMALLEST: f32 = 1.0 / 64.0;

/// The magnitude bits of the power of four at or below `y`, for `y` at least [`SMALLEST`]: powers of four are the powers
/// of two whose biased exponent is odd.
#[inline(always)]
fn power_at_or_below(y: f32) -> u32 {
    (y.to_bits().wrapping_sub(1 << 23) | 1 << 23) & 0xff80_0000
}

#[inline(always)]
fn with_sign(magnitude: u32, t: f32) -> f32 {
    f32::from_bits(magnitude | t.to_bits() & 0x8000_0000)
}

impl Grid for Radix4 {
    /// Multiplying by 1.6 brings every threshold 0.625 4^n to a power of four; float32 does so without error at the
    /// thresholds, so a tie goes away from zero and one ulp less does not.
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let y = (t * self.gain).abs() * 1.6;
        let y = if y > LARGEST { LARGEST } else { y };
        let magnitude = if y >= SMALLEST { power_at_or_below(y) } else { 0 };
        with_sign(magnitude, t) * (1.0 / self.gain)
    }

    /// The fraction of the way to the next power is `(a / 4^n - 1) / 3`; only the multiplication by 1/3 rounds, so it is
    /// within 2^-24 of exact.
    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let a = (t * self.gain).abs();
        let a = if a > LARGEST { LARGEST } else { a };
        let normal = a >= SMALLEST;
        let below = power_at_or_below(a);
        let reciprocal = f32::from_bits(0x7f00_0000_u32.wrapping_sub(below));
        let q = if normal { (a * reciprocal - 1.0) * (1.0 / 3.0) } else { a * LARGEST };
        let (near, far) = if normal { (below, below.wrapping_add(1 << 24)) } else { (0, SMALLEST.to_bits()) };
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        let magnitude = if moves_away(q, word, negative) { far } else { near };
        with_sign(magnitude, t) * (1.0 / self.gain)
    }
}

impl Codes for Radix4 {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        let bits = (value * self.gain).to_bits();
        let exponent = bits >> 23 & 0xff;
        // 4^(e - 4) has biased exponent 2 e + 119; zero has 0.
        let e = (if exponent > 119 { exponent - 119 } else { 0 }) >> 1;
        bits >> 28 & 8 | e
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let e = code & 7;
        let magnitude = if e > 0 { (2 * e + 119) << 23 } else { 0 };
        f32::from_bits(magnitude | (code & 8) << 28) * (1.0 / self.gain)
    }
}

const EVEN: Format = Format {
    name: "radix4",
    bits: 4,
    reference: LARGEST,
    default_scale: "amax",
    default_block: None,
    sawb: None,
    source: "Sun et al., NeurIPS 2020, section 3.3, figure 2c and equation 1 (the even phase)",
    grid: AnyGrid::Radix4(Radix4 { gain: 1.0 }),
};

/// The two phases of two-phase rounding. Both scale `amax` to 64, so the odd phase clips the largest number to 32: at one
/// shared scale their errors have opposite signs, which is the point.
pub const FORMATS: &[Format] = &[
    EVEN,
    Format {
        name: "radix4_odd",
        source: "Sun et al., NeurIPS 2020, section 3.3, figure 4a (the odd phase: half of the even grid)",
        grid: AnyGrid::Radix4(Radix4 { gain: 2.0 }),
        ..EVEN
    },
];
