//! Small floats of any exponent, mantissa and bias: OCP's FP4, FP6 and FP8, the IEEE ones, and Tesla's CFloat.
//!
//! Sources: OCP Microscaling Formats v1.0 (E2M1, E2M3, E3M2, E4M3, E5M2); IEEE 754 (binary16); ml_dtypes (fn, fnuz);
//! Tesla, "A Guide to Tesla's Configurable Floating Point Formats & Arithmetic", 2021 (CFloat8, CFloat16).

use std::borrow::Cow;
use std::fmt::Write;

use super::coding::{Coding, Specials};
use super::truncated::Truncated;
use super::{AnyGrid, Call, Codes, Format, Grid, below_one, goes};
use crate::error::{Error, Result};

/// A sign, fewer than 8 exponent bits and a mantissa. Between the smallest normal number and zero the steps are equal, or
/// there is nothing. Every step is a normal float32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Minifloat {
    mantissa: u32,
    /// What is subtracted from float32's bits so that the rest, without the bits that are dropped, is the code.
    rebase: u32,
    lowest: f32,
    largest: f32,
    /// The smallest normal number.
    normal: f32,
    /// The step below it: `normal` itself if there is nothing below.
    step: f32,
    /// The exponent bits that the mantissa has too much where there is nothing below `normal`.
    flushed: u32,
    codes: Coding,
}

/// 2^k, for an exponent that float32 has.
const fn power(k: i32) -> f32 {
    if k >= -126 { f32::from_bits(((k + 127) as u32) << 23) } else { f32::from_bits(1 << (k + 149)) }
}

/// 2^23: added to a number from 0 below it, rounds to an integer, ties to even, which is then in the low bits.
const INTEGERS: f32 = 8_388_608.0;
const MANTISSA: u32 = 0x7f_ffff;

impl Minifloat {
    /// A float of `e` exponent and `m` mantissa bits; whether that can be is asked of [`float`].
    pub const fn new(e: u32, m: u32, bias: i32, specials: Specials, subnormals: bool, signed: bool) -> Self {
        let codes = Coding::new(e, m, specials, subnormals, signed);
        let rebase = ((127 - bias) as u32) << 23;
        let least = power(1 - bias - m as i32);
        let largest = if codes.last >= codes.first_normal {
            f32::from_bits((codes.last << (23 - m)).wrapping_add(rebase))
        } else {
            codes.last as f32 * least
        };
        Minifloat {
            mantissa: m,
            rebase,
            lowest: if signed { -largest } else { 0.0 },
            largest,
            normal: power(1 - bias),
            step: if subnormals { least } else { power(1 - bias) },
            flushed: if subnormals { 0 } else { m << 23 },
            codes,
        }
    }

    /// Mantissa bits.
    pub const fn mantissa(&self) -> u32 {
        self.mantissa
    }

    const fn shift(&self) -> u32 {
        23 - self.mantissa
    }

    #[inline(always)]
    fn clamp(&self, t: f32) -> f32 {
        let t = if t > self.lowest { t } else { self.lowest };
        if t < self.largest { t } else { self.largest }
    }

    /// Half a unit in the last place, less one if the code would be even: added to a magnitude's bits, it rounds them.
    #[inline(always)]
    fn half(&self, bits: u32) -> u32 {
        let odd = (bits.wrapping_sub(self.rebase) >> self.shift()) & u32::from(self.mantissa < 23);
        (((1 << self.shift()) - 1) >> 1) + odd
    }

    /// The steps that a magnitude is, stochastically rounded, as an integer; what one of them is; and its exponent bits above
    /// those of the smallest normal number.
    #[inline(always)]
    fn steps(&self, t: f32, word: u32) -> (i32, f32, u32) {
        let (a, start) = (t.abs(), self.normal.to_bits());
        let exponent = a.to_bits() & !MANTISSA;
        let digits = (self.mantissa << 23) - if exponent < start { self.flushed } else { 0 };
        let exponent = if exponent > start { exponent } else { start };
        // Powers of two: what is in the exponent bits is their logarithm.
        let per_step = f32::from_bits((254 << 23) + digits - exponent);
        let step = f32::from_bits(exponent - digits);
        let steps = a * per_step;
        // SAFETY: a is no NaN and at most the largest, so there are less than 2^24 steps.
        let floor: i32 = unsafe { steps.to_int_unchecked() };
        let negative = ((t.to_bits() as i32) >> 31) as u32;
        let away = goes(word ^ negative, below_one(steps - floor as f32));
        (floor - away as i32, step, exponent - start)
    }
}

impl Grid for Minifloat {
    /// The bits are rounded; below the smallest normal number the addition of 2^23 steps does the same.
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let t = self.clamp(t);
        let a = t.abs();
        let normal = (a.to_bits() + self.half(a.to_bits())) >> self.shift() << self.shift();
        let magic = self.step * INTEGERS;
        let below = ((a + magic) - magic).to_bits();
        self.codes.signed(if a >= self.normal { normal } else { below }, t)
    }

    /// The fraction of the way is that of a number of steps, exact: the steps of an octave are one power of two.
    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let t = self.clamp(t);
        let (steps, step, _) = self.steps(t, word);
        self.codes.signed((steps as f32 * step).to_bits(), t)
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.lowest, self.step, self.largest)
    }
}

impl Codes for Minifloat {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        self.nearest_code(value)
    }

    #[inline(always)]
    fn nearest_code(&self, t: f32) -> u32 {
        let t = self.clamp(t);
        let a = t.abs();
        let normal = (a.to_bits() + self.half(a.to_bits())).wrapping_sub(self.rebase) >> self.shift();
        let below = ((a + self.step * INTEGERS).to_bits() & MANTISSA) << (self.flushed >> 23);
        self.codes.code(if a >= self.normal { normal } else { below }, t)
    }

    #[inline(always)]
    fn stochastic_code(&self, t: f32, word: u32) -> u32 {
        let t = self.clamp(t);
        let (steps, _, above) = self.steps(t, word);
        let lifted = if t.abs() < self.normal { steps << (self.flushed >> 23) } else { steps };
        self.codes.code(lifted as u32 + (above >> self.shift()), t)
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let magnitude = code & !self.codes.sign;
        let normal = f32::from_bits((magnitude << self.shift()).wrapping_add(self.rebase));
        let steps = f32::from_bits(magnitude & self.codes.meaning & MANTISSA | INTEGERS.to_bits()) - INTEGERS;
        self.codes.number(code, if magnitude >= self.codes.first_normal { normal } else { steps * self.step })
    }
}

const OCP: &str = "OCP Microscaling Formats v1.0";
const ML_DTYPES: &str = "ml_dtypes (float8 of the same name)";

/// A float as a format: scale 1 unless asked otherwise.
fn record(name: impl Into<Cow<'static, str>>, bits: u32, grid: impl Into<AnyGrid>, source: &'static str) -> Format {
    Format::new(name, bits, grid, "one", source)
}

fn named(name: &'static str, e: u32, m: u32, specials: Specials, source: &'static str) -> Format {
    let grid = Minifloat::new(e, m, default_bias(e, specials), specials, true, true);
    record(name, 1 + e + m, grid, source)
}

const fn default_bias(e: u32, specials: Specials) -> i32 {
    let half = 1 << (e - 1);
    if matches!(specials, Specials::Fnuz) { half } else { half - 1 }
}

/// OCP's E2M1, the element of MXFP4 and NVFP4.
pub(crate) const E2M1: Minifloat = Minifloat::new(2, 1, 1, Specials::None, true, true);
/// OCP's E2M3.
pub(super) const E2M3: Minifloat = Minifloat::new(2, 3, 1, Specials::None, true, true);
/// OCP's E3M2.
pub(super) const E3M2: Minifloat = Minifloat::new(3, 2, 3, Specials::None, true, true);
/// OCP's E4M3.
pub(crate) const E4M3: Minifloat = Minifloat::new(4, 3, 7, Specials::Fn, true, true);
/// OCP's E5M2.
pub(super) const E5M2: Minifloat = Minifloat::new(5, 2, 15, Specials::Ieee, true, true);

/// The formats of this family that have names.
pub fn formats() -> Vec<Format> {
    vec![
    record("fp4_e2m1", 4, E2M1, OCP),
    record("fp6_e2m3", 6, E2M3, OCP),
    record("fp6_e3m2", 6, E3M2, OCP),
    named("fp8_e3m4", 3, 4, Specials::Ieee, ML_DTYPES),
    named("fp8_e4m3", 4, 3, Specials::Ieee, ML_DTYPES),
    record("fp8_e4m3fn", 8, E4M3, OCP),
    named("fp8_e4m3fnuz", 4, 3, Specials::Fnuz, ML_DTYPES),
    record(
        "fp8_e4m3b11fnuz",
        8,
        Minifloat::new(4, 3, 11, Specials::Fnuz, true, true),
        ML_DTYPES,
    ),
    record("fp8_e5m2", 8, E5M2, OCP),
    named("fp8_e5m2fnuz", 5, 2, Specials::Fnuz, ML_DTYPES),
    named("float16", 5, 10, Specials::Ieee, "IEEE 754-2008 (binary16)"),
]
}

/// A float of the caller's own, if there is one.
pub fn float(e: u32, m: u32, bias: Option<i32>, specials: Specials, subnormals: bool) -> Result<Format> {
    if !(1..=8).contains(&e) {
        return Err(Error::argument("exponent_bits", format!("{e} is out of range; give 1 to 8")));
    }
    if m > 23 {
        return Err(Error::argument("mantissa_bits", format!("{m} is out of range; give 0 to 23")));
    }
    let default = default_bias(e, specials);
    let bias = bias.unwrap_or(default);
    if e == 8 && (specials != Specials::Ieee || bias != 127) {
        let reason = "8 exponent bits fit float32 only with inf_nan=\"ieee\" and the bias 127";
        return Err(Error::argument(if specials == Specials::Ieee { "bias" } else { "inf_nan" }, reason));
    }
    // float32 must hold the largest number, and the steps below the smallest normal one.
    let (least, most) = (((1 << e) - 128).max(-103), 127 - m as i32);
    if e < 8 && !(least..=most).contains(&bias) {
        return Err(Error::argument("bias", format!("{bias} is out of range; give {least} to {most}")));
    }
    let values = (1_u32 << (e + m)) - match specials {
        Specials::None | Specials::Fnuz => 1,
        Specials::Ieee => (1 << m) + 1,
        Specials::Fn => 2,
    };
    if values < if subnormals { 1 } else { 1 << m } {
        let reason = format!("{e} exponent and {m} mantissa bits leave no finite number but zero; give another");
        return Err(Error::argument("inf_nan", reason));
    }
    let mut name = format!("float({e},{m}");
    if bias != default {
        // Writing to a String cannot fail.
        let _ = write!(name, ",bias={bias}");
    }
    name += match specials {
        Specials::None => "",
        Specials::Ieee => ",ieee",
        Specials::Fn => ",fn",
        Specials::Fnuz => ",fnuz",
    };
    name += if subnormals { ")" } else { ",ftz)" };
    let grid = match e {
        8 => AnyGrid::from(Truncated::new(m, subnormals)),
        _ => Minifloat::new(e, m, bias, specials, subnormals, true).into(),
    };
    Ok(record(name, 1 + e + m, grid, "a float of the caller's own: lowbit.float_format"))
}

const TESLA: &str = "Tesla, A Guide to Tesla's Configurable Floating Point Formats & Arithmetic, 2021";

/// The biases that a six-bit unsigned field can say.
const BIASES: std::ops::RangeInclusive<i32> = 0..=63;

fn configurable(name: String, e: u32, m: u32, bias: i32) -> Result<Format> {
    if !BIASES.contains(&bias) {
        return Err(Error::argument("bias", format!("{bias} is out of range; give 0 to 63")));
    }
    let grid = Minifloat::new(e, m, bias, Specials::None, true, true);
    let powers = Some((bias - BIASES.end(), bias - BIASES.start()));
    Ok(Format { powers, ..record(name, 1 + e + m, grid, TESLA) })
}

/// Tesla's `CFloat8_1_4_3` or `CFloat8_1_5_2`.
pub fn cfloat8(e: u32, bias: i32) -> Result<Format> {
    if e != 4 && e != 5 {
        return Err(Error::argument("exponent_bits", format!("{e} is not one of CFloat8's; give 4 or 5")));
    }
    configurable(format!("cfloat8({e},{bias})"), e, 7 - e, bias)
}

/// Tesla's CFloat16 SHP: a half of any bias, without infinities.
pub fn cfloat16_shp(bias: i32) -> Result<Format> {
    configurable(format!("cfloat16(shp,{bias})"), 5, 10, bias)
}

/// Tesla's CFloat16 UHP: no sign, six exponent bits; the highest exponent may be kept free.
pub fn cfloat16_uhp(reserved: bool) -> Format {
    let specials = if reserved { Specials::Ieee } else { Specials::None };
    let name = if reserved { "cfloat16(uhp,reserved)" } else { "cfloat16(uhp)" };
    record(name, 16, Minifloat::new(6, 10, 31, specials, false, false), TESLA)
}

/// Reads the names that this family's factories write.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    match (call.family, call.arguments.as_slice()) {
        ("cfloat8", [e, bias]) => Some(cfloat8(e.parse().ok()?, bias.parse().ok()?)),
        ("cfloat16", ["shp", bias]) => Some(cfloat16_shp(bias.parse().ok()?)),
        ("cfloat16", ["uhp"]) => Some(Ok(cfloat16_uhp(false))),
        ("cfloat16", ["uhp", "reserved"]) => Some(Ok(cfloat16_uhp(true))),
        ("float", [e, m, options @ ..]) => {
            let (mut bias, mut specials, mut subnormals) = (None, Specials::None, true);
            for option in options {
                match *option {
                    "ieee" => specials = Specials::Ieee,
                    "fn" => specials = Specials::Fn,
                    "fnuz" => specials = Specials::Fnuz,
                    "ftz" => subnormals = false,
                    _ => bias = Some(option.strip_prefix("bias=")?.parse().ok()?),
                }
            }
            Some(float(e.parse().ok()?, m.parse().ok()?, bias, specials, subnormals))
        }
        _ => None,
    }
}
