//! Rounding to up to 16 values of any kind, and looking them up: a search of four steps, each a permutation of a register.

use crate::cpu::Level;

/// Up to 16 ascending values, the last one repeated, ready to be searched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sixteen {
    pub values: [f32; 16],
    /// Numbers above boundary i belong to value i + 1 or later ones; infinite where there is none.
    pub middles: Tree,
    /// Numbers above number i of these are at value i + 1 or beyond.
    pub cuts: Tree,
    /// `1 / (value i + 1 - value i)`, 0 where there is no next.
    pub shares: [f32; 16],
}

/// Fifteen ascending boundaries, as a search by halves meets them: level k has `2^k` of them, the last level eight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tree([[f32; 8]; 4]);

impl Tree {
    /// Of 15 boundaries; the sixteenth is not looked at.
    pub const fn new(boundaries: &[f32; 16]) -> Self {
        let mut levels = [[0.0; 8]; 4];
        let mut level = 0;
        while level < 4 {
            let mut i = 0;
            while i < 1 << level {
                levels[level][i] = boundaries[(2 * i + 1) * (8 >> level) - 1];
                i += 1;
            }
            level += 1;
        }
        Tree(levels)
    }

    /// The boundaries, level by level.
    pub(super) fn levels(&self) -> [[f32; 8]; 4] {
        self.0
    }

    /// How many boundaries are below `t`.
    #[inline(always)]
    fn rank(&self, t: f32) -> usize {
        self.0.iter().fold(0, |rank, level| 2 * rank + usize::from(t > level[rank & 7]))
    }
}

/// What becomes of the numbers in lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The values they are rounded to.
    Values,
    /// Those values' numbers.
    Codes,
}

/// Rounds the float32 numbers in `lanes` to the nearest value, ties to the lower one.
#[inline(always)]
pub(crate) fn nearest(level: Level, table: &Sixteen, lanes: &mut [u32], shown: Shown) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { super::x86_64::nearest_of_sixteen(table, lanes, shown) };
    }
    let _ = level;
    portable_nearest(table, lanes, shown);
}

/// Rounds the float32 numbers in `lanes` to either neighbour, by a random word each.
#[inline(always)]
pub(crate) fn stochastic(level: Level, table: &Sixteen, lanes: &mut [u32], words: &[u32], shown: Shown) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { super::x86_64::stochastic_of_sixteen(table, lanes, words, shown) };
    }
    let _ = level;
    portable_stochastic(table, lanes, words, shown);
}

/// Makes codes below 16 the float32 numbers that they stand for.
#[inline(always)]
pub(crate) fn look_up(level: Level, values: &[f32; 16], lanes: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { super::x86_64::look_up_sixteen(values, lanes) };
    }
    let _ = level;
    portable_look_up(values, lanes);
}

pub(super) fn portable_nearest(table: &Sixteen, lanes: &mut [u32], shown: Shown) {
    for lane in lanes {
        let rank = table.middles.rank(f32::from_bits(*lane));
        *lane = if shown == Shown::Codes { rank as u32 } else { table.values[rank & 15].to_bits() };
    }
}

/// 2^31: so many fractions of the way are told apart.
pub(crate) const STEPS: f32 = 2_147_483_648.0;

/// The largest float32 below it: where rounding has brought a fraction to 1.
pub(crate) const MOST: f32 = 2_147_483_520.0;

pub(super) fn portable_stochastic(table: &Sixteen, lanes: &mut [u32], words: &[u32], shown: Shown) {
    for (lane, word) in lanes.iter_mut().zip(words) {
        let (t, least, most) = (f32::from_bits(*lane), table.values[0], table.values[15]);
        let t = if t > least { t } else { least };
        let t = if t < most { t } else { most };
        let rank = table.cuts.rank(t) & 15;
        let way = (t - table.values[rank]) * table.shares[rank] * STEPS;
        let way = if way < MOST { way } else { MOST };
        let rank = rank + usize::from(((word >> 1) as i32) < way as i32);
        *lane = if shown == Shown::Codes { rank as u32 } else { table.values[rank & 15].to_bits() };
    }
}

pub(super) fn portable_look_up(values: &[f32; 16], lanes: &mut [u32]) {
    for lane in lanes {
        *lane = values[(*lane & 15) as usize].to_bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: usize) -> Sixteen {
        let value = |i: usize| (i.min(n - 1) as f32 - 5.0) * (i.min(n - 1) as f32 * 0.1 + 1.0);
        let next = |i: usize| if i + 1 < n { value(i + 1) } else { f32::INFINITY };
        Sixteen {
            values: std::array::from_fn(value),
            middles: Tree::new(&std::array::from_fn(|i| f32::midpoint(value(i), next(i)))),
            cuts: Tree::new(&std::array::from_fn(|i| next(i).next_down())),
            shares: std::array::from_fn(|i| if i + 1 < n { 1.0 / (value(i + 1) - value(i)) } else { 0.0 }),
        }
    }

    #[test]
    fn the_search_finds_what_counting_does_and_every_level_the_same() {
        for n in 2..=16 {
            let table = table(n);
            let numbers: Vec<f32> = (0..3000_i32)
                .map(|i| (i - 1500) as f32 * 0.02)
                .chain(table.values)
                .chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-45, f32::MAX])
                .collect();
            let words: Vec<u32> = (0..numbers.len() as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
            let bits: Vec<u32> = numbers.iter().map(|number| number.to_bits()).collect();
            for (number, bits) in numbers.iter().zip(&bits) {
                let mut lane = [*bits];
                portable_nearest(&table, &mut lane, Shown::Codes);
                let count =
                    (0..n - 1).filter(|i| *number > f32::midpoint(table.values[*i], table.values[i + 1])).count();
                assert_eq!(lane[0] as usize, count, "{number} among {n}");
            }
            for shown in [Shown::Values, Shown::Codes] {
                let (mut near, mut drawn) = (bits.clone(), bits.clone());
                portable_nearest(&table, &mut near, shown);
                portable_stochastic(&table, &mut drawn, &words, shown);
                for level in Level::supported() {
                    let mut lanes = bits.clone();
                    nearest(level, &table, &mut lanes, shown);
                    assert_eq!(lanes, near, "{level:?} {shown:?} {n}");
                    let mut lanes = bits.clone();
                    stochastic(level, &table, &mut lanes, &words, shown);
                    assert_eq!(lanes, drawn, "{level:?} {shown:?} {n}");
                }
            }
        }
    }

    #[test]
    fn every_code_is_looked_up() {
        let values: [f32; 16] = std::array::from_fn(|i| i as f32 * 1.5 - 3.0);
        for level in Level::supported() {
            let mut lanes: Vec<u32> = (0..77).map(|i| i % 16).collect();
            look_up(level, &values, &mut lanes);
            for (i, lane) in lanes.iter().enumerate() {
                assert_eq!(f32::from_bits(*lane), values[i % 16], "{level:?} {i}");
            }
        }
    }
}
