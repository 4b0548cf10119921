//! The scale rules: what a group of numbers is observed for, and how that becomes a scale.
//!
//! A rule is a small record that names a [`Statistic`] (how to `observe` numbers and `merge` two observations); `finish`
//! turns what was observed into a scale and an offset for one format.

mod rules;

use crate::formats::order_key;
pub use rules::{Finisher, RULES, Rule, Second, TENSOR_RANGE};

/// The bits of float32 infinity: anything at or above is not finite.
const INFINITY_BITS: u32 = 0x7f80_0000;

/// Elements summed before sums are joined: part of the definition of every float64 sum.
pub const PIECE: usize = 4096;

/// The smallest and largest scale a rule gives or a caller may give: the range whose reciprocal is exact enough.
pub const SCALE_RANGE: (f32, f32) = (f32::from_bits(1 << 23), f32::from_bits((126 + 127) << 23));

/// Which fields of an [`Observed`] a rule needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// `magnitude`.
    Amax,
    /// `low` and `high`.
    MinMax,
    /// `magnitude`, `sum` and `squares`.
    Moments,
}

/// What was seen in a group of numbers. Non-finite numbers propagate.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// The bits of the largest magnitude: as integers they order as the floats do, NaN last.
    magnitude: u32,
    /// The order key of the smallest number.
    low: i32,
    /// The order key of the largest number.
    high: i32,
    /// Sum of magnitudes.
    sum: f64,
    /// Sum of squares.
    squares: f64,
    /// How many numbers.
    count: usize,
}

impl Observed {
    /// Nothing seen yet.
    pub const NOTHING: Observed =
        Observed { magnitude: 0, low: i32::MAX, high: i32::MIN, sum: 0.0, squares: 0.0, count: 0 };

    /// Both observations together. Sums are added in the order of the calls.
    #[must_use]
    pub fn merge(self, next: Observed) -> Observed {
        Observed {
            magnitude: self.magnitude.max(next.magnitude),
            low: self.low.min(next.low),
            high: self.high.max(next.high),
            sum: self.sum + next.sum,
            squares: self.squares + next.squares,
            count: self.count + next.count,
        }
    }

    /// The largest magnitude.
    pub fn amax(&self) -> f32 {
        f32::from_bits(self.magnitude)
    }

    /// The sum of magnitudes and the sum of squares.
    pub fn moments(&self) -> (f64, f64) {
        (self.sum, self.squares)
    }

    /// Whether every number was finite; of what [`Statistic::MinMax`] saw, ask the extremes.
    pub fn is_finite(&self) -> bool {
        self.magnitude < INFINITY_BITS
    }

    /// The smallest and the largest number; either is NaN if some number was.
    #[inline(always)]
    pub fn extremes(&self) -> (f32, f32) {
        (f32::from_bits(order_key(self.low as u32) as u32), f32::from_bits(order_key(self.high as u32) as u32))
    }
}

impl Statistic {
    /// Observes at most [`PIECE`] numbers.
    #[inline(always)]
    pub fn observe(self, x: &[f32]) -> Observed {
        match self {
            Statistic::Amax => Observed { magnitude: magnitude(x), count: x.len(), ..Observed::NOTHING },
            Statistic::MinMax => {
                let fold = |(low, high): (i32, i32), x: &f32| {
                    let key = order_key(x.to_bits());
                    (low.min(key), high.max(key))
                };
                let (low, high) = x.iter().fold((i32::MAX, i32::MIN), fold);
                Observed { low, high, count: x.len(), ..Observed::NOTHING }
            }
            Statistic::Moments => {
                let (sum, squares) = lane_sums(x);
                Observed { magnitude: magnitude(x), sum, squares, count: x.len(), ..Observed::NOTHING }
            }
        }
    }
}

/// Many groups side by side, one per column, whose numbers come row by row in the order of the group.
pub struct Columns {
    statistic: Statistic,
    low: Vec<i32>,
    high: Vec<i32>,
    /// Of the piece at hand, sums of magnitudes and of squares: [`LANES`] rows of columns.
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Of the pieces before it, both sums of each column.
    done: Vec<(f64, f64)>,
    /// Numbers seen in each column.
    rows: usize,
}

impl Columns {
    /// Nothing seen yet in `columns` columns.
    pub fn new(statistic: Statistic, columns: usize) -> Self {
        let (signed, moments) = (statistic == Statistic::MinMax, statistic == Statistic::Moments);
        let lanes = if moments { LANES * columns } else { 0 };
        Columns {
            statistic,
            low: vec![i32::MAX; if signed { columns } else { 0 }],
            high: vec![if signed { i32::MIN } else { 0 }; columns],
            sums: vec![0.0; lanes],
            squares: vec![0.0; lanes],
            done: vec![(0.0, 0.0); if moments { columns } else { 0 }],
            rows: 0,
        }
    }

    /// Observes one number in each column.
    #[inline(always)]
    pub fn observe(&mut self, row: &[f32]) {
        if self.statistic == Statistic::MinMax {
            for ((low, high), x) in self.low.iter_mut().zip(&mut self.high).zip(row) {
                let key = order_key(x.to_bits());
                *low = (*low).min(key);
                *high = (*high).max(key);
            }
        } else {
            for (high, x) in self.high.iter_mut().zip(row) {
                *high = (*high).max((x.to_bits() & 0x7fff_ffff) as i32);
            }
        }
        if self.statistic == Statistic::Moments {
            let lane = self.rows % LANES * self.high.len();
            for ((sum, square), x) in self.sums[lane..].iter_mut().zip(&mut self.squares[lane..]).zip(row) {
                let value = f64::from(*x);
                *sum += value.abs();
                *square += value * value;
            }
        }
        self.rows += 1;
        if self.statistic == Statistic::Moments && self.rows.is_multiple_of(PIECE) {
            for column in 0..self.done.len() {
                self.done[column] = self.sums_of(column);
            }
            self.sums.fill(0.0);
            self.squares.fill(0.0);
        }
    }

    /// Both sums of column `column`, the piece at hand included: an empty one adds zero, which changes nothing.
    #[inline(always)]
    fn sums_of(&self, column: usize) -> (f64, f64) {
        let Some((sum, squares)) = self.done.get(column) else { return (0.0, 0.0) };
        let lanes = |sums: &[f64]| join_lanes(std::array::from_fn(|lane| sums[lane * self.done.len() + column]));
        (sum + lanes(&self.sums), squares + lanes(&self.squares))
    }

    /// What was seen in column `column`.
    #[inline(always)]
    pub fn seen(&self, column: usize) -> Observed {
        let (high, count) = (self.high[column], self.rows);
        let (sum, squares) = self.sums_of(column);
        match self.low.get(column) {
            None => Observed { magnitude: high as u32, sum, squares, count, ..Observed::NOTHING },
            Some(&low) => Observed { low, high, count, ..Observed::NOTHING },
        }
    }
}

#[inline(always)]
fn magnitude(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

/// Element j of a piece is added to lane j mod 8: part of the definition of every float64 sum.
const LANES: usize = 8;

#[inline(always)]
fn join_lanes(l: [f64; LANES]) -> f64 {
    ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]))
}

/// Sums of |x| and of x^2 in float64: the lanes are joined pairwise.
#[inline(always)]
fn lane_sums(x: &[f32]) -> (f64, f64) {
    lane_sums_of(x, |x| f64::from(x.abs()), |x| f64::from(*x) * f64::from(*x))
}

/// Two sums over the same numbers, in the order of every such sum.
#[inline(always)]
fn lane_sums_of(x: &[f32], one: impl Fn(&f32) -> f64, other: impl Fn(&f32) -> f64) -> (f64, f64) {
    let (mut ones, mut others) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    let (rows, rest) = x.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            ones[lane] += one(&row[lane]);
            others[lane] += other(&row[lane]);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        ones[lane] += one(value);
        others[lane] += other(value);
    }
    (join_lanes(ones), join_lanes(others))
}

/// The sum of `x[i] y[i]` of at most [`PIECE`] numbers, in float64 and in the order of every such sum.
#[inline(always)]
pub fn sum_of_products(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            lanes[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f64::from(*x) * f64::from(*y);
    }
    join_lanes(lanes)
}
