//! AVX2: bytes by `vpmaddubsw`, whose 16-bit sums are widened before they overflow; else 16-bit numbers by `vpmaddwd`.
//!
//! Loops over vectors count: iterators are functions, and one that is not inlined gets its vectors through memory.

#![allow(clippy::needless_range_loop, reason = "see above")]

use std::arch::x86_64::{
    __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_shuffle_epi32, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_permute2x128_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
    _mm256_storeu_si256, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
};

use super::few::Few;
use super::kernel::{Kernel, Lanes, ROOM};
use super::operand::Steps;
use crate::cpu::Level;

pub(super) struct Avx2(Level);

/// Twelve sums, two vectors of b and one number of a: all sixteen registers.
const ROWS: usize = 6;
const VECTORS: usize = 2;
/// Columns of a vector.
const WIDTH: usize = 8;

/// Widening sums more often than this costs more than 16-bit numbers do.
const LEAST: usize = 4;

impl Kernel for Avx2 {
    fn new() -> Option<Self> {
        Level::supported().into_iter().find(|level| level.has_avx2()).map(Avx2)
    }

    fn name(&self) -> &'static str {
        "avx2"
    }

    fn level(&self) -> Level {
        self.0
    }

    fn tile_shape(&self) -> (usize, usize) {
        (ROWS, VECTORS * WIDTH)
    }

    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes {
        let bias = -a.low.min(0);
        let (most_a, most_b) = (a.high + bias, b.most());
        let every = i32::from(i16::MAX) / (2 * most_a * most_b).max(1);
        if most_a <= 255 && b.in_bytes() && every as usize >= LEAST {
            Lanes::Bytes { bias: Some(bias), every: every as usize }
        } else {
            Lanes::Words
        }
    }

    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: `new` has seen AVX2; the rest by the caller's promise.
        unsafe {
            match lanes {
                Lanes::Bytes { every, .. } => bytes(a, b, groups, every, sums, stride),
                Lanes::Words => words(a, b, groups, sums, stride),
            }
        }
    }
}

type Tile = [[__m256i; VECTORS]; ROWS];

/// # Safety
/// As for [`Kernel::tile`].
#[target_feature(enable = "avx2")]
unsafe fn bytes(a: *const u32, b: *const u32, groups: usize, every: usize, sums: *mut i32, stride: usize) {
    let mut first = 0;
    while first < groups {
        let end = groups.min(first + every);
        let mut narrow: Tile = [[_mm256_setzero_si256(); VECTORS]; ROWS];
        for g in first..end {
            // SAFETY: group g is one of `groups` of every row of both panels.
            unsafe {
                let y = row_of_b(b, g);
                for row in 0..ROWS {
                    let x = _mm256_set1_epi32(*a.add(row * ROOM + g) as i32);
                    narrow[row][0] = _mm256_add_epi16(narrow[row][0], _mm256_maddubs_epi16(x, y[0]));
                    narrow[row][1] = _mm256_add_epi16(narrow[row][1], _mm256_maddubs_epi16(x, y[1]));
                }
            }
        }
        let ones = _mm256_set1_epi16(1);
        for row in 0..ROWS {
            narrow[row] = [_mm256_madd_epi16(narrow[row][0], ones), _mm256_madd_epi16(narrow[row][1], ones)];
        }
        // SAFETY: the tile is the caller's.
        unsafe { add(&narrow, sums, stride) };
        first = end;
    }
}

/// # Safety
/// As for [`Kernel::tile`].
#[target_feature(enable = "avx2")]
unsafe fn words(a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
    let mut wide: Tile = [[_mm256_setzero_si256(); VECTORS]; ROWS];
    for g in 0..groups {
        // SAFETY: group g is one of `groups` of every row of both panels.
        unsafe {
            let y = row_of_b(b, g);
            for row in 0..ROWS {
                let x = _mm256_set1_epi32(*a.add(row * ROOM + g) as i32);
                wide[row][0] = _mm256_add_epi32(wide[row][0], _mm256_madd_epi16(x, y[0]));
                wide[row][1] = _mm256_add_epi32(wide[row][1], _mm256_madd_epi16(x, y[1]));
            }
        }
    }
    // SAFETY: the tile is the caller's.
    unsafe { add(&wide, sums, stride) };
}

/// # Safety
/// Group g of every column is there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn row_of_b(b: *const u32, g: usize) -> [__m256i; VECTORS] {
    // SAFETY: by the caller's promise.
    let at = |v: usize| unsafe { _mm256_loadu_si256(b.add((g * VECTORS + v) * WIDTH).cast()) };
    [at(0), at(1)]
}

/// # Safety
/// `sums` is a tile, rows `stride` apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add(tile: &Tile, sums: *mut i32, stride: usize) {
    for row in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: by the caller's promise.
            unsafe {
                let place = sums.add(row * stride + v * WIDTH).cast::<__m256i>();
                _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), tile[row][v]));
            }
        }
    }
}

/// Bytes of 4-bit codes, as many as fill vectors: gives how many bytes of codes that were.
///
/// # Safety
/// There is AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn nibbles(packed: &[u8], table: &[u8; 256], out: &mut [u8]) -> usize {
    // SAFETY: the table's first sixteen bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    let low = _mm256_set1_epi8(15);
    let count = packed.len().min(out.len() / 2) / 32;
    for i in 0..count {
        // SAFETY: 32 (i + 1) bytes of codes make 64 (i + 1) numbers.
        unsafe {
            let codes = _mm256_loadu_si256(packed.as_ptr().add(32 * i).cast());
            let even = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
            let odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
            let (x, y) = (_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd));
            let to = out.as_mut_ptr().add(64 * i).cast::<__m256i>();
            _mm256_storeu_si256(to, _mm256_permute2x128_si256::<0x20>(x, y));
            _mm256_storeu_si256(to.add(1), _mm256_permute2x128_si256::<0x31>(x, y));
        }
    }
    32 * count
}

/// The products of packed 4-bit codes with rows of numbers, block after block.
///
/// # Safety
/// There is AVX2, and each row is as long as the codes, every block filled up to runs of 64.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dots<const ROWS: usize>(packed: &[u8], few: &Few, mut found: impl FnMut(usize, &[i32; ROWS])) {
    // SAFETY: the table's first sixteen bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(few.table.as_ptr().cast()) });
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut numbers = few.numbers.as_ptr();
    for (block, packed) in packed.chunks(few.block).enumerate() {
        let mut wide = [_mm256_setzero_si256(); ROWS];
        let (whole, rest) = packed.as_chunks::<32>();
        // What is behind the last code meets zeros.
        let mut last = [[0; 32]; 1];
        last[0][..rest.len()].copy_from_slice(rest);
        let last = &last[..usize::from(!rest.is_empty())];
        for part in &[whole, last] {
            for run in part.chunks(few.every) {
                let mut narrow = [[_mm256_setzero_si256(); 2]; ROWS];
                for codes in run {
                    // SAFETY: 32 bytes; and 64 numbers of every row.
                    unsafe {
                        let codes = _mm256_loadu_si256(codes.as_ptr().cast());
                        let even = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
                        let odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
                        for row in 0..ROWS {
                            let x = numbers.add(row * few.height).cast::<__m256i>();
                            let (x, y) = (_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1)));
                            narrow[row][0] = _mm256_add_epi16(narrow[row][0], _mm256_maddubs_epi16(even, x));
                            narrow[row][1] = _mm256_add_epi16(narrow[row][1], _mm256_maddubs_epi16(odd, y));
                        }
                        numbers = numbers.add(64);
                    }
                }
                for row in 0..ROWS {
                    let (even, odd) =
                        (_mm256_madd_epi16(narrow[row][0], ones), _mm256_madd_epi16(narrow[row][1], ones));
                    wide[row] = _mm256_add_epi32(wide[row], _mm256_add_epi32(even, odd));
                }
            }
        }
        let mut sums = [0; ROWS];
        for row in 0..ROWS {
            let (low, high) = (_mm256_castsi256_si128(wide[row]), _mm256_extracti128_si256::<1>(wide[row]));
            let four = _mm_add_epi32(low, high);
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            sums[row] = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)));
        }
        found(block, &sums);
    }
}
