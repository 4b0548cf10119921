//! Subtractive dither, number by number: `2^b` equal steps on an interval, whose error is uniform on one step whatever the
//! signal (Roberts 1962; Schuchman 1964). The interval is given, or is that of the array's own numbers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::coder::{Coder, Noise, Opened, Pieces, Scratch, TILE, decode_tiles, encode_tiles, fill, room};
use super::cursor::Cursor;
use super::rotated::NAN;
use super::rotated::summable::integer;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::pack::{pack_tile, packed_len, unpack_tile};
use crate::quantize::observe_all;
use crate::scale::{SCALE_RANGE, Statistic};
use crate::simd::mask;
use crate::stream::{Purpose, Stream, centred};
use crate::view::View;

/// The least float32 above 1/2.
const ABOVE_HALF: f32 = f32::from_bits(0x3f00_0001);

/// Equal steps on an interval, with subtractive dither.
#[derive(Clone, Debug)]
pub(super) struct Dither {
    bits: u32,
    interval: Option<(f32, f32)>,
}

impl Dither {
    pub fn new(bits: u32, interval: Option<(f32, f32)>) -> Result<Self> {
        if !(1..=8).contains(&bits) {
            return Err(Error::argument("bits", format!("{bits} is out of range; give 1 to 8")));
        }
        let this = Dither { bits, interval };
        if let Some((low, high)) = interval {
            if !(low.is_finite() && high.is_finite() && low < high) {
                let reason = format!("must be finite and less than high as float32, got {low} and {high}");
                return Err(Error::argument("low", reason));
            }
            let step = Level::PORTABLE.run(|| ((f64::from(high) - f64::from(low)) / f64::from(this.most())) as f32);
            if !(SCALE_RANGE.0..=SCALE_RANGE.1).contains(&step) || !(high - low).is_finite() {
                return Err(Error::argument("high", format!("steps of {step:e} are not between 2^-126 and 2^126")));
            }
        }
        Ok(this)
    }

    fn most(&self) -> f32 {
        ((1_u32 << self.bits) - 1) as f32
    }

    /// The step that takes `low` to `high`; 0 if they are one number, else with a reciprocal.
    fn step(&self, low: f32, high: f32) -> f32 {
        let step = Level::PORTABLE.run(|| ((f64::from(high) - f64::from(low)) / f64::from(self.most())) as f32);
        if high > low { step.max(SCALE_RANGE.0) } else { step }
    }

    /// Writes the codes; tells whether every number lies between `low` and `high` (a NaN does not).
    fn code(&self, x: &View, words: Stream, (low, high, step): (f32, f32, f32), out: &mut [u8]) -> bool {
        let (most, recip) = (self.most(), Level::PORTABLE.run(|| 1.0 / step));
        let all_inside = AtomicBool::new(true);
        encode_tiles(
            x,
            out,
            |n| packed_len(n, self.bits),
            #[inline(always)]
            |level, start, x, Scratch { words: drawn, codes, lanes }, out| {
                // Copies of the loop's own: behind references they would be loaded anew for each number.
                let (words, low, high, recip, most) = (words, low, high, recip, most);
                words.fill(start as u64, &mut drawn[..x.len()]);
                let mut inside = 0;
                if self.bits == 1 {
                    // One iff the sum rounds to one: it is above 1/2, for ties go to zero, which is even.
                    for ((margin, x), word) in lanes.iter_mut().zip(x).zip(&*drawn) {
                        inside += u32::from(*x >= low) & u32::from(*x <= high);
                        *margin = ((x - low) * recip + centred(*word)) - ABOVE_HALF;
                    }
                    mask::nonnegative(level, &lanes[..x.len()], out);
                } else {
                    for ((code, x), word) in codes.iter_mut().zip(x).zip(&*drawn) {
                        inside += u32::from(*x >= low) & u32::from(*x <= high);
                        *code = integer(((x - low) * recip + centred(*word)).max(0.0).min(most));
                    }
                    pack_tile(level, &codes[..x.len()], self.bits, out);
                }
                if inside as usize != x.len() {
                    all_inside.store(false, Ordering::Relaxed);
                }
            },
        );
        all_inside.into_inner()
    }
}

/// The first element outside `low..=high`, if all are finite; tells also whether they are.
pub(super) fn outside(x: &View, low: f32, high: f32) -> (bool, Option<(usize, f32)>) {
    let seen = observe_all(x, Statistic::MinMax);
    let (least, most) = seen.extremes();
    if !(least.is_finite() && most.is_finite()) {
        return (false, None);
    }
    if least >= low && most <= high {
        return (true, None);
    }
    let mut buffer = [0.0; TILE];
    for start in (0..x.len()).step_by(TILE) {
        let tile = x.read(start..x.len().min(start + TILE), &mut buffer);
        if let Some(place) = tile.iter().position(|x| !(*x >= low && *x <= high)) {
            return (true, Some((start + place, tile[place])));
        }
    }
    (true, None)
}

/// The error for an element outside the interval.
pub(super) fn out_of_range((index, value): (usize, f32), low: f32, high: f32) -> Error {
    let reason = format!(
        "element {index} (C order) is {value}, outside [low, high] = [{low}, {high}]; clip x or widen the interval"
    );
    Error::argument("x", reason)
}

impl Coder for Dither {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let words = noise.stream(Purpose::Dither)?;
        let length = packed_len(x.len(), self.bits);
        if let Some((low, high)) = self.interval {
            let place = out.len();
            out.push(1);
            let codes = room(out, length);
            if self.code(x, words, (low, high, self.step(low, high)), codes) {
                return Ok(true);
            }
            return match outside(x, low, high) {
                (_, Some(first)) => Err(out_of_range(first, low, high)),
                (finite, None) => {
                    out[place..].fill(0);
                    Ok(finite)
                }
            };
        }
        let (low, high) = observe_all(x, Statistic::MinMax).extremes();
        let finite = low.is_finite() && high.is_finite();
        // Adding zero makes an end of -0 plain 0.
        let (low, high) = if finite { (low + 0.0, high + 0.0) } else { (NAN, NAN) };
        let step = self.step(low, high);
        if (high - low).is_infinite() {
            return Err(Error::argument("x", "spans more than float32 holds; scale it down"));
        }
        out.extend(low.to_le_bytes());
        out.extend(high.to_le_bytes());
        let codes = room(out, length);
        if step > 0.0 {
            self.code(x, words, (low, high, step), codes);
        }
        Ok(finite)
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n: usize = shape.iter().product();
        let words = noise.stream(Purpose::Dither)?;
        let (low, high) = match self.interval {
            Some(interval) => match payload.byte()? {
                0 => (NAN, NAN),
                1 => interval,
                other => return Err(Error::decode(format!("{other} tells neither finite nor not"))),
            },
            None => (payload.float()?, payload.float()?),
        };
        let step = self.step(low, high);
        if !(low.is_nan() && high.is_nan() || low.is_finite() && step >= 0.0 && (high - low).is_finite()) {
            return Err(Error::decode(format!("there is no interval from {low} to {high}")));
        }
        let codes = payload.packed(n, self.bits)?;
        Ok(Box::new(Sent { codec: self, words, low, step, codes, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

struct Sent<'a> {
    codec: &'a Dither,
    words: Stream,
    low: f32,
    step: f32,
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
        let (bits, low, step, words) = (self.codec.bits, self.low, self.step, self.words);
        if low.is_nan() || step == 0.0 {
            return fill(out, if low.is_nan() { NAN } else { low }, weight);
        }
        decode_tiles(
            level,
            piece,
            self.codes,
            |n| packed_len(n, bits),
            (out, weight),
            #[inline(always)]
            |start, bytes, out| {
                let (words, low, step) = (words, low, step);
                let (mut drawn, mut codes) = ([0; TILE], [0_u8; TILE]);
                let (drawn, codes) = (&mut drawn[..out.len()], &mut codes[..out.len()]);
                words.fill(start as u64, drawn);
                unpack_tile(level, bytes, bits, codes);
                for ((value, code), word) in out.iter_mut().zip(&*codes).zip(&*drawn) {
                    *value = (i32::from(*code) as f32 - centred(*word)) * step + low;
                }
            },
        );
    }
}
