//! Fixed point: integers of a few bits, in units of a power of two.
//!
//! Sources: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015, arXiv:1502.02551; the grid (delta, b)
//! of Li and De Sa, NeurIPS 2019; QPyTorch's `FixedPoint`, arXiv:1910.04540.

use super::{Call, Codes, Format, Grid, moves_away};
use crate::error::{Error, Result};

/// `k 2^-fraction_bits` for integers k of so many bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fixed {
    /// The lowest and the highest k; infinite without bounds.
    lowest: f32,
    highest: f32,
    /// The step, and how many make 1.
    step: f32,
    per_step: f32,
    mask: u32,
    sign: u32,
}

/// 2^23: magnitudes from here on are integers.
const INTEGERS: f32 = 8_388_608.0;

impl Fixed {
    const fn new(bits: u32, fraction_bits: i32, symmetric: bool, clamp: bool) -> Self {
        let half = (1_u32 << (bits - 1)) as f32;
        let step = f32::from_bits(((127 - fraction_bits) as u32) << 23);
        Fixed {
            lowest: if !clamp {
                f32::NEG_INFINITY
            } else if symmetric {
                1.0 - half
            } else {
                -half
            },
            highest: if clamp { half - 1.0 } else { f32::INFINITY },
            step,
            per_step: 1.0 / step,
            mask: ((1_u64 << bits) - 1) as u32,
            sign: 1 << (bits - 1),
        }
    }

    #[inline(always)]
    fn clamp(&self, t: f32) -> f32 {
        let steps = t * self.per_step;
        let steps = if steps > self.lowest { steps } else { self.lowest };
        if steps < self.highest { steps } else { self.highest }
    }

    /// The numbers of whole steps; `t` itself where it is so large that its steps overflow.
    #[inline(always)]
    fn number(&self, steps: f32, t: f32) -> f32 {
        let number = steps * self.step + 0.0;
        if steps.abs() < f32::INFINITY { number } else { t }
    }
}

impl Grid for Fixed {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let steps = self.clamp(t);
        let a = steps.abs();
        let rounded = (a + INTEGERS) - INTEGERS;
        self.number((if a < INTEGERS { rounded } else { a }).copysign(steps), t)
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let steps = self.clamp(t);
        let a = steps.abs();
        let rounded = (a + INTEGERS) - INTEGERS;
        let floor = if rounded > a { rounded - 1.0 } else { rounded };
        let floor = if a < INTEGERS { floor } else { a };
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        let step = f32::from_bits(moves_away(a - floor, word, negative) & 1.0_f32.to_bits());
        self.number((floor + step).copysign(steps), t)
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.lowest * self.step, self.step, self.highest * self.step)
    }
}

impl Codes for Fixed {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        (value * self.per_step + super::int::ROUNDER).to_bits() & self.mask
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        // As for integers: the code with its sign bit flipped, in the low bits of 2^23.
        let ordered = f32::from_bits((code & self.mask & 0x7f_ffff ^ self.sign) | INTEGERS.to_bits());
        (ordered - (INTEGERS + self.sign as f32)) * self.step
    }
}

/// The element of MXINT8: two's complement without the lowest code, in steps of 2^-6.
pub(super) const MXINT8: Fixed = Fixed::new(8, 6, true, true);

/// No format of this family has a name of its own.
pub fn formats() -> Vec<Format> {
    vec![]
}

/// Fixed point of `bits` bits, `fraction_bits` of them after the point.
pub fn fixed_point(bits: u32, fraction_bits: i32, symmetric: bool, clamp: bool) -> Result<Format> {
    if !(2..=24).contains(&bits) {
        return Err(Error::argument("bits", format!("{bits} is out of range; give 2 to 24 (codes have at most 16)")));
    }
    let least = bits as i32 - 127;
    if !(least..=126).contains(&fraction_bits) {
        return Err(Error::argument("fraction_bits", format!("{fraction_bits} is out of range; give {least} to 126")));
    }
    let mut name = format!("fixed({bits},{fraction_bits}");
    name += if symmetric { ",symmetric" } else { "" };
    name += if clamp { ")" } else { ",unbounded)" };
    let bounded = Fixed::new(bits, fraction_bits, symmetric, true);
    let source = "Gupta et al., ICML 2015, arXiv:1502.02551: lowbit.fixed_point";
    let format = Format::new(name, bits, Fixed::new(bits, fraction_bits, symmetric, clamp), "one", source);
    Ok(Format { coded: format.coded && clamp, reference: bounded.highest * bounded.step, ..format })
}

/// Reads the names that this family's factory writes.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    let ("fixed", [bits, fraction_bits, options @ ..]) = (call.family, call.arguments.as_slice()) else { return None };
    let (symmetric, clamp) = match options {
        [] => (false, true),
        ["symmetric"] => (true, true),
        ["unbounded"] => (false, false),
        ["symmetric", "unbounded"] => (true, false),
        _ => return None,
    };
    Some(fixed_point(bits.parse().ok()?, fraction_bits.parse().ok()?, symmetric, clamp))
}
