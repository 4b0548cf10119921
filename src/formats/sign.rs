//! One bit: minus one and one.
//!
//! Sources: Rastegari et al., "XNOR-Net", ECCV 2016, arXiv:1603.05279 (scaled by the mean magnitude, per output filter);
//! Courbariaux et al., `BinaryConnect`, NeurIPS 2015, arXiv:1511.00363 (zero is positive; stochastic binarization).

use super::{Codes, Format, Grid, goes, threshold};

/// The sign, zero's being plus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sign;

impl Grid for Sign {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        if t >= 0.0 { 1.0 } else { -1.0 }
    }

    /// Up with probability `(t + 1) / 2`, the hard sigmoid.
    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let a = if t > -1.0 { t } else { -1.0 };
        let a = if a < 1.0 { a } else { 1.0 };
        let up = goes(word, threshold((a + 1.0) * 0.5)) != 0 || a >= 1.0;
        if up { 1.0 } else { -1.0 }
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (-1.0, 1.0, 1.0)
    }
}

impl Codes for Sign {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        (value.to_bits() >> 31) ^ 1
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        f32::from_bits(1.0_f32.to_bits() | (code & 1 ^ 1) << 31)
    }
}

/// The format of this family.
pub fn formats() -> Vec<Format> {
    let source = "Rastegari et al., ECCV 2016, arXiv:1603.05279 (XNOR-Net)";
    vec![Format::new("sign", 1, Sign, "mean", source)]
}
