//! HALP's inner loop on integers: rows and offset in 8 or 16 bits, the update in fixed point (2^-16 of the grid's step).
//!
//! With the offset `z` in steps `s` of the grid and row i in steps `s_i`, `x_i . z` is an integer product, and one step is
//!
//! ```text
//! z_j <- clip( z_j + floor((c x_ij + m z_j + r_j) / 2^16) + floor((g_j + 2^16 - 1 - r_j) / 2^16) )
//! ```
//!
//! with `c = -lr s_i (phi'(shift_i + s s_i (x_i . z)) - anchor_i) / s`, `m = -lr l2` and `g = -lr G / s`, all times 2^16.
//! c and m are rounded stochastically with words of the step. `r_j` is uniform on 0..2^16; that the second fraction is
//! rounded by what the first leaves makes the sum go up exactly as often as rounding the sum of both would, and each of
//! the two needs 16-bit lanes only.
//!
//! `r_j` is a 16-bit word of the coordinate, drawn anew every [`BANK`] steps, xor one of the step: given all that has
//! happened it is uniform for each coordinate, which is all that the analysis of HALP asks of rounding. (Two coordinates'
//! words of one step are as independent as their own words.)

use super::{Rows, check_steps};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::simd;
use crate::stream::Stream;

/// Rows and offsets are padded with zeros to a multiple of this many numbers.
pub const LANES: usize = 32;

/// For how many steps a coordinate keeps its word.
pub const BANK: u64 = 32;

/// One, in fixed point.
const ONE: f64 = 65_536.0;

/// The integers that rows and offsets are made of.
pub trait Code: Copy + Default + Send + Sync + 'static {
    /// The bits of its widest offset.
    const BITS: u32;
    /// One coordinate's step; `FULL`: the bounds are those of the type.
    fn step<const DECAY: bool, const FULL: bool>(self, x: Self, g: (i16, i16), r: i16, step: Step) -> Self;
    /// `x . z`, exactly.
    fn dot(level: Level, x: &[Self], z: &[Self]) -> i64;
}

/// What all coordinates of a step share.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    c: i16,
    m: i16,
    /// The highest offset; the lowest is one further from zero.
    high: i16,
}

/// Whether a 16-bit fraction and what is left of a random one make a whole: signed words in the order of unsigned ones.
#[inline(always)]
fn carry(fraction: i16, threshold: i16) -> i16 {
    i16::from(fraction > threshold)
}

impl Code for i8 {
    const BITS: u32 = 8;

    #[inline(always)]
    fn step<const DECAY: bool, const FULL: bool>(self, x: i8, (g, fraction): (i16, i16), r: i16, step: Step) -> i8 {
        let (z, x) = (i16::from(self), i16::from(x));
        let whole = if DECAY {
            let sum = i32::from(step.c) * i32::from(x) + i32::from(step.m) * i32::from(z);
            (sum >> 16) as i16 + carry(sum as i16 ^ i16::MIN, !r)
        } else {
            // The halves of a product each have an instruction.
            let high = ((i32::from(step.c) * i32::from(x)) >> 16) as i16;
            high + carry(step.c.wrapping_mul(x) ^ i16::MIN, !r)
        };
        let moved = z + (whole + g + carry(fraction, r));
        let (low, high) = if FULL { (-128, 127) } else { (-1 - step.high, step.high) };
        moved.max(low).min(high) as i8
    }

    #[inline(always)]
    fn dot(level: Level, x: &[i8], z: &[i8]) -> i64 {
        let mut sum = 0;
        for (x, z) in x.chunks(1 << 15).zip(z.chunks(1 << 15)) {
            sum += i64::from(simd::dot(level, x, z));
        }
        sum
    }
}

impl Code for i16 {
    const BITS: u32 = 16;

    #[inline(always)]
    fn step<const DECAY: bool, const FULL: bool>(self, x: i16, (g, fraction): (i16, i16), r: i16, step: Step) -> i16 {
        let (z, product) = (i32::from(self), i32::from(step.c) * i32::from(x));
        let sum = if DECAY { product + i32::from(step.m) * z } else { product };
        let whole = (sum >> 16) + i32::from(carry(sum as i16 ^ i16::MIN, !r));
        let moved = z + whole + i32::from(g) + i32::from(carry(fraction, r));
        let high = if FULL { i32::from(i16::MAX) } else { i32::from(step.high) };
        moved.max(-1 - high).min(high) as i16
    }

    #[inline(always)]
    fn dot(_: Level, x: &[i16], z: &[i16]) -> i64 {
        let mut sum = 0;
        for (x, z) in x.chunks(1 << 15).zip(z.chunks(1 << 15)) {
            // Sums of the halves of 2^15 products each fit 32 bits.
            let (mut low, mut high) = (0_u32, 0_i32);
            for (x, z) in x.iter().zip(z) {
                let product = i32::from(*x) * i32::from(*z);
                low += product as u32 & 0xffff;
                high += product >> 16;
            }
            sum += (i64::from(high) << 16) + i64::from(low);
        }
        sum
    }
}

/// A run of steps: everything but where it is.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a, T> {
    /// Losses, by row.
    pub rows: Rows<'a>,
    /// The rows of x, one after another, each padded with zeros.
    pub x: &'a [T],
    /// One step of each row's numbers.
    pub row_scales: &'a [f64],
    /// The whole part of g.
    pub g_whole: &'a [i16],
    /// The fraction of g in 2^-16, less 2^15.
    pub g_fraction: &'a [i16],
    /// The step of the offset's grid.
    pub scale: f64,
    /// The offset's bits.
    pub bits: u32,
    /// The learning rate.
    pub lr: f64,
    /// The regularization.
    pub l2: f64,
    /// Words 4 t to 4 t + 3: row, rounding of c, rounding of m, what is xored in step t.
    pub draws: Stream,
    /// Half a word for each (padded) coordinate and bank of steps.
    pub rounding: Stream,
}

impl<T: Code> Steps<'_, T> {
    /// Takes steps `first..first + steps` from `z`, in place.
    pub fn run(&self, z: &mut [T], first: u64, steps: u64) -> Result<()> {
        let d = z.len();
        if d == 0 || !d.is_multiple_of(LANES) || !self.x.len().is_multiple_of(d) {
            let reason = format!("{} numbers are not rows of {d}, a positive multiple of {LANES}", self.x.len());
            return Err(Error::argument("x", reason));
        }
        let lengths = (self.g_whole.len(), self.g_fraction.len(), self.row_scales.len());
        if lengths != (d, d, self.x.len() / d) {
            return Err(Error::argument("g", format!("{lengths:?} numbers do not fit rows of {d}")));
        }
        if !(2..=T::BITS).contains(&self.bits) {
            return Err(Error::argument("bits", format!("{} is out of range; give 2 to {}", self.bits, T::BITS)));
        }
        self.rows.check(self.x.len() / d)?;
        check_steps(first, steps, d as u64)?;
        let mut bank = vec![0; d / 2];
        let bank = &mut bank;
        match (self.l2 != 0.0, self.bits == T::BITS) {
            (false, true) => self.at_level::<false, true>(z, first, steps, bank),
            (false, false) => self.at_level::<false, false>(z, first, steps, bank),
            (true, true) => self.at_level::<true, true>(z, first, steps, bank),
            (true, false) => self.at_level::<true, false>(z, first, steps, bank),
        }
        Ok(())
    }

    fn at_level<const DECAY: bool, const FULL: bool>(&self, z: &mut [T], first: u64, steps: u64, bank: &mut [u32]) {
        let level = Level::current();
        level.run(
            #[inline(always)]
            || self.steps::<DECAY, FULL>(level, z, first, steps, bank),
        );
    }

    #[inline(always)]
    fn steps<const DECAY: bool, const FULL: bool>(
        &self,
        level: Level,
        z: &mut [T],
        first: u64,
        steps: u64,
        bank: &mut [u32],
    ) {
        let half = z.len() as u64 / 2;
        let high = ((1_i32 << (self.bits - 1)) - 1) as i16;
        let decay = -self.lr * self.l2 * ONE;
        let mut drawn = u64::MAX;
        let mut i = self.rows.draw(self.draws, first);
        let mut product = T::dot(level, self.row(i), z);
        for step in first..first + steps {
            if drawn != step / BANK {
                drawn = step / BANK;
                self.rounding.fill(drawn * half, bank);
            }
            let row_scale = self.row_scales[i];
            let slope = self.rows.slope(i, product as f64 * (self.scale * row_scale));
            let c = stochastic(slope * (-self.lr * row_scale / self.scale * ONE), self.draws.word(4 * step + 1));
            let m = if DECAY { stochastic(decay, self.draws.word(4 * step + 2)) } else { 0 };
            let mask = self.draws.word(4 * step + 3) as i16;
            let next = self.rows.draw(self.draws, step + 1);
            simd::prefetch(self.row(next).as_ptr().cast(), size_of_val(self.row(next)) / size_of::<f32>());
            self.step::<DECAY, FULL>(i, z, bytemuck::cast_slice(bank), mask, Step { c, m, high });
            product = T::dot(level, self.row(next), z);
            i = next;
        }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[T] {
        &self.x[row * self.g_whole.len()..][..self.g_whole.len()]
    }

    #[inline(always)]
    fn step<const DECAY: bool, const FULL: bool>(
        &self,
        row: usize,
        z: &mut [T],
        bank: &[i16],
        mask: i16,
        step: Step,
    ) {
        let (x, _) = self.row(row).as_chunks::<LANES>();
        let (whole, _) = self.g_whole.as_chunks::<LANES>();
        let (fraction, _) = self.g_fraction.as_chunks::<LANES>();
        let (bank, _) = bank.as_chunks::<LANES>();
        let (z, _) = z.as_chunks_mut::<LANES>();
        for ((((z, x), whole), fraction), bank) in z.iter_mut().zip(x).zip(whole).zip(fraction).zip(bank) {
            let mut moved = [T::default(); LANES];
            for l in 0..LANES {
                moved[l] = z[l].step::<DECAY, FULL>(x[l], (whole[l], fraction[l]), bank[l] ^ mask, step);
            }
            *z = moved;
        }
    }
}

/// The integer below `value + word / 2^32`, cut to 16 bits. (NaN, of a run that has lost itself, is the lowest.)
#[inline(always)]
fn stochastic(value: f64, word: u32) -> i16 {
    (value + f64::from(word) * (1.0 / 4_294_967_296.0)).floor().max(-32_767.0).min(32_767.0) as i16
}
