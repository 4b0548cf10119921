//! The scales of a tile: runs of elements that share one, or one for each element.

use super::kernel::{Each, EachScale, Tile};
use super::plan::TILE;
use crate::scale::{Second, Statistic};

/// The runs of one scale that a tile is made of: where each begins, its scale and its second number.
pub(super) struct Runs {
    pub count: usize,
    pub start: [u32; TILE],
    pub scale: [f32; TILE],
    pub second: [f32; TILE],
    recip: [f32; TILE],
}

impl Runs {
    #[inline(always)]
    pub fn new() -> Self {
        let numbers = [0.0; TILE];
        Runs { count: 0, start: [0; TILE], scale: numbers, second: numbers, recip: numbers }
    }

    /// Multiplies the scales with that of the tensor, and finds what numbers are multiplied with where any are.
    #[inline(always)]
    pub fn complete(&mut self, kind: Second, tensor: f32, divides: bool) {
        for scale in &mut self.scale[..self.count] {
            *scale *= tensor;
        }
        if !divides {
            return;
        }
        let divisors = if kind == Second::Divisor { &self.second } else { &self.scale };
        for (recip, divisor) in self.recip[..self.count].iter_mut().zip(divisors) {
            *recip = 1.0 / divisor;
        }
    }

    /// Puts the largest magnitude of every group of `size` where its scale will be.
    #[inline(always)]
    pub fn observe_amax(&mut self, x: &[f32], size: usize) {
        match size {
            // Lengths that are known make loops without ends.
            16 => self.observe_amax_of::<16>(x),
            32 => self.observe_amax_of::<32>(x),
            _ => self.observe_amax_from(x, size, 0),
        }
    }

    #[inline(always)]
    fn observe_amax_of<const N: usize>(&mut self, x: &[f32]) {
        let groups = x.as_chunks::<N>().0;
        for (group, scale) in groups.iter().zip(&mut self.scale) {
            *scale = Statistic::Amax.observe(group).amax();
        }
        self.observe_amax_from(x, N, groups.len());
    }

    #[inline(always)]
    fn observe_amax_from(&mut self, x: &[f32], size: usize, first: usize) {
        for (j, group) in x.chunks(size).enumerate().skip(first) {
            self.scale[j] = Statistic::Amax.observe(group).amax();
        }
        for (j, start) in self.start[..self.count].iter_mut().enumerate() {
            *start = (j * size) as u32;
        }
    }

    /// Gives each of `n` elements the numbers of its group of `size`.
    #[inline(always)]
    pub fn widen(&mut self, size: usize, n: usize, kind: Second) {
        let widened = |numbers: &mut [f32; TILE]| match size {
            16 => widen_to::<16>(numbers, n),
            32 => widen_to::<32>(numbers, n),
            _ => widen_from(numbers, size, n.div_ceil(size), n),
        };
        widened(&mut self.scale);
        widened(&mut self.recip);
        if kind == Second::Offset {
            widened(&mut self.second);
        }
    }
}

/// From the last group down, so that no number is overwritten too early.
#[inline(always)]
fn widen_from(numbers: &mut [f32; TILE], size: usize, groups: usize, n: usize) {
    for j in (0..groups).rev() {
        let number = numbers[j];
        numbers[j * size..n.min((j + 1) * size)].fill(number);
    }
}

#[inline(always)]
fn widen_to<const N: usize>(numbers: &mut [f32; TILE], n: usize) {
    let whole = n / N;
    if !n.is_multiple_of(N) {
        let number = numbers[whole];
        numbers[whole * N..n].fill(number);
    }
    for j in (0..whole).rev() {
        let number = numbers[j];
        if let Some(group) = numbers[j * N..].first_chunk_mut::<N>() {
            *group = [number; N];
        }
    }
}

/// Runs the kernel of a tile of `n` elements with a scale (and second number) for each.
#[inline(always)]
pub(super) fn each(n: usize, kind: Second, runs: &mut Runs, tile: &mut impl Tile) {
    let (scale, recip) = (&runs.scale[..n], &runs.recip[..n]);
    if kind == Second::Offset {
        tile.run(0..n, Each { scale, recip, offset: &runs.second[..n] });
    } else {
        tile.run(0..n, EachScale { scale, recip });
    }
}
