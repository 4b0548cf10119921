//! The few primitives that plain loops do badly. Each is called once per tile with the level, has a plain twin in
//! [`portable`], and is equal to it by test.

pub(crate) mod mask;
mod portable;
pub(crate) mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::cpu::Level;

/// Outputs of at least this many bytes are written past the caches: measured in `benches/`.
pub(crate) const STREAM_FROM: usize = 8 << 20;

/// Two 4-bit codes a byte, the first in the low half; an odd last code leaves the high half zero.
#[inline(always)]
pub(crate) fn merge_nibbles(level: Level, codes: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { x86_64::merge_nibbles(codes, out) };
    }
    let _ = level;
    portable::merge_nibbles(codes, out);
}

/// [`merge_nibbles`] of codes that take a word each.
#[inline(always)]
pub(crate) fn merge_nibble_words(level: Level, codes: &[u32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { x86_64::merge_nibble_words(codes, out) };
    }
    let _ = level;
    portable::merge_nibble_words(codes, out);
}

/// The inverse of [`merge_nibbles`].
#[inline(always)]
pub(crate) fn split_nibbles(level: Level, packed: &[u8], codes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { x86_64::split_nibbles(packed, codes) };
    }
    let _ = level;
    portable::split_nibbles(packed, codes);
}

/// The scalar product of two vectors of at most 2^15 bytes each, exactly.
#[inline(always)]
pub(crate) fn dot(level: Level, x: &[i8], z: &[i8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { x86_64::dot(x, z) };
    }
    let _ = level;
    portable::dot(x, z)
}

/// How eight codes of up to 16 bits lie in the first sixteen bytes of theirs.
pub(crate) struct Eights {
    /// Codes' bits.
    bits: u32,
    /// For each code four places of bytes, of which those above 127 are no place.
    places: [u8; 32],
    /// How far the first of those bytes begins before the code.
    shifts: [u32; 8],
}

impl Eights {
    /// Of codes of so many bits.
    pub fn new(bits: u32) -> Self {
        let first = |code: usize| code * bits as usize;
        Eights {
            bits,
            // A code ends within three bytes; what is beyond the sixteenth belongs to others.
            places: std::array::from_fn(|i| match first(i / 4) / 8 + i % 4 {
                place @ 0..16 if i % 4 < 3 => place as u8,
                _ => 0x80,
            }),
            shifts: std::array::from_fn(|code| first(code) as u32 % 8),
        }
    }

    /// Unpacks codes, each to a word, by eights and as long as there are sixteen bytes to read: gives how many that are.
    #[inline(always)]
    pub fn unpack(&self, level: Level, packed: &[u8], codes: &mut [u32]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if level.has_avx2() {
            // SAFETY: the level says that AVX2 is there.
            return unsafe { x86_64::unpack_eights(self, packed, codes) };
        }
        let _ = (level, packed, codes);
        0
    }
}

/// Copies bytes with stores that go past the caches. Call [`stream_done`] before the data is handed to another thread.
#[inline(always)]
pub(crate) fn stream_copy(level: Level, from: &[u8], to: &mut [u8]) {
    debug_assert_eq!(from.len(), to.len(), "a copy");
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() {
        // SAFETY: the level says that AVX2 is there.
        return unsafe { x86_64::stream_copy(from, to) };
    }
    let _ = level;
    to.copy_from_slice(from);
}

/// Asks for memory that will be read soon; any address will do.
#[inline(always)]
pub(crate) fn prefetch(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(from, count);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// Orders streamed stores before everything that follows.
#[inline(always)]
pub(crate) fn stream_done() {
    #[cfg(target_arch = "x86_64")]
    x86_64::stream_done();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eights_are_unpacked_as_far_as_sixteen_bytes_can_be_read() {
        for bits in 1..=16_u32 {
            let code = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) >> (32 - bits);
            let mut packed = vec![0_u8; 100 * bits as usize / 8 + 1];
            for i in 0..100 * bits as usize {
                packed[i / 8] |= ((code(i / bits as usize) >> (i % bits as usize) & 1) as u8) << (i % 8);
            }
            for level in Level::supported() {
                for length in 0..=packed.len() {
                    let mut codes = [u32::MAX; 100];
                    let done = Eights::new(bits).unpack(level, &packed[..length], &mut codes);
                    assert!(
                        done.is_multiple_of(8) && done * bits as usize <= 8 * length,
                        "{level:?} {bits} {length}: {done}"
                    );
                    assert!(length < 16 || done >= 8 || level == Level::PORTABLE, "{level:?} {bits} {length}: {done}");
                    for (i, found) in codes.iter().enumerate() {
                        let want = if i < done { code(i) } else { u32::MAX };
                        assert_eq!(*found, want, "{level:?}, {bits} bits, {length} bytes, code {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_exact_at_any_length() {
        for length in [0, 1, 31, 32, 33, 1000, 1 << 15] {
            for extreme in [false, true] {
                let byte = |i: usize| if extreme { i8::MIN } else { (i as u32).wrapping_mul(0x9e37_79b9) as i8 };
                let (x, z): (Vec<i8>, Vec<i8>) = (0..length).map(|i| (byte(i), byte(i + 7777))).unzip();
                let want: i64 = x.iter().zip(&z).map(|(x, z)| i64::from(*x) * i64::from(*z)).sum();
                for level in Level::supported() {
                    assert_eq!(i64::from(dot(level, &x, &z)), want, "{level:?}, {length} numbers");
                }
            }
        }
    }

    #[test]
    fn streamed_bytes_arrive_at_any_alignment() {
        let from: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for shift in 0..33 {
            for len in [0, 1, 15, 16, 31, 32, 33, 64, 100, 900] {
                for level in Level::supported() {
                    let mut to = vec![0; 1000];
                    stream_copy(level, &from[3..3 + len], &mut to[shift..shift + len]);
                    stream_done();
                    assert_eq!(&to[shift..shift + len], &from[3..3 + len], "{level:?} shift {shift}, {len} bytes");
                    assert!(to[shift + len..].iter().all(|byte| *byte == 0), "{level:?} {len} bytes: wrote too far");
                }
            }
        }
    }
}
