//! Stochastic gradient steps on linear models: the inner loops of `lowbit.convex`.
//!
//! A problem is `f(w) = mean_i phi(x_i . w, y_i) + l2/2 |w|^2`. Whatever the method, a step draws a row `i`, computes
//! `c = phi'(shift_i + x_i . z, y_i) - anchor_i` and moves `z` against `c x_i + l2 z + g`:
//!
//! | method     | z          | shift   | anchor               | g                    | rounded to         |
//! |------------|------------|---------|----------------------|----------------------|--------------------|
//! | SGD        | w          | 0       | 0                    | 0                    |                    |
//! | LP-SGD     | w          | 0       | 0                    | 0                    | a fixed grid       |
//! | SVRG       | w          | 0       | `phi'(x_i . W, y_i)` | `grad f(W) - l2 W`   |                    |
//! | LP-SVRG    | w          | 0       | `phi'(x_i . W, y_i)` | `grad f(W) - l2 W`   | a fixed grid       |
//! | HALP       | w - W      | x_i . W | `phi'(x_i . W, y_i)` | `grad f(W)`          | the centre's grid  |
//!
//! [`float`] runs all of them on floats, [`integer`] runs HALP on integers. Every sum has a written order and every
//! random word a place in a stream, so that results depend neither on the CPU nor on how a run is cut into calls.

pub mod float;
pub mod integer;

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::stream::Stream;

/// What a linear model loses on one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// `(t - y)^2 / 2`.
    LeastSquares,
    /// `log(1 + exp(-y t))`, y = -1 or 1.
    Logistic,
}

impl Loss {
    /// Looks a loss up by name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "least_squares" => Ok(Loss::LeastSquares),
            "logistic" => Ok(Loss::Logistic),
            _ => Err(Error::Unknown {
                argument: "loss",
                name: name.into(),
                known: "least_squares, logistic".into(),
            }),
        }
    }

    /// `phi'(t, y)`, the derivative by t.
    #[inline(always)]
    pub fn derivative(self, t: f64, y: f64) -> f64 {
        match self {
            Loss::LeastSquares => t - y,
            Loss::Logistic => -y / (1.0 + exp(y * t)),
        }
    }
}

/// `exp(v)` by additions and multiplications in a fixed order, for v clamped to [-700, 700]; within 2 units of the last place.
#[inline(always)]
fn exp(v: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer, which is then in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, the first of which has 21 zeros at its end: its products with |k| < 2^11 are exact.
    const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    // 1/13!, ..., 1/1!, 1/0!: on |r| <= ln(2)/2 what is left out is below 5e-18.
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
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
    let v = v.clamp(-700.0, 700.0);
    let rounded = v * std::f64::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (v - k * LN2_HIGH) - k * LN2_LOW;
    let mantissa = TAYLOR[1..].iter().fold(TAYLOR[0], |sum, term| sum * r + term);
    let exponent = (rounded.to_bits() as i32 as i64 + 1023) as u64;
    mantissa * f64::from_bits(exponent << 52)
}

/// `phi'(t_i, y_i)` for many rows.
pub fn derivatives(loss: Loss, t: &[f64], y: &[f64], out: &mut [f64]) {
    Level::PORTABLE.run(|| {
        for ((out, &t), &y) in out.iter_mut().zip(t).zip(y) {
            *out = loss.derivative(t, y);
        }
    });
}

/// What is known of every row: its target, and where it is at the centre.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The loss.
    pub loss: Loss,
    /// y, by row.
    pub y: &'a [f64],
    /// What is added to `x_i . z`, by row.
    pub shift: &'a [f64],
    /// What is taken from the derivative, by row.
    pub anchor: &'a [f64],
}

impl Rows<'_> {
    /// Checks that there are as many of everything, and 1 to 2^32 of them.
    pub fn check(&self, rows: usize) -> Result<()> {
        for (name, len) in [("y", self.y.len()), ("shift", self.shift.len()), ("anchor", self.anchor.len())] {
            if len != rows {
                return Err(Error::argument("x", format!("has {rows} rows, but {name} has {len} numbers")));
            }
        }
        if rows == 0 || rows as u64 > 1 << 32 {
            return Err(Error::argument("x", format!("has {rows} rows; give 1 to 2**32")));
        }
        Ok(())
    }

    /// `c` of a step: how much of its row it takes.
    #[inline(always)]
    fn slope(&self, row: usize, product: f64) -> f64 {
        self.loss.derivative(self.shift[row] + product, self.y[row]) - self.anchor[row]
    }

    /// The row of a step: word 4 t of the stream, spread over the rows. (Each has probability 1/n to within 2^-32.)
    #[inline(always)]
    fn draw(&self, stream: Stream, step: u64) -> usize {
        let word = stream.word(step.wrapping_mul(4));
        ((u64::from(word) * self.y.len() as u64) >> 32) as usize
    }
}

/// Checks that a run of steps has its own words in the streams, `each` elements a step.
fn check_steps(first: u64, steps: u64, each: u64) -> Result<()> {
    let last = first.checked_add(steps).and_then(|end| end.checked_add(1));
    if last.and_then(|end| end.checked_mul(each.max(4))).is_none() {
        let reason = format!("{steps} after {first} are more than the random stream has words for");
        return Err(Error::argument("steps", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in -70_000..=70_000 {
            let v = f64::from(i) / 100.0 + 1e-3 * f64::from(i % 7);
            let want = v.clamp(-700.0, 700.0).exp();
            let error = (exp(v) - want).abs() / want;
            assert!(error < 4.5e-16, "exp({v}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0, "exactly");
    }

    #[test]
    fn a_logistic_derivative_keeps_its_ends() {
        for t in [-1e308, -800.0, 800.0, 1e308] {
            for y in [-1.0, 1.0] {
                let slope = Loss::Logistic.derivative(t, y);
                let want = if t * y > 0.0 { 0.0 } else { -y };
                assert!((slope - want).abs() < 1e-300, "{slope} at {t}, {y}");
            }
        }
    }
}
