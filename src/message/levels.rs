//! Integers from -L to L times one scale an array, rounded at random so that the mean is the number: TernGrad (Wen et al.,
//! NeurIPS 2017, arXiv:1705.07878; L = 1, the scale is the largest magnitude) and QSGD (Alistarh et al., NeurIPS 2017,
//! arXiv:1610.02132; the scale is the norm divided by L), both with codes of fixed length.

use std::sync::atomic::{AtomicBool, Ordering};

use super::coder::{CHUNK, Coder, Noise, Opened, Pieces, Scratch, TILE, decode_tiles, encode_tiles, fill, room};
use super::cursor::Cursor;
use super::rotated::{NAN, defined, exponent, float_at, power_of_two, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::int::Int;
use crate::formats::{Codes, Grid};
use crate::pack::{pack_tile, pack_trits, packed_len, unpack_tile, unpack_trits};
use crate::parallel;
use crate::quantize::observe_all;
use crate::scale::Statistic;
use crate::stream::Purpose;
use crate::view::View;

/// What the largest integer stands for.
#[derive(Clone, Copy, Debug)]
enum Top {
    /// The largest magnitude.
    Magnitude,
    /// The Euclidean norm.
    Norm,
}

/// Integers from `-levels` to `levels`.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    most: u32,
    top: Top,
    bits: u32,
    grid: Int,
}

impl Levels {
    fn new(levels: u32, top: Top) -> Self {
        let bits = (2 * levels + 1).next_power_of_two().ilog2();
        Levels { most: levels, top, bits, grid: Int::around_zero(levels, bits) }
    }

    /// -1, 0 and 1 times the largest magnitude.
    pub fn terngrad() -> Self {
        Levels::new(1, Top::Magnitude)
    }

    /// The levels of QSGD.
    pub fn qsgd(levels: u32) -> Result<Self> {
        if (1..=32_767).contains(&levels) {
            return Ok(Levels::new(levels, Top::Norm));
        }
        Err(Error::argument("levels", format!("{levels} is out of range; give 1 to 32767")))
    }

    /// Refuses codes that stand for nothing.
    fn check(&self, codes: &[u8], n: usize) -> Result<()> {
        let (level, all_known) = (Level::current(), AtomicBool::new(true));
        parallel::for_each(n.div_ceil(CHUNK), |chunk| {
            let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
            let bytes = &codes[self.length(range.start)..self.length(range.end)];
            let known = level.run(
                #[inline(always)]
                || {
                    if self.most == 1 {
                        // Digits beyond the last number are zero: the highest digits of the last byte.
                        let most = [0, 3, 9, 27, 81, 243][range.len() - (bytes.len() - 1) * 5];
                        return bytes.iter().all(|byte| *byte < 243)
                            && bytes.last().is_none_or(|last| u32::from(*last) < most);
                    }
                    let mut numbers = [0_u32; TILE];
                    range.clone().step_by(TILE).zip(bytes.chunks(self.length(TILE))).all(|(start, bytes)| {
                        let numbers = &mut numbers[..TILE.min(range.end - start)];
                        unpack_tile(level, bytes, self.bits, numbers);
                        numbers.iter().fold(0, |most, code| most.max(*code)) <= 2 * self.most
                    })
                },
            );
            if !known {
                all_known.store(false, Ordering::Relaxed);
            }
        });
        if all_known.into_inner() { Ok(()) } else { Err(Error::decode("a code is beyond the levels")) }
    }

    /// Bytes that the codes of `n` numbers take: of three values five a byte.
    fn length(&self, n: usize) -> usize {
        if self.most == 1 { n.div_ceil(5) } else { packed_len(n, self.bits) }
    }
}

impl Coder for Levels {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let words = noise.stream(Purpose::Coin)?;
        let seen = observe_all(x, Statistic::Moments);
        let amax = seen.amax();
        // A clean float state: the caller's may flush what is small.
        let (scale, factor, recip) = Level::PORTABLE.run(|| {
            let e = exponent(amax.to_bits());
            let top = match self.top {
                Top::Magnitude => f64::from(amax),
                Top::Norm => seen.moments().1.sqrt(),
            };
            let (levels, unit) = (f64::from(self.most), power_of_two(e));
            (defined(top / levels), power_of_two(-e) as f32, (unit * levels / top) as f32)
        });
        let scale = if seen.is_finite() { scale } else { NAN };
        out.extend(scale.to_le_bytes());
        let codes = room(out, self.length(x.len()));
        if scale != 0.0 && !scale.is_nan() {
            let grid = self.grid;
            encode_tiles(
                x,
                codes,
                |n| self.length(n),
                #[inline(always)]
                |level, start, x, Scratch { words: drawn, codes, .. }, out| {
                    // Copies of the loop's own: behind references they would be loaded anew for each number.
                    let (words, grid, factor, recip) = (words, grid, factor, recip);
                    words.fill(start as u64, &mut drawn[..x.len()]);
                    for ((code, x), word) in codes.iter_mut().zip(x).zip(&*drawn) {
                        *code = grid.encode(grid.stochastic((x * factor) * recip, *word));
                    }
                    if self.most == 1 {
                        pack_trits(&codes[..x.len()], out);
                    } else {
                        pack_tile(level, &codes[..x.len()], self.bits, out);
                    }
                },
            );
        }
        Ok(!scale.is_nan())
    }

    fn open<'a>(&'a self, shape: &[usize], _: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n: usize = shape.iter().product();
        let scale = float_at(take_scales(payload, 1)?, 0);
        let codes = if self.most == 1 { payload.take(self.length(n))? } else { payload.packed(n, self.bits)? };
        self.check(codes, n)?;
        Ok(Box::new(Sent { codec: self, scale, codes, n }))
    }

    fn needs_key(&self) -> bool {
        false
    }
}

struct Sent<'a> {
    codec: &'a Levels,
    scale: f32,
    codes: &'a [u8],
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
        let (codec, scale) = (self.codec, self.scale);
        if scale == 0.0 {
            return fill(out, 0.0, weight);
        }
        decode_tiles(
            level,
            piece,
            self.codes,
            |n| codec.length(n),
            (out, weight),
            #[inline(always)]
            |_, bytes, out| {
                let mut codes = [0_u32; TILE];
                let codes = &mut codes[..out.len()];
                if codec.most == 1 {
                    unpack_trits(bytes, codes);
                } else {
                    unpack_tile(level, bytes, codec.bits, codes);
                }
                for (value, code) in out.iter_mut().zip(codes) {
                    *value = codec.grid.decode(*code) * scale + 0.0;
                }
            },
        );
    }
}
