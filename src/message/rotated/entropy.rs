//! EDEN with a uniform grid and an entropy coder in place of codes of fixed length: fewer bits for the same error, above all
//! below one bit (Vargaftik et al., ICML 2022, arXiv:2108.08842, section 5).
//!
//! The frequencies are counted, so coder and decoder need no distribution, and travel with the message.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::super::coder::{Coder, FirstError, Noise, Opened, Pieces, with_buffer};
use super::super::cursor::Cursor;
use super::eden::{Aim, check_bits, shortest_block};
use super::{Block, NAN, Owner, Rotated, Rotation, check_rounds, float_at, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::int::ROUNDER;
use crate::parallel::{self, Shared};
use crate::rans::{self, MANY, STATES_LEN, Table};
use crate::scale::{PIECE, sum_of_products};
use crate::view::View;

/// The largest integer of the grid.
const MOST: f32 = 32_767.0;

/// EDEN with entropy coding.
#[derive(Clone, Debug)]
pub(in super::super) struct EntropyCoded {
    bits: f64,
    aim: Aim,
    rounds: u32,
    step: f32,
}

impl EntropyCoded {
    pub fn new(bits: f64, aim: Aim, rounds: u32, step: f32) -> Result<Self> {
        check_bits(bits)?;
        check_rounds(rounds)?;
        // Steps of which 8 bits and 0.05 bits are well inside.
        if !(0.001..=64.0).contains(&step) {
            return Err(Error::argument("step", format!("a grid step of {step} is not between 0.001 and 64")));
        }
        Ok(EntropyCoded { bits, aim, rounds, step })
    }

    fn rotation(&self, n: usize, noise: Noise) -> Result<Rotation> {
        Rotation::new(n, shortest_block(self.bits), self.rounds, Owner::Sender, noise)
    }

    /// The integers of a rotated block, and its scale.
    #[inline(always)]
    fn round(&self, front: Rotated, block: &[f32], integers: &mut [i16]) -> f32 {
        let (standard, recip) = (front.standard(), 1.0 / self.step);
        let (mut product, mut squares) = (0.0, 0.0);
        let mut values = [0.0; PIECE];
        for (y, integers) in block.chunks(PIECE).zip(integers.chunks_mut(PIECE)) {
            let values = &mut values[..y.len()];
            for ((value, integer), y) in values.iter_mut().zip(integers).zip(y) {
                let shifted = ((y * standard) * recip).clamp(-MOST, MOST) + ROUNDER;
                *integer = shifted.to_bits() as i16;
                *value = (shifted - ROUNDER) * self.step;
            }
            product += sum_of_products(y, values);
            squares += sum_of_products(values, values);
        }
        self.aim.scale(front, product, squares)
    }
}

/// How often each integer occurs.
type Counts = BTreeMap<i16, u64>;

fn count(integers: &[i16]) -> Counts {
    let (low, high) = integers.iter().fold((i16::MAX, i16::MIN), |(low, high), j| (low.min(*j), high.max(*j)));
    let mut counts = vec![0_u64; (i32::from(high) - i32::from(low) + 1).max(0) as usize];
    for j in integers {
        counts[(i32::from(*j) - i32::from(low)) as usize] += 1;
    }
    (low..).zip(counts).filter(|(_, count)| *count > 0).collect()
}

impl Coder for EntropyCoded {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let (level, rotation) = (Level::current(), self.rotation(x.len(), noise)?);
        let blocks = rotation.blocks;
        let mut integers = vec![0_i16; blocks.total()];
        let mut scales = vec![0.0_f32; blocks.len()];
        let counts = Mutex::new(Counts::new());
        {
            let (integers, scales) = (Shared::new(&mut integers), Shared::new(&mut scales));
            parallel::for_each(blocks.len(), |index| {
                let range = blocks.range(index);
                // SAFETY: blocks are disjoint; both vectors are borrowed until `for_each` returns.
                let (part, place) = unsafe { (integers.part(range.clone()), scales.part(index..index + 1)) };
                with_buffer(range.len(), |block| {
                    place[0] = level.run(
                        #[inline(always)]
                        || match rotation.forward(level, x, index, block) {
                            Block::Zero => 0.0,
                            Block::NotFinite => NAN,
                            Block::Rotated(front) => self.round(front, block, part),
                        },
                    );
                });
                if is_coded(place[0])
                    && let Ok(mut counts) = counts.lock()
                {
                    for (integer, more) in count(part) {
                        *counts.entry(integer).or_default() += more;
                    }
                }
            });
        }
        let counts = counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (lowest, frequencies) = frequencies(&counts);
        let mut coded = vec![Vec::new(); blocks.len()];
        if !frequencies.is_empty() {
            let table = Table::new(&frequencies)?;
            let first_bad = FirstError::default();
            let shared = Shared::new(&mut coded);
            parallel::for_each(blocks.len(), |index| {
                if is_coded(scales[index]) {
                    // SAFETY: every slot is taken once; `coded` is borrowed until `for_each` returns.
                    let slot = unsafe { shared.part(index..index + 1) };
                    let symbols = integers[blocks.range(index)].iter();
                    let symbols: Vec<u16> = symbols.map(|j| (i32::from(*j) - i32::from(lowest)) as u16).collect();
                    first_bad.note(index, rans::encode(&symbols, &table, &mut slot[0]));
                }
            });
            first_bad.into_result()?;
        }
        out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        out.extend(coded.iter().flat_map(|bytes| (bytes.len() as u32).to_le_bytes()));
        out.extend(lowest.to_le_bytes());
        out.extend((frequencies.len() as u16).to_le_bytes());
        out.extend(frequencies.iter().flat_map(|frequency| frequency.to_le_bytes()));
        out.extend(coded.iter().flatten());
        Ok(!scales.iter().any(|scale| scale.is_nan()))
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n = shape.iter().product();
        let rotation = self.rotation(n, noise)?;
        let blocks = rotation.blocks;
        let scales = take_scales(payload, blocks.len())?;
        let lengths = payload.take(blocks.len().checked_mul(4).ok_or_else(|| Error::decode("too many blocks"))?)?;
        let lowest = i16::from_le_bytes(payload.array()?);
        let count = u16::from_le_bytes(payload.array()?);
        let frequencies: Vec<u16> =
            payload.take(2 * usize::from(count))?.as_chunks::<2>().0.iter().map(|f| u16::from_le_bytes(*f)).collect();
        if i32::from(lowest) + i32::from(count) > i32::from(i16::MAX) + 1 {
            return Err(Error::decode("the grid's integers leave 16 bits"));
        }
        let table = if count == 0 { None } else { Some(Table::new(&frequencies)?) };
        let table = if n < MANY { table } else { table.map(Table::with_slots) };
        let values = (0..i32::from(count)).map(|symbol| (i32::from(lowest) + symbol) as f32 * self.step).collect();
        let mut starts = Vec::with_capacity(blocks.len() + 1);
        let mut total = 0_usize;
        for (index, length) in lengths.as_chunks::<4>().0.iter().enumerate() {
            let length = u32::from_le_bytes(*length) as usize;
            let coded = is_coded(float_at(scales, index));
            if coded != (length > 0) || coded && (length < STATES_LEN || table.is_none()) {
                return Err(Error::decode(format!("block {index} has {length} bytes, which its scale contradicts")));
            }
            starts.push(total);
            total = total.checked_add(length).ok_or_else(|| Error::decode("more bytes than can be"))?;
        }
        starts.push(total);
        let bytes = payload.take(total)?;
        Ok(Box::new(Sent { rotation, scales, table, values, starts, bytes, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

/// Whether a block of this scale has codes.
fn is_coded(scale: f32) -> bool {
    scale != 0.0 && !scale.is_nan()
}

/// The lowest integer and the frequencies of it and those that follow; none if there was none. Integers too rare and too
/// many for the coder's total cannot be: their number is that of a few standard deviations by the step.
fn frequencies(counts: &Counts) -> (i16, Vec<u16>) {
    let (Some((&low, _)), Some((&high, _))) = (counts.first_key_value(), counts.last_key_value()) else {
        return (0, Vec::new());
    };
    let all: Vec<u64> = (low..=high).map(|j| counts.get(&j).copied().unwrap_or(0)).collect();
    (low, rans::normalize(&all).unwrap_or_default())
}

struct Sent<'a> {
    rotation: Rotation,
    scales: &'a [u8],
    table: Option<Table>,
    /// The value of each symbol.
    values: Vec<f32>,
    starts: Vec<usize>,
    bytes: &'a [u8],
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Blocks(self.rotation.blocks, self.n)
    }

    fn can_fail(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<()> {
        let first_bad = FirstError::default();
        parallel::for_each(self.rotation.blocks.len(), |piece| {
            with_buffer(self.rotation.blocks.range(piece).len(), |out| {
                first_bad.note(piece, self.decode(Level::current(), piece, out));
            });
        });
        first_bad.into_result()
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let scale = float_at(self.scales, piece);
        let Some(table) = self.table.as_ref().filter(|_| is_coded(scale)) else {
            out.fill(if scale == 0.0 { 0.0 } else { NAN });
            return Ok(());
        };
        let mut symbols = vec![0_u16; out.len()];
        rans::decode(&self.bytes[self.starts[piece]..self.starts[piece + 1]], table, &mut symbols)?;
        level.run(
            #[inline(always)]
            || {
                for (value, symbol) in out.iter_mut().zip(&symbols) {
                    *value = self.values.get(usize::from(*symbol)).copied().unwrap_or(NAN);
                }
                self.rotation.back(level, piece, out, scale);
            },
        );
        Ok(())
    }
}
