//! The upper part of float32: bfloat16 and its kin.

use super::coding::{Coding, SIGN, Specials, UNUSED};
use super::{Codes, Format, Grid, goes, threshold};

/// The upper part of float32: its exponents, fewer mantissa bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncated {
    /// Mantissa bits that are dropped.
    shift: u32,
    largest: f32,
    /// Magnitudes below this are zero or this.
    least: f32,
    codes: Coding,
}

impl Truncated {
    /// With `m` mantissa bits.
    pub(super) const fn new(m: u32, subnormals: bool) -> Self {
        let codes = Coding::new(8, m, Specials::Ieee, subnormals, true);
        let least = if subnormals { 0.0 } else { f32::MIN_POSITIVE };
        Truncated { shift: 23 - m, largest: f32::from_bits(codes.last << (23 - m)), least, codes }
    }

    const fn dropped(&self) -> u32 {
        (1 << self.shift) - 1
    }

    #[inline(always)]
    fn clamp(&self, t: f32) -> f32 {
        let t = if t > -self.largest { t } else { -self.largest };
        if t < self.largest { t } else { self.largest }
    }

    /// The bits of a magnitude, rounded.
    #[inline(always)]
    fn near(&self, a: f32) -> u32 {
        let bits = a.to_bits();
        let odd = (bits >> self.shift) & u32::from(self.shift > 0);
        let rounded = (bits + (self.dropped() >> 1) + odd) & !self.dropped();
        let tiny = if a > self.least * 0.5 { self.least.to_bits() } else { 0 };
        if a < self.least { tiny } else { rounded }
    }

    /// The same, stochastically: the dropped bits against as many of the word's.
    #[inline(always)]
    fn drawn(&self, t: f32, word: u32) -> u32 {
        let (a, bits) = (t.abs(), t.to_bits() & !SIGN);
        let word = word ^ ((t.to_bits() as i32) >> 31) as u32;
        let away = goes(word, ((bits & self.dropped()) << (31 - self.shift)) as i32);
        let rounded = (bits & !self.dropped()) + (away & (self.dropped() + 1));
        // In two steps, since 2^126 times 2^31 is no float32; zero goes nowhere, there or here.
        let tiny = goes(word, threshold(a * f32::from_bits(253 << 23))) & self.least.to_bits();
        if a < self.least { tiny } else { rounded }
    }
}

impl Grid for Truncated {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let t = self.clamp(t);
        self.codes.signed(self.near(t.abs()), t)
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let t = self.clamp(t);
        self.codes.signed(self.drawn(t, word), t)
    }

    fn extremes(&self) -> (f32, f32, f32) {
        let smallest = if self.least > 0.0 { self.least } else { f32::from_bits(1 << self.shift) };
        (-self.largest, smallest, self.largest)
    }
}

impl Codes for Truncated {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        self.codes.code((value.to_bits() & !SIGN) >> self.shift, value)
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let magnitude = code & !self.codes.sign;
        let meant = if magnitude >= self.codes.first_normal { UNUSED } else { self.codes.meaning };
        self.codes.number(code, f32::from_bits((magnitude & meant) << self.shift))
    }
}

/// The format of this family that has a name; its others are made by the factory of [`super::minifloat`].
pub fn formats() -> Vec<Format> {
    vec![Format::new("bfloat16", 16, Truncated::new(7, true), "one", "the upper half of IEEE 754's binary32")]
}
