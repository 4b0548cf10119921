//! Any ascending list of values: NF4, codebooks of the caller's own, and the grids whose steps grow in proportion.
//!
//! Sources: Dettmers et al., `QLoRA`, arXiv:2305.14314 (NF4; its values and its rule for ties as in bitsandbytes); Li and
//! De Sa, "Dimension-Free Bounds for Low-Precision Training", NeurIPS 2019 (the grid of zeta and delta).

use std::sync::Arc;

use super::{AnyGrid, Call, Codes, Decoder, Family, Format, Grid, Shown, goes, order_key, threshold};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::simd::table::{self, Sixteen, Tree};

/// At most so many values fit the registers of a search.
const SHORT: usize = 16;

/// At most 16 values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table(Sixteen);

/// The largest float32 not above the middle of two neighbours: what is above it is above the middle.
fn middle(low: f32, high: f32) -> f32 {
    let (low, high) = (f64::from(low), f64::from(high));
    let sum = low + high;
    // What the rounding of the sum has lost, exact (Knuth's two-sum).
    let of_high = sum - low;
    let lost = (low - (sum - of_high)) + (high - of_high);
    let near = (sum * 0.5) as f32;
    let twice = 2.0 * f64::from(near);
    if twice < sum || twice == sum && lost >= 0.0 { near } else { near.next_down() }
}

impl Table {
    /// From 2 to 16 ascending values.
    fn new(list: &[f32]) -> Self {
        let (count, last) = (list.len(), list[list.len() - 1]);
        let between = |of: fn(f32, f32) -> f32, none: f32| {
            std::array::from_fn(|i| if i + 1 < count { of(list[i], list[i + 1]) } else { none })
        };
        Table(Sixteen {
            values: std::array::from_fn(|i| list.get(i).copied().unwrap_or(last)),
            middles: Tree::new(&between(middle, f32::INFINITY)),
            cuts: Tree::new(&between(|_, next| next.next_down(), f32::INFINITY)),
            shares: between(|value, next| 1.0 / (next - value), 0.0),
        })
    }

    fn rounded(&self, t: f32, round: impl Fn(&Sixteen, &mut [u32])) -> u32 {
        let mut lane = [t.to_bits()];
        round(&self.0, &mut lane);
        lane[0]
    }
}

impl Grid for Table {
    fn nearest(&self, t: f32) -> f32 {
        f32::from_bits(self.rounded(t, |table, lane| table::nearest(Level::PORTABLE, table, lane, Shown::Values)))
    }

    fn stochastic(&self, t: f32, word: u32) -> f32 {
        let draw = |table: &Sixteen, lane: &mut [u32]| {
            table::stochastic(Level::PORTABLE, table, lane, &[word], Shown::Values);
        };
        f32::from_bits(self.rounded(t, draw))
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.0.values[0], smallest(&self.0.values), self.0.values[SHORT - 1])
    }

    const TOGETHER: bool = true;

    #[inline(always)]
    fn nearest_all(&self, level: Level, lanes: &mut [u32], shown: Shown) {
        table::nearest(level, &self.0, lanes, shown);
    }

    #[inline(always)]
    fn stochastic_all(&self, level: Level, lanes: &mut [u32], words: &[u32], shown: Shown) {
        table::stochastic(level, &self.0, lanes, words, shown);
    }
}

impl Codes for Table {
    fn encode(&self, value: f32) -> u32 {
        self.rounded(value, |table, lane| table::nearest(Level::PORTABLE, table, lane, Shown::Codes))
    }

    fn decode(&self, code: u32) -> f32 {
        self.0.values[(code & 15) as usize]
    }
}

/// The smallest positive value, or infinity.
fn smallest(values: &[f32]) -> f32 {
    values.iter().copied().find(|value| *value > 0.0).unwrap_or(f32::INFINITY)
}

/// What up to 16 codes stand for: looked up in registers.
#[derive(Clone, Copy)]
pub(crate) struct Nibbles([f32; 16]);

impl Nibbles {
    /// Of the values of at most 16 codes, in any order.
    pub fn new(values: &[f32]) -> Self {
        Nibbles(std::array::from_fn(|code| values.get(code).copied().unwrap_or(0.0)))
    }
}

impl Decoder for Nibbles {
    fn number(&self, code: u32) -> f32 {
        self.0[(code & 15) as usize]
    }

    const TOGETHER: bool = true;

    #[inline(always)]
    fn numbers(&self, level: Level, lanes: &mut [u32]) {
        table::look_up(level, &self.0, lanes);
    }
}

/// Up to 65,536 values.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup(Arc<Long>);

/// What a [`Lookup`] shares.
#[derive(Debug, PartialEq)]
pub struct Long {
    values: Vec<f32>,
    middles: Boundaries,
    /// Number i is just below value i + 1.
    cuts: Boundaries,
    shares: Vec<f32>,
}

/// Ascending boundaries, with a guide to where numbers of one sign, exponent and upper mantissa bits lie among them.
#[derive(Debug, PartialEq)]
struct Boundaries {
    /// Infinite ones at the end, as many as a search may look too far.
    all: Vec<f32>,
    /// For each part of the float32 numbers, how many boundaries are below it.
    before: Vec<u16>,
    /// A search within a part takes so many steps.
    steps: u32,
}

/// Bits of a float32 that choose a part of the guide: sign, exponent, two of the mantissa.
const GUIDE_BITS: u32 = 11;

/// The part that a number lies in, counted from the lowest.
#[inline(always)]
fn part_of(t: f32) -> u32 {
    (order_key(t.to_bits()) as u32 ^ 0x8000_0000) >> (32 - GUIDE_BITS)
}

impl Boundaries {
    fn new(mut all: Vec<f32>) -> Self {
        let first = |part: u32| all.partition_point(|boundary| part_of(*boundary) < part);
        let before: Vec<u16> = (0..1 << GUIDE_BITS).map(|part| first(part) as u16).collect();
        let ends = before[1..].iter().copied().chain([all.len() as u16]);
        let most = before.iter().zip(ends).map(|(start, end)| end - start).max().unwrap_or(0);
        let steps = u16::BITS - most.leading_zeros();
        all.extend(vec![f32::INFINITY; 1 << steps]);
        Boundaries { all, before, steps }
    }

    /// How many boundaries are below `t`; any number for NaN.
    #[inline(always)]
    fn below(&self, t: f32) -> usize {
        let mut rank = usize::from(self.before[part_of(t) as usize]);
        for step in (0..self.steps).rev() {
            rank += usize::from(t > self.all[rank + (1 << step) - 1]) << step;
        }
        rank
    }
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
        let cuts = values[1..].iter().map(|value| value.next_down()).collect();
        // The last value has no way to go.
        let shares = values.windows(2).map(|pair| 1.0 / (pair[1] - pair[0])).chain([0.0]).collect();
        Long { middles: Boundaries::new(middles), cuts: Boundaries::new(cuts), values, shares }
    }

    /// The highest value's number: where a search has gone too far, for NaN.
    #[inline(always)]
    fn last(&self) -> usize {
        self.values.len() - 1
    }

    #[inline(always)]
    fn near(&self, t: f32) -> usize {
        self.middles.below(t).min(self.last())
    }

    #[inline(always)]
    fn drawn(&self, t: f32, word: u32) -> usize {
        let (least, most) = (self.values[0], self.values[self.last()]);
        let t = if t > least { t } else { least };
        let t = if t < most { t } else { most };
        let low = self.cuts.below(t).min(self.last());
        let up = goes(word, threshold((t - self.values[low]) * self.shares[low]));
        low + (up & 1) as usize
    }
}

impl Grid for &Long {
    #[inline(always)]
    fn nearest(&self, t: f32) -> f32 {
        self.values[self.near(t)]
    }

    #[inline(always)]
    fn stochastic(&self, t: f32, word: u32) -> f32 {
        self.values[self.drawn(t, word)]
    }

    fn extremes(&self) -> (f32, f32, f32) {
        (self.values[0], smallest(&self.values), self.values[self.last()])
    }
}

impl Codes for &Long {
    #[inline(always)]
    fn encode(&self, value: f32) -> u32 {
        self.near(value) as u32
    }

    #[inline(always)]
    fn stochastic_code(&self, t: f32, word: u32) -> u32 {
        self.drawn(t, word) as u32
    }

    #[inline(always)]
    fn nearest_code(&self, t: f32) -> u32 {
        self.near(t) as u32
    }

    #[inline(always)]
    fn decode(&self, code: u32) -> f32 {
        self.values[(code as usize).min(self.last())]
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The short tables that have names.
pub fn formats() -> Vec<Format> {
    let source = "Dettmers et al., arXiv:2305.14314 (QLoRA: quantiles of a normal distribution)";
    vec![Format { default_block: Some(64), ..Format::new("nf4", 4, Table::new(&NF4), "amax", source) }]
}

fn of_values(name: String, bits: u32, values: Vec<f32>, source: &'static str) -> Format {
    let reference = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let grid: AnyGrid = match values.len() {
        0..=SHORT => Table::new(&values).into(),
        _ => Lookup(Arc::new(Long::new(values))).into(),
    };
    Format { reference, ..Format::new(name, bits, grid, "one", source) }
}

/// The least and the greatest difference of neighbours: their reciprocals are float32 numbers with all digits.
const LEAST_STEP: f32 = f32::from_bits(1 << 23);
const MOST_STEP: f32 = f32::from_bits((126 + 127) << 23);

/// The values of a codebook, 2 to 256 ascending ones.
pub fn codebook(values: &[f32]) -> Result<Format> {
    let refuse = |reason: String| Err(Error::argument("values", reason));
    if !(2..=256).contains(&values.len()) {
        return refuse(format!("{} values; give 2 to 256", values.len()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return refuse(format!("element {index} is {}; values must be finite in float32", values[index]));
    }
    let apart = |pair: &[f32]| (LEAST_STEP..=MOST_STEP).contains(&(pair[1] - pair[0]));
    if let Some(index) = values.windows(2).position(|pair| !apart(pair)) {
        let (low, high) = (values[index], values[index + 1]);
        return refuse(format!(
            "element {} is {high:?} after {low:?}; give distinct float32 numbers in ascending order (numpy.unique sorts \
             them), 2^-126 to 2^126 apart",
            index + 1
        ));
    }
    let values: Vec<f32> = values.iter().map(|value| value + 0.0).collect();
    let bits = usize::BITS - (values.len() - 1).leading_zeros();
    let spelled: Vec<String> = values.iter().map(|value| spell(&format!("{value:?}")).to_owned()).collect();
    let name = format!("table({})", spelled.join(","));
    Ok(of_values(name, bits, values, "a codebook of the caller's own: lowbit.table_format"))
}

/// A shortest decimal that reads back, integers without a point.
fn spell(shortest: &str) -> &str {
    shortest.strip_suffix(".0").unwrap_or(shortest)
}

/// `q_0 = 0`, `q_(i+1) = (1 + zeta) q_i + delta` and their negatives, in `bits` bits: Li and De Sa's grid.
pub fn log_grid(zeta: f64, delta: f64, bits: u32) -> Result<Format> {
    if !(2..=16).contains(&bits) {
        return Err(Error::argument("bits", format!("{bits} is out of range; give 2 to 16")));
    }
    if !(zeta.is_finite() && zeta >= 0.0) {
        return Err(Error::argument("zeta", format!("{zeta:?} is out of range; give 0 (equal steps) or more")));
    }
    let least = f64::from(LEAST_STEP);
    if !(delta.is_finite() && delta >= least) {
        return Err(Error::argument("delta", format!("{delta:?} is out of range; give 2^-126 or more")));
    }
    // Minus zero is zero, in the name too.
    let zeta = zeta + 0.0;
    let mut q = 0.0_f64;
    let mut magnitudes = vec![0.0_f32];
    for _ in 1..1_u32 << (bits - 1) {
        q = (1.0 + zeta) * q + delta;
        magnitudes.push(q as f32);
    }
    if !q.is_finite() || q > f64::from(MOST_STEP) {
        let reason = format!("{zeta:?} reaches beyond float32 in {bits} bits; give less, or fewer bits");
        return Err(Error::argument("zeta", reason));
    }
    if magnitudes.windows(2).any(|pair| pair[1] - pair[0] < LEAST_STEP) {
        let reason = format!("{delta:?} is too small beside the largest value {q:?} for float32 to tell neighbours apart");
        return Err(Error::argument("delta", reason));
    }
    let values = magnitudes[1..].iter().rev().map(|q| -q).chain(magnitudes.iter().copied()).collect();
    let name = format!("log({bits},{},{})", spell(&format!("{zeta:?}")), spell(&format!("{delta:?}")));
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
            Some(codebook(&values))
        }
        _ => None,
    }
}
