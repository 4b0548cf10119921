//! QUIC-FL (Ben Basat et al., ICML 2024, arXiv:2205.13341): one rotation for all senders, so that a receiver sums before it
//! rotates back, and an unbiased code of few bits for every rotated number, with randomness shared and private.
//!
//! The table and its sender are ours (`tables/quicfl.py`): a table is `2^l` rows of `2^b` values, of which shared bits
//! pick one. All steps between neighbours of a row, sorted by their midpoints, are crossed one after the other as the
//! number grows, each within an interval in which a coin decides: of all senders that keep the mean, that one has the
//! least error. The few numbers beyond the table (2^-9 of them) travel as they are.

use super::super::coder::{Coder, Noise, Opened, Pieces, with_buffer};
use super::super::cursor::{Cursor, floats};
use super::super::tables::{self, QUICFL_T};
use super::{Block, Layout, NAN, Owner, Rotated, Rotation, check_rounds, finite, float_at, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::BLOCK_MIN;
use crate::pack::{pack_tile, packed_len, unpack_tile};
use crate::parallel::{self, Shared};
use crate::scale::PIECE;
use crate::stream::{Purpose, Stream, fraction};
use crate::view::View;

/// QUIC-FL.
#[derive(Clone, Debug)]
pub(in super::super) struct QuicFl {
    bits: u32,
    rounds: u32,
    table: tables::QuicFl,
}

/// Places and numbers that travel as they are.
type Outliers = (Vec<u16>, Vec<f32>);

impl QuicFl {
    pub fn new(bits: u32, rounds: u32) -> Result<Self> {
        check_rounds(rounds)?;
        if !(1..=4).contains(&bits) {
            return Err(Error::argument("bits", format!("{bits} is out of range; give 1, 2, 3 or 4")));
        }
        Ok(QuicFl { bits, rounds, table: tables::quicfl(bits) })
    }

    fn rotation(&self, n: usize, noise: Noise) -> Result<Rotation> {
        Rotation::new(n, BLOCK_MIN, self.rounds, Owner::Everybody, noise)
    }

    /// The row of the table that a word picks.
    #[inline(always)]
    fn row(&self, word: u32) -> usize {
        (word >> (32 - self.table.shared_bits)) as usize
    }

    /// The codes of a rotated block, and what is beyond the table.
    #[inline(always)]
    fn code(
        &self,
        level: Level,
        front: Rotated,
        block: &mut [f32],
        (shared, coin, start): (Stream, Stream, u64),
        codes: &mut [u8],
    ) -> Outliers {
        let standard = front.standard();
        let (mut rows, mut coins, mut small) = ([0; PIECE], [0; PIECE], [0_u32; PIECE]);
        let gaps = (1_usize << self.bits) - 1;
        let (knots, widths) = (self.table.knots, self.table.widths);
        let mut outliers = Outliers::default();
        for ((i, piece), codes) in
            block.chunks_mut(PIECE).enumerate().zip(codes.chunks_mut(packed_len(PIECE, self.bits)))
        {
            let place = i * PIECE;
            let (rows, coins, small) = (&mut rows[..piece.len()], &mut coins[..piece.len()], &mut small[..piece.len()]);
            shared.fill(start + place as u64, rows);
            coin.fill(start + place as u64, coins);
            let mut beyond = 0_u32;
            for y in piece.iter_mut() {
                *y *= standard;
                beyond |= u32::from(y.abs() > QUICFL_T);
            }
            for (((code, u), word), coin) in small.iter_mut().zip(&*piece).zip(&*rows).zip(&*coins) {
                let (row, coin) = (self.row(*word) * gaps, fraction(*coin));
                let steps = knots[row..row + gaps].iter().zip(&widths[row..row + gaps]);
                *code = steps.map(|(knot, width)| u32::from(*u >= knot + coin * width)).sum();
            }
            if beyond != 0 {
                for (offset, (code, u)) in small.iter_mut().zip(&*piece).enumerate() {
                    if u.abs() > QUICFL_T {
                        *code = 0;
                        outliers.0.push((place + offset) as u16);
                        outliers.1.push(*u);
                    }
                }
            }
            pack_tile(level, small, self.bits, codes);
        }
        outliers
    }
}

impl Coder for QuicFl {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let (level, rotation) = (Level::current(), self.rotation(x.len(), noise)?);
        let (shared, coin) = (noise.stream(Purpose::Dither)?, noise.stream(Purpose::Coin)?);
        let blocks = rotation.blocks;
        let layout = Layout { blocks, length: |length| packed_len(length, self.bits) };
        let mut codes = vec![0_u8; layout.total()?];
        let mut heads = vec![(0.0_f32, Outliers::default()); blocks.len()];
        {
            let (codes, heads) = (Shared::new(&mut codes), Shared::new(&mut heads));
            parallel::for_each(blocks.len(), |index| {
                let (range, place) = (blocks.range(index), layout.start(index));
                // SAFETY: the parts of different blocks are disjoint; both vectors are borrowed until `for_each` returns.
                let (codes, head) =
                    unsafe { (codes.part(place..place + (layout.length)(range.len())), heads.part(index..index + 1)) };
                head[0] = with_buffer(range.len(), |block| {
                    level.run(
                        #[inline(always)]
                        || match rotation.forward(level, x, index, block) {
                            Block::Zero => (0.0, Outliers::default()),
                            Block::NotFinite => (NAN, Outliers::default()),
                            Block::Rotated(front) => {
                                let scale = finite(front.unit * (front.squares / front.length).sqrt());
                                let words = (shared, coin, range.start as u64);
                                // A scale that underflows makes a block of zeros.
                                let outliers = (scale > 0.0).then(|| self.code(level, front, block, words, codes));
                                (scale, outliers.unwrap_or_default())
                            }
                        },
                    )
                });
            });
        }
        out.extend(heads.iter().flat_map(|(scale, _)| scale.to_le_bytes()));
        out.extend(heads.iter().flat_map(|(_, outliers)| (outliers.0.len() as u32).to_le_bytes()));
        out.extend(codes);
        for (_, (places, values)) in &heads {
            out.extend(places.iter().flat_map(|place| place.to_le_bytes()));
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(!heads.iter().any(|(scale, _)| scale.is_nan()))
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n = shape.iter().product();
        let (rotation, words) = (self.rotation(n, noise)?, noise.stream(Purpose::Dither)?);
        let blocks = rotation.blocks;
        let scales = take_scales(payload, blocks.len())?;
        let counts = payload.take(blocks.len().checked_mul(4).ok_or_else(|| Error::decode("too many blocks"))?)?;
        let layout = Layout { blocks, length: |length| packed_len(length, self.bits) };
        let codes = payload.take(layout.total()?)?;
        let mut outliers = Vec::with_capacity(blocks.len());
        for (index, count) in counts.as_chunks::<4>().0.iter().enumerate() {
            let (count, length) = (u32::from_le_bytes(*count) as usize, blocks.range(index).len());
            let scale = float_at(scales, index);
            if count > length || count > 0 && (scale == 0.0 || scale.is_nan()) {
                return Err(Error::decode(format!("block {index} cannot have {count} numbers beyond the table")));
            }
            let (places, values) = (payload.take(2 * count)?, payload.take(4 * count)?);
            let numbers = places.as_chunks::<2>().0.iter().map(|place| usize::from(u16::from_le_bytes(*place)));
            if !numbers.clone().is_sorted_by(|a, b| a < b) || numbers.clone().any(|place| place >= length) {
                return Err(Error::decode(format!("the numbers beyond the table of block {index} are out of place")));
            }
            if floats(values).any(|value| !(value.abs() > QUICFL_T && value.is_finite())) {
                return Err(Error::decode(format!("a number beyond the table of block {index} is not")));
            }
            outliers.push((places, values));
        }
        Ok(Box::new(Sent { codec: self, rotation, words, scales, codes, outliers, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

struct Sent<'a> {
    codec: &'a QuicFl,
    rotation: Rotation,
    words: Stream,
    scales: &'a [u8],
    codes: &'a [u8],
    /// Of each block, places and values.
    outliers: Vec<(&'a [u8], &'a [u8])>,
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Blocks(self.rotation.blocks, self.n)
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let scale = float_at(self.scales, piece);
        if scale == 0.0 || scale.is_nan() {
            out.fill(if scale == 0.0 { 0.0 } else { NAN });
            return Ok(());
        }
        let QuicFl { bits, ref table, .. } = *self.codec;
        let codes =
            Layout { blocks: self.rotation.blocks, length: |length| packed_len(length, bits) }.part(self.codes, piece);
        let start = self.rotation.blocks.range(piece).start;
        level.run(
            #[inline(always)]
            || {
                let (mut rows, mut small) = ([0; PIECE], [0_u8; PIECE]);
                for ((i, out), bytes) in out.chunks_mut(PIECE).enumerate().zip(codes.chunks(packed_len(PIECE, bits))) {
                    let (rows, small) = (&mut rows[..out.len()], &mut small[..out.len()]);
                    self.words.fill((start + i * PIECE) as u64, rows);
                    unpack_tile(level, bytes, bits, small);
                    for ((value, code), word) in out.iter_mut().zip(&*small).zip(&*rows) {
                        *value = table.values[self.codec.row(*word) << bits | usize::from(*code)] * scale;
                    }
                }
                let (places, values) = self.outliers[piece];
                for (place, value) in places.as_chunks::<2>().0.iter().zip(floats(values)) {
                    out[usize::from(u16::from_le_bytes(*place))] = value * scale;
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
