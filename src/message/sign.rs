//! One sign a number and one scale an array: signSGD's message with the scale of EF-signSGD (Karimireddy et al., ICML 2019,
//! arXiv:1901.09847), the mean magnitude, or with the root mean square that DeepSpeed's 1-bit optimizers use.

use super::coder::{Coder, Noise, Opened, Pieces, decode_tiles, encode_tiles, room};
use super::cursor::Cursor;
use super::rotated::{NAN, finite, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::quantize::observe_all;
use crate::scale::Statistic;
use crate::simd::mask;
use crate::view::View;

/// The sign of every number, times a scale.
#[derive(Clone, Debug)]
pub(super) struct Sign {
    /// The root mean square instead of the mean magnitude.
    square: bool,
}

impl Sign {
    pub fn new(scale: u8) -> Result<Self> {
        match scale {
            0 | 1 => Ok(Sign { square: scale == 1 }),
            _ => Err(Error::argument("scale", format!("code {scale} is neither l1 nor l2"))),
        }
    }
}

impl Coder for Sign {
    fn encode(&self, x: &View, _: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let seen = observe_all(x, Statistic::Moments);
        let (sum, squares) = seen.moments();
        let n = x.len() as f64;
        let scale = Level::PORTABLE.run(|| finite(if self.square { (squares / n).sqrt() } else { sum / n }));
        let scale = if seen.is_finite() { scale } else { NAN };
        out.extend(scale.to_le_bytes());
        let bits = room(out, x.len().div_ceil(8));
        if scale != 0.0 && !scale.is_nan() {
            encode_tiles(
                x,
                bits,
                |n| n.div_ceil(8),
                #[inline(always)]
                |level, _, x, scratch, out| {
                    // The sum makes a -0 a +0.
                    scratch.lanes.iter_mut().zip(x).for_each(|(sign, x)| *sign = x + 0.0);
                    mask::nonnegative(level, &scratch.lanes[..x.len()], out);
                },
            );
        }
        Ok(seen.is_finite())
    }

    fn open<'a>(&'a self, shape: &[usize], _: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n: usize = shape.iter().product();
        let scale = take_scales(payload, 1)?;
        let scale = super::rotated::float_at(scale, 0);
        let bits = payload.packed(n, 1)?;
        Ok(Box::new(Sent { scale, bits, n }))
    }

    fn needs_key(&self) -> bool {
        false
    }
}

struct Sent<'a> {
    scale: f32,
    bits: &'a [u8],
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Chunks(self.n)
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        self.write(level, piece, out, None);
        Ok(())
    }

    fn add(&self, level: Level, piece: usize, sum: &mut [f32], weight: f32) -> Result<()> {
        self.write(level, piece, sum, Some(weight));
        Ok(())
    }
}

impl Sent<'_> {
    /// Writes the numbers of one piece, or adds them with a weight.
    fn write(&self, level: Level, piece: usize, out: &mut [f32], weight: Option<f32>) {
        let (scale, sign) = (self.scale.to_bits(), u32::from(self.scale > 0.0));
        decode_tiles(
            level,
            piece,
            self.bits,
            |n| n.div_ceil(8),
            (out, weight),
            #[inline(always)]
            |_, bits, out| {
                let mut lanes = [0; super::coder::TILE];
                mask::spread(bits, &mut lanes);
                for (value, lane) in out.iter_mut().zip(&lanes) {
                    *value = f32::from_bits(scale | ((lane ^ 1) & sign) << 31);
                }
            },
        );
    }
}
