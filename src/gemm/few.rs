//! A few rows times packed 4-bit weights whose rows the product sums along: inference, one example at a time.
//!
//! The time goes into reading the weights, so they are decoded in registers and never written anywhere.

use super::operand::{Part, Rows};
use super::{Job, Place};
use crate::cpu::Level;
use crate::parallel::{self, Shared};

/// More rows are worth panels.
const MOST: usize = 4;
/// Columns of the result that are a chunk of work.
const CHUNK: usize = 64;
/// Codes in a vector of 256 bits.
const VECTOR: usize = 64;

/// Rows of numbers that packed codes are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Few<'a> {
    /// What codes stand for: sixteen unsigned bytes.
    pub table: &'a [u8; 256],
    /// The rows, as in [`Prepared`], `height` apart.
    pub numbers: &'a [u8],
    pub height: usize,
    /// So many sums of two products fit 16 bits.
    pub every: usize,
    /// Bytes of codes that are summed for themselves.
    pub block: usize,
}

/// Rows of a as the loop wants them: of every block, in runs of 64 numbers, first those at even places, then the others;
/// zeros behind a block's end.
struct Prepared {
    numbers: Vec<u8>,
    /// By block, then row.
    sums: Vec<i32>,
}

/// Computes the product this way, where it is one of that kind; says whether it was.
pub(super) fn product(level: Level, job: &Job, out: &Shared<f32>) -> bool {
    let (a, b) = (job.a, job.b);
    let (m, n, k) = (a.codes.lines, b.codes.lines, a.codes.inner);
    let size = job.scaling.block().unwrap_or(k);
    let bias = -b.steps.low.min(0);
    let every = i32::from(i16::MAX) / (2 * (b.steps.high + bias) * a.steps.most()).max(1);
    let fits = b.steps.bits() == 4 && a.steps.in_bytes() && b.steps.high + bias <= 127 && every >= 4;
    let even = k.is_multiple_of(2) && (size.is_multiple_of(2) || size >= k);
    if !is_supported(level) || m > MOST || !fits || !even || !b.codes.is_along() || job.exact < size.min(k) {
        return false;
    }
    let table = b.steps.bytes(Part::Biased(bias));
    let prepared: Vec<Prepared> = (0..a.matrices.len()).map(|matrix| prepare(level, job, matrix, size)).collect();
    let (chunks, blocks) = (n.div_ceil(CHUNK), k.div_ceil(size));
    parallel::for_each(a.matrices.len() * chunks, |chunk| {
        let (matrix, first) = (chunk / chunks, chunk % chunks * CHUNK);
        let columns = first..n.min(first + CHUNK);
        let Prepared { numbers, sums } = &prepared[matrix];
        let few = Few {
            table: table.table(),
            numbers,
            height: numbers.len() / m,
            every: every as usize,
            block: size.div_ceil(2),
        };
        // By block, row and column.
        let mut found = vec![0_i32; blocks * m * CHUNK];
        for (j, column) in columns.clone().enumerate() {
            let start = (b.matrices[matrix] * n + column) * k / 2;
            dots(&b.codes.bytes()[start..start + k / 2], &few, m, |place, sum| {
                found[place * CHUNK + j] = sum.wrapping_sub(bias * sums[place]);
            });
        }
        level.run(
            #[inline(always)]
            || {
                for block in 0..blocks {
                    let place = Place { matrix, rows: 0..m, columns: columns.clone(), block };
                    job.finish(&place, |i, j| found[(block * m + i) * CHUNK + j] as f32, out);
                }
            },
        );
    });
    true
}

fn prepare(level: Level, job: &Job, matrix: usize, size: usize) -> Prepared {
    let ((codes, start), m, k) = (job.a.matrix(matrix), job.a.codes.lines, job.a.codes.inner);
    let plane = job.a.steps.bytes(Part::Biased(0));
    let (mut numbers, mut sums, mut rows) = (vec![], vec![0; k.div_ceil(size) * m], Rows::default());
    let mut line = vec![0_u8; k];
    for row in 0..m {
        codes.line(level, start, row, &plane, &mut line, &mut rows);
        for (block, line) in line.chunks(size).enumerate() {
            sums[block * m + row] = line.iter().map(|number| i32::from(*number as i8)).sum();
            for run in line.chunks(VECTOR) {
                let mut both = [0; VECTOR];
                for (i, number) in run.iter().enumerate() {
                    both[i % 2 * (VECTOR / 2) + i / 2] = *number;
                }
                numbers.extend_from_slice(&both);
            }
        }
    }
    Prepared { numbers, sums }
}

#[cfg(target_arch = "x86_64")]
fn is_supported(level: Level) -> bool {
    level.has_avx2()
}

#[cfg(not(target_arch = "x86_64"))]
fn is_supported(_: Level) -> bool {
    false
}

/// The products of packed weights with rows of numbers, by block and row.
#[cfg(target_arch = "x86_64")]
fn dots(packed: &[u8], few: &Few, rows: usize, mut put: impl FnMut(usize, i32)) {
    use super::avx2::dots;
    // SAFETY: `product` comes here only where the level has AVX2, with rows that `prepare` made for such weights.
    unsafe {
        match rows {
            1 => dots::<1>(packed, few, |block, sums| put(block, sums[0])),
            2 => dots::<2>(packed, few, |block, sums| (0..2).for_each(|i| put(2 * block + i, sums[i]))),
            3 => dots::<3>(packed, few, |block, sums| (0..3).for_each(|i| put(3 * block + i, sums[i]))),
            _ => dots::<4>(packed, few, |block, sums| (0..4).for_each(|i| put(4 * block + i, sums[i]))),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn dots(_: &[u8], _: &Few, _: usize, _: impl FnMut(usize, i32)) {}
