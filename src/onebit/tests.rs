use super::*;

/// Every scheme with every number of shared bits that has its own code.
fn schemes() -> Vec<Scheme> {
    let bits = [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(7), Some(16)];
    let all = SCHEMES.iter().flat_map(|name| bits.map(|bits| Scheme::new(name, bits).ok()));
    let all: Vec<Scheme> = all.flatten().collect();
    assert_eq!(all.len(), 2 + 2 + 8 + 1 + 8 + 8, "what is served");
    all
}

const UNIT: Interval = Interval { low: 0.0, high: 1.0, width: 1.0, reciprocal: 1.0 };

/// Of the 2^24 coins, how many make the bit one: they are the low ones, found by bisection.
fn ones(protocol: &impl Protocol, y: f32, shared: u32) -> u32 {
    let one = |coin: u32| protocol.margin(y, shared, coin << 8).is_sign_positive();
    let (mut from, mut to) = (0, 1 << 24);
    while from < to {
        let middle = u32::midpoint(from, to);
        (from, to) = if one(middle) { (middle + 1, to) } else { (from, middle) };
    }
    from
}

/// The mean of the estimate at `y` over all shared words and coins, as exactly as float64 adds.
fn mean(scheme: &Scheme, y: f32) -> f64 {
    with_protocol!(&scheme.kernel, protocol => {
        let bits = if !scheme.is_shared() { 0 } else if let Some(pairs) = scheme.pairs() { pairs.len().ilog2() } else { 24 };
        let sum: f64 = (0..1_u32 << bits).map(|j| {
            let shared = (u64::from(j) << (32 - bits)) as u32;
            let [zero, one] = [0, 1].map(|bit| f64::from(protocol.estimate(shared, bit)));
            let up = if scheme.is_private() {
                f64::from(ones(protocol, y, shared)) / f64::from(1 << 24)
            } else {
                f64::from(protocol.margin(y, shared, 0).is_sign_positive())
            };
            zero + up * (one - zero)
        }).sum();
        sum / f64::from(1 << bits)
    })
}

#[test]
fn unbiased_kernels_keep_the_mean_to_2_to_the_minus_23() {
    for (name, bits) in [
        ("randomized", None),
        ("dither", None),
        ("dither", Some(5)),
        ("dither", Some(16)),
        ("optimal_unbiased", None),
        ("optimal_unbiased", Some(1)),
        ("optimal_unbiased", Some(2)),
        ("optimal_unbiased", Some(3)),
        ("optimal_unbiased", Some(4)),
        ("optimal_unbiased", Some(12)),
    ] {
        let scheme = Scheme::new(name, bits).unwrap();
        for y in [0.0, 1e-9, 0.1, 3.0 / 11.0, 0.5, 0.722, 0.999_999, 1.0] {
            let error = (mean(&scheme, y) - f64::from(y)).abs();
            assert!(error < 2.0_f64.powi(-23), "{name} {bits:?} at {y}: {error:e}");
        }
    }
}

#[test]
fn without_sharing_the_ends_are_exact() {
    for (name, bits) in [("randomized", None), ("dither", Some(3)), ("dither", None)] {
        let scheme = Scheme::new(name, bits).unwrap();
        let Kernel::Dither(protocol) = scheme.kernel else { panic!("{name} is a dither") };
        for word in [0, 1, 0xff, 0x100, 1 << 31, u32::MAX] {
            assert!(protocol.margin(1.0, word, word) >= 0.0, "1 is sent as one");
            assert!(protocol.margin(0.0, word, word) < 0.0, "0 is sent as zero");
            assert!(protocol.margin(1e-30, word, word) < 0.0, "and so is what rounds to it");
        }
    }
}

#[test]
fn kernels_are_their_pairs() {
    for scheme in schemes() {
        let Some(pairs) = scheme.pairs() else { continue };
        let bits = pairs.len().ilog2();
        for (j, (a, b)) in pairs.iter().enumerate() {
            let shared = ((j as u64) << (32 - bits)) as u32 | (u32::MAX >> bits >> 1);
            with_protocol!(&scheme.kernel, protocol => {
                for (bit, value) in [(0, a), (1, b)] {
                    let error = (f64::from(protocol.estimate(shared, bit)) - value).abs();
                    assert!(error < 2.0_f64.powi(-22), "{} with {bits} bits, pair {j}: off by {error:e}", scheme.name);
                }
                if !scheme.is_private() {
                    let (below, above) = ((a + b) / 2.0 - 2e-7, (a + b) / 2.0 + 2e-7);
                    assert!(protocol.margin(below as f32, shared, 0) < 0.0, "{}: nearer to a", scheme.name);
                    assert!(protocol.margin(above as f32, shared, 0) >= 0.0, "{}: nearer to b", scheme.name);
                }
            });
        }
    }
}

#[test]
fn every_level_length_and_interval_is_the_scalar_protocol() {
    let key = Key::from_seed(11);
    let numbers: Vec<f32> = (0..5000).map(|i| key.fold(1).stream().word(i) as f32 / u32::MAX as f32).collect();
    for scheme in schemes() {
        for (low, high) in [(0.0, 1.0), (-3.0, 7.5)] {
            let interval = Interval::new(low, high).unwrap();
            for n in [0, 1, 7, 8, 9, 1000, 1024, 1025, 4097] {
                let x: Vec<f32> = numbers[..n].iter().map(|y| low as f32 + y * (high - low) as f32).collect();
                let noise = scheme.noise(Some(key), 5, true).unwrap();
                let word = |stream: Option<Stream>, i| stream.map_or(0, |stream| stream.word(i as u64));
                let (mut want_bits, mut want) = (vec![0; n.div_ceil(8)], vec![0.0; n]);
                with_protocol!(&scheme.kernel, protocol => for i in 0..n {
                    let margin = protocol.margin(interval.unit(x[i]), word(noise.shared, i), word(noise.coin, i));
                    let bit = u32::from(margin >= 0.0);
                    want_bits[i / 8] |= (bit as u8) << (i % 8);
                    want[i] = interval.place(protocol.estimate(word(noise.shared, i), bit));
                });
                for level in Level::supported() {
                    level.set();
                    let (mut bits, mut y) = (vec![0xff; n.div_ceil(8)], vec![f32::NAN; n]);
                    scheme.encode(&View::from_slice(&x), interval, Some(key), 5, &mut bits).unwrap();
                    scheme.decode(&bits, interval, Some(key), 5, &mut y).unwrap();
                    assert_eq!(bits, want_bits, "{} {n} at {level:?}", scheme.name);
                    assert_eq!(y, want, "{} {n} at {level:?}", scheme.name);
                }
            }
        }
    }
}

#[test]
fn the_first_number_outside_is_named() {
    let scheme = Scheme::new("dither", None).unwrap();
    let mut bits = vec![0; 5000];
    for bad in [-1e-6, 1.000_001, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.5; 40_000];
        (x[39_999], x[20_003], x[20_010]) = (bad, bad, bad);
        let error = scheme.encode(&View::from_slice(&x), UNIT, Some(Key::from_seed(1)), 0, &mut bits);
        assert!(error.is_err_and(|e| e.to_string().starts_with("x: element 20003 ")), "{bad}");
    }
}
