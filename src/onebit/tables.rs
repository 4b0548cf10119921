//! The pairs of the schemes with one, two or three shared bits.
//!
//! A protocol with `l` shared bits is `2^l` pairs `(a, b)`, one of which both sides pick with the shared bits; the
//! receiver reads `b` for a one and `a` for a zero. Ben Basat, Mitzenmacher and Vargaftik, "How to send a real number
//! using a single bit (and some shared randomness)", ICALP 2021, pose the problem; the pairs here were found by
//! minimising the worst case numerically (multistart), so those written as decimals are rounded optima. Their costs
//! are checked in `tests/test_onebit.py`.

/// What the receiver reads for a zero and for a one.
pub(super) type Pair = (f64, f64);

/// Adds the mirror images `(1 - b, 1 - a)`.
const fn mirrored<const H: usize>(half: &[Pair]) -> [Pair; H] {
    let mut pairs = [(0.0, 0.0); H];
    let mut i = 0;
    while i < half.len() {
        let (a, b) = half[i];
        pairs[i] = (a, b);
        pairs[H - 1 - i] = (1.0 - b, 1.0 - a);
        i += 1;
    }
    pairs
}

/// Deterministic rounding: cost 1/16.
pub(super) const NEAREST: [Pair; 1] = [(0.25, 0.75)];

/// Optimal biased, one shared bit: cost 1/20.
pub(super) const BIASED_1: [Pair; 2] = [(0.1, 0.7), (0.3, 0.9)];

/// Optimal biased, two shared bits: cost 0.04781.
pub(super) const BIASED_2: [Pair; 4] = mirrored(&[(0.0, 0.681_899), (0.126_862, 0.728_051)]);

/// Optimal biased, three shared bits: cost 0.04646.
pub(super) const BIASED_3: [Pair; 8] =
    mirrored(&[(0.0, 0.683_122), (0.0, 0.683_122), (0.064_655, 0.706_802), (0.160_421, 0.765_555)]);

/// Optimal unbiased, two shared bits: cost 1/11, knots 0, 3/11, 1/2, 8/11, 1.
pub(super) const UNBIASED_2: [Pair; 4] = mirrored(&[(-9.0 / 22.0, 15.0 / 22.0), (-1.0 / 22.0, 19.0 / 22.0)]);

/// Optimal unbiased, three shared bits: cost 0.08145. The decimals keep both means exact (zeros 0, ones 1).
pub(super) const UNBIASED_3: [Pair; 8] =
    mirrored(&[(-0.535_48, 0.662_90), (-0.280_66, 0.741_83), (-0.123_89, 0.790_40), (0.018_12, 0.882_96)]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_stand_in_order_of_their_midpoints() {
        for pairs in [&BIASED_1[..], &BIASED_2, &BIASED_3, &UNBIASED_2, &UNBIASED_3] {
            assert!(pairs.is_sorted_by(|p, q| p.0 + p.1 <= q.0 + q.1), "rank is index: {pairs:?}");
            assert!(pairs.iter().all(|(a, b)| a < b), "a zero reads below a one: {pairs:?}");
        }
    }

    #[test]
    fn unbiased_pairs_span_zero_to_one() {
        for pairs in [&UNBIASED_2[..], &UNBIASED_3] {
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / pairs.len() as f64;
            assert!(mean(&mut pairs.iter().map(|p| p.0)).abs() < 1e-15, "at 0 everybody sends a zero");
            assert!((mean(&mut pairs.iter().map(|p| p.1)) - 1.0).abs() < 1e-15, "at 1 everybody sends a one");
        }
    }
}
