//! EDEN (Vargaftik et al., ICML 2022, arXiv:2108.08842) and, at one bit, DRIVE (NeurIPS 2021, arXiv:2105.08339).
//!
//! Every rotated number is sent as the nearest of `2^b` values fitted to `N(0, 1)`, and every block with the scale that
//! makes the whole unbiased, or least wrong, or as long as it was. For a fractional number of bits some numbers of a block
//! get one bit more than the others; below one bit the others get none. Which numbers is of no matter to the mean (given
//! all but the last round of signs, every rotated number has the same expectation once it is rotated back), but it is to
//! where errors fall: rows of a Hadamard matrix that are a subgroup, such as the first ones, would double them near the
//! numbers they come from. So the rows are taken in the order of multiples of the golden ratio.

use super::super::coder::{Coder, Noise, Opened, Pieces, fill, with_buffer};
use super::super::cursor::Cursor;
use super::super::tables::{Codebook, codebook};
use super::{Block, Layout, NAN, Owner, Rotated, Rotation, check_rounds, encode_blocks, finite, float_at, take_scales};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::{BLOCK_MAX, BLOCK_MIN};
use crate::pack::{check_packed, pack_tile, packed_len, unpack_tile};
use crate::scale::{PIECE, sum_of_products};
use crate::simd::mask;
use crate::view::View;

/// What the scale of a block is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Aim {
    /// The mean over rotations is the vector.
    Unbiased,
    /// The squared error is least.
    MinError,
    /// The norm is kept.
    Norm,
}

impl Aim {
    /// From the code on the wire.
    pub fn new(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Aim::Unbiased),
            1 => Ok(Aim::MinError),
            2 => Ok(Aim::Norm),
            _ => Err(Error::argument("scale", format!("code {code} is none of unbiased, min_error, norm"))),
        }
    }

    /// The scale of a block: `product` is `<y, q>` of its rotated numbers (too long by the root) and their values, `squares`
    /// is `|q|^2`. Zero if nothing was sent.
    #[inline(always)]
    pub fn scale(self, block: Rotated, product: f64, squares: f64) -> f32 {
        if product == 0.0 {
            return 0.0;
        }
        finite(match self {
            Aim::Unbiased => block.unit * (block.squares * block.root / product),
            Aim::MinError => block.unit * (product / block.root / squares),
            Aim::Norm => block.unit * (block.squares / squares).sqrt(),
        })
    }
}

/// The shortest block for so many bits a number: at least 128 numbers, and 128 bits.
pub(super) fn shortest_block(bits: f64) -> usize {
    if bits >= 1.0 {
        return BLOCK_MIN;
    }
    let needed = (BLOCK_MIN as f64 / bits).ceil();
    (needed as usize).next_power_of_two().min(BLOCK_MAX)
}

/// Checks a number of bits.
pub(super) fn check_bits(bits: f64) -> Result<()> {
    if (0.05..=8.0).contains(&bits) {
        return Ok(());
    }
    Err(Error::argument("bits", format!("{bits} is out of range; give 0.05 to 8")))
}

/// EDEN with codes of fixed length.
#[derive(Clone, Debug)]
pub(in super::super) struct Eden {
    bits: f64,
    aim: Aim,
    rounds: u32,
    /// For the first numbers of a block, and for the others.
    many: Quantizer,
    few: Quantizer,
}

impl Eden {
    pub fn new(bits: f64, aim: Aim, rounds: u32) -> Result<Self> {
        check_bits(bits)?;
        check_rounds(rounds)?;
        let few = bits.floor() as u32;
        Ok(Eden { bits, aim, rounds, many: Quantizer::new((few + 1).min(8)), few: Quantizer::new(few) })
    }

    /// How many numbers of a block get the larger number of bits.
    fn split(&self, length: usize) -> usize {
        ((self.bits - self.bits.floor()) * length as f64).round_ties_even() as usize
    }

    fn length(&self, length: usize) -> usize {
        let split = self.split(length);
        packed_len(split, self.many.bits) + packed_len(length - split, self.few.bits)
    }

    /// The codes of a rotated block, and its scale.
    #[inline(always)]
    fn code(&self, level: Level, front: Rotated, block: &[f32], codes: &mut [u8]) -> f32 {
        let split = self.split(block.len());
        if split == 0 || split == block.len() {
            return self.code_in_order(level, front, split, block, codes);
        }
        with_buffer(block.len(), |ordered| {
            for (k, y) in ordered.iter_mut().enumerate() {
                *y = block[place(k, block.len())];
            }
            self.code_in_order(level, front, split, ordered, codes)
        })
    }

    #[inline(always)]
    fn code_in_order(&self, level: Level, front: Rotated, split: usize, block: &[f32], codes: &mut [u8]) -> f32 {
        let standard = front.standard();
        let (many, few) = codes.split_at_mut(packed_len(split, self.many.bits));
        let (mut product, mut squares) = (0.0, 0.0);
        let (mut values, mut words) = ([0.0; PIECE], [0; PIECE]);
        // The codes of the second part begin a byte of their own, wherever its numbers begin.
        let mut late = vec![0_u8; if split > 0 { block.len() - split } else { 0 }];
        for (start, y) in (0..).step_by(PIECE).zip(block.chunks(PIECE)) {
            let cut = split.saturating_sub(start).min(y.len());
            let (values, words) = (&mut values[..y.len()], &mut words[..y.len()]);
            self.many.quantize(&y[..cut], standard, &mut values[..cut], &mut words[..cut]);
            let bits = self.many.bits;
            self.many.pack(level, &values[..cut], &words[..cut], part(many, start, cut, bits));
            self.few.quantize(&y[cut..], standard, &mut values[cut..], &mut words[cut..]);
            if late.is_empty() {
                let bits = self.few.bits;
                self.few.pack(level, &values[cut..], &words[cut..], part(few, start, y.len() - cut, bits));
            } else {
                let places = &mut late[(start + cut).max(split) - split..][..y.len() - cut];
                places.iter_mut().zip(&words[cut..]).for_each(|(place, word)| *place = *word as u8);
            }
            product += sum_of_products(y, values);
            squares += sum_of_products(values, values);
        }
        if self.few.bits > 0 && !late.is_empty() {
            pack_tile(level, &late, self.few.bits, few);
        }
        self.aim.scale(front, product, squares)
    }
}

/// Which rotated number code `k` of a block of mixed codes is of: 2^32 by the golden ratio, an odd factor, makes it a
/// permutation of any power of two.
#[inline(always)]
fn place(k: usize, length: usize) -> usize {
    (k as u32).wrapping_mul(0x9e37_79b1) as usize & (length - 1)
}

/// The bytes of `count` codes from number `start` on, a multiple of eight.
#[inline(always)]
fn part(bytes: &mut [u8], start: usize, count: usize, bits: u32) -> &mut [u8] {
    let start = packed_len(start, bits).min(bytes.len());
    let count = packed_len(count, bits);
    &mut bytes[start..start + count]
}

impl Coder for Eden {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let level = Level::current();
        let rotation = Rotation::new(x.len(), shortest_block(self.bits), self.rounds, Owner::Sender, noise)?;
        encode_blocks(
            &rotation,
            4,
            |length| self.length(length),
            out,
            |index, block, scale, codes| {
                let value = level.run(
                    #[inline(always)]
                    || match rotation.forward(level, x, index, block) {
                        Block::Zero => 0.0,
                        Block::NotFinite => NAN,
                        Block::Rotated(front) => self.code(level, front, block, codes),
                    },
                );
                scale.copy_from_slice(&value.to_le_bytes());
                if value == 0.0 {
                    codes.fill(0);
                }
                !value.is_nan()
            },
        )
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n = shape.iter().product();
        let rotation = Rotation::new(n, shortest_block(self.bits), self.rounds, Owner::Sender, noise)?;
        let scales = take_scales(payload, rotation.blocks.len())?;
        let layout = Layout { blocks: rotation.blocks, length: |length| self.length(length) };
        let codes = payload.take(layout.total()?)?;
        if self.bits.fract() > 0.0 {
            // Only here do runs of codes end within a byte.
            for (index, range) in rotation.blocks.ranges().enumerate() {
                let (part, split) = (layout.part(codes, index), self.split(range.len()));
                let (many, few) = part.split_at(packed_len(split, self.many.bits));
                check_packed("codes", many, split, self.many.bits)?;
                check_packed("codes", few, range.len() - split, self.few.bits)?;
            }
        }
        Ok(Box::new(Sent { eden: self, rotation, scales, codes, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

struct Sent<'a> {
    eden: &'a Eden,
    rotation: Rotation,
    scales: &'a [u8],
    codes: &'a [u8],
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Blocks(self.rotation.blocks, self.n)
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let scale = float_at(self.scales, piece);
        if scale == 0.0 || scale.is_nan() {
            fill(out, if scale == 0.0 { 0.0 } else { NAN }, None);
            return Ok(());
        }
        level.run(
            #[inline(always)]
            || {
                self.values(level, piece, out);
                self.rotation.back(level, piece, out, scale);
            },
        );
        Ok(())
    }

    fn add(&self, level: Level, piece: usize, sum: &mut [f32], weight: f32) -> Result<()> {
        let scale = float_at(self.scales, piece);
        if scale == 0.0 || scale.is_nan() {
            fill(sum, if scale == 0.0 { 0.0 } else { NAN }, Some(weight));
            return Ok(());
        }
        with_buffer(self.rotation.blocks.range(piece).len(), |block| {
            level.run(
                #[inline(always)]
                || {
                    self.values(level, piece, block);
                    self.rotation.back_to_sum(level, piece, block, (scale, weight), sum);
                },
            );
        });
        Ok(())
    }
}

impl Sent<'_> {
    /// Writes the values of a block's codes in the order of the rotated numbers. Called within `Level::run`.
    #[inline(always)]
    fn values(&self, level: Level, piece: usize, block: &mut [f32]) {
        let eden = self.eden;
        let layout = Layout { blocks: self.rotation.blocks, length: |length| eden.length(length) };
        let (codes, split) = (layout.part(self.codes, piece), eden.split(block.len()));
        let (many, few) = codes.split_at(packed_len(split, eden.many.bits));
        if split == 0 || split == block.len() {
            let (head, tail) = block.split_at_mut(split);
            eden.many.values(level, many, head);
            eden.few.values(level, few, tail);
            return;
        }
        with_buffer(block.len(), |ordered| {
            let (head, tail) = ordered.split_at_mut(split);
            eden.many.values(level, many, head);
            eden.few.values(level, few, tail);
            for (k, value) in ordered.iter().enumerate() {
                block[place(k, block.len())] = *value;
            }
        });
    }
}

/// The nearest of `2^bits` values fitted to `N(0, 1)`; no bits, no value: zero.
#[derive(Clone, Debug)]
struct Quantizer {
    bits: u32,
    book: Codebook,
    /// The value of every code.
    table: [f32; 256],
    /// Where there are many boundaries: of each cell of a fine grid, the boundaries below it and the one in it.
    cells: Vec<(u32, f32)>,
}

/// From so many bits on, boundaries are looked up instead of compared one by one.
const LOOKUP_FROM: u32 = 5;

/// Cells of the lookup, each 1/64 wide: narrower than boundaries ever are apart.
const CELLS: usize = 512;

/// The cell of a magnitude. It never falls as the magnitude grows, which is all that a lookup needs.
#[inline(always)]
fn cell(magnitude: f32) -> usize {
    // Adding 2^23 leaves the nearest integer in the low bits.
    let integer = (magnitude.min(8.0) * 64.0 + 8_388_608.0).to_bits() & 0x3ff;
    (integer as usize).min(CELLS - 1)
}

impl Quantizer {
    fn new(bits: u32) -> Self {
        let book = if bits == 0 { Codebook { centroids: &[], boundaries: &[] } } else { codebook(bits) };
        let minus = book.centroids.iter().map(|value| -value);
        let mut table = [0.0; 256];
        table.iter_mut().zip(minus.chain(book.centroids.iter().copied())).for_each(|(place, value)| *place = value);
        let mut cells = vec![(0, f32::INFINITY); if bits < LOOKUP_FROM { 0 } else { CELLS }];
        for &boundary in book.boundaries.iter().filter(|_| bits >= LOOKUP_FROM) {
            let place = cell(boundary);
            cells[place].1 = boundary;
            cells[place + 1..].iter_mut().for_each(|(below, _)| *below += 1);
        }
        Quantizer { bits, book, table, cells }
    }

    /// The value nearest to each number times `standard`, and its code: the top bit says "not negative", the others which
    /// magnitude.
    #[inline(always)]
    fn quantize(&self, y: &[f32], standard: f32, values: &mut [f32], codes: &mut [u32]) {
        let Some((&first, others)) = self.book.centroids.split_first() else {
            values.fill(0.0);
            return;
        };
        let top = self.bits - 1;
        if self.bits >= LOOKUP_FROM {
            let Some(cells) = self.cells.first_chunk::<CELLS>() else { return };
            for ((place, code), y) in values.iter_mut().zip(codes.iter_mut()).zip(y) {
                let u = y * standard + 0.0;
                let (below, boundary) = cells[cell(u.abs())];
                *code = (below + u32::from(u.abs() >= boundary)) | (u.to_bits() >> 31 ^ 1) << top;
                *place = self.table[(*code & 0xff) as usize];
            }
            return;
        }
        // The magnitude's value is found by differences of bits, which select exactly; see `onebit::kernels::pick`.
        values.fill(first);
        codes.fill(0);
        let mut before = first;
        for (&value, &boundary) in others.iter().zip(self.book.boundaries) {
            let difference = before.to_bits() ^ value.to_bits();
            for ((place, code), y) in values.iter_mut().zip(codes.iter_mut()).zip(y) {
                let reached = u32::from((y * standard).abs() >= boundary);
                *code += reached;
                *place = f32::from_bits(place.to_bits() ^ (reached.wrapping_neg() & difference));
            }
            before = value;
        }
        for ((place, code), y) in values.iter_mut().zip(codes.iter_mut()).zip(y) {
            let sign = (y * standard + 0.0).to_bits() >> 31;
            *place = f32::from_bits(place.to_bits() | sign << 31);
            *code |= (sign ^ 1) << top;
        }
    }

    /// Packs what [`Quantizer::quantize`] made.
    #[inline(always)]
    fn pack(&self, level: Level, values: &[f32], codes: &[u32], out: &mut [u8]) {
        match self.bits {
            0 => {}
            1 => mask::nonnegative(level, values, out),
            bits => pack_tile(level, codes, bits, out),
        }
    }

    /// The values of packed codes.
    #[inline(always)]
    fn values(&self, level: Level, packed: &[u8], values: &mut [f32]) {
        match self.bits {
            0 => values.fill(0.0),
            1 => {
                let mut lanes = [0; PIECE];
                let magnitude = self.table[1].to_bits();
                for (bytes, values) in packed.chunks(PIECE / 8).zip(values.chunks_mut(PIECE)) {
                    mask::spread(bytes, &mut lanes);
                    for (value, lane) in values.iter_mut().zip(&lanes) {
                        *value = f32::from_bits(magnitude | (lane ^ 1) << 31);
                    }
                }
            }
            bits => {
                let mut codes = [0_u8; PIECE];
                for (bytes, values) in packed.chunks(packed_len(PIECE, bits)).zip(values.chunks_mut(PIECE)) {
                    let codes = &mut codes[..values.len()];
                    unpack_tile(level, bytes, bits, codes);
                    for (value, code) in values.iter_mut().zip(codes) {
                        *value = self.table[usize::from(*code)];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_up_is_comparing_with_every_boundary() {
        for bits in 1..=8 {
            let quantizer = Quantizer::new(bits);
            let mut y: Vec<f32> = (-5000..5000_i16).map(|i| f32::from(i) / 511.0).collect();
            for boundary in quantizer.book.boundaries {
                let near = [boundary.next_down(), *boundary, boundary.next_up()];
                y.extend(near.iter().flat_map(|x| [*x, -x]));
            }
            y.extend([0.0, -0.0, 1e30, -1e30, f32::MAX]);
            let (mut values, mut codes) = (vec![0.0; y.len()], vec![0; y.len()]);
            quantizer.quantize(&y, 1.0, &mut values, &mut codes);
            for ((y, value), code) in y.iter().zip(&values).zip(&codes) {
                let m = quantizer.book.boundaries.iter().filter(|boundary| y.abs() >= **boundary).count();
                let positive = *y >= 0.0;
                let want = if positive { quantizer.book.centroids[m] } else { -quantizer.book.centroids[m] };
                assert_eq!((*value, *code), (want, m as u32 | u32::from(positive) << (bits - 1)), "{bits} bits, {y}");
                assert_eq!(quantizer.table[*code as usize], want, "{bits} bits, {y}");
            }
        }
    }
}
