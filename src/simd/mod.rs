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
