//! Rounding as QPyTorch does it (Zhang et al., arXiv:1910.04540; qtorch 0.3.0's kernels for CPUs), bit for bit to nearest:
//! fixed point, small floats, block floating point.
//!
//! The grids are those of [`crate::formats`]; ties, ends and what float32 sums round beforehand are QPyTorch's, and so are the
//! probabilities of stochastic rounding, with words of our stream. Two things are not: NaN stays NaN, and numbers of the grid
//! stay where they are.

use std::ops::Range;

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use crate::quantize::{Grouping, Map, Sink, observe_groups};
use crate::scale::Statistic;
use crate::simd;
use crate::stream::Stream;
use crate::view::{View, ViewMut};

/// Elements of a tile; small ones let reads, arithmetic and streamed stores overlap.
const TILE: usize = 256;
/// Elements per parallel chunk.
const CHUNK: usize = 1 << 14;
/// How far ahead input is asked for, in elements.
const AHEAD: usize = 2048;

/// Bits of a float32's mantissa, all of them, of its exponent, and of its magnitude.
const MANTISSA: u32 = 0x007f_ffff;
const EXPONENT: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// 2^23: magnitudes from here on are integers.
const INTEGERS: f32 = 8_388_608.0;

/// The word that makes adding and cutting off round to nearest: one half of what is cut off.
const HALF: u32 = 1 << 31;

/// Adds as many of the word's bits as are cut off, and cuts them off: `kept` of 23 bits stay.
#[inline(always)]
fn add_and_cut(t: f32, word: u32, kept: u32) -> f32 {
    f32::from_bits(t.to_bits().wrapping_add(word >> 9 >> kept) & !(MANTISSA >> kept))
}

/// A power of two that float32 holds as a normal number.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// `value`, if it is one of `allowed`.
fn checked(argument: &'static str, value: i64, allowed: Range<i64>) -> Result<u32> {
    if allowed.contains(&value) {
        return Ok(value as u32);
    }
    let reason = format!("{value} is out of range; give {} to {}", allowed.start, allowed.end - 1);
    Err(Error::argument(argument, reason))
}

/// A float of few bits without infinities, whose bias is 2^(exp - 1) - 1.
#[derive(Clone, Copy)]
struct Float {
    kept: u32,
    /// The smallest normal number. Below it the steps are equal: those of the numbers from there to its double.
    least: f32,
    largest: f32,
}

impl Float {
    fn new(exp: i64, man: i64) -> Result<Self> {
        let (exp, kept) = (checked("exp", exp, 1..9)?, checked("man", man, 0..24)?);
        let half = 1 << (exp - 1);
        // Of eight exponent bits the highest is float32's own: infinity.
        let largest = if exp == 8 { EXPONENT } else { (127 + half) << 23 | MANTISSA & !(MANTISSA >> kept) };
        Ok(Float { kept, least: power(2 - half as i32), largest: f32::from_bits(largest) })
    }

    #[inline(always)]
    fn round(self, x: f32, word: u32) -> f32 {
        let shift = if x.abs() < self.least { self.least.copysign(x) } else { 0.0 };
        let y = add_and_cut(x + shift, word, self.kept) - shift;
        let y = if y < self.largest { y } else { self.largest };
        let y = if y > -self.largest { y } else { -self.largest };
        if x.is_nan() { f32::NAN } else { y }
    }
}

/// Multiples of 2^-fl, with bounds or with infinite ones.
#[derive(Clone, Copy)]
struct Fixed {
    step: f32,
    per_step: f32,
    low: f32,
    high: f32,
}

impl Fixed {
    fn new(wl: i64, fl: i64, clamp: bool, symmetric: bool) -> Result<Self> {
        let wl = checked("wl", wl, 1..65)? as i32;
        // float32 must hold the ends and the step.
        let fl = checked("fl", fl, i64::from(wl - 128).max(-126)..127)? as i32;
        let exact = |exponent: i32| f64::from_bits(((1023 + i64::from(exponent)) as u64) << 52);
        // Each end is rounded to float32 by itself, where words are longer than its mantissa.
        let (low, step) = ((-exact(wl - fl - 1)) as f32, exact(-fl));
        let high = (-f64::from(low) - step) as f32;
        let low = if symmetric { (f64::from(low) + step) as f32 } else { low };
        let (low, high) = if clamp { (low, high) } else { (f32::NEG_INFINITY, f32::INFINITY) };
        Ok(Fixed { step: power(-fl), per_step: power(fl), low, high })
    }

    #[inline(always)]
    fn within(self, steps: f32, x: f32) -> f32 {
        let y = steps * self.step;
        // In this order -0 stays where 0 is an end.
        let y = if y > self.high { self.high } else { y };
        let y = if y < self.low { self.low } else { y };
        if x.is_nan() { f32::NAN } else { y }
    }

    /// Ties to even, after the sum with one half that stochastic rounding needs and nearest rounding shares.
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let t = (x * self.per_step + 0.5) - 0.5;
        let a = t.abs();
        let whole = if a < INTEGERS { (a + INTEGERS) - INTEGERS } else { a };
        self.within(whole.copysign(t), x)
    }

    /// Whether the ends are so near that [`Fixed::stochastic_near`] will do.
    fn is_near(self) -> bool {
        -self.low * self.per_step <= INTEGERS / 2.0
    }

    /// The whole number below plus 1 with the probability of the rest; zero is +0.
    #[inline(always)]
    fn stochastic(self, x: f32, word: u32) -> f32 {
        let t = x * self.per_step;
        let a = t.abs();
        let is_small = a < INTEGERS;
        let near = (if is_small { (a + INTEGERS) - INTEGERS } else { a }).copysign(t);
        // Larger numbers, infinities among them, are whole.
        let moved = moved(if is_small { t - near } else { 0.0 }, word);
        self.within(near + moved as f32, x)
    }

    /// The same of ends at most 2^22 steps away: numbers are brought to them first, and the nearest whole number is the low
    /// bits of a sum.
    #[inline(always)]
    fn stochastic_near(self, x: f32, word: u32) -> f32 {
        const SUM: f32 = 1.5 * INTEGERS;
        let t = if x < self.high { x } else { self.high };
        let t = (if t > self.low { t } else { self.low }) * self.per_step;
        let near = t + SUM;
        let moved = moved(t - (near - SUM), word);
        let whole = f32::from_bits(near.to_bits().wrapping_add_signed(moved)) - SUM;
        let y = whole * self.step;
        if x.is_nan() { f32::NAN } else { y }
    }
}

/// Where a number that lies so far from the nearest whole one goes from there, -1, 0 or 1: the whole number below its sum with
/// the word as a fraction, both in steps of 2^-30.
#[inline(always)]
fn moved(rest: f32, word: u32) -> i32 {
    debug_assert!((-0.5..=0.5).contains(&rest), "{rest} is farther than the nearest");
    // SAFETY: at most 2^29 steps; i32 holds them. (`as` would check again, lane by lane.)
    let steps: i32 = unsafe { (rest * 1_073_741_824.0).to_int_unchecked() };
    (steps + (word >> 2) as i32) >> 30
}

/// Two's complement without its lowest code, in steps of 2^(E + 2 - wl), where 2^E is the power of two of the block's largest
/// magnitude.
#[derive(Clone, Copy)]
struct Block {
    kept: u32,
    /// The mantissa bits of the largest number.
    end: u32,
}

impl Block {
    fn new(wl: i64) -> Result<Self> {
        let kept = checked("wl", wl, 1..24)?;
        Ok(Block { kept, end: MANTISSA >> (25 - kept) << (25 - kept) })
    }

    #[inline(always)]
    fn round(self, x: f32, word: u32, amax: f32) -> f32 {
        let top = amax.to_bits() & EXPONENT;
        // Moved by this much, numbers of either sign have the exponent E + 2.
        let base = f32::from_bits(top) * 6.0;
        let y = add_and_cut(x + base, word, self.kept) - base;
        let bits = y.to_bits();
        let beyond = bits & MAGNITUDE > top | MANTISSA;
        let y = f32::from_bits(if beyond { bits & !MAGNITUDE | top | self.end } else { bits });
        if base < f32::INFINITY { y } else { f32::NAN }
    }
}

/// Runs `round(range, x, words, y)` on every tile; without a stream all words are [`HALF`].
fn each_tile(
    x: &View,
    stream: Option<Stream>,
    out: &ViewMut,
    round: impl Fn(Range<usize>, &[f32], &[u32], &mut [f32]) + Sync,
) -> Result<()> {
    let (n, level) = (x.len(), Level::current());
    if out.len() != n {
        return Err(Error::argument("out", format!("has room for {}, but {n} are needed", out.len())));
    }
    let sink = Sink::new(out, level);
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        level.run(
            #[inline(always)]
            || {
                let (mut input, mut output, mut words) = ([0.0; TILE], [0.0; TILE], [HALF; TILE]);
                for start in (chunk * CHUNK..n.min((chunk + 1) * CHUNK)).step_by(TILE) {
                    let range = start..n.min(start + TILE);
                    let words = &mut words[..range.len()];
                    if let Some(stream) = stream {
                        stream.fill(start as u64, words);
                    }
                    let numbers = x.read(range.clone(), &mut input);
                    simd::prefetch(numbers.as_ptr().wrapping_add(AHEAD), TILE);
                    // SAFETY: tiles are disjoint and in bounds, and nobody else has the output.
                    unsafe {
                        sink.put(
                            range.clone(),
                            &mut output,
                            #[inline(always)]
                            |y| round(range, numbers, words, y),
                        );
                    }
                }
                simd::stream_done();
            },
        );
    });
    Ok(())
}

/// [`each_tile`] of numbers that are rounded one by one.
fn each(x: &View, stream: Option<Stream>, out: &ViewMut, round: impl Fn(f32, u32) -> f32 + Sync) -> Result<()> {
    each_tile(
        x,
        stream,
        out,
        #[inline(always)]
        |_, x, words, y| {
            for i in 0..x.len().min(words.len()).min(y.len()) {
                y[i] = round(x[i], words[i]);
            }
        },
    )
}

/// Rounds to a float of `exp` exponent and `man` mantissa bits; stochastically with the words of a stream.
pub fn float(x: &View, exp: i64, man: i64, stream: Option<Stream>, out: &ViewMut) -> Result<()> {
    let format = Float::new(exp, man)?;
    each(
        x,
        stream,
        out,
        #[inline(always)]
        |x, word| format.round(x, word),
    )
}

/// Rounds to fixed point of `wl` bits, `fl` of them after the point; stochastically with the words of a stream.
pub fn fixed(
    x: &View,
    (wl, fl): (i64, i64),
    clamp: bool,
    symmetric: bool,
    stream: Option<Stream>,
    out: &ViewMut,
) -> Result<()> {
    let format = Fixed::new(wl, fl, clamp, symmetric)?;
    match stream {
        None => each(
            x,
            None,
            out,
            #[inline(always)]
            |x, _| format.nearest(x),
        ),
        Some(_) if format.is_near() => each(
            x,
            stream,
            out,
            #[inline(always)]
            |x, word| format.stochastic_near(x, word),
        ),
        Some(_) => each(
            x,
            stream,
            out,
            #[inline(always)]
            |x, word| format.stochastic(x, word),
        ),
    }
}

/// Rounds to block floating point of `wl` bits, one block for each index along `dim`, or one for all (-1); stochastically with
/// the words of a stream.
pub fn block(x: &View, wl: i64, dim: i64, stream: Option<Stream>, out: &ViewMut) -> Result<()> {
    let format = Block::new(wl)?;
    let grouping = match checked("dim", dim, -1..x.shape().len() as i64)? as i32 {
        -1 => Grouping::Array,
        dim => Grouping::Axis(dim as usize),
    };
    let mut largest = vec![0.0; grouping.scale_shape(x.shape()).iter().product()];
    let shared = Shared::new(&mut largest);
    observe_groups(x, grouping, Statistic::Amax, |place, seen| {
        // SAFETY: every group is put once; `largest` is borrowed until `observe_groups` returns.
        unsafe { shared.put(place, seen.amax()) };
    });
    let map = Map::of_rule(x.shape(), grouping);
    each_tile(
        x,
        stream,
        out,
        #[inline(always)]
        |range, x, words, y| {
            let mut amax = [0.0; TILE];
            map.spread(range, &largest, &mut amax);
            for i in 0..x.len().min(words.len()).min(y.len()).min(TILE) {
                y[i] = format.round(x[i], words[i], amax[i]);
            }
        },
    )
}
