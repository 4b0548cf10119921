//! The inner loops: plain, branch-free, one element at a time, generic over grid, rounding and scale.

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::Level;
use crate::formats::{Codes, Decoder, Grid, Shown};
use crate::scale::Second;
use crate::stream::centred;

/// The numbers that take x to t and back: `t = (x - sub) recip`, `y = value scale + add`.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub scale: f32,
    pub recip: f32,
    pub sub: f32,
    pub add: f32,
}

impl Factor {
    /// Without an offset `sub` is 0 and `add` is -0, which change no number, not even the sign of a zero.
    #[inline(always)]
    pub fn plain(scale: f32) -> Self {
        Factor { scale, recip: 1.0 / scale, sub: 0.0, add: -0.0 }
    }

    /// With a second number of this kind.
    #[inline(always)]
    pub fn with(scale: f32, kind: Second, second: f32) -> Self {
        match kind {
            Second::Nothing => Factor::plain(scale),
            Second::Offset => Factor { sub: second, add: second, ..Factor::plain(scale) },
            Second::Divisor => Factor { recip: 1.0 / second, ..Factor::plain(scale) },
        }
    }
}

/// The factor of each element of a run.
pub(super) trait Factors: Copy {
    fn at(&self, i: usize) -> Factor;
}

impl Factors for Factor {
    #[inline(always)]
    fn at(&self, _: usize) -> Factor {
        *self
    }
}

/// One scale without an offset: the additions that change nothing fold away.
#[derive(Clone, Copy)]
pub(super) struct Plain(pub f32);

impl Factors for Plain {
    #[inline(always)]
    fn at(&self, _: usize) -> Factor {
        Factor::plain(self.0)
    }
}

/// A scale and a reciprocal for each element of a tile, in slices of the same length.
#[derive(Clone, Copy)]
pub(super) struct EachScale<'a> {
    pub scale: &'a [f32],
    pub recip: &'a [f32],
}

impl Factors for EachScale<'_> {
    #[inline(always)]
    fn at(&self, i: usize) -> Factor {
        Factor { scale: self.scale[i], recip: self.recip[i], sub: 0.0, add: -0.0 }
    }
}

/// The same with an offset for each.
#[derive(Clone, Copy)]
pub(super) struct Each<'a> {
    pub scale: &'a [f32],
    pub recip: &'a [f32],
    pub offset: &'a [f32],
}

impl Factors for Each<'_> {
    #[inline(always)]
    fn at(&self, i: usize) -> Factor {
        Factor { scale: self.scale[i], recip: self.recip[i], sub: self.offset[i], add: self.offset[i] }
    }
}

/// One way to round, known at compile time.
pub(super) trait Round: Copy {
    /// Whether it reads random words.
    const RANDOM: bool;

    /// The grid value that `t` is rounded to.
    fn round<G: Grid>(grid: &G, t: f32, word: u32) -> f32;

    /// The code of that value.
    #[inline(always)]
    fn code<G: Codes>(grid: &G, t: f32, word: u32) -> u32 {
        grid.encode(Self::round(grid, t, word))
    }

    /// The same of many numbers, for grids that round them together.
    #[inline(always)]
    fn all<G: Grid>(grid: &G, level: Level, lanes: &mut [u32], _words: &[u32], shown: Shown) {
        grid.nearest_all(level, lanes, shown);
    }

    /// The value that stands for it when reconstructed.
    #[inline(always)]
    fn shown(value: f32, _word: u32) -> f32 {
        value
    }
}

#[derive(Clone, Copy)]
pub(super) struct Nearest;

impl Round for Nearest {
    const RANDOM: bool = false;

    #[inline(always)]
    fn round<G: Grid>(grid: &G, t: f32, _: u32) -> f32 {
        grid.nearest(t)
    }

    #[inline(always)]
    fn code<G: Codes>(grid: &G, t: f32, _: u32) -> u32 {
        grid.nearest_code(t)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Stochastic;

impl Round for Stochastic {
    const RANDOM: bool = true;

    #[inline(always)]
    fn round<G: Grid>(grid: &G, t: f32, word: u32) -> f32 {
        grid.stochastic(t, word)
    }

    #[inline(always)]
    fn code<G: Codes>(grid: &G, t: f32, word: u32) -> u32 {
        grid.stochastic_code(t, word)
    }

    #[inline(always)]
    fn all<G: Grid>(grid: &G, level: Level, lanes: &mut [u32], words: &[u32], shown: Shown) {
        grid.stochastic_all(level, lanes, words, shown);
    }
}

#[derive(Clone, Copy)]
pub(super) struct Dither;

impl Round for Dither {
    const RANDOM: bool = true;

    #[inline(always)]
    fn round<G: Grid>(grid: &G, t: f32, word: u32) -> f32 {
        grid.nearest(t + centred(word))
    }

    #[inline(always)]
    fn shown(value: f32, word: u32) -> f32 {
        value - centred(word)
    }
}

/// A tile's work, one run of equal treatment at a time.
pub(super) trait Tile {
    fn run<F: Factors>(&mut self, range: Range<usize>, factors: F);
}

/// Numbers to the numbers they are rounded to.
pub(super) struct Fake<'t, G, R> {
    pub grid: G,
    pub x: &'t [f32],
    pub words: &'t [u32],
    pub y: &'t mut [f32],
    pub level: Level,
    pub round: PhantomData<R>,
}

impl<G: Grid, R: Round> Tile for Fake<'_, G, R> {
    #[inline(always)]
    fn run<F: Factors>(&mut self, range: Range<usize>, factors: F) {
        let x = &self.x[range.clone()];
        let words = if R::RANDOM { &self.words[range.clone()] } else { &[] };
        let y = &mut self.y[range];
        if G::TOGETHER {
            for i in 0..x.len().min(y.len()) {
                y[i] = to_t(x[i], factors.at(i));
            }
            R::all(&self.grid, self.level, bytemuck::cast_slice_mut(y), words, Shown::Values);
            for i in 0..x.len().min(y.len()) {
                y[i] = back::<R>(y[i], 0, x[i], factors.at(i));
            }
            return;
        }
        for i in 0..x.len().min(y.len()) {
            let word = if R::RANDOM { words[i] } else { 0 };
            y[i] = back::<R>(R::round(&self.grid, to_t(x[i], factors.at(i)), word), word, x[i], factors.at(i));
        }
    }
}

/// Numbers to codes; `bad` remembers whether any was NaN after scaling.
pub(super) struct Encode<'t, G, R> {
    pub grid: G,
    pub x: &'t [f32],
    pub words: &'t [u32],
    pub codes: &'t mut [u32],
    pub bad: bool,
    pub level: Level,
    pub round: PhantomData<R>,
}

impl<G: Codes, R: Round> Tile for Encode<'_, G, R> {
    #[inline(always)]
    fn run<F: Factors>(&mut self, range: Range<usize>, factors: F) {
        let x = &self.x[range.clone()];
        let words = if R::RANDOM { &self.words[range.clone()] } else { &[] };
        let codes = &mut self.codes[range];
        let mut bad = 0_u32;
        if G::TOGETHER {
            for i in 0..x.len().min(codes.len()) {
                let t = to_t(x[i], factors.at(i));
                bad |= u32::from(t.is_nan());
                codes[i] = t.to_bits();
            }
            R::all(&self.grid, self.level, codes, words, Shown::Codes);
            self.bad |= bad != 0;
            return;
        }
        for i in 0..x.len().min(codes.len()) {
            let word = if R::RANDOM { words[i] } else { 0 };
            let t = to_t(x[i], factors.at(i));
            bad |= u32::from(t.is_nan());
            codes[i] = R::code(&self.grid, t, word);
        }
        self.bad |= bad != 0;
    }
}

/// Codes to numbers.
pub(super) struct Decode<'t, D, R> {
    pub decoder: D,
    /// What becomes of them does not matter.
    pub codes: &'t mut [u32],
    pub words: &'t [u32],
    pub y: &'t mut [f32],
    pub level: Level,
    pub round: PhantomData<R>,
}

impl<D: Decoder, R: Round> Tile for Decode<'_, D, R> {
    #[inline(always)]
    fn run<F: Factors>(&mut self, range: Range<usize>, factors: F) {
        let codes = &mut self.codes[range.clone()];
        let words = if R::RANDOM { &self.words[range.clone()] } else { &[] };
        let y = &mut self.y[range];
        if D::TOGETHER {
            self.decoder.numbers(self.level, codes);
            for i in 0..codes.len().min(y.len()) {
                y[i] = back::<R>(f32::from_bits(codes[i]), 0, 0.0, factors.at(i));
            }
            return;
        }
        for i in 0..codes.len().min(y.len()) {
            let word = if R::RANDOM { words[i] } else { 0 };
            y[i] = back::<R>(self.decoder.number(codes[i]), word, 0.0, factors.at(i));
        }
    }
}

#[inline(always)]
fn to_t(x: f32, factor: Factor) -> f32 {
    (x - factor.sub) * factor.recip
}

/// The number that a grid value stands for; the canonical NaN where `x` or the scale is NaN.
#[inline(always)]
fn back<R: Round>(value: f32, word: u32, x: f32, factor: Factor) -> f32 {
    let y = R::shown(value, word) * factor.scale + factor.add;
    if x.is_nan() || factor.scale.is_nan() { f32::NAN } else { y }
}
