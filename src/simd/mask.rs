//! Lane signs to bits, and bits to lanes; eight lanes a byte, least significant bit first.

use crate::cpu::Level;

/// Writes one bit per lane, set where the lane's sign bit is clear; the last byte is padded with zeros.
///
/// `bits` holds `lanes.len().div_ceil(8)` bytes.
pub(crate) fn nonnegative(level: Level, lanes: &[f32], bits: &mut [u8]) {
    debug_assert_eq!(bits.len(), lanes.len().div_ceil(8), "one byte for eight lanes");
    let (groups, tail) = lanes.as_chunks::<8>();
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level is proof that this CPU has AVX2.
        unsafe { nonnegative_avx2(groups, bits) };
    } else {
        nonnegative_portable(groups, bits);
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = level;
        nonnegative_portable(groups, bits);
    }
    if let Some(last) = bits.get_mut(groups.len()) {
        *last = tail.iter().enumerate().fold(0, |byte, (i, lane)| byte | u8::from(lane.is_sign_positive()) << i);
    }
}

fn nonnegative_portable(groups: &[[f32; 8]], bits: &mut [u8]) {
    for (group, byte) in groups.iter().zip(bits) {
        let mut clear = 0;
        for (i, lane) in group.iter().enumerate() {
            clear |= (lane.to_bits() >> 31) << i;
        }
        *byte = !(clear as u8);
    }
}

/// One `vmovmskps` a byte.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn nonnegative_avx2(groups: &[[f32; 8]], bits: &mut [u8]) {
    use std::arch::x86_64::{_mm256_loadu_ps, _mm256_movemask_ps};
    for (group, byte) in groups.iter().zip(bits) {
        // SAFETY: a group is eight readable floats; the load asks for no alignment.
        let lanes = unsafe { _mm256_loadu_ps(group.as_ptr()) };
        *byte = !(_mm256_movemask_ps(lanes) as u8);
    }
}

/// Writes each bit, 0 or 1, to a lane of its own. A plain loop: it compiles to a broadcast and a variable shift.
#[inline(always)]
pub(crate) fn spread(bits: &[u8], lanes: &mut [u32]) {
    for (group, &byte) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
        for (i, lane) in group.iter_mut().enumerate() {
            *lane = u32::from(byte) >> i & 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_and_length_writes_the_same_bits() {
        let lanes: Vec<f32> = (0..77_u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9) & !0x4000_0000)).collect();
        for level in Level::supported() {
            for n in 0..=lanes.len() {
                let mut bits = vec![0xff; n.div_ceil(8)];
                nonnegative(level, &lanes[..n], &mut bits);
                for i in 0..8 * bits.len() {
                    let want = i < n && lanes[i].is_sign_positive();
                    assert_eq!(bits[i / 8] >> (i % 8) & 1 == 1, want, "bit {i} of {n} at {level:?}");
                }
            }
        }
    }
}
