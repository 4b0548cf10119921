//! Any CPU: plain loops.

use super::kernel::{Kernel, Lanes, ROOM};
use super::operand::Steps;
use crate::cpu::Level;

pub(super) struct Portable;

const ROWS: usize = 4;
const COLUMNS: usize = 16;

impl Kernel for Portable {
    fn new() -> Option<Self> {
        Some(Portable)
    }

    fn name(&self) -> &'static str {
        "portable"
    }

    fn level(&self) -> Level {
        Level::PORTABLE
    }

    fn tile_shape(&self) -> (usize, usize) {
        (ROWS, COLUMNS)
    }

    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes {
        if a.in_bytes() && b.in_bytes() { Lanes::Bytes { bias: None, every: usize::MAX } } else { Lanes::Words }
    }

    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: by the caller's promise.
        let b = unsafe { std::slice::from_raw_parts(b.cast::<[u32; COLUMNS]>(), groups) };
        for row in 0..ROWS {
            // SAFETY: by the caller's promise.
            let (a, sums) = unsafe {
                (
                    std::slice::from_raw_parts(a.add(row * ROOM), groups),
                    &mut *sums.add(row * stride).cast::<[i32; COLUMNS]>(),
                )
            };
            match lanes {
                Lanes::Bytes { .. } => {
                    add(a, b, sums, u32::to_le_bytes, |x, y| i32::from(x as i8) * i32::from(y as i8));
                }
                Lanes::Words => {
                    add(a, b, sums, |x| [x as u16, (x >> 16) as u16], |x, y| i32::from(x as i16) * i32::from(y as i16));
                }
            }
        }
    }
}

#[inline(always)]
fn add<T: Copy, const N: usize>(
    a: &[u32],
    b: &[[u32; COLUMNS]],
    sums: &mut [i32; COLUMNS],
    split: impl Fn(u32) -> [T; N],
    times: impl Fn(T, T) -> i32,
) {
    for (x, b) in a.iter().zip(b) {
        let x = split(*x);
        for (sum, y) in sums.iter_mut().zip(b) {
            let y = split(*y);
            for i in 0..N {
                *sum = sum.wrapping_add(times(x[i], y[i]));
            }
        }
    }
}
