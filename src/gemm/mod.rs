//! Products of matrices of packed codes: sums of integers, exact, so the same on every CPU and any number of threads.
//!
//! A code is a whole number of its format's steps ([`Steps`]). Blocks of the result are computed apart, each by one
//! thread: its parts of a and b are decoded into panels as a [`Kernel`] wants them, a few hundred places of the inner
//! dimension at a time, multiplied tile by tile into 32-bit sums, and what is finished is scaled. Sums are taken modulo
//! 2^32, which loses nothing as long as the sum itself fits: longer ones are cut, and their parts added in 64 bits.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod few;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operand;
mod portable;
mod scale;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::cell::Cell;
use std::ops::Range;

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use kernel::{Kernel, Lanes, ROOM};
pub use operand::{Codes, Steps};
use operand::{Lane, Layout, Part, Plane, Rows, pack};
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
        level.run(
            #[inline(always)]
            || job.block(level, matrix, rows, columns, &out),
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
            if rows >= columns { rows = rows.div_ceil(2) } else { columns = columns.div_ceil(2) }
        }
        let (tile_rows, tile_columns) = kernel.tile_shape();
        let (rows, columns) = (rows.next_multiple_of(tile_rows), columns.next_multiple_of(tile_columns));
        Job { kernel, a, b, scaling, lanes, bias, passes, exact, rows, columns }
    }

    #[inline(always)]
    fn block(&self, level: Level, matrix: usize, rows: Range<usize>, columns: Range<usize>, out: &Shared<f32>) {
        match self.lanes {
            Lanes::Bytes { .. } => {
                self.block_of(level, matrix, rows, columns, out, Steps::bytes, |space| &mut space.bytes);
            }
            Lanes::Words => {
                self.block_of(level, matrix, rows, columns, out, |steps, _| steps.words(), |space| &mut space.words);
            }
        }
    }

    #[inline(always)]
    fn block_of<T: Lane>(
        &self,
        level: Level,
        matrix: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &Shared<f32>,
        plane: impl Fn(&Steps, Part) -> Plane<T>,
        rows_of: impl Fn(&mut Space) -> &mut Rows<T>,
    ) {
        let k = self.a.codes.inner;
        let (tile_rows, tile_columns) = self.kernel.tile_shape();
        let stride = columns.len().next_multiple_of(tile_columns);
        let planes: Vec<_> =
            self.passes.iter().map(|pass| (plane(self.a.steps, pass.a), plane(self.b.steps, pass.b))).collect();
        let mut space = Space::take();
        let mut lines = std::mem::take(rows_of(&mut space));
        {
            let height = rows.len().next_multiple_of(tile_rows);
            let a_panels = aligned(&mut space.a, height * ROOM);
            let b_panels = aligned(&mut space.b, stride * ROOM);
            let sums = aligned(&mut space.sums, height * stride);
            let excess = aligned(&mut space.excess, stride);
            let of_a = |matrix: usize| (&self.a.codes, self.a.matrices[matrix] * self.a.codes.lines * k);
            let of_b = |matrix: usize| (&self.b.codes, self.b.matrices[matrix] * self.b.codes.lines * k);
            let scaled = self.scaling.block().unwrap_or(k).max(1);
            let cut = self.exact < scaled;
            let wide = &mut space.wide;
            wide.clear();
            wide.resize(if cut { sums.len() } else { 0 }, 0_i64);
            let room = ROOM * T::GROUP;
            // Small blocks are packed many at a time, where they begin with a group.
            let multiple = self.kernel.groups() * T::GROUP;
            let whole = scaled.is_multiple_of(multiple) && (!cut || self.exact.is_multiple_of(multiple));
            let together = self.passes.len() == 1 && scaled <= room && whole;
            let span = if together { room - room % scaled } else { room };
            let mut packed = 0..0;
            let mut first = 0;
            while first < k {
                let end = k.min(first + scaled);
                wide.fill(0);
                let mut from = first;
                while from < end {
                    let to = end.min(from + self.exact);
                    sums.fill(0);
                    excess.fill(0);
                    for (pass, (plane_a, plane_b)) in self.passes.iter().zip(&planes) {
                        if pass.shift > 0 {
                            sums.iter_mut().for_each(|sum| *sum <<= pass.shift);
                        }
                        let mut at = from;
                        while at < to {
                            let next = to.min(at + room);
                            if !(together && packed.contains(&at)) {
                                packed = at..if together { k.min(at + span) } else { next };
                                let groups = packed.len().next_multiple_of(multiple) / T::GROUP;
                                let layout = Layout { width: usize::MAX, panel: 0, line: ROOM, group: 1 };
                                let part = (rows.clone(), packed.clone());
                                pack(level, of_a(matrix), plane_a, part, groups, layout, &mut lines, a_panels);
                                let panel = ROOM * tile_columns;
                                let layout = Layout { width: tile_columns, panel, line: 1, group: tile_columns };
                                let part = (columns.clone(), packed.clone());
                                pack(level, of_b(matrix), plane_b, part, groups, layout, &mut lines, b_panels);
                            }
                            let skip = (at - packed.start) / T::GROUP;
                            let groups = (next - at).next_multiple_of(multiple) / T::GROUP;
                            for (p, b) in b_panels.chunks_exact(ROOM * tile_columns).enumerate() {
                                let b = &b[skip * tile_columns..(skip + groups) * tile_columns];
                                if self.bias != 0 {
                                    add_columns(b, self.bias, &mut excess[p * tile_columns..][..tile_columns]);
                                }
                                let sums = &mut sums[p * tile_columns..];
                                for i in (0..height).step_by(tile_rows) {
                                    let (a, sums) = (&a_panels[i * ROOM + skip..], &mut sums[i * stride..]);
                                    // SAFETY: the kernel is of this CPU; both panels hold `groups` groups from here,
                                    // and the sums are a multiple of tiles.
                                    unsafe {
                                        let (a, b, sums) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
                                        self.kernel.tile(self.lanes, a, b, groups, sums, stride);
                                    }
                                }
                            }
                            at = next;
                        }
                    }
                    if cut {
                        for (wide, sums) in wide.chunks_exact_mut(stride).zip(sums.chunks_exact(stride)) {
                            for ((wide, sum), excess) in wide.iter_mut().zip(sums).zip(&*excess) {
                                *wide += i64::from(sum.wrapping_sub(*excess));
                            }
                        }
                    }
                    from = to;
                }
                let place = Place { matrix, rows: rows.clone(), columns: columns.clone(), block: first / scaled };
                if cut {
                    self.finish(&place, |i, j| wide[i * stride + j] as f32, out);
                } else {
                    self.finish(&place, |i, j| sums[i * stride + j].wrapping_sub(excess[j]) as f32, out);
                }
                first = end;
            }
        }
        *rows_of(&mut space) = lines;
        space.give();
    }
}

/// Adds the sums of columns of a panel of bytes, times the bias of what multiplies them.
#[inline(always)]
fn add_columns(panel: &[u32], bias: i32, excess: &mut [i32]) {
    for row in panel.chunks_exact(excess.len()) {
        for (excess, group) in excess.iter_mut().zip(row) {
            let byte = |i: u32| (*group << (24 - 8 * i)) as i32 >> 24;
            *excess = excess.wrapping_add(bias * (byte(0) + byte(1) + byte(2) + byte(3)));
        }
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
        let (m, n) = (self.a.codes.lines, self.b.codes.lines);
        let (unit_a, unit_b) = (self.a.steps.unit, self.b.steps.unit);
        let matrices = (self.a.matrices[place.matrix], self.b.matrices[place.matrix]);
        for (i, row) in place.rows.clone().enumerate() {
            let first = (place.matrix * m + row) * n;
            // SAFETY: blocks are disjoint; `out` is borrowed until `for_each` returns.
            let out = unsafe { out.part(first + place.columns.start..first + place.columns.end) };
            // Units are powers of two: nothing is rounded again.
            let value = |j: usize| sum(i, j) * unit_a * unit_b;
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
                            let of_columns = &of_columns[place.columns.clone()];
                            for ((j, out), of_column) in out.iter_mut().enumerate().zip(of_columns) {
                                *out = value(j) * of_row * of_column;
                            }
                        }
                    }
                }
                Scaling::Blocks { a, b, .. } => {
                    let of_row = a.at(matrices.0, row, place.block);
                    for ((j, out), column) in out.iter_mut().enumerate().zip(place.columns.clone()) {
                        let before = if place.block == 0 { 0.0 } else { *out };
                        *out = before + value(j) * (of_row * b.at(matrices.1, column, place.block));
                    }
                }
            }
        }
    }
}

/// Memory of a thread, kept for its next block.
#[derive(Default)]
struct Space {
    a: Vec<u32>,
    b: Vec<u32>,
    sums: Vec<i32>,
    excess: Vec<i32>,
    wide: Vec<i64>,
    bytes: Rows<u8>,
    words: Rows<u16>,
}

thread_local! {
    static SPACE: Cell<Option<Box<Space>>> = const { Cell::new(None) };
}

impl Space {
    fn take() -> Box<Space> {
        SPACE.take().unwrap_or_default()
    }

    fn give(self: Box<Space>) {
        SPACE.set(Some(self));
    }
}

/// `n` numbers of four bytes that start with a cache line, in `memory`.
fn aligned<T: Copy + Default>(memory: &mut Vec<T>, n: usize) -> &mut [T] {
    const LINE: usize = 64;
    let most = LINE / size_of::<T>();
    if memory.len() < n + most {
        memory.resize(n + most, T::default());
    }
    let skip = memory.as_ptr().align_offset(LINE).min(most);
    &mut memory[skip..skip + n]
}
