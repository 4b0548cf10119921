//! Formats whose scales are themselves of a few bits: OCP's MX formats, NVFP4, block floating point.
//!
//! They compose what there is: the grid of another format, a format for scales, a block, and perhaps a scale for the whole
//! tensor. Sources: OCP Microscaling Formats v1.0; NVIDIA, arXiv:2509.25149 (NVFP4); QPyTorch, arXiv:1910.04540, after
//! Song et al., arXiv:1709.07776 (block floating point).

use std::borrow::Cow;

pub(crate) use super::minifloat::E2M1;
use super::minifloat::{E2M3, E3M2, E4M3, E5M2};
use super::{AnyGrid, Call, Codes, Format, Grid, fixed};
use crate::cpu::Level;
use crate::error::{Error, Result};

/// The format of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Powers of two from 2^-127 to 2^127: code c is 2^(c - 127), 255 is NaN.
    E8m0,
    /// Positive numbers of E4M3, times a float32 scale for the tensor.
    E4m3,
}

impl ScaleFormat {
    /// The name users give.
    pub const fn name(self) -> &'static str {
        match self {
            ScaleFormat::E8m0 => "e8m0",
            ScaleFormat::E4m3 => "e4m3",
        }
    }

    /// The scale format of this name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "e8m0" => Ok(ScaleFormat::E8m0),
            "e4m3" => Ok(ScaleFormat::E4m3),
            _ => Err(Error::Unknown { argument: "scale_format", name: name.into(), known: "e8m0, e4m3".into() }),
        }
    }

    /// The code of a scale of this format.
    #[inline(always)]
    pub fn encode(self, scale: f32) -> u8 {
        match self {
            // 2^-127 is float32's 2^22 steps of 2^-149, whose exponent bits are 0.
            ScaleFormat::E8m0 => (scale.to_bits() >> 23) as u8,
            ScaleFormat::E4m3 => E4M3.encode(scale) as u8,
        }
    }

    /// The codes of scales of this format.
    pub fn encode_all(self, scales: &[f32], codes: &mut [u8]) {
        Level::current().run(
            #[inline(always)]
            || {
                for (code, scale) in codes.iter_mut().zip(scales) {
                    *code = self.encode(*scale);
                }
            },
        );
    }

    /// The scale of every code; NaN for codes that are none.
    pub fn table(self) -> [f32; 256] {
        std::array::from_fn(|code| self.decode(code as u8))
    }

    /// The scale that a code stands for; NaN for codes that are none.
    #[inline(always)]
    pub fn decode(self, code: u8) -> f32 {
        match self {
            ScaleFormat::E8m0 => match code {
                0 => f32::from_bits(1 << 22),
                255 => f32::NAN,
                _ => f32::from_bits(u32::from(code) << 23),
            },
            ScaleFormat::E4m3 => {
                let scale = E4M3.decode(u32::from(code));
                if scale > 0.0 { scale } else { f32::NAN }
            }
        }
    }

    /// Whether a number is a scale of this format.
    pub fn has(self, scale: f32) -> bool {
        self.decode(self.encode(scale)) == scale
    }

    /// The E4M3 scale nearest to a positive number, never zero.
    #[inline(always)]
    pub(crate) fn nearest_e4m3(scale: f32) -> f32 {
        /// The smallest positive E4M3.
        const LEAST: f32 = f32::from_bits((127 - 9) << 23);
        let near = E4M3.nearest(scale);
        if near > LEAST { near } else { LEAST }
    }

    /// Whether there is a scale for the whole tensor too.
    pub const fn has_tensor_scale(self) -> bool {
        matches!(self, ScaleFormat::E4m3)
    }
}

/// What a rule for scales of a few bits needs to know of the elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// The format of the scales.
    pub format: ScaleFormat,
    /// The exponent of the elements' largest value.
    pub exponent: i32,
    /// The elements' mantissa bits, the leading one not counted.
    pub mantissa: u32,
}

fn record(
    name: impl Into<Cow<'static, str>>,
    bits: u32,
    (grid, mantissa): (AnyGrid, u32),
    format: ScaleFormat,
    block: Option<usize>,
    source: &'static str,
) -> Format {
    let default_scale = if format.has_tensor_scale() { "amax" } else { "floor" };
    let elements = Format::new(name, bits, grid, default_scale, source);
    let exponent = (elements.reference.to_bits() >> 23) as i32 - 127;
    Format { default_block: block, scaling: Some(Scaling { format, exponent, mantissa }), ..elements }
}

const OCP: &str = "OCP Microscaling Formats v1.0 (E8M0 scales)";

fn mx(name: &'static str, bits: u32, grid: impl Into<AnyGrid>, mantissa: u32) -> Format {
    record(name, bits, (grid.into(), mantissa), ScaleFormat::E8m0, Some(32), OCP)
}

/// The block formats that have names.
pub fn formats() -> Vec<Format> {
    let nvidia = "NVIDIA, arXiv:2509.25149 (NVFP4: E4M3 scales under a float32 one)";
    vec![
        mx("mxfp4", 4, E2M1, 1),
        mx("mxfp6", 6, E2M3, 3),
        mx("mxfp6_e3m2", 6, E3M2, 2),
        mx("mxfp8", 8, E4M3, 3),
        mx("mxfp8_e5m2", 8, E5M2, 2),
        mx("mxint8", 8, fixed::MXINT8, 6),
        record("nvfp4", 4, (E2M1.into(), 1), ScaleFormat::E4m3, Some(16), nvidia),
    ]
}

/// Blocks of elements of any small float, integer or fixed-point format under scales of a few bits. Without a block size it
/// is the caller of `quantize` who says which numbers share a scale.
pub fn block_format(element: &Format, format: ScaleFormat, block: Option<usize>) -> Result<Format> {
    let mantissa = match &element.grid {
        AnyGrid::Minifloat(grid) if element.extremes().0 < 0.0 && element.powers.is_none() => Some(grid.mantissa()),
        AnyGrid::Truncated(_) => Some(element.bits.saturating_sub(9)),
        AnyGrid::Int(grid) if grid.lowest < 0.0 => Some(element.bits - 2),
        AnyGrid::Fixed(_) => Some(element.bits - 2),
        _ => None,
    };
    let Some(mantissa) = mantissa.filter(|_| element.coded && element.scaling.is_none() && element.name != "ternary")
    else {
        let reason = format!(
            "{} cannot be scaled so; give a small float (fp4_e2m1, ...), a signed integer (int8_symmetric, ...) or \
             fixed point, of at most 16 bits",
            element.name
        );
        return Err(Error::argument("element", reason));
    };
    if let Some(size) = block.filter(|size| !(1..=1 << 30).contains(size)) {
        return Err(Error::argument("block_size", format!("{size} is out of range; give 1 to 2^30, or None")));
    }
    let name = match (&element.grid, block) {
        (AnyGrid::Int(grid), None) if format == ScaleFormat::E8m0 && grid.lowest == -grid.highest => {
            format!("bfp({})", element.bits)
        }
        (_, None) => format!("block({},{})", element.name, format.name()),
        (_, Some(size)) => format!("block({},{},{size})", element.name, format.name()),
    };
    let parts = (element.grid.clone(), mantissa);
    Ok(record(name, element.bits, parts, format, block, "composed: lowbit.block_format"))
}

/// QPyTorch's block floating point: symmetric integers under one power of two.
pub fn block_float(bits: u32) -> Result<Format> {
    if !(2..=8).contains(&bits) {
        return Err(Error::argument("bits", format!("{bits} is out of range; give 2 to 8")));
    }
    let format = block_format(&super::int::integer(bits, true, true)?, ScaleFormat::E8m0, None)?;
    Ok(Format { source: "Song et al., arXiv:1709.07776; QPyTorch, arXiv:1910.04540: lowbit.block_float", ..format })
}

/// Reads the names that this file's factories write.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    match (call.family, call.arguments.as_slice()) {
        ("bfp", [bits]) => Some(block_float(bits.parse().ok()?)),
        ("block", [element, format, size @ ..]) => {
            let block = match size {
                [] => None,
                [size] => Some(size.parse().ok()?),
                _ => return None,
            };
            // An element is no block format, so this goes no deeper.
            if element.starts_with("block(") {
                return None;
            }
            let format = ScaleFormat::named(format).ok()?;
            Some(Format::named(element).and_then(|element| block_format(&element, format, block)))
        }
        _ => None,
    }
}
