//! Products of matrices of packed codes: sums of integers, exact, so the same on every CPU and any number of threads.
//!
//! A code is a whole number of its format's steps ([`Steps`]). Blocks of the result are computed apart, each by one
//! thread: its parts of a and b are decoded into panels as a `Kernel` wants them, a few hundred places of the inner
//! dimension at a time, multiplied tile by tile into 32-bit sums, and what is finished is scaled. Sums are taken modulo
//! 2^32, which loses nothing as long as the sum itself fits: longer ones are cut, and their parts added in 64 bits.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod block;
mod conv;
mod few;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operand;
mod patches;
mod portable;
mod scale;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
pub use conv::{Convolution, Product};
use kernel::{Kernel, Lanes};
use operand::Part;
pub use operand::{Codes, Steps};
use scale::Columns;
pub use scale::{Scale, Scaling};

/// An operand: rows of a, or columns of b.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Its matrices.
    pub codes: Codes<'a>,
    /// What their codes are.
    pub steps: &'a Steps,
    /// Which of them each matrix of the result is made of.
    pub matrices: &'a [usize],
}

impl Operand<'_> {
    /// The matrix that a matrix of the result is made of: the codes, and the first one's number.
    fn matrix(&self, matrix: usize) -> (&Codes<'_>, usize) {
        (&self.codes, self.matrices[matrix] * self.codes.lines * self.codes.inner)
    }
}

/// The name of the kernel in use.
pub fn kernel_name() -> &'static str {
    kernel::current(Level::current()).name()
}

/// The names of the kernels of this CPU, the best last.
pub fn kernel_names() -> Vec<&'static str> {
    kernel::supported().iter().map(|kernel| kernel.name()).collect()
}

/// Whether this CPU has AMX, but the system does not let this process use it.
pub fn amx_is_refused() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::is_refused();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Multiplies: matrices of the result, one after the other, rows of a by columns of b.
pub fn product(a: &Operand, b: &Operand, scaling: &Scaling, out: &mut [f32]) -> Result<()> {
    let level = Level::current();
    product_by(level, kernel::current(level), a, b, scaling, out)
}

fn product_by(
    level: Level,
    kernel: &dyn Kernel,
    a: &Operand,
    b: &Operand,
    scaling: &Scaling,
    out: &mut [f32],
) -> Result<()> {
    let (m, n, k) = (a.codes.lines, b.codes.lines, a.codes.inner);
    if k != b.codes.inner {
        return Err(Error::argument("b", format!("has {} rows, but a has {k} columns", b.codes.inner)));
    }
    let matrices = a.matrices.len();
    if matrices != b.matrices.len() || m.checked_mul(n).and_then(|mn| mn.checked_mul(matrices)) != Some(out.len()) {
        return Err(Error::argument("out", format!("has {} elements, not {matrices} x {m} x {n}", out.len())));
    }
    if out.is_empty() || k == 0 {
        out.fill(0.0);
        return Ok(());
    }
    for (argument, operand) in [("a", a), ("b", b)] {
        let count = operand.codes.matrices;
        if operand.matrices.iter().any(|matrix| *matrix >= count) {
            return Err(Error::argument(argument, format!("has {count} matrices, which are fewer than are asked for")));
        }
    }
    scaling.check((a.codes, b.codes))?;
    let job = Job::new(kernel, a, b, scaling);
    let out = Shared::new(out);
    if few::product(level, &job, &out) {
        return Ok(());
    }
    let (across, down) = (n.div_ceil(job.columns), m.div_ceil(job.rows));
    parallel::for_each(matrices * across * down, |chunk| {
        let (matrix, place) = (chunk / (across * down), chunk % (across * down));
        let (row, column) = (place / across * job.rows, place % across * job.columns);
        let (rows, columns) = (row..m.min(row + job.rows), column..n.min(column + job.columns));
        let place = Place { matrix, rows, columns, block: 0 };
        level.run(
            #[inline(always)]
            || match job.lanes {
                Lanes::Bytes { .. } => job.block::<u8>(level, place, &out),
                Lanes::Words => job.block::<u16>(level, place, &out),
            },
        );
    });
    Ok(())
}

/// One product of all of a with all of b, of one part of their numbers each; the sums so far first become 2^shift times
/// as large.
struct Pass {
    a: Part,
    b: Part,
    shift: u32,
}

/// What all blocks of a product share.
struct Job<'a> {
    kernel: &'a dyn Kernel,
    a: &'a Operand<'a>,
    b: &'a Operand<'a>,
    scaling: &'a Scaling<'a>,
    lanes: Lanes,
    bias: i32,
    passes: Vec<Pass>,
    /// Places of the inner dimension whose sum fits 32 bits.
    exact: usize,
    /// The largest blocks.
    rows: usize,
    columns: usize,
}

/// Rows and columns of a block of the result, where it has that many: of a size that leaves its sums in the cache, and
/// panels worth their packing.
const BLOCK: usize = 512;
/// Where every few places are scaled for themselves.
const SCALED_BLOCK: usize = 128;
/// Blocks are halved until there are so many.
const BLOCKS: usize = 16;

impl<'a> Job<'a> {
    fn new(kernel: &'a dyn Kernel, a: &'a Operand, b: &'a Operand, scaling: &'a Scaling) -> Self {
        let lanes = kernel.lanes(a.steps, b.steps);
        let (bias, planes) = match lanes {
            Lanes::Bytes { bias, .. } => (bias.unwrap_or(0), bias.is_none()),
            Lanes::Words => (0, false),
        };
        let parts = |steps: &Steps, bias: i32| {
            if planes && !steps.in_bytes() {
                vec![(Part::High, 1), (Part::Low, 0)]
            } else {
                vec![(Part::Biased(bias), 0)]
            }
        };
        let mut passes: Vec<(Pass, u32)> = vec![];
        for (a, high) in parts(a.steps, bias) {
            for (b, higher) in parts(b.steps, 0) {
                passes.push((Pass { a, b, shift: 0 }, high + higher));
            }
        }
        // Horner's rule, the highest bytes first.
        let mut before = passes[0].1;
        for (pass, place) in &mut passes {
            (pass.shift, before) = (8 * (before - *place), *place);
        }
        let passes = passes.into_iter().map(|(pass, _)| pass).collect();
        let most = i64::from(a.steps.most()) * i64::from(b.steps.most());
        let exact = (i64::from(i32::MAX) / most.max(1)) as usize;
        let exact = if exact >= 64 { exact - exact % 64 } else { exact };
        let (m, n) = (a.codes.lines, b.codes.lines);
        let largest = if matches!(scaling, Scaling::Blocks { .. }) { SCALED_BLOCK } else { BLOCK };
        let (mut rows, mut columns) = (m.min(largest), n.min(largest));
        let least = 64;
        while a.matrices.len() * m.div_ceil(rows) * n.div_ceil(columns) < BLOCKS && rows.max(columns) > least {
            // What is gathered is best gathered once.
            let narrower = rows < columns || b.codes.is_gathered() && columns > least;
            if narrower { columns = columns.div_ceil(2) } else { rows = rows.div_ceil(2) }
        }
        let (tile_rows, tile_columns) = kernel.tile_shape();
        let (rows, columns) = (rows.next_multiple_of(tile_rows), columns.next_multiple_of(tile_columns));
        Job { kernel, a, b, scaling, lanes, bias, passes, exact, rows, columns }
    }
}

/// Where in the result numbers belong.
struct Place {
    matrix: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Which block of the inner dimension has been summed.
    block: usize,
}

impl Job<'_> {
    /// Scales sums, which are rounded to float32, into the result.
    #[inline(always)]
    fn finish(&self, place: &Place, sum: impl Fn(usize, usize) -> f32, out: &Shared<f32>) {
        let (m, run) = (self.a.codes.lines, self.b.codes.run);
        let (unit_a, unit_b) = (self.a.steps.unit, self.b.steps.unit);
        let matrices = (self.a.matrices[place.matrix], self.b.matrices[place.matrix]);
        let runs = |first: usize| first..place.columns.end.min((first / run + 1) * run);
        let starts = |columns: &Range<usize>| Some(runs(columns.end)).filter(|next| !next.is_empty());
        let rows = place.rows.clone().enumerate();
        let parts = |(i, row)| {
            std::iter::successors(Some(runs(place.columns.start)), starts).map(move |columns| (i, row, columns))
        };
        for (i, row, columns) in rows.flat_map(parts) {
            let skip = columns.start - place.columns.start;
            let matrix = columns.start / run * self.a.matrices.len() + place.matrix;
            let first = (matrix * m + row) * run + columns.start % run;
            // SAFETY: blocks are disjoint; `out` is borrowed until `for_each` returns.
            let out = unsafe { out.part(first..first + columns.len()) };
            // Units are powers of two: nothing is rounded again.
            let value = |j: usize| sum(i, skip + j) * unit_a * unit_b;
            match self.scaling {
                Scaling::Factor(factor) => {
                    out.iter_mut().enumerate().for_each(|(j, out)| *out = value(j) * factor);
                }
                Scaling::Sides { a, b } => {
                    let (of_row, of_columns) = scale::factors(a, b, matrices, row);
                    match of_columns {
                        Columns::One(of_all) => {
                            out.iter_mut().enumerate().for_each(|(j, out)| *out = value(j) * of_row * of_all);
                        }
                        Columns::Each(of_columns) => {
                            let of_columns = &of_columns[columns];
                            for ((j, out), of_column) in out.iter_mut().enumerate().zip(of_columns) {
                                *out = value(j) * of_row * of_column;
                            }
                        }
                    }
                }
                Scaling::Blocks { a, b, .. } => {
                    let of_row = a.at(matrices.0, row, place.block);
                    for ((j, out), column) in out.iter_mut().enumerate().zip(columns) {
                        let before = if place.block == 0 { 0.0 } else { *out };
                        *out = before + value(j) * (of_row * b.at(matrices.1, column, place.block));
                    }
                }
            }
        }
    }
}
