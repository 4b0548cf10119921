//! The arithmetic of one element: when the bit is one, and what the bit is read as.
//!
//! Everything is float32 in a fixed order of additions and multiplications, so that every CPU level and the
//! `NumPy` reference agree bit for bit. Numbers are on `[0, 1]`; `shared` and `coin` are stream words.

use crate::stream::fraction;

/// Shared bits that stand for "unlimited": all that a float32 threshold can tell apart.
pub(super) const FULL: u32 = 24;

/// A one-bit protocol, vectorizable element by element.
pub(super) trait Protocol: Copy + Sync {
    /// The bit is one iff this is not negative: how far `y` lies above the threshold.
    fn margin(&self, y: f32, shared: u32, coin: u32) -> f32;

    /// What the receiver reads; `bit` is 0 or 1.
    fn estimate(&self, shared: u32, bit: u32) -> f32;
}

/// The centre of the shared cell on `[-1, 1]`: `(2 j + 1) 2^-bits - 1` for the top `bits` bits `j`. Exact: at most 24
/// bits, because the numerator is odd and the power of two subtracted from it even.
#[inline(always)]
fn centre(word: u32, bits: u32) -> f32 {
    let numerator = 2 * (word >> 8 >> (FULL - bits)) as i32 + 1 - (1 << bits);
    numerator as f32 * power_of_two(-(bits as i32))
}

/// `2^n` for a normal exponent.
#[inline(always)]
pub(super) fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((127 + n) as u32) << 23)
}

/// `sinh(h) / h` from `z = h^2`: Taylor to `h^11`, truncation under 2e-10 on `[-1, 1]`.
#[inline(always)]
pub(super) fn sinh_ratio(z: f32) -> f32 {
    const C: [f32; 5] = [1.0 / 362_880.0, 1.0 / 5_040.0, 1.0 / 120.0, 1.0 / 6.0, 1.0];
    C.iter().fold(
        1.0 / 39_916_800.0,
        #[inline(always)]
        |sum, c| sum * z + c,
    )
}

#[inline(always)]
fn sinh(h: f32) -> f32 {
    h * sinh_ratio(h * h)
}

/// `e^g`: Taylor to `g^11`, truncation under 3e-9 on `[-1, 1]`.
#[inline(always)]
fn exp(g: f32) -> f32 {
    const C: [f32; 11] = [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    C.iter().fold(
        1.0 / 39_916_800.0,
        #[inline(always)]
        |sum, c| sum * g + c,
    )
}

/// `l`-bit dither: the top `bits` bits of the threshold are shared, the rest is the sender's coin; the receiver takes
/// the centre of the shared cell for the threshold. No bits: randomized rounding. All: subtractive dither.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dither {
    pub bits: u32,
    /// Estimates are clipped to `lowest..=highest`.
    pub lowest: f32,
    pub highest: f32,
}

impl Protocol for Dither {
    /// The threshold is an odd multiple of `2^-25`. Both subtractions keep the exact sign, so 0 is always sent as
    /// zero, 1 as one, and `y` is sent as one by the nearest multiple of `2^-24` of all words.
    #[inline(always)]
    fn margin(&self, y: f32, shared: u32, coin: u32) -> f32 {
        let private = u32::MAX >> self.bits;
        let word = (shared & !private) | (coin >> self.bits);
        (y - (word >> 8) as i32 as f32 * power_of_two(-24)) - power_of_two(-25)
    }

    #[inline(always)]
    fn estimate(&self, shared: u32, bit: u32) -> f32 {
        let estimate = bit as i32 as f32 + 0.5 * centre(shared, self.bits);
        estimate.max(self.lowest).min(self.highest)
    }
}

/// At most eight pairs, by the top shared bits. The threshold is `knot + fraction(coin) * step`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub bits: u32,
    pub knots: [f32; 8],
    pub steps: [f32; 8],
    /// What a zero is read as.
    pub zeros: [f32; 8],
    /// What a one is read as.
    pub ones: [f32; 8],
}

impl Table {
    #[inline(always)]
    fn rank(&self, shared: u32) -> u32 {
        shared >> 8 >> (FULL - self.bits)
    }
}

/// `row[rank]` by masks: an index, and selects that the compiler may turn back into one, do not vectorize (measured 3
/// and 9 ns an element against about 1).
#[inline(always)]
fn pick(row: &[f32; 8], rank: u32) -> f32 {
    let mut bits = row[0].to_bits();
    for place in 1..8 {
        let reached = u32::from(rank >= place as u32).wrapping_neg();
        bits ^= reached & (row[place].to_bits() ^ row[place - 1].to_bits());
    }
    f32::from_bits(bits)
}

impl Protocol for Table {
    #[inline(always)]
    fn margin(&self, y: f32, shared: u32, coin: u32) -> f32 {
        let rank = self.rank(shared);
        y - (pick(&self.knots, rank) + fraction(coin) * pick(&self.steps, rank))
    }

    #[inline(always)]
    fn estimate(&self, shared: u32, bit: u32) -> f32 {
        let rank = self.rank(shared);
        let (zero, one) = (pick(&self.zeros, rank), pick(&self.ones, rank));
        f32::from_bits(zero.to_bits() ^ (bit.wrapping_neg() & (zero.to_bits() ^ one.to_bits())))
    }
}

/// The closed forms: with `h` the shared number on `[-1, 1]`, clipped to `limit`, the threshold is
/// `1/2 + amplitude sinh h` and the estimate `1/2 + s amplitude e^(s h)`, `s` = +1 for a one and -1 for a zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    pub bits: u32,
    pub limit: f32,
    pub amplitude: f32,
}

impl Protocol for Curve {
    #[inline(always)]
    fn margin(&self, y: f32, shared: u32, _: u32) -> f32 {
        let h = centre(shared, self.bits).max(-self.limit).min(self.limit);
        y - (0.5 + self.amplitude * sinh(h))
    }

    #[inline(always)]
    fn estimate(&self, shared: u32, bit: u32) -> f32 {
        let h = centre(shared, self.bits).max(-self.limit).min(self.limit);
        let s = (2 * bit as i32 - 1) as f32;
        0.5 + s * (self.amplitude * exp(s * h))
    }
}

/// The unbiased closed form with few shared bits: the estimates are its averages over the shared cell, and the coin
/// spreads the threshold evenly between the cell's two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stairs {
    /// The curve through the ends of the cells.
    pub ends: Curve,
    /// The same, its amplitude times `sinh(d)/d`, `d` half a cell: what the average of `e^h` over a cell comes to.
    pub means: Curve,
}

impl Protocol for Stairs {
    #[inline(always)]
    fn margin(&self, y: f32, shared: u32, coin: u32) -> f32 {
        let half = power_of_two(-(self.ends.bits as i32));
        let middle = centre(shared, self.ends.bits);
        let (from, to) = (sinh(middle - half), sinh(middle + half));
        y - (0.5 + self.ends.amplitude * (from + fraction(coin) * (to - from)))
    }

    #[inline(always)]
    fn estimate(&self, shared: u32, bit: u32) -> f32 {
        self.means.estimate(shared, bit)
    }
}
