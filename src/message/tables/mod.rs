//! The numbers of the codecs, solved once by the scripts in `tables/` (`make tables` solves them again and compares).

mod entropy;
mod lloyd_max;
mod quicfl;

use entropy::{FIRST_NODE, STEPS};
use lloyd_max::{BOUNDARIES, CENTROIDS};
use quicfl::{KNOTS, VALUES, WIDTHS};

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

/// QUIC-FL sends numbers beyond this as they are: `P(|Z| > T) = 2^-9`.
pub const QUICFL_T: f32 = 3.097_269;

/// An unbiased quantizer of N(0, 1) within `QUICFL_T`, given `shared_bits` random bits that both sides know.
///
/// With shared bits `h` and a private coin `c`, uniform in (0, 1), the sender of `u` sends the number of `x` for which
/// `u >= knot[h][x] + c * width[h][x]`; the receiver reads `value[h][message]`, of mean `u`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuicFl {
    /// `h` has so many bits.
    pub shared_bits: u32,
    /// Rows of `2^bits`, ascending.
    pub values: &'static [f32],
    /// Rows of `2^bits - 1`, ascending.
    pub knots: &'static [f32],
    /// Rows of `2^bits - 1`.
    pub widths: &'static [f32],
}

/// The quantizer of 1 to 4 bits with the least mean squared error.
pub fn quicfl(bits: u32) -> QuicFl {
    let index = bits.clamp(1, 4) as usize - 1;
    QuicFl { shared_bits: [6, 5, 4, 4][index], values: VALUES[index], knots: KNOTS[index], widths: WIDTHS[index] }
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
    fn these_steps_for_ever() {
        let frozen = [
            (0.05, 0x40b3_d94e),
            (0.1, 0x40a2_49d8),
            (1.0, 0x401a_fbd0),
            (1.7, 0x3faf_0897),
            (3.99999, 0x3e84_9e14),
            (8.0, 0x3c84_3fb4),
        ];
        for (bits, step) in frozen {
            assert_eq!(entropy_step(bits).to_bits(), step, "{bits} bits");
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

    #[test]
    fn quicfl_tables_are_rows_in_order_and_their_own_mirror_image() {
        for bits in 1..=4 {
            let QuicFl { shared_bits, values, knots, widths } = quicfl(bits);
            let (rows, messages) = (1 << shared_bits, 1 << bits);
            assert_eq!(values.len(), rows * messages, "{bits} bits");
            assert_eq!((knots.len(), widths.len()), (rows * (messages - 1), rows * (messages - 1)), "{bits} bits");
            assert!(values.chunks(messages).all(|row| row.is_sorted_by(|a, b| a < b)), "{bits} bits");
            assert!(values.iter().zip(values.iter().rev()).all(|(a, b)| *a == -b), "{bits} bits");
            for (knots, widths) in knots.chunks(messages - 1).zip(widths.chunks(messages - 1)) {
                let gap = |x: usize| knots[x]..=knots[x] + widths[x];
                assert!(widths.iter().all(|&width| width > 0.0), "{bits} bits");
                assert!((1..knots.len()).all(|x| gap(x - 1).end() < gap(x).start()), "a coin decides one gap at most");
            }
        }
    }
}
