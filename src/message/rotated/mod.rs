//! The codecs that rotate first: each block of a vector becomes nearly independent normal numbers, whatever it was.
//!
//! A block is scaled by a power of two (so that nothing overflows or is lost, whatever the units), rotated by randomized
//! Hadamard transforms without their normalisation, and the one factor that makes its numbers `N(0, 1)` is applied last.

pub(super) mod eden;
pub(super) mod entropy;
pub(super) mod plus;
pub(super) mod quicfl;
pub(super) mod summable;

use std::ops::Range;

use super::coder::{Noise, with_buffer};
use super::cursor::{Cursor, floats};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::{BLOCK_MAX, Blocks, ROUNDS_MAX, Signs, root, rotate, rotate_back};
use crate::parallel::{self, Shared};
use crate::scale::{PIECE, sum_of_products};
use crate::stream::Purpose;
use crate::view::View;

/// The quiet NaN that every undefined number is sent and decoded as.
pub(super) const NAN: f32 = f32::from_bits(0x7fc0_0000);

/// `2^e` for a normal exponent.
#[inline(always)]
pub(super) fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((1023 + e) as u64) << 52)
}

/// The exponent that brings a block near 1, from the bits of its largest magnitude; kept where both `2^e` and `2^-e` are
/// normal float32.
#[inline(always)]
pub(super) fn exponent(magnitude: u32) -> i32 {
    ((magnitude >> 23) as i32 - 127).clamp(-126, 126)
}

/// The bits of the largest magnitude: as integers they order as the numbers do, NaN last.
#[inline(always)]
fn magnitude(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

/// Multiplies every number.
#[inline(always)]
fn times(numbers: &mut [f32], factor: f32) {
    for x in numbers {
        *x *= factor;
    }
}

/// A float64 as float32, at most the largest finite one.
#[inline(always)]
pub(super) fn finite(value: f64) -> f32 {
    value.min(f64::from(f32::MAX)) as f32
}

/// A float64 as float32; NaN if it is more than float32 holds, as if it had not been finite.
#[inline(always)]
pub(super) fn defined(value: f64) -> f32 {
    if value <= f64::from(f32::MAX) { value as f32 } else { NAN }
}

/// Checks a number of rounds.
pub(super) fn check_rounds(rounds: u32) -> Result<()> {
    if (1..=ROUNDS_MAX).contains(&rounds) {
        return Ok(());
    }
    Err(Error::argument("rounds", format!("{rounds} is out of range; give 1 to {ROUNDS_MAX} (2 unless you know why)")))
}

/// Whose rotation it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// Each sender has one of its own.
    Sender,
    /// All senders share one, so that a receiver sums before it rotates back.
    Everybody,
}

/// A rotation of vectors of one length.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub blocks: Blocks,
    n: usize,
    long: Turns,
    short: Turns,
}

/// The rounds of a rotation and their signs.
#[derive(Clone, Copy, Debug)]
struct Turns {
    rounds: u32,
    signs: Signs,
}

/// Blocks shorter than this take [`SHORT_ROUNDS`] at least, where more than one round was asked for: two leave them on a
/// lattice if few of their numbers matter, and ties (for which no code is right) do not average out. Measured for (1, .01, 0,
/// ...): a squared bias of 4e-3 at 128 numbers after two rounds, 7e-5 after three, none seen after four; 7e-6 at 4096 after two.
const SHORT: usize = 4096;

/// See [`SHORT`].
const SHORT_ROUNDS: u32 = 4;

/// A block that has been looked at, and rotated if that makes sense.
pub(super) enum Block {
    /// All zeros.
    Zero,
    /// Some number is NaN or infinite.
    NotFinite,
    /// Rotated.
    Rotated(Rotated),
}

/// What is known of a rotated block.
#[derive(Clone, Copy)]
pub(super) struct Rotated {
    /// The power of two that the block was divided by.
    pub unit: f64,
    /// The squared norm after that division.
    pub squares: f64,
    /// How much too long the transforms without normalisation made it.
    pub root: f64,
    /// The block's length.
    pub length: f64,
}

impl Rotated {
    /// The factor that makes a rotated number `N(0, 1)`.
    #[inline(always)]
    pub fn standard(self) -> f32 {
        ((self.length / self.squares).sqrt() / self.root) as f32
    }
}

impl Rotation {
    pub fn new(n: usize, least: usize, rounds: u32, owner: Owner, noise: Noise) -> Result<Self> {
        let key = noise.key()?.purpose(Purpose::Rotation);
        let key = match owner {
            Owner::Sender => key.fold(noise.sender),
            Owner::Everybody => key,
        };
        let turns = |rounds| Turns { rounds, signs: Signs::new(key, rounds) };
        let short = if rounds > 1 { rounds.max(SHORT_ROUNDS) } else { rounds };
        Ok(Rotation { blocks: Blocks::new(n, least), n, long: turns(rounds), short: turns(short) })
    }

    /// How a block of this length is rotated.
    #[inline(always)]
    fn turns(&self, length: usize) -> &Turns {
        if length < SHORT { &self.short } else { &self.long }
    }

    /// How much too long the transforms without normalisation make a block of this length.
    #[inline(always)]
    fn root(&self, length: usize) -> f64 {
        root(length.ilog2(), self.turns(length).rounds)
    }

    /// The places of block `index` that hold numbers.
    pub fn numbers(&self, index: usize) -> Range<usize> {
        let range = self.blocks.range(index);
        range.start..range.end.min(self.n)
    }

    /// `1 / root` for a block of this length.
    #[inline(always)]
    fn inverse_root(&self, length: usize) -> f32 {
        (1.0 / self.root(length)) as f32
    }

    /// Reads block `index` of `x` and rotates it. Called within `Level::run`.
    #[inline(always)]
    pub fn forward(&self, level: Level, x: &View, index: usize, block: &mut [f32]) -> Block {
        let state = self.read(x, index, block);
        if matches!(state, Block::Rotated(_)) {
            rotate(level, &self.turns(block.len()).signs, self.blocks.range(index).start as u64, block);
        }
        state
    }

    /// Reads block `index` of `x` and measures it. Called within `Level::run`.
    #[inline(always)]
    pub fn read(&self, x: &View, index: usize, block: &mut [f32]) -> Block {
        let numbers = self.numbers(index);
        let (head, padding) = block.split_at_mut(numbers.len());
        x.copy(numbers.clone(), head);
        padding.fill(0.0);
        let magnitude = magnitude(head);
        if magnitude == 0 {
            return Block::Zero;
        }
        if magnitude >= f32::INFINITY.to_bits() {
            return Block::NotFinite;
        }
        let e = exponent(magnitude);
        let factor = power_of_two(-e) as f32;
        let mut squares = 0.0;
        for piece in block.chunks_mut(PIECE) {
            times(piece, factor);
            squares += sum_of_products(piece, piece);
        }
        let (length, root) = (block.len() as f64, self.root(block.len()));
        Block::Rotated(Rotated { unit: power_of_two(e), squares, root, length })
    }

    /// Rotates block `index` back and scales it. Called within `Level::run`.
    #[inline(always)]
    pub fn back(&self, level: Level, index: usize, block: &mut [f32], scale: f32) {
        rotate_back(level, &self.turns(block.len()).signs, self.blocks.range(index).start as u64, block);
        let inverse = self.inverse_root(block.len());
        for x in block {
            *x = (*x * inverse) * scale;
        }
    }

    /// Rotates block `index` back and adds it, scaled and weighted, to a sum that may leave the padding out: what
    /// [`Rotation::back`] and adding would do, but reading the block once. Called within `Level::run`.
    #[inline(always)]
    pub fn back_to_sum(
        &self,
        level: Level,
        index: usize,
        block: &mut [f32],
        (scale, weight): (f32, f32),
        sum: &mut [f32],
    ) {
        rotate_back(level, &self.turns(block.len()).signs, self.blocks.range(index).start as u64, block);
        let inverse = self.inverse_root(block.len());
        for (sum, x) in sum.iter_mut().zip(block) {
            *sum += ((*x * inverse) * scale) * weight;
        }
    }

    /// Rotates block `index`, whose numbers have any units, back.
    pub fn levelled_back(&self, level: Level, index: usize, block: &mut [f32]) {
        level.run(
            #[inline(always)]
            || {
                let magnitude = magnitude(block);
                if magnitude == 0 {
                    return block.fill(0.0);
                }
                if magnitude >= f32::INFINITY.to_bits() {
                    return block.fill(NAN);
                }
                let e = exponent(magnitude);
                let factor = power_of_two(-e) as f32;
                times(block, factor);
                self.back(level, index, block, power_of_two(e) as f32);
            },
        );
    }
}

/// Sizes of the parts of a payload of which every block has a fixed number of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<F> {
    pub blocks: Blocks,
    /// The bytes that a block of so many numbers takes.
    pub length: F,
}

impl<F: Fn(usize) -> usize> Layout<F> {
    /// Where block `index` begins.
    pub fn start(&self, index: usize) -> usize {
        let full = self.blocks.full();
        let short = self.blocks.short().take(index.saturating_sub(full)).map(&self.length).sum::<usize>();
        index.min(full) * (self.length)(BLOCK_MAX) + short
    }

    /// The bytes of all blocks.
    pub fn total(&self) -> Result<usize> {
        let full = self.blocks.full().checked_mul((self.length)(BLOCK_MAX));
        let short: usize = self.blocks.short().map(&self.length).sum();
        full.and_then(|full| full.checked_add(short)).ok_or_else(|| Error::decode("more numbers than can be"))
    }

    /// The bytes of block `index`.
    pub fn part<'a>(&self, bytes: &'a [u8], index: usize) -> &'a [u8] {
        let start = self.start(index);
        &bytes[start..start + (self.length)(self.blocks.range(index).len())]
    }
}

/// Calls `work(index, block buffer, scales, codes)` for every block, on several threads: it writes the `each` bytes of scales
/// and the codes of one block, and tells whether the block was finite. Both parts are appended to `out`.
pub(super) fn encode_blocks(
    rotation: &Rotation,
    each: usize,
    length: impl Fn(usize) -> usize + Sync,
    out: &mut Vec<u8>,
    work: impl Fn(usize, &mut [f32], &mut [u8], &mut [u8]) -> bool + Sync,
) -> Result<bool> {
    let blocks = rotation.blocks;
    let layout = Layout { blocks, length };
    let bytes = super::coder::room(out, each * blocks.len() + layout.total()?);
    let (scales, codes) = bytes.split_at_mut(each * blocks.len());
    let (scales, codes) = (Shared::new(scales), Shared::new(codes));
    let finite = std::sync::atomic::AtomicBool::new(true);
    parallel::for_each(blocks.len(), |index| {
        let (start, count) = (layout.start(index), blocks.range(index).len());
        // SAFETY: the parts of different blocks are disjoint, and the bytes are borrowed until `for_each` returns.
        let (scales, codes) = unsafe {
            (scales.part(index * each..(index + 1) * each), codes.part(start..start + (layout.length)(count)))
        };
        if !with_buffer(count, |block| work(index, block, scales, codes)) {
            finite.store(false, std::sync::atomic::Ordering::Relaxed);
        }
    });
    Ok(finite.into_inner())
}

/// Takes `count` scales; each is NaN or finite and not negative.
pub(super) fn take_scales<'a>(payload: &mut Cursor<'a>, count: usize) -> Result<&'a [u8]> {
    let bytes = payload.take(count.checked_mul(4).ok_or_else(|| Error::decode("more scales than can be"))?)?;
    match floats(bytes).find(|scale| !scale.is_nan() && !(0.0..=f32::MAX).contains(scale)) {
        None => Ok(bytes),
        Some(scale) => Err(Error::decode(format!("a scale is {scale}, but must be finite and not negative"))),
    }
}

/// The float32 at place `index`.
pub(super) fn float_at(bytes: &[u8], index: usize) -> f32 {
    bytes.as_chunks::<4>().0.get(index).map_or(NAN, |bytes| f32::from_le_bytes(*bytes))
}
