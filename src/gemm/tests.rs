//! Every kernel of this CPU against sums of one product after the other.

use super::kernel::{ROOM, supported};
use super::*;
use crate::formats::Format;
use crate::pack;

/// What a matrix is made of.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Codes that look random.
    Mixed,
    /// The format's lowest number.
    Low,
    /// Its highest.
    High,
}

fn codes(n: usize, format: &Format, fill: Fill, seed: u32) -> (Vec<u8>, Vec<u8>) {
    let (bits, table) = (format.bits, format.decode_table());
    let code = |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(seed) ^ (i as u32) << 7) >> 13;
    let mut ascending: Vec<u8> = (0..table.len()).map(|code| code as u8).collect();
    ascending.sort_by(|a, b| table[usize::from(*a)].total_cmp(&table[usize::from(*b)]));
    let codes: Vec<u8> = match fill {
        Fill::Mixed => (0..n).map(|i| (code(i) & ((1 << bits) - 1)) as u8).collect(),
        Fill::Low => vec![ascending[0]; n],
        Fill::High => vec![ascending[ascending.len() - 1]; n],
    };
    let mut packed = vec![0; pack::packed_len(n, bits)];
    assert!(pack::pack(&codes, bits, &mut packed).is_ok(), "{n} codes of {bits} bits");
    (codes, packed)
}

fn naive(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), (a_along, b_along): (bool, bool)) -> Vec<f32> {
    let mut out = vec![];
    for i in 0..m {
        for j in 0..n {
            let x = |l: usize| f64::from(if a_along { a[i * k + l] } else { a[l * m + i] });
            let y = |l: usize| f64::from(if b_along { b[j * k + l] } else { b[l * n + j] });
            out.push((0..k).map(|l| x(l) * y(l)).sum::<f64>() as f32);
        }
    }
    out
}

fn check(formats: (&str, &str), shape: (usize, usize, usize), along: (bool, bool)) {
    check_filled(formats, (Fill::Mixed, Fill::Mixed), shape, along);
}

fn check_filled(formats: (&str, &str), fills: (Fill, Fill), (m, n, k): (usize, usize, usize), along: (bool, bool)) {
    let Ok(a_format) = Format::named(formats.0) else { unreachable!("{formats:?}") };
    let Ok(b_format) = Format::named(formats.1) else { unreachable!("{formats:?}") };
    let (Ok(a_steps), Ok(b_steps)) = (Steps::of("a", &a_format), Steps::of("b", &b_format)) else {
        unreachable!("{formats:?}")
    };
    let ((a_codes, a_packed), (b_codes, b_packed)) =
        (codes(m * k, &a_format, fills.0, 1), codes(k * n, &b_format, fills.1, 2));
    let numbers = |format: &Format, codes: &[u8]| -> Vec<f32> {
        let table = format.decode_table();
        codes.iter().map(|code| table[usize::from(*code)]).collect()
    };
    let want = naive(&numbers(&a_format, &a_codes), &numbers(&b_format, &b_codes), (m, n, k), along);
    let a = Codes::new("a", &a_packed, a_format.bits, (1, m, k), along.0);
    let b = Codes::new("b", &b_packed, b_format.bits, (1, n, k), along.1);
    let (Ok(a), Ok(b)) = (a, b) else { unreachable!("{formats:?}") };
    let a = Operand { codes: a, steps: &a_steps, matrices: &[0] };
    let b = Operand { codes: b, steps: &b_steps, matrices: &[0] };
    for level in Level::supported() {
        let twins: [&dyn Kernel; 2] = [&Twin { bias: false }, &Twin { bias: true }];
        let kernels = supported().iter().map(|kernel| -> &dyn Kernel { &**kernel }).chain(twins);
        for kernel in kernels.filter(|kernel| kernel.level() <= level) {
            let mut out = vec![f32::NAN; m * n];
            let done = product_by(level, kernel, &a, &b, &Scaling::Factor(1.0), &mut out);
            assert!(done.is_ok(), "{done:?}");
            let wrong = out.iter().zip(&want).position(|(out, want)| out.to_bits() != (want + 0.0).to_bits());
            let of = format!("{} {level:?} {formats:?} {fills:?} {m} x {n} x {k} {along:?}", kernel.name());
            assert_eq!(wrong, None, "{of}: {:?}", wrong.map(|i| (out[i], want[i])));
        }
    }
}

/// What other CPUs' kernels ask of the driver, in plain loops: AMX and NEON's signed bytes, low and high apart and groups
/// sixteen at a time, or VNNI's unsigned ones.
struct Twin {
    bias: bool,
}

impl Kernel for Twin {
    fn new() -> Option<Self> {
        None
    }

    fn name(&self) -> &'static str {
        if self.bias { "twin of VNNI" } else { "twin of AMX" }
    }

    fn level(&self) -> Level {
        Level::PORTABLE
    }

    fn tile_shape(&self) -> (usize, usize) {
        if self.bias { (12, 32) } else { (32, 32) }
    }

    fn groups(&self) -> usize {
        if self.bias { 1 } else { 16 }
    }

    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes {
        let bias = -a.low.min(0);
        match self.bias {
            false => Lanes::Bytes { bias: None, every: usize::MAX },
            true if a.high + bias <= 255 && b.in_bytes() => Lanes::Bytes { bias: Some(bias), every: usize::MAX },
            true => Lanes::Words,
        }
    }

    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        let (rows, columns) = self.tile_shape();
        assert!(groups.is_multiple_of(self.groups()), "{groups} groups");
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            for g in 0..groups {
                // SAFETY: as for every kernel.
                let (x, y) = unsafe { (*a.add(row * ROOM + g), *b.add(g * columns + column)) };
                let bytes = |i: u32| {
                    let (x, y) = ((x >> (8 * i)) as u8, (y >> (8 * i)) as i8);
                    if self.bias { i32::from(x) * i32::from(y) } else { i32::from(x as i8) * i32::from(y) }
                };
                let words = |i: u32| i32::from((x >> (16 * i)) as i16) * i32::from((y >> (16 * i)) as i16);
                let more = match lanes {
                    Lanes::Bytes { .. } => (0..4).map(bytes).fold(0, i32::wrapping_add),
                    Lanes::Words => (0..2).map(words).fold(0, i32::wrapping_add),
                };
                // SAFETY: as above.
                unsafe {
                    let sum = sums.add(row * stride + column);
                    *sum = (*sum).wrapping_add(more);
                }
            }
        }
    }
}

const FORMATS: [&str; 10] = ["int4", "uint4", "int2", "int3", "int8", "uint8", "ternary", "sign", "radix4", "fp4_e2m1"];

#[test]
fn every_kernel_multiplies_every_pair_of_formats_exactly() {
    for a in FORMATS {
        for b in FORMATS {
            for along in [(true, true), (true, false), (false, true), (false, false)] {
                check((a, b), (7, 17, 37), along);
            }
        }
    }
}

#[test]
fn every_kernel_multiplies_every_shape() {
    for along in [(true, true), (true, false), (false, true), (false, false)] {
        for shape in
            [(1, 1, 1), (0, 3, 5), (3, 0, 5), (3, 5, 0), (1, 65, 513), (67, 1, 1025), (129, 131, 70), (33, 66, 1100)]
        {
            check(("int4", "int4"), shape, along);
            check(("radix4", "int4"), shape, along);
            check(("int8", "uint8"), shape, along);
        }
    }
}

#[test]
fn a_few_rows_take_the_short_way_to_the_same_numbers() {
    for (m, n, k) in [(1, 1, 2), (1, 130, 64), (2, 65, 1026), (3, 64, 62), (4, 70, 128), (4, 3, 5)] {
        for formats in [("int8", "int4"), ("int4", "uint4"), ("ternary", "fp4_e2m1"), ("int8", "radix4")] {
            check(formats, (m, n, k), (true, true));
            check(formats, (m, n, k), (false, true));
        }
    }
}

#[test]
fn long_sums_do_not_wrap() {
    for (formats, k) in [(("uint8", "uint8"), 70_001), (("radix4", "radix4"), 70_001), (("int4", "int4"), 1 << 17)] {
        for fills in [(Fill::Mixed, Fill::Mixed), (Fill::High, Fill::High)] {
            check_filled(formats, fills, (3, 5, k), (true, false));
        }
    }
}

/// Of random codes sums stay small: narrow sums must hold as many of the largest products as they are given.
#[test]
fn sums_of_the_largest_products_do_not_overflow_on_the_way() {
    for a in FORMATS {
        for b in FORMATS {
            for fills in
                [(Fill::Low, Fill::Low), (Fill::Low, Fill::High), (Fill::High, Fill::Low), (Fill::High, Fill::High)]
            {
                check_filled((a, b), fills, (2, 3, 1100), (true, true));
                check_filled((a, b), fills, (7, 5, 1100), (true, false));
            }
        }
    }
}
