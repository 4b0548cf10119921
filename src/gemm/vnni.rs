//! VNNI: four products of bytes, or two of 16-bit numbers, are added to 32 bits by one instruction, without saturation.

#![allow(clippy::needless_range_loop, reason = "as in avx2.rs: iterators may not be inlined")]

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_dpbusd_avx_epi32, _mm256_dpwssd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_storeu_si512,
};

use super::kernel::{Kernel, Lanes, ROOM};
use super::operand::Steps;
use crate::cpu::Level;

/// Vectors of 256 bits.
pub(super) struct Avx(Level);

/// Vectors of 512 bits.
pub(super) struct Avx512(Level);

/// The bytes of a are unsigned.
fn lanes(a: &Steps, b: &Steps) -> Lanes {
    let bias = -a.low.min(0);
    if a.high + bias <= 255 && b.in_bytes() {
        Lanes::Bytes { bias: Some(bias), every: usize::MAX }
    } else {
        Lanes::Words
    }
}

impl Kernel for Avx {
    fn new() -> Option<Self> {
        let level = Level::supported().into_iter().find(|level| level.has_avx2())?;
        is_x86_feature_detected!("avxvnni").then_some(Avx(level))
    }

    fn name(&self) -> &'static str {
        "avx-vnni"
    }

    fn level(&self) -> Level {
        self.0
    }

    fn tile_shape(&self) -> (usize, usize) {
        (6, 16)
    }

    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes {
        lanes(a, b)
    }

    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: `new` has seen the instructions; the rest by the caller's promise.
        unsafe {
            match lanes {
                Lanes::Bytes { .. } => bytes(a, b, groups, sums, stride),
                Lanes::Words => words(a, b, groups, sums, stride),
            }
        }
    }
}

impl Kernel for Avx512 {
    fn new() -> Option<Self> {
        let level = Level::supported().pop().filter(|level| level.has_avx512())?;
        is_x86_feature_detected!("avx512vnni").then_some(Avx512(level))
    }

    fn name(&self) -> &'static str {
        "avx512-vnni"
    }

    fn level(&self) -> Level {
        self.0
    }

    fn tile_shape(&self) -> (usize, usize) {
        (12, 32)
    }

    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes {
        lanes(a, b)
    }

    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: `new` has seen the instructions; the rest by the caller's promise.
        unsafe {
            match lanes {
                Lanes::Bytes { .. } => bytes512(a, b, groups, sums, stride),
                Lanes::Words => words512(a, b, groups, sums, stride),
            }
        }
    }
}

/// The sums of a tile, rows of two vectors, go through registers once.
macro_rules! tile {
    ($name:ident, $features:literal, $rows:literal, $vector:ty, $load:ident, $store:ident, $set:ident, $dot:ident) => {
        /// # Safety
        /// As for [`Kernel::tile`]; the CPU has the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name(a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
            const WIDTH: usize = size_of::<$vector>() / 4;
            let mut tile: [[$vector; 2]; $rows] = [[$set(0); 2]; $rows];
            // SAFETY: the tile is the caller's; group g is one of `groups` of every row of both panels.
            unsafe {
                let place = |row: usize, v: usize| sums.add(row * stride + v * WIDTH);
                for row in 0..$rows {
                    tile[row] = [$load(place(row, 0).cast()), $load(place(row, 1).cast())];
                }
                for g in 0..groups {
                    let y = [$load(b.add(2 * g * WIDTH).cast()), $load(b.add((2 * g + 1) * WIDTH).cast())];
                    for row in 0..$rows {
                        let x = $set(*a.add(row * ROOM + g) as i32);
                        tile[row] = [$dot(tile[row][0], x, y[0]), $dot(tile[row][1], x, y[1])];
                    }
                }
                for row in 0..$rows {
                    $store(place(row, 0).cast(), tile[row][0]);
                    $store(place(row, 1).cast(), tile[row][1]);
                }
            }
        }
    };
}

#[rustfmt::skip]
tile!(bytes, "avx2,avxvnni", 6, __m256i, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32, _mm256_dpbusd_avx_epi32);
#[rustfmt::skip]
tile!(words, "avx2,avxvnni", 6, __m256i, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32, _mm256_dpwssd_avx_epi32);
#[rustfmt::skip]
tile!(bytes512, "avx512f,avx512vnni", 12, __m512i, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_set1_epi32, _mm512_dpbusd_epi32);
#[rustfmt::skip]
tile!(words512, "avx512f,avx512vnni", 12, __m512i, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_set1_epi32, _mm512_dpwssd_epi32);
