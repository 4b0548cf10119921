//! Small integers that add: one rotation and one grid for all senders, and subtractive dither of each sender's own.
//!
//! The idea of summing compressed numbers as they are is THC's (Li et al., NSDI 2024, arXiv:2302.08545). The grid here is
//! uniform on `[-T, T]` times the norm that the senders agree on, with T of QUIC-FL (`p = 2^-9`, arXiv:2205.13341):
//! clipping there keeps `1 - p` of a vector of normal numbers, a squared bias of `2^-18`.

use super::super::coder::{Coder, FirstError, Noise, Opened, Pieces, with_buffer};
use super::super::cursor::Cursor;
use super::super::tables::QUICFL_T;
use super::{Block, Layout, NAN, Owner, Rotation, check_rounds, defined, encode_blocks, float_at, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::int::ROUNDER;
use crate::fwht::{BLOCK_MIN, Blocks};
use crate::pack::{pack_tile, packed_len, unpack_tile};
use crate::parallel::{self, Shared};
use crate::scale::PIECE;
use crate::stream::{Key, Purpose, Stream, centred};
use crate::view::View;

/// T before it is rounded to float32.
const LIMIT: f64 = 3.097_269_1;

/// The integer nearest to `t`, from 0 to `most`.
#[inline(always)]
fn nearest(t: f32, most: f32) -> f32 {
    ((t + ROUNDER) - ROUNDER).max(0.0).min(most)
}

/// The integer nearest to a float32 from 0 to 2^21.
#[inline(always)]
pub(in super::super) fn integer(value: f32) -> u32 {
    (value + ROUNDER).to_bits() & 0x003f_ffff
}

/// Integers on one grid.
#[derive(Clone, Debug)]
pub struct Summable {
    bits: u32,
    rounds: u32,
    most: f32,
    step: f32,
}

impl Summable {
    /// Integers of `bits` bits, 1 to 8.
    pub fn new(bits: u32, rounds: u32) -> Result<Self> {
        check_rounds(rounds)?;
        if !(1..=8).contains(&bits) {
            return Err(Error::argument("bits", format!("{bits} is out of range; give 1 to 8")));
        }
        let most = (1_u32 << bits) - 1;
        let step = (2.0 * LIMIT / f64::from(most)) as f32;
        Ok(Summable { bits, rounds, most: most as f32, step })
    }

    fn rotation(&self, n: usize, noise: Noise) -> Result<Rotation> {
        Rotation::new(n, BLOCK_MIN, self.rounds, Owner::Everybody, noise)
    }

    /// Writes the integer of every number of a rotated block to `block`, as floats.
    #[inline(always)]
    fn round(&self, standard: f32, words: Stream, start: u64, block: &mut [f32]) {
        let (recip, mut drawn) = (1.0 / self.step, [0; PIECE]);
        for (i, piece) in block.chunks_mut(PIECE).enumerate() {
            let drawn = &mut drawn[..piece.len()];
            words.fill(start + (i * PIECE) as u64, drawn);
            for (y, word) in piece.iter_mut().zip(drawn) {
                let t = (*y * standard + QUICFL_T) * recip;
                // Beyond the grid by any amount is beyond by one: the sum below must not leave the integers' range.
                *y = nearest(t.max(-1.0).min(self.most + 1.0) + centred(*word), self.most);
            }
        }
    }

    /// The norm of every block; what is not finite has a NaN.
    pub fn norms(&self, x: &View, out: &mut [f32]) -> Result<()> {
        // Nothing is rotated, so any key will do.
        let (level, noise) = (Level::current(), Noise { key: Some(Key { k0: 0, k1: 0 }), sender: 0 });
        let rotation = self.rotation(x.len(), noise)?;
        let out = Shared::new(out);
        parallel::for_each(rotation.blocks.len(), |index| {
            with_buffer(rotation.blocks.range(index).len(), |block| {
                let norm = level.run(
                    #[inline(always)]
                    || norm(&rotation.read(x, index, block)),
                );
                // SAFETY: every block is put once, and `out` is borrowed until `for_each` returns.
                unsafe { out.put(index, norm) };
            });
        });
        Ok(())
    }

    /// Writes the integer of every number, padding included, on the grids of the given norms (one for each block, none less
    /// than the vector's own, or it is clipped).
    pub fn integers(&self, x: &View, norms: &[f32], noise: Noise, out: &mut [u8]) -> Result<()> {
        check_norms(norms)?;
        check_room("out", out.len(), Blocks::new(x.len(), BLOCK_MIN).total())?;
        let (level, rotation, words) =
            (Level::current(), self.rotation(x.len(), noise)?, noise.stream(Purpose::Dither)?);
        let first_bad = FirstError::default();
        let out = Shared::new(out);
        parallel::for_each(rotation.blocks.len(), |index| {
            let range = rotation.blocks.range(index);
            // SAFETY: blocks are disjoint, and `out` is borrowed until `for_each` returns.
            let out = unsafe { out.part(range.clone()) };
            let given = norms.get(index).copied().unwrap_or(NAN);
            with_buffer(range.len(), |block| {
                let own = level.run(
                    #[inline(always)]
                    || {
                        let state = rotation.forward(level, x, index, block);
                        let factor = match &state {
                            Block::Rotated(front) => front.length.sqrt() / front.root * (front.unit / f64::from(given)),
                            // A vector of zeros has a place on any grid.
                            Block::Zero | Block::NotFinite => {
                                block.fill(0.0);
                                0.0
                            }
                        };
                        self.round(factor as f32, words, range.start as u64, block);
                        out.iter_mut().zip(&*block).for_each(|(code, value)| *code = integer(*value) as u8);
                        norm(&state)
                    },
                );
                let error = if own.is_nan() {
                    Error::argument(
                        "x",
                        "holds a number (or has a norm) that is not finite, for which there is no integer",
                    )
                } else if own > given {
                    let reason = format!(
                        "block {index} has norm {given}, less than the {own} of this vector, which would be clipped; \
                         combine the norms of all senders by numpy.maximum"
                    );
                    Error::argument("norms", reason)
                } else {
                    return;
                };
                first_bad.note(index, Err(error));
            });
        });
        first_bad.into_result()
    }

    /// The sum of the vectors whose integers add up to `total`; `senders` in the order of the sum of their dithers.
    pub fn decode_sum(&self, total: &[i64], norms: &[f32], key: Key, senders: &[u64], out: &mut [f32]) -> Result<()> {
        check_norms(norms)?;
        check_room("total", total.len(), Blocks::new(out.len(), BLOCK_MIN).total())?;
        let level = Level::current();
        let shared = Noise { key: Some(key), sender: 0 };
        let rotation = self.rotation(out.len(), shared)?;
        let streams = senders
            .iter()
            .map(|&sender| Noise { sender, ..shared }.stream(Purpose::Dither))
            .collect::<Result<Vec<_>>>()?;
        let out = Shared::new(out);
        parallel::for_each(rotation.blocks.len(), |index| {
            let range = rotation.blocks.range(index);
            let scale = scale_of(norms.get(index).copied().unwrap_or(NAN), range.len());
            with_buffer(range.len(), |block| {
                level.run(
                    #[inline(always)]
                    || {
                        let mut drawn = [0; PIECE];
                        let middle = QUICFL_T * senders.len() as f32;
                        for (i, piece) in block.chunks_mut(PIECE).enumerate() {
                            let start = range.start + i * PIECE;
                            piece.fill(0.0);
                            for stream in &streams {
                                stream.fill(start as u64, &mut drawn[..piece.len()]);
                                piece.iter_mut().zip(&drawn).for_each(|(sum, word)| *sum += centred(*word));
                            }
                            for (value, sum) in piece.iter_mut().zip(&total[start..]) {
                                *value = ((*sum as f32 - *value) * self.step - middle) * scale;
                            }
                        }
                    },
                );
                rotation.levelled_back(level, index, block);
                let numbers = rotation.numbers(index);
                // SAFETY: blocks are disjoint, and `out` is borrowed until `for_each` returns.
                unsafe { out.part(numbers.clone()) }.copy_from_slice(&block[..numbers.len()]);
            });
        });
        Ok(())
    }
}

#[inline(always)]
fn norm(block: &Block) -> f32 {
    match block {
        Block::Zero => 0.0,
        Block::NotFinite => NAN,
        Block::Rotated(front) => defined(front.unit * front.squares.sqrt()),
    }
}

fn check_room(argument: &'static str, have: usize, want: usize) -> Result<()> {
    if have == want {
        return Ok(());
    }
    Err(Error::argument(argument, format!("has {have} numbers, but {want} are needed")))
}

fn check_norms(norms: &[f32]) -> Result<()> {
    match norms.iter().enumerate().find(|(_, norm)| !(0.0..=f32::MAX).contains(*norm)) {
        None => Ok(()),
        Some((index, norm)) => {
            let reason = format!("block {index} has norm {norm}; norms are finite and not negative");
            Err(Error::argument("norms", reason))
        }
    }
}

/// What a number of standard deviation 1 is worth in a block of this norm.
#[inline(always)]
fn scale_of(norm: f32, length: usize) -> f32 {
    (f64::from(norm) / (length as f64).sqrt()) as f32
}

impl Coder for Summable {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let (level, rotation, words) =
            (Level::current(), self.rotation(x.len(), noise)?, noise.stream(Purpose::Dither)?);
        encode_blocks(
            &rotation,
            4,
            |length| packed_len(length, self.bits),
            out,
            |index, block, scale, codes| {
                let value = level.run(
                    #[inline(always)]
                    || {
                        let state = rotation.forward(level, x, index, block);
                        let norm = norm(&state);
                        if let Block::Rotated(front) = state
                            && !norm.is_nan()
                        {
                            let factor = front.length.sqrt() / front.root * (front.unit / f64::from(norm));
                            self.round(factor as f32, words, rotation.blocks.range(index).start as u64, block);
                            let mut integers = [0_u32; PIECE];
                            for (piece, codes) in
                                block.chunks(PIECE).zip(codes.chunks_mut(packed_len(PIECE, self.bits)))
                            {
                                let integers = &mut integers[..piece.len()];
                                integers.iter_mut().zip(piece).for_each(|(code, value)| *code = integer(*value));
                                pack_tile(level, integers, self.bits, codes);
                            }
                        }
                        norm
                    },
                );
                scale.copy_from_slice(&value.to_le_bytes());
                !value.is_nan()
            },
        )
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n = shape.iter().product();
        let (rotation, words) = (self.rotation(n, noise)?, noise.stream(Purpose::Dither)?);
        let norms = take_scales(payload, rotation.blocks.len())?;
        let layout = Layout { blocks: rotation.blocks, length: |length| packed_len(length, self.bits) };
        let codes = payload.take(layout.total()?)?;
        Ok(Box::new(Sent { codec: self, rotation, words, norms, codes, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

struct Sent<'a> {
    codec: &'a Summable,
    rotation: Rotation,
    words: Stream,
    norms: &'a [u8],
    codes: &'a [u8],
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Blocks(self.rotation.blocks, self.n)
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let norm = float_at(self.norms, piece);
        if norm == 0.0 || norm.is_nan() {
            out.fill(if norm == 0.0 { 0.0 } else { NAN });
            return Ok(());
        }
        let bits = self.codec.bits;
        let codes =
            Layout { blocks: self.rotation.blocks, length: |length| packed_len(length, bits) }.part(self.codes, piece);
        let (scale, start) = (scale_of(norm, out.len()), self.rotation.blocks.range(piece).start);
        level.run(
            #[inline(always)]
            || {
                let (mut drawn, mut small) = ([0; PIECE], [0_u8; PIECE]);
                for ((i, out), bytes) in out.chunks_mut(PIECE).enumerate().zip(codes.chunks(packed_len(PIECE, bits))) {
                    let (drawn, small) = (&mut drawn[..out.len()], &mut small[..out.len()]);
                    self.words.fill((start + i * PIECE) as u64, drawn);
                    unpack_tile(level, bytes, bits, small);
                    for ((value, code), word) in out.iter_mut().zip(&*small).zip(&*drawn) {
                        let code = i32::from(*code) as f32;
                        *value = ((code - centred(*word)) * self.codec.step - QUICFL_T) * scale;
                    }
                }
            },
        );
        Ok(())
    }

    fn summed(&self) -> usize {
        self.rotation.blocks.total()
    }

    fn finish(&self, level: Level, piece: usize, out: &mut [f32]) {
        self.rotation.levelled_back(level, piece, out);
    }
}
