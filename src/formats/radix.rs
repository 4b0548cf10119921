//! Powers of 2, 4 or 8: which base is best for gradients, and LUQ's powers of two.
//!
//! Sources: Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020 (radix 4; its rounding is
//! generalized here); Chmiel et al., "Accurate Neural Training with 4-bit Matrix Multiplications at Standard Formats",
//! ICLR 2023, arXiv:2112.10769 (LUQ).

use super::{Call, Codes, Format, Grid, choose, goes, threshold};
use crate::error::{Error, Result};

/// A sign and a power: code 0 is zero (or, without a zero, the smallest power), `sign << e | level` the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Radix {
    /// Powers of two from one power to the next: 1, 2 or 3.
    step: u32,
    /// 2^16 / step, rounded up: `exponents * inverse >> 16` divides by the step.
    inverse: u32,
    smallest: f32,
    largest: f32,
    /// The exponent bits of the smallest power.
    start: u32,
    /// `2 R / (1 + R)`: brings the middle between two powers to the upper one.
    middle: f32,
    /// Magnitudes from here on are not zero.
    from: f32,
    /// `1 / (R - 1)`.
    share: f32,
    /// 1 if code 0 is zero.
    zeros: u32,
    /// The sign's place in a code.
    sign: u32,
}

impl Radix {
    /// Powers of `2^step` from `2^lowest`, with `e` exponent bits. `from` is the least magnitude that is not rounded to zero, as
    /// a share of the smallest power.
    const fn new(step: u32, e: u32, lowest: i32, zero: bool, from: f32) -> Self {
        let radix = (1 << step) as f32;
        let start = (lowest + 127) as u32;
        let levels = (1 << e) - zero as u32;
        let smallest = f32::from_bits(start << 23);
        Radix {
            step,
            inverse: (1_u32 << 16).div_ceil(step),
            smallest,
            largest: f32::from_bits((start + (levels - 1) * step) << 23),
            start,
            middle: 2.0 * radix / (1.0 + radix),
            from: if zero { from * smallest } else { 0.0 },
            share: 1.0 / (radix - 1.0),
            zeros: zero as u32,
            sign: 1 << e,
        }
    }

    /// Which power lies at or below `y`, which is from the smallest to the largest.
    #[inline(always)]
    fn level(&self, y: f32) -> u32 {
        (((y.to_bits() >> 23) - self.start) * self.inverse) >> 16
    }

    /// The bits of a power.
    #[inline(always)]
    fn power(&self, level: u32) -> u32 {
        (level * self.step + self.start) << 23
    }

    /// From `smallest` to `largest`; NaN is the smallest.
    #[inline(always)]
    fn clamp(&self, y: f32) -> f32 {
        let y = if y > self.smallest { y } else { self.smallest };
        if y < self.largest { y } else { self.largest }
    }
}

#[inline(always)]
fn with_sign(magnitude: u32, t: f32) -> f32 {
    f32::from_bits(magnitude | t.to_bits() & 0x8000_0000)
}

impl Grid for Radix {
    /// One rounded multiplication brings every middle to the power above it, and nothing below a middle that far: a tie goes
    /// away from zero.
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let a = t.abs();
        let power = self.power(self.level(self.clamp(a * self.middle)));
        with_sign(if a >= self.from { power } else { 0 }, t)
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let a = if t.abs() < self.largest { t.abs() } else { self.largest };
        let below = self.power(self.level(self.clamp(a)));
        // The reciprocal of a power of two has the mirrored exponent.
        let ratio = a * f32::from_bits(0x7f00_0000 - below);
        let inside = a >= self.smallest;
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        if self.zeros == 1 {
            let q = if inside { (ratio - 1.0) * self.share } else { a * (1.0 / self.smallest) };
            let (near, far) =
                if inside { (below, below + (self.step << 23)) } else { (0, self.smallest.to_bits()) };
            return with_sign(choose(goes(word ^ negative, threshold(q)), far, near), t);
        }
        let away = goes(word ^ negative, threshold((ratio - 1.0) * self.share));
        let outside = with_sign(choose(away, below + (self.step << 23), below), t);
        // Without a zero the neighbours of a small number are the smallest powers of either sign.
        let up = goes(word, threshold((if inside { 0.0 } else { t }) * (0.5 / self.smallest) + 0.5));
        let across = choose(up, self.smallest.to_bits(), self.smallest.to_bits() | 0x8000_0000);
        if inside { outside } else { f32::from_bits(across) }
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (-self.largest, self.smallest, self.largest)
    }
}

impl Codes for Radix {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        let a = value.abs();
        let level = self.level(self.clamp(a)) + self.zeros;
        let sign = if value.to_bits() >> 31 == 1 { self.sign } else { 0 };
        sign | if a >= self.smallest { level } else { 0 }
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let level = code & (self.sign - 1);
        let power = self.power(level.wrapping_sub(self.zeros));
        let magnitude = if level >= self.zeros { power } else { 0 };
        f32::from_bits(magnitude | if code & self.sign != 0 { 0x8000_0000 } else { 0 })
    }
}

/// The formats of this family that have names. LUQ scales the largest magnitude to the largest power, so that nothing is
/// clipped and stochastic rounding has no bias; its zero is the nearest.
pub fn formats() -> Vec<Format> {
    let source = "Chmiel et al., ICLR 2023, arXiv:2112.10769 (LUQ: powers of two from max/64)";
    vec![Format::new("luq4", 4, Radix::new(1, 3, 0, true, 0.5), "amax", source)]
}

/// Powers of `radix` with `e` exponent bits around 1, and a zero or none.
pub fn radix(radix: u32, e: u32, zero: bool) -> Result<Format> {
    let (step, most) = match radix {
        2 => (1, 7),
        4 => (2, 6),
        8 => (3, 6),
        _ => return Err(Error::argument("radix", format!("{radix} is not a base there is; give 2, 4 or 8"))),
    };
    if !(1..=most).contains(&e) {
        let reason = format!("{e} is out of range; give 1 to {most}, so that all powers of {radix} are float32's");
        return Err(Error::argument("exponent_bits", reason));
    }
    if (radix, e, zero) == (4, 3, true) {
        return Ok(super::radix4::even());
    }
    let half = 1 << (e - 1);
    let lowest = step as i32 * (i32::from(zero) - half);
    let name = format!("radix({radix},{e}{})", if zero { "" } else { ",nozero" });
    // The middle between the smallest power and the one that would be below it.
    let from = (1.0 + radix as f32) / (2.0 * radix as f32);
    let grid = Radix::new(step, e, lowest, zero, from);
    Ok(Format::new(name, e + 1, grid, "amax", "Sun et al., NeurIPS 2020, generalized: lowbit.radix_format"))
}

/// Reads the names that this family's factory writes.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    match (call.family, call.arguments.as_slice()) {
        ("radix", [base, e]) => Some(radix(base.parse().ok()?, e.parse().ok()?, true)),
        ("radix", [base, e, "nozero"]) => Some(radix(base.parse().ok()?, e.parse().ok()?, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::AnyGrid;
    use super::*;

    #[test]
    fn one_multiplication_puts_every_middle_on_the_power_above_it_and_nothing_below_it() {
        for base in [2, 4, 8] {
            for e in 1..=6 {
                let Ok(Format { grid: AnyGrid::Radix(grid), .. }) = radix(base, e, true) else { continue };
                for level in 0..(1 << e) - 1 {
                    let power = f32::from_bits(grid.power(level));
                    let middle = power * ((1.0 + base as f32) / (2.0 * base as f32));
                    assert_eq!(grid.nearest(middle), power, "{base} {e} {level}");
                    let next = f32::from_bits(middle.to_bits() - 1);
                    let below = if level > 0 { f32::from_bits(grid.power(level - 1)) } else { 0.0 };
                    assert_eq!(grid.nearest(next), below, "{base} {e} {level}");
                }
            }
        }
    }
}
