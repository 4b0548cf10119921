//! NEON: four products of signed bytes are added to 32 bits by one instruction (`sdot`), for which stable Rust has no
//! intrinsic.

#![allow(clippy::needless_range_loop, reason = "as in avx2.rs: iterators may not be inlined")]

use std::arch::aarch64::{int32x4_t, vdupq_n_s32, vld1q_s32, vst1q_s32};
use std::arch::{asm, is_aarch64_feature_detected};

use super::kernel::{Kernel, Lanes, ROOM};
use super::operand::Steps;
use crate::cpu::Level;

pub(super) struct Neon;

/// Sixteen sums, four vectors of b and one number of a, of 32 registers.
const ROWS: usize = 4;
const VECTORS: usize = 4;
/// Columns of a vector.
const WIDTH: usize = 4;

impl Kernel for Neon {
    fn new() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(Neon)
    }

    fn name(&self) -> &'static str {
        "neon"
    }

    fn level(&self) -> Level {
        Level::PORTABLE
    }

    fn tile_shape(&self) -> (usize, usize) {
        (ROWS, VECTORS * WIDTH)
    }

    fn lanes(&self, _: &Steps, _: &Steps) -> Lanes {
        Lanes::Bytes { bias: None, every: usize::MAX }
    }

    unsafe fn tile(&self, _: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: `new` has seen the instruction; the rest by the caller's promise.
        unsafe { tile(a, b, groups, sums, stride) };
    }
}

/// # Safety
/// As for [`Kernel::tile`]; the CPU has dot products.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile(a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
    let mut tile = [[vdupq_n_s32(0); VECTORS]; ROWS];
    // SAFETY: the tile is the caller's; group g is one of `groups` of every row of both panels.
    unsafe {
        for row in 0..ROWS {
            for v in 0..VECTORS {
                tile[row][v] = vld1q_s32(sums.add(row * stride + v * WIDTH));
            }
        }
        for g in 0..groups {
            for v in 0..VECTORS {
                let y = vld1q_s32(b.add((g * VECTORS + v) * WIDTH).cast());
                for row in 0..ROWS {
                    tile[row][v] = dot(tile[row][v], vdupq_n_s32(*a.add(row * ROOM + g) as i32), y);
                }
            }
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                vst1q_s32(sums.add(row * stride + v * WIDTH), tile[row][v]);
            }
        }
    }
}

/// Adds four products of signed bytes to each sum.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sums: int32x4_t, x: int32x4_t, y: int32x4_t) -> int32x4_t {
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {x:v}.16b, {y:v}.16b",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            y = in(vreg) y,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
