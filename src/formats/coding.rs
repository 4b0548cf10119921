//! What the codes of floats mean: sign, exponent and mantissa, and which are no finite numbers.

use crate::error::{Error, Result};

/// What the codes beyond the finite numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Every code is a finite number.
    None,
    /// The highest exponent is infinity (mantissa 0) and NaN, as in IEEE 754.
    Ieee,
    /// The code of all ones is NaN.
    Fn,
    /// The code of negative zero is NaN.
    Fnuz,
}

impl Specials {
    /// What this name of `inf_nan` means.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Specials::None),
            "ieee" => Ok(Specials::Ieee),
            "fn" => Ok(Specials::Fn),
            "fnuz" => Ok(Specials::Fnuz),
            _ => Err(Error::Unknown { argument: "inf_nan", name: name.into(), known: "none, ieee, fn, fnuz".into() }),
        }
    }
}

/// The sign bit of a float32.
pub(super) const SIGN: u32 = 0x8000_0000;

/// No code.
pub(super) const UNUSED: u32 = u32::MAX;

/// What the codes of a float mean beyond sign, exponent and mantissa.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coding {
    /// -0 keeps the sign of what becomes zero, 0 drops it.
    pub zero: f32,
    /// The sign's place in a code; 0 without a sign.
    pub sign: u32,
    /// The least magnitude that has a sign.
    least_signed: u32,
    /// The first code of a normal number.
    pub first_normal: u32,
    /// Bits of a code below `first_normal` that mean something.
    pub meaning: u32,
    /// The highest finite code, without its sign.
    pub last: u32,
    infinity: u32,
    nan: u32,
}

impl Coding {
    pub const fn new(e: u32, m: u32, specials: Specials, subnormals: bool, signed: bool) -> Self {
        let top = 1_u32 << (e + m);
        let last = match specials {
            Specials::None | Specials::Fnuz => top - 1,
            Specials::Ieee => top - (1 << m) - 1,
            Specials::Fn => top - 2,
        };
        let both_zeros = signed && !matches!(specials, Specials::Fnuz);
        Coding {
            zero: if both_zeros { -0.0 } else { 0.0 },
            sign: if signed { top } else { 0 },
            least_signed: if both_zeros { 0 } else { 1 },
            first_normal: 1 << m,
            meaning: if subnormals { UNUSED } else { 0 },
            last,
            infinity: if matches!(specials, Specials::Ieee) { last + 1 } else { UNUSED },
            nan: if matches!(specials, Specials::Fnuz) { top } else { UNUSED },
        }
    }

    /// The number with the bits of this magnitude and the sign of `t`, which is within the grid.
    #[inline(always)]
    pub fn signed(&self, magnitude: u32, t: f32) -> f32 {
        f32::from_bits(magnitude | t.to_bits() & SIGN) + self.zero
    }

    /// The code of this magnitude with the sign of `t`.
    #[inline(always)]
    pub fn code(&self, magnitude: u32, t: f32) -> u32 {
        let sign = if t.to_bits() >> 31 == 1 { self.sign } else { 0 };
        magnitude | if magnitude >= self.least_signed { sign } else { 0 }
    }

    /// The number of a code, of which `finite` is what it would be as a finite magnitude.
    #[inline(always)]
    pub fn number(&self, code: u32, finite: f32) -> f32 {
        let special = if code & !self.sign == self.infinity { f32::INFINITY } else { f32::NAN };
        let value = if code & !self.sign > self.last { special } else { finite };
        let value = f32::from_bits(value.to_bits() | if code & self.sign != 0 { SIGN } else { 0 }) + self.zero;
        if code == self.nan || value.is_nan() { f32::NAN } else { value }
    }
}
