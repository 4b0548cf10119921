//! What a codec does with one array, and how arrays are cut into pieces for threads and caches.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Mutex;

use super::cursor::Cursor;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::{BLOCK_MAX, Blocks, aligned};
use crate::parallel::{self, Shared};
use crate::stream::{Key, Purpose, Stream};
use crate::view::View;

/// Numbers that a codec without rotation handles at once: they stay in the first-level cache, and codes of any width take
/// whole bytes, even those of three values that come five a byte.
pub(super) const TILE: usize = 1280;

/// Numbers of a parallel chunk of such a codec.
pub(super) const CHUNK: usize = 16 * TILE;

/// The key of one array's message, and who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// What everybody in the round shares.
    pub key: Option<Key>,
    /// Who sends.
    pub sender: u64,
}

impl Noise {
    /// The key, which must be there.
    pub fn key(self) -> Result<Key> {
        self.key.ok_or_else(|| {
            let reason = "this codec draws random words and needs one; give key=lowbit.Key(1234) or an int, the same \
                          for all who send and receive";
            Error::argument("key", reason)
        })
    }

    /// The words that this sender uses for a purpose.
    pub fn stream(self, purpose: Purpose) -> Result<Stream> {
        Ok(self.key()?.purpose(purpose).fold(self.sender).stream())
    }

    /// The noise of array number `index` of a mapping.
    #[must_use]
    pub fn of_array(self, index: usize) -> Noise {
        Noise { key: self.key.map(|key| key.purpose(Purpose::Array).fold(index as u64)), ..self }
    }
}

/// A codec: arrays to bytes.
pub(super) trait Coder: Sync {
    /// Appends the payload of an array, which is not empty. Tells whether all numbers were finite.
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool>;

    /// Takes the payload of an array of this shape, which is not empty, from the front of `payload` and checks it.
    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>>;

    /// Whether a receiver needs the key.
    fn needs_key(&self) -> bool;
}

/// The payload of one array, ready to be decoded piece by piece, in any order, on any thread.
pub(super) trait Opened: Send + Sync {
    /// How the array is cut.
    fn pieces(&self) -> Pieces;

    /// Writes the numbers of one piece; if the rotation is shared, before it is undone.
    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()>;

    /// Adds `weight` times the numbers of one piece to a sum, which may leave its padding out.
    fn add(&self, level: Level, piece: usize, sum: &mut [f32], weight: f32) -> Result<()> {
        with_buffer(self.pieces().range(piece).len(), |numbers| {
            self.decode(level, piece, numbers)?;
            level.run(
                #[inline(always)]
                || accumulate(sum, numbers, weight),
            );
            Ok(())
        })
    }

    /// Whether decoding a piece of a payload that was opened can still fail.
    fn can_fail(&self) -> bool {
        false
    }

    /// Finds whether decoding any piece will fail, for whoever must not stop half way.
    fn verify(&self) -> Result<()> {
        Ok(())
    }

    /// How many numbers a sum of such arrays has: with padding only where the padding is needed to undo a rotation that
    /// all share, for padding is memory that no byte of a message pays for.
    fn summed(&self) -> usize {
        self.pieces().numbers()
    }

    /// Undoes the rotation of a piece that all senders share. Whoever sums messages calls it once, on the sum.
    fn finish(&self, level: Level, piece: usize, out: &mut [f32]) {
        let _ = (level, piece, out);
    }
}

/// How the numbers of an array are cut.
#[derive(Clone, Debug)]
pub(super) enum Pieces {
    /// All at once: the codec shares the work among threads itself.
    Whole(usize),
    /// In chunks of [`CHUNK`].
    Chunks(usize),
    /// In the blocks of a rotation, the last of them padded; and how many numbers there are without the padding.
    Blocks(Blocks, usize),
}

impl Pieces {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Pieces::Whole(n) => usize::from(*n > 0),
            Pieces::Chunks(n) => n.div_ceil(CHUNK),
            Pieces::Blocks(blocks, _) => blocks.len(),
        }
    }

    /// The places of one piece, padding included.
    pub fn range(&self, piece: usize) -> Range<usize> {
        match self {
            Pieces::Whole(n) => 0..*n,
            Pieces::Chunks(n) => piece * CHUNK..(*n).min((piece + 1) * CHUNK),
            Pieces::Blocks(blocks, _) => blocks.range(piece),
        }
    }

    /// The numbers without padding.
    pub fn numbers(&self) -> usize {
        match self {
            Pieces::Whole(n) | Pieces::Chunks(n) | Pieces::Blocks(_, n) => *n,
        }
    }
}

thread_local! {
    /// Buffers that outlive a call: a fresh one would cost as much in page faults as a transform in it.
    static SPARE: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with a buffer of `count` numbers, whatever they are.
pub(super) fn with_buffer<R>(count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut spare = SPARE.take();
    let mut buffer = spare.pop().unwrap_or_default();
    SPARE.set(spare);
    let result = work(aligned(&mut buffer, count));
    // A buffer for a whole array would stay for as long as the thread.
    if count <= BLOCK_MAX {
        let mut spare = SPARE.take();
        spare.push(buffer);
        SPARE.set(spare);
    }
    result
}

#[cfg(test)]
#[test]
fn only_buffers_for_blocks_outlive_a_call() {
    let len = |count| with_buffer(count, |buffer| buffer.len());
    assert_eq!((len(BLOCK_MAX), len(4 * BLOCK_MAX)), (BLOCK_MAX, 4 * BLOCK_MAX));
    let spare = SPARE.take();
    assert!(spare.iter().all(|buffer| buffer.capacity() < 2 * BLOCK_MAX), "a thread keeps what an array needed");
}

/// Appends `count` zero bytes and gives them to be written.
pub(super) fn room(out: &mut Vec<u8>, count: usize) -> &mut [u8] {
    let start = out.len();
    out.resize(start + count, 0);
    &mut out[start..]
}

/// Buffers of a tile, whatever they hold: to clear them for every tile would cost a quarter of the time.
pub(super) struct Scratch {
    pub words: [u32; TILE],
    pub codes: [u32; TILE],
    pub lanes: [f32; TILE],
}

/// Calls `tile(start, numbers, scratch, bytes)` for all numbers of `x`, a [`TILE`] or fewer at a time, within `Level::run` and on
/// several threads. `length` tells how many bytes so many numbers take; a tile's must be whole.
#[inline(always)]
pub(super) fn encode_tiles(
    x: &View,
    out: &mut [u8],
    length: impl Fn(usize) -> usize + Sync,
    tile: impl Fn(Level, usize, &[f32], &mut Scratch, &mut [u8]) + Copy + Sync,
) {
    let (level, n) = (Level::current(), x.len());
    let out = Shared::new(out);
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
        // SAFETY: chunks are disjoint and start at whole bytes, and `out` is borrowed until `for_each` returns.
        let out = unsafe { out.part(length(range.start)..length(range.end)) };
        level.run(
            #[inline(always)]
            || {
                let mut buffer = [0.0; TILE];
                let mut scratch = Scratch { words: [0; TILE], codes: [0; TILE], lanes: [0.0; TILE] };
                for (start, out) in range.clone().step_by(TILE).zip(out.chunks_mut(length(TILE).max(1))) {
                    let x = x.read(start..range.end.min(start + TILE), &mut buffer);
                    tile(level, start, x, &mut scratch, out);
                }
            },
        );
    });
}

/// Writes one number everywhere, or adds it with a weight.
pub(super) fn fill(out: &mut [f32], number: f32, weight: Option<f32>) {
    match weight {
        None => out.fill(number),
        Some(weight) => out.iter_mut().for_each(|sum| *sum += number * weight),
    }
}

/// Adds `weight` times the numbers to a sum.
#[inline(always)]
fn accumulate(sum: &mut [f32], numbers: &[f32], weight: f32) {
    for (sum, number) in sum.iter_mut().zip(numbers) {
        *sum += number * weight;
    }
}

/// Calls `tile(start, bytes, numbers)` for one piece of a payload, [`TILE`] numbers or fewer at a time, within `Level::run`.
/// The numbers are written to `out`, or with a weight added to it while they are in the cache.
#[inline(always)]
pub(super) fn decode_tiles(
    level: Level,
    piece: usize,
    payload: &[u8],
    length: impl Fn(usize) -> usize,
    (out, weight): (&mut [f32], Option<f32>),
    tile: impl Fn(usize, &[u8], &mut [f32]) + Copy,
) {
    let start = piece * CHUNK;
    let payload = &payload[length(start)..length(start + out.len())];
    level.run(
        #[inline(always)]
        || {
            let mut numbers = [0.0; TILE];
            for (i, (bytes, out)) in payload.chunks(length(TILE).max(1)).zip(out.chunks_mut(TILE)).enumerate() {
                match weight {
                    None => tile(start + i * TILE, bytes, out),
                    Some(weight) => {
                        let numbers = &mut numbers[..out.len()];
                        tile(start + i * TILE, bytes, numbers);
                        accumulate(out, numbers, weight);
                    }
                }
            }
        },
    );
}

/// The first error of several threads: that of the first piece.
#[derive(Default)]
pub(super) struct FirstError(Mutex<Option<(usize, Error)>>);

impl FirstError {
    /// Remembers what went wrong.
    pub fn note(&self, piece: usize, result: Result<()>) {
        if let (Err(error), Ok(mut first)) = (result, self.0.lock())
            && first.as_ref().is_none_or(|(place, _)| piece < *place)
        {
            *first = Some((piece, error));
        }
    }

    /// What went wrong first.
    pub fn into_result(self) -> Result<()> {
        match self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}
