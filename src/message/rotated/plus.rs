//! DRIVE+ (Vargaftik et al., NeurIPS 2021, arXiv:2105.08339): one bit a number, and for each block the two values that fit
//! its rotated numbers best (2-means, three steps of Lloyd's from the mean), scaled to be unbiased.

use super::super::coder::{Coder, Noise, Opened, Pieces};
use super::super::cursor::Cursor;
use super::{Block, Layout, NAN, Owner, Rotated, Rotation, check_rounds, encode_blocks, float_at, times};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::BLOCK_MIN;
use crate::scale::{PIECE, sum_of_products};
use crate::simd::mask;
use crate::view::View;

/// Steps of Lloyd's algorithm.
const STEPS: usize = 3;

const ONES: [f32; PIECE] = [1.0; PIECE];

/// DRIVE+.
#[derive(Clone, Debug)]
pub(in super::super) struct DrivePlus {
    rounds: u32,
}

/// The two sides of a threshold: how many numbers lie there, and their mean.
struct Sides {
    counts: [f64; 2],
    means: [f64; 2],
}

impl Sides {
    #[inline(always)]
    fn new(u: &[f32], threshold: f32) -> Self {
        let (mut sums, mut above) = ([0.0; 2], 0_u32);
        let mut kept = [0.0_f32; PIECE];
        for piece in u.chunks(PIECE) {
            let kept = &mut kept[..piece.len()];
            for side in [0, 1] {
                let wanted = side as u32;
                for (kept, u) in kept.iter_mut().zip(piece) {
                    let here = u32::from(u32::from(*u >= threshold) == wanted).wrapping_neg();
                    *kept = f32::from_bits(u.to_bits() & here);
                }
                sums[side] += sum_of_products(kept, &ONES[..piece.len()]);
            }
            above += piece.iter().map(|u| u32::from(*u >= threshold)).sum::<u32>();
        }
        let counts = [u.len() as f64 - f64::from(above), f64::from(above)];
        let mean = |side: usize| if counts[side] > 0.0 { sums[side] / counts[side] } else { f64::from(threshold) };
        Sides { means: [mean(0), mean(1)], counts }
    }
}

impl DrivePlus {
    pub fn new(rounds: u32) -> Result<Self> {
        check_rounds(rounds)?;
        Ok(DrivePlus { rounds })
    }

    /// The codes of a rotated block and the two values they stand for.
    #[inline(always)]
    fn code(level: Level, front: Rotated, u: &mut [f32], codes: &mut [u8]) -> [f32; 2] {
        let standard = front.standard();
        times(u, standard);
        let sum: f64 = u.chunks(PIECE).fold(0.0, |sum, piece| sum + sum_of_products(piece, &ONES[..piece.len()]));
        let mut threshold = (sum / front.length) as f32;
        for _ in 0..STEPS {
            let Sides { means, .. } = Sides::new(u, threshold);
            threshold = (means[0].midpoint(means[1])) as f32;
        }
        let Sides { counts, means } = Sides::new(u, threshold);
        let total = counts[0] * (means[0] * means[0]) + counts[1] * (means[1] * means[1]);
        let norm = front.unit * front.squares.sqrt() * front.length.sqrt();
        for u in &mut *u {
            *u -= threshold;
        }
        mask::nonnegative(level, u, codes);
        means.map(|mean| ((norm * mean / total).clamp(-f64::from(f32::MAX), f64::from(f32::MAX))) as f32)
    }
}

impl Coder for DrivePlus {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let level = Level::current();
        let rotation = Rotation::new(x.len(), BLOCK_MIN, self.rounds, Owner::Sender, noise)?;
        encode_blocks(
            &rotation,
            8,
            |length| length / 8,
            out,
            |index, block, scales, codes| {
                let values = level.run(
                    #[inline(always)]
                    || match rotation.forward(level, x, index, block) {
                        Block::Zero => [0.0; 2],
                        Block::NotFinite => [NAN; 2],
                        Block::Rotated(front) => DrivePlus::code(level, front, block, codes),
                    },
                );
                for (place, value) in scales.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *place = value.to_le_bytes();
                }
                if values == [0.0; 2] {
                    codes.fill(0);
                }
                !values[0].is_nan()
            },
        )
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n = shape.iter().product();
        let rotation = Rotation::new(n, BLOCK_MIN, self.rounds, Owner::Sender, noise)?;
        let values = payload.take(rotation.blocks.len() * 8)?;
        for [low, high] in values.as_chunks::<8>().0.iter().map(|pair| [0, 1].map(|side| float_at(pair, side))) {
            if !(low.is_finite() && high.is_finite() || low.is_nan() && high.is_nan()) {
                return Err(Error::decode(format!("the values {low} and {high} are no pair")));
            }
        }
        let codes = payload.take(rotation.blocks.total() / 8)?;
        Ok(Box::new(Sent { rotation, values, codes, n }))
    }

    fn needs_key(&self) -> bool {
        true
    }
}

struct Sent<'a> {
    rotation: Rotation,
    values: &'a [u8],
    codes: &'a [u8],
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Blocks(self.rotation.blocks, self.n)
    }

    fn decode(&self, level: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let [low, high] = [0, 1].map(|side| float_at(self.values, 2 * piece + side));
        let codes = Layout { blocks: self.rotation.blocks, length: |length| length / 8 }.part(self.codes, piece);
        level.run(
            #[inline(always)]
            || {
                let mut lanes = [0; PIECE];
                for (bytes, out) in codes.chunks(PIECE / 8).zip(out.chunks_mut(PIECE)) {
                    mask::spread(bytes, &mut lanes);
                    for (value, lane) in out.iter_mut().zip(&lanes) {
                        *value =
                            f32::from_bits(low.to_bits() ^ (lane.wrapping_neg() & (low.to_bits() ^ high.to_bits())));
                    }
                }
            },
        );
        self.rotation.levelled_back(level, piece, out);
        Ok(())
    }
}
