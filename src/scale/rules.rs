//! The rules: from what was seen of a group to its scale.

use super::{INFINITY_BITS, Observed, SCALE_RANGE, Statistic, lane_sums_of};
use crate::error::{Error, Result};
use crate::formats::blocks::{self, E2M1, ScaleFormat};
use crate::formats::{AnyGrid, Format, Grid};

/// A scale rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name users give.
    pub name: &'static str,
    /// What it observes.
    pub statistic: Statistic,
    kind: Kind,
    /// Whether a format can use it.
    accepts: fn(&Format) -> bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One,
    Amax,
    MinMax,
    Sawb,
    Mean,
    Twn,
    Bias,
    Floor,
    Ceil,
    Rceil,
    Even,
    FourOverSix,
}

/// The smallest and largest scale of a whole tensor: so far from float32's ends that any block scale leaves it a normal
/// number.
pub const TENSOR_RANGE: (f32, f32) = (f32::from_bits((127 - 117) << 23), f32::from_bits((127 + 117) << 23));

/// What the second number that a rule finds for a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// There is none.
    Nothing,
    /// The number that the lowest code stands for.
    Offset,
    /// The scale that numbers are divided by before they are rounded, where it is not the one they come back with.
    Divisor,
}

const fn rule(name: &'static str, statistic: Statistic, kind: Kind, accepts: fn(&Format) -> bool) -> Rule {
    Rule { name, statistic, kind, accepts }
}

fn scaled_by(format: &Format, scales: ScaleFormat) -> bool {
    format.scaling.is_some_and(|scaling| scaling.format == scales)
}

/// Every rule, in order.
pub const RULES: &[Rule] = &[
    rule("one", Statistic::Amax, Kind::One, |format| format.default_scale == "one"),
    rule("amax", Statistic::Amax, Kind::Amax, |format| !scaled_by(format, ScaleFormat::E8m0)),
    rule("minmax", Statistic::MinMax, Kind::MinMax, |format| format.uniform().is_some()),
    rule("sawb", Statistic::Moments, Kind::Sawb, |format| format.sawb.is_some()),
    rule("mean", Statistic::Moments, Kind::Mean, |format| format.default_scale == "mean"),
    rule("twn", Statistic::Moments, Kind::Twn, |format| format.name == "ternary"),
    rule("bias", Statistic::Amax, Kind::Bias, |format| format.powers.is_some()),
    rule("floor", Statistic::Amax, Kind::Floor, |format| scaled_by(format, ScaleFormat::E8m0)),
    rule("ceil", Statistic::Amax, Kind::Ceil, |format| scaled_by(format, ScaleFormat::E8m0)),
    rule("rceil", Statistic::Amax, Kind::Rceil, |format| scaled_by(format, ScaleFormat::E8m0)),
    rule("even", Statistic::Amax, Kind::Even, |format| scaled_by(format, ScaleFormat::E8m0)),
    rule("four_over_six", Statistic::Amax, Kind::FourOverSix, |format| {
        scaled_by(format, ScaleFormat::E4m3) && format.grid == AnyGrid::Minifloat(E2M1)
    }),
];

impl Rule {
    /// The rule of this name, if `format` can use it.
    pub fn named(name: &str, format: &Format) -> Result<&'static Rule> {
        let usable = || RULES.iter().filter(|rule| (rule.accepts)(format)).map(|rule| rule.name);
        match RULES.iter().find(|rule| rule.name == name) {
            Some(rule) if (rule.accepts)(format) => Ok(rule),
            Some(_) => Err(Error::argument(
                "scale",
                format!("the rule {name:?} does not suit {}; it can use {}, or numbers", format.name, join(usable())),
            )),
            None => {
                Err(Error::Unknown { argument: "scale", name: name.into(), known: join(usable()) + ", or numbers" })
            }
        }
    }

    /// The names of the rules that `format` can use.
    pub fn names_for(format: &Format) -> Vec<&'static str> {
        RULES.iter().filter(|rule| (rule.accepts)(format)).map(|rule| rule.name).collect()
    }

    /// Whether it gives every group the scale 1, unseen.
    pub fn is_one(&self) -> bool {
        self.kind == Kind::One
    }

    /// Whether it gives an offset.
    pub fn affine(&self) -> bool {
        self.second() == Second::Offset
    }

    /// What its second number is.
    pub fn second(&self) -> Second {
        match self.kind {
            Kind::MinMax => Second::Offset,
            Kind::Twn => Second::Divisor,
            _ => Second::Nothing,
        }
    }

    /// Whether it looks at a group a second time, once it has found two numbers for it.
    pub fn looks_again(&self) -> bool {
        matches!(self.kind, Kind::Twn | Kind::FourOverSix)
    }

    /// The scale of a whole tensor of which this was seen, for the formats that have one: what brings the largest magnitude
    /// to the largest element under the largest block scale. NaN if it held anything not finite.
    pub fn tensor_scale(&self, seen: &Observed, format: &Format) -> f32 {
        // The largest E4M3; or the largest of which one and a half is an E4M3 too, so that every block has the choice.
        let most = if self.kind == Kind::FourOverSix { 256.0 } else { 448.0 };
        match seen.amax() {
            0.0 => 1.0,
            amax if amax.is_finite() => (amax / (format.reference * most)).clamp(TENSOR_RANGE.0, TENSOR_RANGE.1),
            _ => f32::NAN,
        }
    }
}

/// A rule at work on one array.
#[derive(Clone, Copy)]
pub struct Finisher<'a> {
    /// The rule.
    pub rule: &'static Rule,
    /// What numbers are scaled for.
    pub format: &'a Format,
    /// The scale of the whole tensor, 1 where the format has none.
    pub tensor: f32,
    /// The scale of a group of zeros.
    zeros: f32,
}

impl<'a> Finisher<'a> {
    /// A group of zeros has the scale 1; the smallest one if the format has no zero, so that they come back as nearly none.
    pub fn new(rule: &'static Rule, format: &'a Format, tensor: f32) -> Self {
        Finisher { rule, format, tensor, zeros: if format.has_zero() { 1.0 } else { SCALE_RANGE.0 } }
    }

    /// The scale and the second number of a group: NaN if it held anything not finite, that of zeros if it held only those (for an
    /// affine rule, one number), else within [`SCALE_RANGE`] or the format of the scales.
    #[inline(always)]
    pub fn finish(&self, seen: &Observed) -> (f32, f32) {
        if seen.count == 0 {
            return (1.0, 0.0);
        }
        if let Some(scaling) = &self.format.scaling {
            let (mut scale, mut second) = ([seen.amax()], [1.0]);
            self.of_few_bits(&mut scale, &mut second, scaling);
            return (scale[0], second[0]);
        }
        let n = seen.count as f64;
        let (scale, second) = match self.rule.kind {
            Kind::MinMax => minmax(seen, self.format),
            Kind::Sawb => (sawb(seen, self.format), 0.0),
            Kind::Mean => ((seen.sum / n) as f32, 0.0),
            Kind::Twn => ((TWN_SHARE * (seen.sum / n)) as f32, 0.0),
            Kind::Bias => (power_of_two(bias(seen.magnitude, self.format)), 0.0),
            // "amax": the largest magnitude becomes the format's reference value.
            _ => (seen.amax() / self.format.reference, 0.0),
        };
        let finite = match self.rule.statistic {
            Statistic::MinMax => second.is_finite(),
            Statistic::Amax | Statistic::Moments => seen.magnitude < INFINITY_BITS,
        };
        if !finite {
            return (f32::NAN, f32::NAN);
        }
        match self.rule.kind {
            _ if self.nothing_seen(seen) => (self.zeros, if self.rule.kind == Kind::Twn { 1.0 } else { second }),
            // The second look wants the threshold as it is.
            Kind::Twn => (scale, clamped(2.0 * scale)),
            _ => (clamped(scale), second),
        }
    }

    /// Makes the largest magnitudes of groups their scales of a few bits, with the second candidates of a rule that has two.
    #[inline(always)]
    pub(crate) fn of_few_bits(&self, amax: &mut [f32], second: &mut [f32], scaling: &blocks::Scaling) {
        let exponent = |bits: u32| (bits >> 23) as i32 - 127;
        let rounded_up = |bits: u32| exponent(bits) + i32::from(bits & 0x7f_ffff != 0);
        let by = scaling.exponent;
        let half = 1 << (22 - scaling.mantissa);
        let reference = self.format.reference;
        match self.rule.kind {
            Kind::FourOverSix => {
                for (amax, second) in amax.iter_mut().zip(second) {
                    *second = self.e4m3(*amax, 4.0);
                    *amax = self.e4m3(*amax, 6.0);
                }
            }
            Kind::Amax => amax.iter_mut().for_each(|amax| *amax = self.e4m3(*amax, reference)),
            Kind::Ceil => powers_of_two(amax, |amax| rounded_up(amax.to_bits()) - by),
            Kind::Even => powers_of_two(amax, |amax| exponent(amax.to_bits() + half) - by),
            Kind::Rceil => powers_of_two(amax, |amax| {
                let bits = (amax / reference).to_bits();
                // 2^-127 is in the middle of the numbers without an exponent.
                if bits < 0x80_0000 { -127 + i32::from(bits > 0x40_0000) } else { rounded_up(bits) }
            }),
            _ => powers_of_two(amax, |amax| exponent(amax.to_bits()) - by),
        }
    }

    /// The E4M3 scale of a block whose largest magnitude is to become `reference`; 1 for a block of zeros.
    #[inline(always)]
    fn e4m3(&self, amax: f32, reference: f32) -> f32 {
        let scale = ScaleFormat::nearest_e4m3((amax / reference) * (1.0 / self.tensor));
        let scale = if amax == 0.0 { 1.0 } else { scale };
        if amax.is_finite() && !self.tensor.is_nan() { scale } else { f32::NAN }
    }

    /// What a second look at (a piece of) a group sees, after the first has given these two numbers.
    #[inline(always)]
    pub fn look_again(&self, x: &[f32], first: (f32, f32)) -> Observed {
        if self.rule.kind == Kind::Twn {
            let above = |x: &f32| x.abs() > first.0;
            let (sum, _) = lane_sums_of(x, |x| if above(x) { f64::from(x.abs()) } else { 0.0 }, |_| 0.0);
            return Observed { sum, count: x.iter().filter(|x| above(x)).count(), ..Observed::NOTHING };
        }
        let error = |scale: f32| {
            let scale = scale * self.tensor;
            let recip = 1.0 / scale;
            move |x: &f32| {
                let error = f64::from(E2M1.nearest(x * recip) * scale - x);
                error * error
            }
        };
        let (sum, squares) = lane_sums_of(x, error(first.0), error(first.1));
        Observed { sum, squares, count: x.len(), ..Observed::NOTHING }
    }

    /// The scale and the second number after the second look.
    #[inline(always)]
    pub fn finish_again(&self, seen: &Observed, first: (f32, f32)) -> (f32, f32) {
        if first.0.is_nan() {
            return first;
        }
        match self.rule.kind {
            Kind::Twn if seen.count == 0 => (1.0, first.1),
            Kind::Twn => (clamped((seen.sum / seen.count as f64) as f32), first.1),
            _ => (if seen.squares < seen.sum { first.1 } else { first.0 }, 1.0),
        }
    }

    /// Whether a scale of zero is the truth and not an underflow.
    #[inline(always)]
    fn nothing_seen(&self, seen: &Observed) -> bool {
        match self.rule.statistic {
            Statistic::MinMax => seen.low == seen.high || seen.extremes().0 == seen.extremes().1,
            Statistic::Amax | Statistic::Moments => seen.magnitude == 0,
        }
    }
}

#[inline(always)]
fn clamped(scale: f32) -> f32 {
    scale.clamp(SCALE_RANGE.0, SCALE_RANGE.1)
}

/// Makes magnitudes powers of two of these exponents, within E8M0's; 1 for zero.
#[inline(always)]
fn powers_of_two(magnitudes: &mut [f32], exponent: impl Fn(f32) -> i32) {
    for magnitude in magnitudes {
        let power = power_of_two(exponent(*magnitude).clamp(-127, 127));
        let scale = if *magnitude == 0.0 { 1.0 } else { power };
        *magnitude = if magnitude.is_finite() { scale } else { f32::NAN };
    }
}

/// 2^k for k from -127 to 127.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits(if k < -126 { 1 << 22 } else { ((k + 127) as u32) << 23 })
}

/// "minmax": the smallest number becomes the lowest code and the largest the highest. Numbers too far apart for `x - offset` to
/// be finite have no such scale.
#[inline(always)]
fn minmax(seen: &Observed, format: &Format) -> (f32, f32) {
    let (low, high) = seen.extremes();
    if !(high - low).is_finite() {
        return (f32::NAN, f32::NAN);
    }
    let steps = format.uniform().map_or(1.0, |grid| grid.levels() - 1.0);
    // Adding zero makes an offset of -0 plain 0.
    (((f64::from(high) - f64::from(low)) / f64::from(steps)) as f32, low + 0.0)
}

/// "sawb", statistics-aware weight binning: Choi et al., arXiv:1807.06964; the guard is that of IBM's published code.
#[inline(always)]
fn sawb(seen: &Observed, format: &Format) -> f32 {
    let Some(fit) = format.sawb else { return 0.0 };
    let n = seen.count as f64;
    let alpha = fit.rms_factor * (seen.squares / n).sqrt() - fit.mean_factor * (seen.sum / n);
    let alpha = if alpha > 0.0 { alpha } else { f64::from(seen.amax()) };
    (alpha / fit.levels) as f32
}

/// "twn": numbers above this share of the mean magnitude are not zero (Li et al., arXiv:1605.04711, equation 6).
const TWN_SHARE: f64 = 0.7;

/// "bias": the least power of two that brings the largest magnitude into the format's range, among those that a bias can say.
#[inline(always)]
fn bias(magnitude: u32, format: &Format) -> i32 {
    let (least, most) = format.powers.unwrap_or((0, 0));
    // Exponents apart, one more where the mantissa is larger: a shift that rounds up. Below float32's normal numbers the
    // result is too large, but still below what a bias can say.
    let apart = magnitude as i32 - format.reference.to_bits() as i32;
    ((apart + 0x7f_ffff) >> 23).clamp(least, most)
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::all;

    #[test]
    fn every_default_rule_suits_its_format() {
        for format in all() {
            assert!(Rule::named(format.default_scale, format).is_ok(), "{}", format.name);
        }
    }

    #[test]
    fn what_is_not_finite_propagates_through_every_statistic() {
        for format in all() {
            for rule in RULES.iter().filter(|rule| (rule.accepts)(format)) {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = vec![0.5_f32; 100];
                    x[77] = bad;
                    let seen = rule.statistic.observe(&x[..50]).merge(rule.statistic.observe(&x[50..]));
                    let finisher = Finisher::new(rule, format, 1.0);
                    assert!(rule.is_one() || finisher.finish(&seen).0.is_nan(), "{} {} {bad}", format.name, rule.name);
                }
            }
        }
    }
}
