//! NEON: four products of signed bytes are added to 32 bits by one instruction (`sdot`), for which stable Rust has no
//! intrinsic.

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
    for (row, tile) in tile.iter_mut().enumerate() {
        for (v, vector) in tile.iter_mut().enumerate() {
            // SAFETY: the tile is the caller's.
            *vector = unsafe { vld1q_s32(sums.add(row * stride + v * WIDTH)) };
        }
    }
    for g in 0..groups {
        for v in 0..VECTORS {
            // SAFETY: group g is one of `groups` of every row of both panels.
            let y = unsafe { vld1q_s32(b.add((g * VECTORS + v) * WIDTH).cast()) };
            for (row, tile) in tile.iter_mut().enumerate() {
                // SAFETY: as above.
                let x = unsafe { vdupq_n_s32(*a.add(row * ROOM + g) as i32) };
                tile[v] = dot(tile[v], x, y);
            }
        }
    }
    for (row, tile) in tile.iter().enumerate() {
        for (v, vector) in tile.iter().enumerate() {
            // SAFETY: the tile is the caller's.
            unsafe { vst1q_s32(sums.add(row * stride + v * WIDTH), *vector) };
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
