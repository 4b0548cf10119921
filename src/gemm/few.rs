//! A few rows times packed 4-bit weights whose rows the product sums along: inference, one example at a time.
//!
//! The time goes into reading the weights, so they are decoded in registers and never written anywhere.

use std::ops::Range;

use super::operand::{Part, Rows};
use super::{Job, Place};
use crate::cpu::Level;
use crate::parallel::{self, Shared};

/// More rows are worth panels.
const MOST: usize = 4;
/// Columns of the result that are a chunk of work.
const CHUNK: usize = 64;
/// Codes in a vector of 256 bits.
pub(super) const VECTOR: usize = 64;

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
    let chunks = n.div_ceil(CHUNK);
    parallel::for_each(a.matrices.len() * chunks, |chunk| {
        let (matrix, first) = (chunk / chunks, chunk % chunks * CHUNK);
        let columns = first..n.min(first + CHUNK);
        let Prepared { numbers, sums } = &prepared[matrix];
        let height = numbers.len() / m;
        let weights = |column: usize, inner: Range<usize>| {
            let start = (b.matrices[matrix] * n + column) * k;
            &b.codes.bytes()[(start + inner.start) / 2..(start + inner.end) / 2]
        };
        let mut at = 0;
        for (block, start) in (0..k).step_by(size).enumerate() {
            let inner = start..k.min(start + size);
            let mut found = [[0_i32; CHUNK]; MOST];
            for (j, column) in columns.clone().enumerate() {
                let of_column = dots(weights(column, inner.clone()), table.table(), &numbers[at..], height, m, every);
                for i in 0..m {
                    found[i][j] = of_column[i].wrapping_sub(bias * sums[block * m + i]);
                }
            }
            at += inner.len().next_multiple_of(VECTOR);
            let place = Place { matrix, rows: 0..m, columns: columns.clone(), block };
            level.run(
                #[inline(always)]
                || job.finish(&place, |i, j| found[i][j] as f32, out),
            );
        }
    });
    true
}

fn prepare(level: Level, job: &Job, matrix: usize, size: usize) -> Prepared {
    let (codes, m, k) = (&job.a.codes, job.a.codes.lines, job.a.codes.inner);
    let plane = job.a.steps.bytes(Part::Biased(0));
    let (mut numbers, mut sums, mut rows) = (vec![], vec![0; k.div_ceil(size) * m], Rows::default());
    let mut line = vec![0_u8; k];
    for row in 0..m {
        let start = job.a.matrices[matrix] * m * k;
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

/// The products of packed weights with rows of numbers, `height` apart.
#[cfg(target_arch = "x86_64")]
fn dots(packed: &[u8], table: &[u8; 256], numbers: &[u8], height: usize, rows: usize, every: i32) -> [i32; MOST] {
    use super::avx2::dots;
    let (every, mut found) = (every as usize, [0; MOST]);
    assert!(numbers.len() >= (rows - 1) * height + (2 * packed.len()).next_multiple_of(VECTOR), "rows of a");
    // SAFETY: `product` comes here only where the level has AVX2, and the rows are long enough.
    unsafe {
        match rows {
            1 => found[..1].copy_from_slice(&dots::<1>(packed, table, numbers, height, every)),
            2 => found[..2].copy_from_slice(&dots::<2>(packed, table, numbers, height, every)),
            3 => found[..3].copy_from_slice(&dots::<3>(packed, table, numbers, height, every)),
            _ => found = dots::<4>(packed, table, numbers, height, every),
        }
    }
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn dots(_: &[u8], _: &[u8; 256], _: &[u8], _: usize, _: usize, _: i32) -> [i32; MOST] {
    [0; MOST]
}
