//! Decoding, one message or the weighted mean of many, piece by piece.

use super::coder::{FirstError, Opened, Pieces, with_buffer};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};

/// Writes the numbers of one array.
pub(super) fn decode(array: &dyn Opened, out: &mut [f32]) -> Result<()> {
    let (level, pieces) = (Level::current(), array.pieces());
    each_piece(&pieces, out, |piece, out| {
        array.decode(level, piece, out)?;
        array.finish(level, piece, out);
        Ok(())
    })
}

/// Calls `work(piece, numbers)` for every piece, on several threads; `numbers` is the place in `out` where the piece
/// belongs, or a buffer of its padded length that is copied there.
fn each_piece(pieces: &Pieces, out: &mut [f32], work: impl Fn(usize, &mut [f32]) -> Result<()> + Sync) -> Result<()> {
    if out.len() != pieces.numbers() {
        let reason = format!("has room for {}, but {} are needed", out.len(), pieces.numbers());
        return Err(Error::argument("out", reason));
    }
    let first_bad = FirstError::default();
    let out = Shared::new(out);
    parallel::for_each(pieces.len(), |piece| {
        let range = pieces.range(piece);
        let numbers = range.start..range.end.min(pieces.numbers());
        // SAFETY: pieces are disjoint, and `out` is borrowed until `for_each` returns.
        let place = unsafe { out.part(numbers.clone()) };
        let result = if numbers == range {
            work(piece, place)
        } else {
            with_buffer(range.len(), |buffer| {
                let result = work(piece, buffer);
                place.copy_from_slice(&buffer[..numbers.len()]);
                result
            })
        };
        first_bad.note(piece, result);
    });
    first_bad.into_result()
}

#[inline(always)]
fn multiply(level: Level, numbers: &mut [f32], factor: f32) {
    level.run(
        #[inline(always)]
        || numbers.iter_mut().for_each(|number| *number *= factor),
    );
}

/// `1 / total` as float32, whatever the caller's float state.
pub(super) fn reciprocal(total: f64) -> f32 {
    Level::PORTABLE.run(|| (1.0 / total) as f32)
}

/// A weight as float32, whatever the caller's float state.
pub(super) fn weight(weight: f64) -> f32 {
    Level::PORTABLE.run(|| weight as f32)
}

/// What a sum begins with: adding it changes no number, not even the sign of a zero.
pub(super) const NOTHING: f32 = -0.0;

/// So many messages are added one by one; their sums are then added. A float32 sum of all of a million would lose more to
/// rounding than one bit for each number does.
const LOT: usize = 4096;

/// The sum of messages that come one at a time.
#[derive(Debug)]
pub struct Lots {
    /// Of the present lot.
    sum: Vec<f32>,
    /// Of the lots before it, where there are some.
    before: Option<Vec<f32>>,
    /// How many messages were added.
    messages: usize,
}

impl Lots {
    /// The sum of nothing, of so many numbers.
    pub(super) fn new(numbers: usize) -> Self {
        Lots { sum: vec![NOTHING; numbers], before: None, messages: 0 }
    }

    /// How many numbers it keeps for each lot.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> usize {
        self.sum.len()
    }
}

/// Adds numbers to others.
fn carry(level: Level, total: &mut [f32], sum: &[f32]) {
    level.run(
        #[inline(always)]
        || total.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum),
    );
}

/// Writes the weighted mean of the same array in several messages, added in their order, [`LOT`] at a time; a piece is
/// summed while it is in the cache, and a rotation that all share is undone once.
pub(super) fn mean(arrays: &[(&dyn Opened, f32)], total: f64, out: &mut [f32]) -> Result<()> {
    let Some((first, _)) = arrays.first() else { return Ok(()) };
    let (level, pieces, reciprocal) = (Level::current(), first.pieces(), reciprocal(total));
    each_piece(&pieces, out, |piece, sum| {
        let add = |lot: &[(&dyn Opened, f32)], sum: &mut [f32]| {
            sum.fill(NOTHING);
            lot.iter().try_for_each(|(array, weight)| array.add(level, piece, sum, *weight))
        };
        let (lot, rest) = arrays.split_at(arrays.len().min(LOT));
        add(lot, sum)?;
        for lot in rest.chunks(LOT) {
            with_buffer(sum.len(), |buffer| add(lot, buffer).map(|()| carry(level, sum, buffer)))?;
        }
        multiply(level, sum, reciprocal);
        first.finish(level, piece, sum);
        Ok(())
    })
}

/// Adds one array to a sum of [`Opened::summed`] numbers, before the rotation that all share is undone.
pub(super) fn add(array: &dyn Opened, weight: f32, lots: &mut Lots) -> Result<()> {
    let (level, pieces, first_bad) = (Level::current(), array.pieces(), FirstError::default());
    if lots.messages > 0 && lots.messages.is_multiple_of(LOT) {
        match &mut lots.before {
            None => lots.before = Some(lots.sum.clone()),
            Some(before) => carry(level, before, &lots.sum),
        }
        lots.sum.fill(NOTHING);
    }
    lots.messages += 1;
    let sum = Shared::new(&mut lots.sum);
    parallel::for_each(pieces.len(), |piece| {
        let range = pieces.range(piece);
        // SAFETY: pieces are disjoint, and `sum` is borrowed until `for_each` returns.
        let part = unsafe { sum.part(range.start..range.end.min(sum.len())) };
        first_bad.note(piece, array.add(level, piece, part, weight));
    });
    first_bad.into_result()
}

/// Writes the mean that a sum of weight `total` stands for; `array` is any that was added.
pub(super) fn finish(array: &dyn Opened, lots: &Lots, total: f64, out: &mut [f32]) -> Result<()> {
    let (level, pieces, reciprocal) = (Level::current(), array.pieces(), reciprocal(total));
    each_piece(&pieces, out, |piece, out| {
        let start = pieces.range(piece).start;
        let copy = |out: &mut [f32], sum: &[f32]| out.iter_mut().zip(sum).for_each(|(out, sum)| *out = *sum);
        copy(out, &lots.before.as_ref().unwrap_or(&lots.sum)[start..]);
        if lots.before.is_some() {
            carry(level, out, &lots.sum[start..]);
        }
        multiply(level, out, reciprocal);
        array.finish(level, piece, out);
        Ok(())
    })
}
