//! Every method of the table on floats: the published algorithms, and the float32 loop that integers are compared with.

use std::ops::{Add, Mul, Sub};

use super::{Rows, check_steps};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::stream::Stream;

/// How many partial sums a scalar product has: element j goes to sum j mod 32, and the sums are halved pairwise.
const LANES: usize = 32;

/// A float that steps are computed in.
pub trait Real: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + 'static {
    /// Zero.
    const ZERO: Self;
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// Exactly.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// The grid `{ scale k: low <= k <= high }` and how to get onto it: up with probability the fraction, or nearest with
/// ties up.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// The grid's step.
    pub scale: f64,
    /// The lowest k.
    pub low: f64,
    /// The highest k.
    pub high: f64,
    /// Whether rounding is stochastic.
    pub stochastic: bool,
}

impl Grid {
    /// The nearest point below `v + r scale`.
    #[inline(always)]
    fn round(&self, v: f64, r: f64) -> f64 {
        (v / self.scale + r).floor().max(self.low).min(self.high) * self.scale
    }
}

/// A run of steps: everything but where it is.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a, T> {
    /// Losses, by row.
    pub rows: Rows<'a>,
    /// The rows of x, one after another.
    pub x: &'a [T],
    /// What every step adds to the gradient.
    pub g: &'a [T],
    /// The learning rate.
    pub lr: T,
    /// The regularization.
    pub l2: T,
    /// What is rounded to, if anything.
    pub grid: Option<Grid>,
    /// Which row a step takes.
    pub draws: Stream,
    /// Word `t d + j` rounds coordinate j in step t.
    pub rounding: Stream,
}

impl<T: Real> Steps<'_, T> {
    /// Takes steps `first..first + steps` from `z`, in place.
    pub fn run(&self, z: &mut [T], first: u64, steps: u64) -> Result<()> {
        let d = z.len();
        if d == 0 || self.g.len() != d || !self.x.len().is_multiple_of(d) {
            let reason = format!("{} numbers and {} of g are not rows of {d} (at least 1)", self.x.len(), self.g.len());
            return Err(Error::argument("x", reason));
        }
        self.rows.check(self.x.len() / d)?;
        check_steps(first, steps, d as u64)?;
        let mut words = vec![0; if self.grid.is_some_and(|grid| grid.stochastic) { d } else { 0 }];
        let level = Level::current();
        if let Some(grid) = self.grid {
            level.run(
                #[inline(always)]
                || self.on_grid(z, first, steps, grid, &mut words),
            );
        } else if self.l2.to_f64() == 0.0 {
            level.run(
                #[inline(always)]
                || self.free::<false>(z, first, steps),
            );
        } else {
            level.run(
                #[inline(always)]
                || self.free::<true>(z, first, steps),
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[T] {
        &self.x[row * self.g.len()..][..self.g.len()]
    }

    /// Steps without rounding. The product with the next row is summed while `z` is at hand.
    #[inline(always)]
    fn free<const DECAY: bool>(&self, z: &mut [T], first: u64, steps: u64) {
        let mut i = self.rows.draw(self.draws, first);
        let mut product = dot(self.row(i), z);
        for step in first..first + steps {
            let c = T::from_f64(self.rows.slope(i, product.to_f64()));
            let next = self.rows.draw(self.draws, step + 1);
            product = self.step_and_dot::<DECAY>(self.row(i), self.row(next), z, c);
            i = next;
        }
    }

    #[inline(always)]
    fn step_and_dot<const DECAY: bool>(&self, x: &[T], next: &[T], z: &mut [T], c: T) -> T {
        let mut sums = [T::ZERO; LANES];
        let rates = (c, self.lr, self.l2);
        let (xs, x) = x.as_chunks::<LANES>();
        let (nexts, next) = next.as_chunks::<LANES>();
        let (gs, g) = self.g.as_chunks::<LANES>();
        let (zs, z) = z.as_chunks_mut::<LANES>();
        for (((x, next), g), z) in xs.iter().zip(nexts).zip(gs).zip(zs) {
            for l in 0..LANES {
                z[l] = moved::<T, DECAY>(z[l], x[l], g[l], rates);
                sums[l] = sums[l] + next[l] * z[l];
            }
        }
        for ((((sum, z), x), g), next) in sums.iter_mut().zip(z).zip(x).zip(g).zip(next) {
            *z = moved::<T, DECAY>(*z, *x, *g, rates);
            *sum = *sum + *next * *z;
        }
        total(sums)
    }

    /// Steps that end on a grid.
    #[inline(always)]
    fn on_grid(&self, z: &mut [T], first: u64, steps: u64, grid: Grid, words: &mut [u32]) {
        let (lr, l2) = (self.lr.to_f64(), self.l2.to_f64());
        for step in first..first + steps {
            let i = self.rows.draw(self.draws, step);
            let x = self.row(i);
            let c = self.rows.slope(i, dot(x, z).to_f64());
            self.rounding.fill(step * z.len() as u64, words);
            let moved = z.iter_mut().zip(x).zip(self.g).map(
                #[inline(always)]
                |((z, x), g)| {
                    let at = z.to_f64();
                    let v = at - lr * ((c * x.to_f64() + l2 * at) + g.to_f64());
                    (z, v)
                },
            );
            if grid.stochastic {
                for ((z, v), &word) in moved.zip(&*words) {
                    *z = T::from_f64(grid.round(v, f64::from(word) * (1.0 / 4_294_967_296.0)));
                }
            } else {
                for (z, v) in moved {
                    *z = T::from_f64(grid.round(v, 0.5));
                }
            }
        }
    }
}

/// One coordinate after its step.
#[inline(always)]
fn moved<T: Real, const DECAY: bool>(z: T, x: T, g: T, (c, lr, l2): (T, T, T)) -> T {
    let row = if DECAY { c * x + l2 * z } else { c * x };
    z - lr * (row + g)
}

/// A scalar product in [`LANES`] partial sums.
#[inline(always)]
fn dot<T: Real>(x: &[T], z: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let ((xs, x), (zs, z)) = (x.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for (x, z) in xs.iter().zip(zs) {
        for l in 0..LANES {
            sums[l] = sums[l] + x[l] * z[l];
        }
    }
    for (sum, (x, z)) in sums.iter_mut().zip(x.iter().zip(z)) {
        *sum = *sum + *x * *z;
    }
    total(sums)
}

/// The sum of partial sums: the upper half is added to the lower until one is left.
#[inline(always)]
fn total<T: Real>(mut sums: [T; LANES]) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] = sums[l] + sums[l + half];
        }
        half /= 2;
    }
    sums[0]
}
