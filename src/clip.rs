//! Which numbers a clip lets through, a bit each: what a straight-through gradient asks for later.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use crate::simd::mask;
use crate::view::View;

/// Numbers of one parallel piece of work: whole bytes of bits.
const CHUNK: usize = 1 << 14;
/// Lanes that are compared before their bits are gathered.
const TILE: usize = 512;

/// Writes a one for every number of `low..=high` (eight a byte, least significant bit first) and counts the others; NaN is
/// among them.
pub fn inside(x: &View<'_>, low: f32, high: f32, bits: &mut [u8]) -> Result<usize> {
    let (n, level) = (x.len(), Level::current());
    if bits.len() != n.div_ceil(8) {
        return Err(Error::argument("bits", format!("{} bytes for {n} numbers", bits.len())));
    }
    let outside = AtomicUsize::new(0);
    let bits = Shared::new(bits);
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
        // SAFETY: chunks are disjoint and start at whole bytes, and `bits` is borrowed until `for_each` returns.
        let bits = unsafe { bits.part(range.start / 8..range.end.div_ceil(8)) };
        outside.fetch_add(inside_chunk(level, x, low, high, range, bits), Ordering::Relaxed);
    });
    Ok(outside.into_inner())
}

fn inside_chunk(level: Level, x: &View<'_>, low: f32, high: f32, range: Range<usize>, bits: &mut [u8]) -> usize {
    level.run(
        #[inline(always)]
        || {
            let (mut gathered, mut lanes, mut kept) = ([0.0_f32; TILE], [0.0_f32; TILE], 0_u32);
            for (start, bits) in range.clone().step_by(TILE).zip(bits.chunks_mut(TILE / 8)) {
                let n = TILE.min(range.end - start);
                for (lane, &x) in lanes.iter_mut().zip(x.read(start..start + n, &mut gathered)) {
                    let is_inside = u32::from(x >= low) & u32::from(x <= high);
                    kept += is_inside;
                    // 1.0 or -1.0, whose sign is the bit.
                    *lane = f32::from_bits(0xbf80_0000 ^ is_inside << 31);
                }
                mask::nonnegative(level, &lanes[..n], bits);
            }
            range.len() - kept as usize
        },
    )
}

/// Multiplies `y` by a factor, and makes every number zero whose number of `x` is outside `low..=high`.
pub fn keep_inside(y: &mut [f32], x: &View<'_>, low: f32, high: f32, factor: f32) -> Result<()> {
    let (n, level) = (x.len(), Level::current());
    if y.len() != n {
        return Err(Error::argument("y", format!("{} numbers beside {n}", y.len())));
    }
    let y = Shared::new(y);
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
        // SAFETY: chunks are disjoint, and `y` is borrowed until `for_each` returns.
        let y = unsafe { y.part(range.clone()) };
        level.run(
            #[inline(always)]
            || {
                let mut gathered = [0.0_f32; TILE];
                for (start, y) in range.step_by(TILE).zip(y.chunks_mut(TILE)) {
                    let x = x.read(start..start + y.len(), &mut gathered);
                    for (y, &x) in y.iter_mut().zip(x) {
                        // All ones or none: a NaN of y goes too.
                        let kept = (u32::from(x >= low) & u32::from(x <= high)).wrapping_neg();
                        *y = f32::from_bits((*y * factor).to_bits() & kept);
                    }
                }
            },
        );
    });
    Ok(())
}

/// Takes the numbers whose bit is not set out of `y`, which keeps zeros for them, and lists them and their places.
pub fn take_outside(y: &mut [f32], bits: &[u8]) -> Result<(Vec<f32>, Vec<i64>)> {
    if bits.len() != y.len().div_ceil(8) {
        return Err(Error::argument("bits", format!("{} bytes for {} numbers", bits.len(), y.len())));
    }
    let set: usize = bits.iter().map(|byte| byte.count_ones() as usize).sum();
    let room = (bits.len() * 8).saturating_sub(set);
    let (mut taken, mut places) = (Vec::with_capacity(room), Vec::with_capacity(room));
    for (byte, (eight, start)) in bits.iter().zip(y.chunks_mut(8).zip((0_i64..).step_by(8))) {
        // As after a clip that was learned, most bytes are all ones.
        let mut unset = u32::from(!byte);
        while unset != 0 {
            let lane = unset.trailing_zeros();
            if let Some(y) = eight.get_mut(lane as usize) {
                taken.push(std::mem::take(y));
                places.push(start + i64::from(lane));
            }
            unset &= unset - 1;
        }
    }
    Ok((taken, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_count_are_those_of_the_comparison() {
        let x: Vec<f32> =
            (0..1700_i16).map(|i| if i % 97 == 0 { f32::NAN } else { f32::from(i % 23) - 11.0 }).collect();
        for level in Level::supported() {
            for n in [0, 1, 7, 8, 511, 512, 513, 1700] {
                let view = View::from_slice(&x[..n]);
                let mut bits = vec![0xff; n.div_ceil(8)];
                let outside = inside_chunk(level, &view, -3.0, 5.0, 0..n, &mut bits);
                let want: Vec<bool> = x[..n].iter().map(|x| (-3.0..=5.0).contains(x)).collect();
                assert_eq!(outside, want.iter().filter(|is_inside| !**is_inside).count(), "{n} at {level:?}");
                for (i, want) in want.iter().enumerate() {
                    assert_eq!(bits[i / 8] >> (i % 8) & 1 == 1, *want, "bit {i} of {n} at {level:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_outside_becomes_zero() {
        let x: Vec<f32> =
            (0..1700_i16).map(|i| if i % 97 == 0 { f32::NAN } else { f32::from(i % 23) - 11.0 }).collect();
        for level in Level::supported() {
            level.set();
            let mut y: Vec<f32> = (0..1700_i16).map(|i| if i % 31 == 0 { f32::NAN } else { f32::from(i) }).collect();
            let before = y.clone();
            assert!(keep_inside(&mut y, &View::from_slice(&x), -3.0, 5.0, 0.3).is_ok(), "as long as each other");
            for ((x, y), before) in x.iter().zip(&y).zip(&before) {
                let want = if (-3.0..=5.0).contains(x) { *before * 0.3 } else { 0.0 };
                assert_eq!(y.to_bits(), want.to_bits(), "beside {x} at {level:?}");
            }
        }
    }

    #[test]
    fn what_is_taken_out_leaves_zeros() {
        for n in [0, 1, 7, 8, 9, 100] {
            let before: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let is_kept = |i: usize| i % 3 != 1 && i != 8;
            let mut bits = vec![0_u8; before.len().div_ceil(8)];
            for i in (0..before.len()).filter(|&i| is_kept(i)) {
                bits[i / 8] |= 1 << (i % 8);
            }
            let mut y = before.clone();
            let want: Vec<i64> = (0..n).filter(|&i| !is_kept(i as usize)).collect();
            let numbers = want.iter().map(|&i| i as f32 + 1.0).collect();
            assert_eq!(take_outside(&mut y, &bits).ok(), Some((numbers, want)), "of {n}");
            for (i, (y, before)) in y.iter().zip(&before).enumerate() {
                assert_eq!(*y, if is_kept(i) { *before } else { 0.0 }, "number {i} of {n}");
            }
        }
    }
}
