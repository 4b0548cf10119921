//! The numbers of the codecs, solved once by the scripts in `tables/` (`make tables` solves them again and compares).

mod entropy;
mod lloyd_max;

use entropy::{FIRST_NODE, STEPS};
use lloyd_max::{BOUNDARIES, CENTROIDS};

/// The positive half of a symmetric quantizer of N(0, 1): cell `m` lies between `boundaries[m - 1]` and
/// `boundaries[m]` (0 and infinity at the ends) and reads as `centroids[m]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codebook {
    /// Ascending; `2^(bits - 1)` of them.
    pub centroids: &'static [f32],
    /// Ascending; one fewer.
    pub boundaries: &'static [f32],
}

/// The Lloyd-Max codebook of 1 to 8 bits: of all quantizers of N(0, 1) the one with the least mean squared error.
pub fn codebook(bits: u32) -> Codebook {
    let index = bits.clamp(1, 8) as usize - 1;
    Codebook { centroids: CENTROIDS[index], boundaries: BOUNDARIES[index] }
}

/// The step for which the integers `rint(Z / step)`, Z from N(0, 1), have an entropy of `bits`, 0.05 to 8.
///
/// Cubic interpolation between tabulated steps and slopes: the same on every machine, and within 2e-5 of `bits`.
pub fn entropy_step(bits: f64) -> f32 {
    // Nodes are the numbers of three mantissa bits, so the bits of `bits` are their index and the rest of the way.
    let bits = bits.clamp(0.05, 8.0).to_bits();
    let node = bits >> 49;
    let width = f64::from_bits(bits >> 52 << 52) / 8.0;
    let t = (f64::from_bits(bits) - f64::from_bits(node << 49)) / width;
    let index = (node.saturating_sub(FIRST_NODE) as usize).min(STEPS.len() - 2);
    let ((y0, slope0), (y1, slope1)) = (STEPS[index], STEPS[index + 1]);
    let (rise, m0, m1) = (y1 - y0, slope0 * width, slope1 * width);
    (y0 + t * (m0 + t * ((3.0 * rise - 2.0 * m0 - m1) + t * (m0 + m1 - 2.0 * rise)))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codebooks_have_their_sizes_and_order() {
        for bits in 1..=8 {
            let Codebook { centroids, boundaries } = codebook(bits);
            assert_eq!((centroids.len(), boundaries.len()), (1 << (bits - 1), (1 << (bits - 1)) - 1), "{bits} bits");
            assert!(centroids[0] > 0.0 && centroids.is_sorted_by(|a, b| a < b), "{bits} bits");
            for (m, boundary) in boundaries.iter().enumerate() {
                assert!((centroids[m]..centroids[m + 1]).contains(boundary), "{bits} bits, boundary {m}");
            }
        }
    }

    #[test]
    fn steps_are_the_published_ones() {
        // The steps of EDEN's public code (arXiv 2108.08842), which agree with their entropies to 1e-10.
        let published = [
            (0.1, 5.071_514_2),
            (0.2, 4.452_026_0),
            (0.5, 3.456_177_9),
            (0.9, 2.607_049_9),
            (1.0, 2.421_619_5),
            (2.0, 1.082_446_5),
            (3.0, 0.522_433_2),
            (4.0, 0.259_016_7),
        ];
        for (bits, step) in published {
            assert!((f64::from(entropy_step(bits)) / step - 1.0).abs() < 1e-6, "{bits} bits: {}", entropy_step(bits));
        }
    }

    #[test]
    fn steps_fall_without_a_jump() {
        let mut last = f32::INFINITY;
        for i in 0..=7950 {
            let step = entropy_step(0.05 + f64::from(i) / 1000.0);
            assert!(step < last && (i == 0 || step > last * 0.98), "at {i}: {step} after {last}");
            last = step;
        }
        assert_eq!(entropy_step(0.0), entropy_step(0.05), "what no codec asks for");
        assert_eq!(entropy_step(9.0), entropy_step(8.0));
        assert!(entropy_step(f64::NAN).is_nan());
    }
}
