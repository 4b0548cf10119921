//! From a scheme's name and its shared bits to the kernel that runs it, and to the pairs it stands for.

use super::Scheme;
use super::kernels::{Curve, Dither, FULL, Stairs, Table, power_of_two, sinh_ratio};
use super::tables::{self, Pair};
use crate::cpu::Level;
use crate::error::{Error, Result};

/// The names of the schemes.
pub const SCHEMES: [&str; 6] =
    ["deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased"];

/// The most shared bits that can be asked for; beyond, the costs are the unlimited ones to nine digits.
pub const MAX_SHARED_BITS: u32 = 16;

/// Where clipped dither cuts its estimates: there the errors at 0 and at 1/2, the largest, meet.
const CLIP: f32 = 0.17349;

/// `e^(-1/2) / 2`, the amplitude of the optimal biased scheme.
const BIASED: f64 = 0.5 * 0.606_530_659_712_633_4;

/// `1 / (2 sinh 1)`, the amplitude of the optimal unbiased scheme.
const UNBIASED: f64 = 1.0 / (std::f64::consts::E - 1.0 / std::f64::consts::E);

#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    Dither(Dither),
    Table(Table, &'static [Pair]),
    Curve(Curve),
    Stairs(Stairs),
}

impl Scheme {
    /// The scheme of this name; `shared_bits` of `None` is its natural value (unlimited where it uses any).
    pub fn new(name: &str, shared_bits: Option<u32>) -> Result<Self> {
        // Any level would do: the run is for the clean float state, in which the tables are rounded to float32.
        Level::PORTABLE.run(|| Scheme::built(name, shared_bits))
    }

    fn built(name: &str, shared_bits: Option<u32>) -> Result<Self> {
        let Some(&name) = SCHEMES.iter().find(|known| **known == name) else {
            return Err(Error::Unknown { argument: "scheme", name: name.into(), known: SCHEMES.join(", ") });
        };
        let kernel = match (name, shared_bits) {
            (_, Some(bits)) if bits > MAX_SHARED_BITS => None,
            ("deterministic", None | Some(0)) | ("optimal_biased", Some(0)) => Some(nearest(&tables::NEAREST)),
            ("randomized", None | Some(0)) => Some(dither(0)),
            ("dither", bits) => Some(dither(bits.unwrap_or(FULL))),
            ("clipped_dither", None) => Some(Kernel::Dither(Dither { bits: FULL, lowest: CLIP, highest: 1.0 - CLIP })),
            ("optimal_biased", Some(1)) => Some(nearest(&tables::BIASED_1)),
            ("optimal_biased", Some(2)) => Some(nearest(&tables::BIASED_2)),
            ("optimal_biased", Some(3)) => Some(nearest(&tables::BIASED_3)),
            ("optimal_biased", bits) => Some(Kernel::Curve(curve(bits, BIASED, 0.5))),
            ("optimal_unbiased", Some(bits @ 0..=1)) => Some(dither(bits)),
            ("optimal_unbiased", Some(2)) => Some(blurred(&tables::UNBIASED_2)),
            ("optimal_unbiased", Some(3)) => Some(blurred(&tables::UNBIASED_3)),
            ("optimal_unbiased", Some(bits)) => Some(stairs(bits)),
            ("optimal_unbiased", None) => Some(Kernel::Curve(curve(None, UNBIASED, 1.0))),
            _ => None,
        };
        kernel.map(|kernel| Scheme { name, kernel }).ok_or_else(|| {
            let served = match name {
                "deterministic" | "randomized" => "0 or None",
                "clipped_dither" => "None (unlimited)",
                _ => "0 to 16 and None (unlimited)",
            };
            let asked = shared_bits.map_or("None".into(), |bits| bits.to_string());
            Error::argument("shared_bits", format!("{name:?} has no protocol for {asked}; it serves {served}"))
        })
    }

    /// The pairs `(read for a zero, read for a one)` in order of their midpoints, of which the shared bits pick one;
    /// `None` if there is no end to them. For exact formulas: kernels never read these.
    pub fn pairs(&self) -> Option<Vec<Pair>> {
        Level::PORTABLE.run(|| self.exact_pairs())
    }

    fn exact_pairs(&self) -> Option<Vec<Pair>> {
        let cells = |bits: u32| {
            let half = f64::from(power_of_two(-(bits as i32)));
            (0..1_u32 << bits).map(move |j| (2.0 * f64::from(j) + 1.0) * half - 1.0)
        };
        let curve = |curve: &Curve, amplitude: f64| {
            let limit = f64::from(curve.limit);
            let pair = |h: f64| (0.5 - amplitude * (-h).exp(), 0.5 + amplitude * h.exp());
            cells(curve.bits).map(|h| pair(h.clamp(-limit, limit))).collect()
        };
        match &self.kernel {
            Kernel::Table(_, pairs) => Some(pairs.to_vec()),
            Kernel::Dither(Dither { bits: FULL, .. }) | Kernel::Curve(Curve { bits: FULL, .. }) => None,
            Kernel::Dither(dither) => Some(cells(dither.bits).map(|h| (0.5 * h, 1.0 + 0.5 * h)).collect()),
            Kernel::Curve(ends) => Some(curve(ends, BIASED)),
            Kernel::Stairs(stairs) => {
                let half = f64::from(power_of_two(-(stairs.means.bits as i32)));
                Some(curve(&stairs.means, UNBIASED * half.sinh() / half))
            }
        }
    }
}

fn dither(bits: u32) -> Kernel {
    Kernel::Dither(Dither { bits, lowest: f32::NEG_INFINITY, highest: f32::INFINITY })
}

/// A biased table: the threshold is the midpoint of the pair, so that the nearer value is sent.
fn nearest(pairs: &'static [Pair]) -> Kernel {
    let mut table = table(pairs);
    for (knot, (a, b)) in table.knots.iter_mut().zip(pairs) {
        *knot = ((a + b) / 2.0) as f32;
    }
    Kernel::Table(table, pairs)
}

/// An unbiased table. The pair of rank `j` has its coin between the knots `j` and `j + 1`, which lie `(b - a)/H` apart,
/// the first at the mean of all `a`: of all senders that keep the mean, that one has the least error.
fn blurred(pairs: &'static [Pair]) -> Kernel {
    let mut table = table(pairs);
    let count = pairs.len() as f64;
    let mut knot = pairs.iter().map(|pair| pair.0).sum::<f64>() / count;
    for (rank, (a, b)) in pairs.iter().enumerate() {
        (table.knots[rank], table.steps[rank]) = (knot as f32, ((b - a) / count) as f32);
        knot += (b - a) / count;
    }
    Kernel::Table(table, pairs)
}

fn table(pairs: &[Pair]) -> Table {
    let (mut zeros, mut ones) = ([0.0; 8], [0.0; 8]);
    for (rank, (a, b)) in pairs.iter().enumerate() {
        (zeros[rank], ones[rank]) = (*a as f32, *b as f32);
    }
    Table { bits: pairs.len().ilog2(), knots: [0.0; 8], steps: [0.0; 8], zeros, ones }
}

fn curve(bits: Option<u32>, amplitude: f64, limit: f32) -> Curve {
    Curve { bits: bits.unwrap_or(FULL), limit, amplitude: amplitude as f32 }
}

fn stairs(bits: u32) -> Kernel {
    let ends = curve(Some(bits), UNBIASED, 1.0);
    let half = power_of_two(-(bits as i32));
    let means = Curve { amplitude: ends.amplitude * sinh_ratio(half * half), ..ends };
    Kernel::Stairs(Stairs { ends, means })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_amplitudes_are_what_they_are_called() {
        assert!((4.0 * BIASED * BIASED * std::f64::consts::E - 1.0).abs() < 1e-15, "e^(-1/2) / 2");
        assert!((2.0 * UNBIASED * 1.0_f64.sinh() - 1.0).abs() < 1e-15, "1 / (2 sinh 1)");
    }

    #[test]
    fn what_is_not_served_is_said() {
        for (name, bits) in
            [("randomized", Some(1)), ("clipped_dither", Some(0)), ("dither", Some(17)), ("deterministic", Some(2))]
        {
            let error = Scheme::new(name, bits).map(|scheme| scheme.name).map_err(|error| error.to_string());
            assert!(error.is_err_and(|message| message.contains("it serves")), "{name} {bits:?}");
        }
        assert!(
            Scheme::new("magic", None).is_err_and(|error| error.to_string().contains("optimal_unbiased")),
            "known names"
        );
    }
}
