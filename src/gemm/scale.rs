//! What sums are multiplied by.

use super::operand::Codes;
use crate::error::{Error, Result};

/// Scales of an operand: for each of its matrices one for all lines or one for each, and of each for the whole inner
/// dimension or for every block of it.
#[derive(Clone, Copy, Debug)]
pub struct Scale<'a> {
    values: &'a [f32],
    lines: usize,
    blocks: usize,
}

impl<'a> Scale<'a> {
    /// Scales in the order matrix, line, block.
    ///
    pub fn new(values: &'a [f32], lines: usize, blocks: usize) -> Self {
        Scale { values, lines, blocks }
    }

    fn matrices(&self) -> usize {
        self.values.len() / (self.lines * self.blocks).max(1)
    }

    /// The scale of a line's block.
    #[inline(always)]
    pub(super) fn at(&self, matrix: usize, line: usize, block: usize) -> f32 {
        let line = matrix * self.lines + if self.lines == 1 { 0 } else { line };
        self.values[line * self.blocks + if self.blocks == 1 { 0 } else { block }]
    }
}

/// How sums become results.
#[derive(Clone, Copy, Debug)]
pub enum Scaling<'a> {
    /// All are multiplied by one number.
    Factor(f32),
    /// By a scale of their row of a, and then by one of their column of b.
    Sides {
        /// One for a matrix or for each row.
        a: Scale<'a>,
        /// One for a matrix or for each column.
        b: Scale<'a>,
    },
    /// For every block of the inner dimension by the product of both scales; the results are added, block by block.
    Blocks {
        /// How long blocks are.
        size: usize,
        /// One for each block, or for all.
        a: Scale<'a>,
        /// As for a.
        b: Scale<'a>,
    },
}

impl Scaling<'_> {
    /// Whether there is a scale for everything.
    pub(super) fn check(&self, (a, b): (Codes, Codes)) -> Result<()> {
        let inner = a.inner;
        let (of_a, of_b, blocks) = match self {
            Scaling::Factor(_) => return Ok(()),
            Scaling::Sides { a, b } => (a, b, 1),
            Scaling::Blocks { size: 0, .. } => return Err(Error::argument("block_size", "give 1 or more")),
            Scaling::Blocks { size, a, b } => (a, b, inner.div_ceil(*size)),
        };
        for (argument, scale, codes) in [("a", of_a, a), ("b", of_b, b)] {
            let lines = [1, codes.lines].contains(&scale.lines);
            if !lines || ![1, blocks].contains(&scale.blocks) || scale.matrices() < codes.matrices {
                let of = format!("{} x {} x {}", scale.matrices(), scale.lines, scale.blocks);
                return Err(Error::argument(argument, format!("{of} scales do not fit its matrices")));
            }
        }
        Ok(())
    }

    pub(super) fn block(&self) -> Option<usize> {
        if let Scaling::Blocks { size, .. } = self { Some(*size) } else { None }
    }
}

/// What the columns of a row are multiplied by.
pub(super) enum Columns<'a> {
    /// All by this.
    One(f32),
    /// Each by its own.
    Each(&'a [f32]),
}

/// The factors of a row, in order. Where both operands have one scale for the matrix, the only factor is their product,
/// rounded once (unless it is too small to be a normal number, or too large for any).
#[inline(always)]
pub(super) fn factors<'a>(a: &Scale, b: &Scale<'a>, (of_a, of_b): (usize, usize), row: usize) -> (f32, Columns<'a>) {
    let of_row = a.at(of_a, row, 0);
    if b.lines != 1 {
        return (of_row, Columns::Each(&b.values[of_b * b.lines..(of_b + 1) * b.lines]));
    }
    let of_column = b.at(of_b, 0, 0);
    let both = f64::from(of_row) * f64::from(of_column);
    if a.lines == 1 && (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&both) {
        return (both as f32, Columns::One(1.0));
    }
    (of_row, Columns::One(of_column))
}
