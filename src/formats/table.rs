//! Any ascending list of values: NF4, codebooks of the caller's own, and the grids whose steps grow in proportion.
//!
//! Sources: Dettmers et al., `QLoRA`, arXiv:2305.14314 (NF4; its values and its rule for ties as in bitsandbytes); Li and
//! De Sa, "Dimension-Free Bounds for Low-Precision Training", NeurIPS 2019 (the grid of zeta and delta).

use std::borrow::Cow;
use std::sync::Arc;

use super::{AnyGrid, Call, Codes, Family, Format, Grid, choose, goes, threshold};
use crate::error::{Error, Result};

/// At most so many values are compared with one after the other, without branches.
const SHORT: usize = 16;

/// At most 16 values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    /// Ascending; the last one repeated.
    values: [f32; SHORT],
    /// Between value i and the next: numbers above go to the next. Infinite where there is none.
    middles: [f32; SHORT],
    /// Value i + 1, or infinity where there is none.
    cuts: [f32; SHORT],
    /// 1 / (value i + 1 - value i), or 0.
    shares: [f32; SHORT],
}

/// The largest float32 not above the middle of two neighbours: what is above it is above the middle.
const fn middle(low: f32, high: f32) -> f32 {
    let exact = (low as f64 + high as f64) / 2.0;
    let near = exact as f32;
    if near as f64 <= exact {
        return near;
    }
    // Below zero magnitudes shrink downwards; zero itself is never above a middle that is not zero.
    let bits = near.to_bits();
    f32::from_bits(if near > 0.0 { bits - 1 } else { bits + 1 })
}

impl Table {
    /// From 2 to 16 ascending values.
    const fn new(list: &[f32]) -> Self {
        let mut values = [list[list.len() - 1]; SHORT];
        let (mut middles, mut cuts, mut shares) = ([f32::INFINITY; SHORT], [f32::INFINITY; SHORT], [0.0; SHORT]);
        let mut i = 0;
        while i < list.len() {
            values[i] = list[i];
            if i + 1 < list.len() {
                middles[i] = middle(list[i], list[i + 1]);
                cuts[i] = list[i + 1];
                shares[i] = 1.0 / (list[i + 1] - list[i]);
            }
            i += 1;
        }
        Table { values, middles, cuts, shares }
    }
}

impl Grid for Table {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        let mut value = self.values[0];
        for i in 0..SHORT - 1 {
            value = if t > self.middles[i] { self.values[i + 1] } else { value };
        }
        value
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let (mut low, mut high, mut share) = (self.values[0], self.values[1], self.shares[0]);
        for i in 0..SHORT - 1 {
            let above = t >= self.cuts[i];
            low = if above { self.cuts[i] } else { low };
            high = if above { self.values[(i + 2).min(SHORT - 1)] } else { high };
            share = if above { self.shares[i + 1] } else { share };
        }
        let t = if t > self.values[0] { t } else { self.values[0] };
        let up = goes(word, threshold((t - low) * share));
        f32::from_bits(choose(up, high.to_bits(), low.to_bits()))
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.values[0], smallest(&self.values), self.values[SHORT - 1])
    }
}

/// The smallest positive value, or infinity.
fn smallest(values: &[f32]) -> f32 {
    values.iter().copied().find(|value| *value > 0.0).unwrap_or(f32::INFINITY)
}

impl Codes for Table {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        let mut code = 0;
        for cut in &self.cuts[..SHORT - 1] {
            code += u32::from(value >= *cut);
        }
        code
    }

    #[inline(always)]
    fn nearest_code(&self, t: f32) -> u32 {
        let mut code = 0;
        for middle in &self.middles[..SHORT - 1] {
            code += u32::from(t > *middle);
        }
        code
    }

    /// Half of the values fall away with each bit of the code.
    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        let bit = |i: u32| 0_u32.wrapping_sub(code >> i & 1);
        let (b0, b1, b2, b3) = (bit(0), bit(1), bit(2), bit(3));
        let v = |i: usize| self.values[i].to_bits();
        let pair = |i: usize| choose(b0, v(i + 1), v(i));
        let four = |i: usize| choose(b1, pair(i + 2), pair(i));
        let eight = |i: usize| choose(b2, four(i + 4), four(i));
        f32::from_bits(choose(b3, eight(8), eight(0)))
    }
}

/// Up to 65,536 values.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup(Arc<Long>);

/// What a [`Lookup`] shares.
#[derive(Debug, PartialEq)]
pub struct Long {
    values: Vec<f32>,
    middles: Vec<f32>,
    shares: Vec<f32>,
}

impl Family for Lookup {
    type Kernel<'a> = &'a Long;
    #[inline(always)]
    fn kernel(&self) -> &Long {
        &self.0
    }
}

impl Long {
    fn new(values: Vec<f32>) -> Self {
        let middles = values.windows(2).map(|pair| middle(pair[0], pair[1])).collect();
        // The last value has no way to go.
        let shares = values.windows(2).map(|pair| 1.0 / (pair[1] - pair[0])).chain([0.0]).collect();
        Long { values, middles, shares }
    }

    /// How many of `sorted` come before, where "before" holds for a first part of them: halved without branches.
    #[inline(always)]
    fn count(sorted: &[f32], before: impl Fn(f32) -> bool) -> usize {
        let (mut first, mut left) = (0, sorted.len());
        while left > 1 {
            let half = left / 2;
            first += if before(sorted[first + half - 1]) { half } else { 0 };
            left -= half;
        }
        first + usize::from(left == 1 && before(sorted[first]))
    }

    /// The last value not above `t`; the first one if all are.
    #[inline(always)]
    fn below(&self, t: f32) -> usize {
        Long::count(&self.values, |value| value <= t).max(1) - 1
    }

    #[inline(always)]
    fn drawn(&self, t: f32, word: u32) -> usize {
        let t = if t > self.values[0] { t } else { self.values[0] };
        let low = self.below(t);
        let up = goes(word, threshold((t - self.values[low]) * self.shares[low]));
        low + (up & 1) as usize
    }
}

impl Grid for &Long {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        self.values[Long::count(&self.middles, |middle| middle < t)]
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        self.values[self.drawn(t, word)]
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.values[0], smallest(&self.values), self.values[self.values.len() - 1])
    }
}

impl Codes for &Long {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        self.below(value) as u32
    }

    #[inline(always)]
    fn nearest_code(&self, t: f32) -> u32 {
        Long::count(&self.middles, |middle| middle < t) as u32
    }

    #[inline(always)]
    fn stochastic_code(&self, t: f32, word: u32) -> u32 {
        self.drawn(t, word) as u32
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        self.values[(code as usize).min(self.values.len() - 1)]
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

fn record(name: Cow<'static, str>, bits: u32, reference: f32, source: &'static str, grid: AnyGrid) -> Format {
    Format {
        name,
        bits,
        coded: true,
        reference,
        default_scale: "one",
        default_block: None,
        sawb: None,
        powers: None,
        scaling: None,
        source,
        grid,
    }
}

/// The short tables that have names.
pub fn formats() -> Vec<Format> {
    vec![Format {
    default_scale: "amax",
    default_block: Some(64),
    ..record(
        Cow::Borrowed("nf4"),
        4,
        1.0,
        "Dettmers et al., arXiv:2305.14314 (QLoRA: quantiles of a normal distribution)",
        AnyGrid::Table(Table::new(&NF4)),
    )
}
]
}

fn of_values(name: String, bits: u32, values: Vec<f32>, source: &'static str) -> Format {
    let reference = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let grid =
        if values.len() <= SHORT { Table::new(&values).into() } else { AnyGrid::Lookup(Lookup(Arc::new(Long::new(values)))) };
    record(Cow::Owned(name), bits, reference, source, grid)
}

/// The least difference of neighbours: its reciprocal is a float32 with all its digits.
const LEAST_STEP: f32 = f32::from_bits(1 << 23);

/// The values of a codebook, 2 to 256 ascending ones.
pub fn table(values: &[f32]) -> Result<Format> {
    let refuse = |reason: String| Err(Error::argument("values", reason));
    if !(2..=256).contains(&values.len()) {
        return refuse(format!("{} values; give 2 to 256", values.len()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return refuse(format!("element {index} is {}; values must be finite in float32", values[index]));
    }
    let apart = |pair: &[f32]| (LEAST_STEP..f32::INFINITY).contains(&(pair[1] - pair[0]));
    if let Some(index) = values.windows(2).position(|pair| !apart(pair)) {
        let (low, high) = (values[index], values[index + 1]);
        return refuse(format!(
            "element {} is {high:?} after {low:?}; give distinct float32 numbers in ascending order (numpy.unique sorts \
             them), 2^-126 or more apart and not beyond float32",
            index + 1
        ));
    }
    let values: Vec<f32> = values.iter().map(|value| value + 0.0).collect();
    let bits = usize::BITS - (values.len() - 1).leading_zeros();
    let spelled: Vec<String> = values.iter().map(|value| spell(format!("{value:?}"))).collect();
    let name = format!("table({})", spelled.join(","));
    Ok(of_values(name, bits, values, "a codebook of the caller's own: lowbit.table_format"))
}

/// A shortest decimal that reads back, integers without a point.
fn spell(shortest: String) -> String {
    shortest.strip_suffix(".0").map_or(shortest.clone(), str::to_owned)
}

/// `q_0 = 0`, `q_(i+1) = (1 + zeta) q_i + delta` and their negatives, in `bits` bits: Li and De Sa's grid.
pub fn log_grid(zeta: f64, delta: f64, bits: u32) -> Result<Format> {
    if !(2..=16).contains(&bits) {
        return Err(Error::argument("bits", format!("{bits} is out of range; give 2 to 16")));
    }
    if !(zeta.is_finite() && zeta >= 0.0) {
        return Err(Error::argument("zeta", format!("{zeta} is out of range; give 0 (equal steps) or more")));
    }
    let least = f64::from(LEAST_STEP);
    if !(delta.is_finite() && delta >= least) {
        return Err(Error::argument("delta", format!("{delta} is out of range; give 2^-126 or more")));
    }
    let mut q = 0.0_f64;
    let mut magnitudes = vec![0.0_f32];
    for _ in 1..1_u32 << (bits - 1) {
        q = (1.0 + zeta) * q + delta;
        magnitudes.push(q as f32);
    }
    if !q.is_finite() || q * 2.0 > f64::from(f32::MAX) {
        let reason = format!("{zeta} reaches beyond float32 in {bits} bits; give less, or fewer bits");
        return Err(Error::argument("zeta", reason));
    }
    if magnitudes.windows(2).any(|pair| pair[1] - pair[0] < LEAST_STEP) {
        let reason = format!("{delta} is too small beside the largest value {q} for float32 to tell neighbours apart");
        return Err(Error::argument("delta", reason));
    }
    let values = magnitudes[1..].iter().rev().map(|q| -q).chain(magnitudes.iter().copied()).collect();
    let name = format!("log({bits},{},{})", spell(format!("{zeta:?}")), spell(format!("{delta:?}")));
    Ok(of_values(name, bits, values, "Li and De Sa, NeurIPS 2019: lowbit.log_grid"))
}

/// Reads the names that these families' factories write.
pub fn factory(call: &Call) -> Option<Result<Format>> {
    match (call.family, call.arguments.as_slice()) {
        ("log", [bits, zeta, delta]) => {
            Some(log_grid(zeta.parse().ok()?, delta.parse().ok()?, bits.parse().ok()?))
        }
        ("table", values) => {
            let values = values.iter().map(|value| value.parse().ok()).collect::<Option<Vec<f32>>>()?;
            Some(table(&values))
        }
        _ => None,
    }
}
