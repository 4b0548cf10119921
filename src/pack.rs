//! Codes of 1 to 16 bits to and from one flat bit string, least significant bit first, padded with zeros at its end.

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use crate::simd;

/// A code in memory: `u8` up to 8 bits, `u16` up to 16; kernels write whole `u32` lanes.
pub trait Code: Copy + Send + Sync + Into<u32> {
    /// The low bits of `word`.
    fn low(word: u32) -> Self;

    /// Merges pairs of 4-bit codes.
    fn merge_nibbles(level: Level, codes: &[Self], out: &mut [u8]);

    /// These codes as bytes, if they are bytes.
    fn bytes_mut(codes: &mut [Self]) -> Option<&mut [u8]>;
}

impl Code for u8 {
    #[inline(always)]
    fn low(word: u32) -> u8 {
        word as u8
    }
    #[inline(always)]
    fn merge_nibbles(level: Level, codes: &[u8], out: &mut [u8]) {
        simd::merge_nibbles(level, codes, out);
    }
    #[inline(always)]
    fn bytes_mut(codes: &mut [u8]) -> Option<&mut [u8]> {
        Some(codes)
    }
}

impl Code for u16 {
    #[inline(always)]
    fn low(word: u32) -> u16 {
        word as u16
    }
    #[inline(always)]
    fn merge_nibbles(_: Level, codes: &[u16], out: &mut [u8]) {
        pack_eights(codes, 4, out);
    }
    #[inline(always)]
    fn bytes_mut(_: &mut [u16]) -> Option<&mut [u8]> {
        None
    }
}

impl Code for u32 {
    #[inline(always)]
    fn low(word: u32) -> u32 {
        word
    }
    #[inline(always)]
    fn merge_nibbles(level: Level, codes: &[u32], out: &mut [u8]) {
        simd::merge_nibble_words(level, codes, out);
    }
    #[inline(always)]
    fn bytes_mut(_: &mut [u32]) -> Option<&mut [u8]> {
        None
    }
}

/// Bytes that `n` codes of `bits` bits take.
pub const fn packed_len(n: usize, bits: u32) -> usize {
    // In 128 bits, so that no n overflows.
    let bytes = (n as u128 * bits as u128).div_ceil(8);
    if bytes > usize::MAX as u128 { usize::MAX } else { bytes as usize }
}

/// Packs codes into exactly [`packed_len`] bytes. Bits of a code above `bits` must be zero.
#[inline(always)]
pub(crate) fn pack_tile<C: Code>(level: Level, codes: &[C], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(out.len(), packed_len(codes.len(), bits), "{} codes of {bits} bits", codes.len());
    match bits {
        1 => pack_bits(level, codes, out),
        4 => C::merge_nibbles(level, codes, out),
        8 => out.iter_mut().zip(codes).for_each(|(byte, &code)| *byte = code.into() as u8),
        16 => {
            for (bytes, &code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *bytes = (code.into() as u16).to_le_bytes();
            }
        }
        _ => pack_eights(codes, bits, out),
    }
}

/// Packs single bits: as the signs of lanes, for which there is an instruction.
#[inline(always)]
fn pack_bits<C: Code>(level: Level, codes: &[C], out: &mut [u8]) {
    const LANES: usize = 256;
    let mut lanes = [0.0; LANES];
    for (codes, out) in codes.chunks(LANES).zip(out.chunks_mut(LANES / 8)) {
        for (lane, &code) in lanes.iter_mut().zip(codes) {
            *lane = f32::from_bits((code.into() ^ 1) << 31);
        }
        simd::mask::nonnegative(level, &lanes[..codes.len()], out);
    }
}

/// Eight codes of at most 8 bits, a byte each, to the lowest `8 bits` bits.
#[inline(always)]
fn squeeze(bytes: u64, bits: u32) -> u64 {
    const ONES: u64 = 0x00ff_00ff_00ff_00ff;
    const PAIRS: u64 = 0x0000_ffff_0000_ffff;
    let pairs = bytes & ONES | (bytes & !ONES) >> (8 - bits);
    let fours = pairs & PAIRS | (pairs & !PAIRS) >> (16 - 2 * bits);
    fours & 0xffff_ffff | fours >> 32 << (4 * bits)
}

/// The inverse of [`squeeze`], whatever lies above.
#[inline(always)]
fn spread(word: u64, bits: u32) -> u64 {
    let low = |count: u32| (1_u64 << count) - 1;
    let fours = word & low(4 * bits) | (word >> (4 * bits) & low(4 * bits)) << 32;
    let two = low(2 * bits) | low(2 * bits) << 32;
    let pairs = fours & two | (fours >> (2 * bits) & two) << 16;
    let one = low(bits) * 0x0001_0001_0001_0001;
    pairs & one | (pairs >> bits & one) << 8
}

/// So many times eight codes go from step to step.
const EIGHTS: usize = 32;

/// Packs by eights: eight codes fill `bits` bytes.
#[inline(always)]
fn pack_eights<C: Code>(codes: &[C], bits: u32, out: &mut [u8]) {
    if bits > 8 {
        for (codes, out) in codes.chunks(8).zip(out.chunks_mut(bits as usize)) {
            let word = codes.iter().rev().fold(0_u128, |word, &code| word << bits | u128::from(code.into()));
            out.copy_from_slice(&word.to_le_bytes()[..out.len()]);
        }
        return;
    }
    // In steps that compilers have registers for: to bytes, eight of them squeezed, what counts copied.
    for (codes, out) in codes.chunks(8 * EIGHTS).zip(out.chunks_mut(bits as usize * EIGHTS)) {
        let mut bytes = [0_u8; 8 * EIGHTS];
        for (byte, &code) in bytes.iter_mut().zip(codes) {
            *byte = code.into() as u8;
        }
        let mut words = [0_u64; EIGHTS];
        let words = &mut words[..codes.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = squeeze(u64::from_le_bytes(*bytes), bits);
        }
        copy_low_bytes(words, bits as usize, out);
    }
}

/// The lowest `count` bytes of each word, one after the other, as far as `out` goes.
#[inline(always)]
fn copy_low_bytes(words: &[u64], count: usize, out: &mut [u8]) {
    let mut at = 0;
    for word in words {
        let bytes = word.to_le_bytes();
        if let Some(place) = out.get_mut(at..at + 8) {
            // Eight bytes at once; those too many are overwritten by the next.
            place.copy_from_slice(&bytes);
        } else if let Some(place) = out.get_mut(at..) {
            let count = count.min(place.len());
            place[..count].copy_from_slice(&bytes[..count]);
        }
        at += count;
    }
}

/// The inverse of [`pack_tile`].
#[inline(always)]
pub(crate) fn unpack_tile<C: Code>(level: Level, packed: &[u8], bits: u32, codes: &mut [C]) {
    debug_assert_eq!(packed.len(), packed_len(codes.len(), bits), "{} codes of {bits} bits", codes.len());
    match C::bytes_mut(codes) {
        Some(codes) if bits == 4 => return simd::split_nibbles(level, packed, codes),
        Some(codes) if bits == 8 => return codes.copy_from_slice(packed),
        _ => {}
    }
    if bits == 16 {
        for (bytes, code) in packed.as_chunks::<2>().0.iter().zip(codes) {
            *code = C::low(u32::from(u16::from_le_bytes(*bytes)));
        }
        return;
    }
    if bits > 8 {
        let mask = (1_u32 << bits) - 1;
        for (packed, codes) in packed.chunks(bits as usize).zip(codes.chunks_mut(8)) {
            let mut bytes = [0_u8; 16];
            bytes[..packed.len()].copy_from_slice(packed);
            let word = u128::from_le_bytes(bytes);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = C::low((word >> (i as u32 * bits)) as u32 & mask);
            }
        }
        return;
    }
    for (packed, codes) in packed.chunks(bits as usize * EIGHTS).zip(codes.chunks_mut(8 * EIGHTS)) {
        let mut words = [0_u64; EIGHTS];
        let words = &mut words[..codes.len().div_ceil(8)];
        for (i, word) in words.iter_mut().enumerate() {
            *word = low_bytes(packed, i * bits as usize);
        }
        let mut bytes = [0_u8; 8 * EIGHTS];
        for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = spread(*word, bits).to_le_bytes();
        }
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = C::low(u32::from(byte));
        }
    }
}

/// Eight bytes from `at` on, zeros beyond the end.
#[inline(always)]
fn low_bytes(packed: &[u8], at: usize) -> u64 {
    if let Some(bytes) = packed.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        return u64::from_le_bytes(*bytes);
    }
    let rest = packed.get(at..).unwrap_or_default();
    rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Codes per parallel chunk: a multiple of 8, so that chunks start on a byte.
const CHUNK: usize = 1 << 15;

/// Packs `codes` into `out`, which has [`packed_len`] bytes.
pub fn pack<C: Code>(codes: &[C], bits: u32, out: &mut [u8]) -> Result<()> {
    check_bits(bits)?;
    if let Some(index) = codes.iter().position(|&code| code.into() >> bits != 0) {
        let code: u32 = codes[index].into();
        return Err(Error::argument("codes", format!("element {index} is {code}, which does not fit {bits} bits")));
    }
    let (level, out) = (Level::current(), Shared::new(out));
    parallel::for_each(codes.len().div_ceil(CHUNK), |chunk| {
        let part = chunk * CHUNK..codes.len().min((chunk + 1) * CHUNK);
        // SAFETY: chunks start on a byte, so their bytes are disjoint; `out` is borrowed until `for_each` returns.
        let bytes = unsafe { out.part(packed_len(part.start, bits)..packed_len(part.end, bits)) };
        level.run(
            #[inline(always)]
            || pack_tile(level, &codes[part], bits, bytes),
        );
    });
    Ok(())
}

/// Unpacks `codes.len()` codes from `packed`, which must have [`packed_len`] bytes and zero padding.
pub fn unpack<C: Code>(packed: &[u8], bits: u32, codes: &mut [C]) -> Result<()> {
    check(packed, codes.len(), bits)?;
    let (level, n, codes) = (Level::current(), codes.len(), Shared::new(codes));
    parallel::for_each(n.div_ceil(CHUNK), |chunk| {
        let part = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
        let bytes = &packed[packed_len(part.start, bits)..packed_len(part.end, bits)];
        // SAFETY: chunks are disjoint; `codes` is borrowed until `for_each` returns.
        let codes = unsafe { codes.part(part) };
        level.run(
            #[inline(always)]
            || unpack_tile(level, bytes, bits, codes),
        );
    });
    Ok(())
}

/// Packs codes of three values five a byte, as digits of base 3, the first the lowest.
#[inline(always)]
pub(crate) fn pack_trits<C: Code>(codes: &[C], out: &mut [u8]) {
    for (codes, byte) in codes.chunks(5).zip(out) {
        *byte = codes.iter().rev().fold(0, |byte, &code| 3 * byte + code.into()) as u8;
    }
}

/// The inverse of [`pack_trits`].
#[inline(always)]
pub(crate) fn unpack_trits<C: Code>(packed: &[u8], codes: &mut [C]) {
    for (codes, &byte) in codes.chunks_mut(5).zip(packed) {
        let mut rest = u32::from(byte);
        for code in codes {
            (*code, rest) = (C::low(rest % 3), rest / 3);
        }
    }
}

/// Bytes that `n` codes of three values take.
pub const fn trits_len(n: usize) -> usize {
    n.div_ceil(5)
}

/// Packs codes 0, 1 and 2 five a byte into `out`, which has [`trits_len`] bytes.
pub fn pack_three<C: Code>(codes: &[C], out: &mut [u8]) -> Result<()> {
    if let Some(index) = codes.iter().position(|&code| code.into() > 2) {
        let code: u32 = codes[index].into();
        return Err(Error::argument("codes", format!("element {index} is {code}; five a byte are 0, 1 or 2")));
    }
    pack_trits(codes, out);
    Ok(())
}

/// Whether there are as many bytes as `n` codes of three values take.
pub fn check_three(packed: &[u8], n: usize) -> Result<()> {
    let want = trits_len(n);
    if packed.len() == want {
        return Ok(());
    }
    let reason = format!("{n} codes, five a byte, take {want} bytes, but there are {}", packed.len());
    Err(Error::argument("packed", reason))
}

/// The inverse of [`pack_three`]: bytes that it does not write are errors.
pub fn unpack_three(packed: &[u8], codes: &mut [u8]) -> Result<()> {
    check_three(packed, codes.len())?;
    if let Some(index) = packed.iter().position(|byte| *byte >= 243) {
        let reason = format!("byte {index} is {}; five codes of three values are below 243", packed[index]);
        return Err(Error::argument("packed", reason));
    }
    unpack_trits(packed, codes);
    // Of the last byte, the digits beyond the last code are left over.
    let used = [1, 3, 9, 27, 81][codes.len() % 5];
    if used > 1 && packed.last().is_some_and(|last| *last >= used) {
        return Err(Error::argument("packed", "the unused digits of the last byte must be zero"));
    }
    Ok(())
}

/// Whether `packed` is `n` codes of `bits` bits, with zero padding.
pub fn check(packed: &[u8], n: usize, bits: u32) -> Result<()> {
    check_bits(bits)?;
    check_packed("packed", packed, n, bits)
}

/// Checks the length and the zero padding of packed codes.
pub(crate) fn check_packed(argument: &'static str, packed: &[u8], n: usize, bits: u32) -> Result<()> {
    let want = packed_len(n, bits);
    if packed.len() != want {
        let reason = format!("{n} codes of {bits} bits take {want} bytes, but there are {}", packed.len());
        return Err(Error::argument(argument, reason));
    }
    let used = (n as u128 * u128::from(bits) % 8) as u32;
    if used != 0 && packed.last().is_some_and(|last| last >> used != 0) {
        return Err(Error::argument(argument, "the unused bits of the last byte must be zero"));
    }
    Ok(())
}

/// Whether codes can have this many bits.
pub fn check_bits(bits: u32) -> Result<()> {
    if (1..=16).contains(&bits) {
        return Ok(());
    }
    Err(Error::argument("bits", format!("{bits} is out of range; give 1 to 16")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes_of(narrow: &[u8]) -> Vec<u32> {
        narrow.iter().map(|code| u32::from(*code)).collect()
    }

    #[test]
    fn every_width_and_length_makes_a_round_trip_and_matches_the_bit_by_bit_twin() {
        for bits in 1..=16_u32 {
            for n in [0, 1, 2, 7, 8, 9, 31, 63, 64, 65, 1000] {
                let codes: Vec<u16> = (0..n as u32)
                    .map(|i| (i.wrapping_mul(40_503) >> 3) as u16 & ((1_u32 << bits) - 1) as u16)
                    .collect();
                let mut packed = vec![0; packed_len(n, bits)];
                assert!(pack(&codes, bits, &mut packed).is_ok(), "{bits} bits, {n} codes");
                let mut naive = vec![0_u8; packed.len()];
                for (i, code) in codes.iter().enumerate() {
                    for bit in (0..bits as usize).filter(|bit| code >> bit & 1 == 1) {
                        let place = i * bits as usize + bit;
                        naive[place / 8] |= 1 << (place % 8);
                    }
                }
                assert_eq!(packed, naive, "{bits} bits, {n} codes");
                let mut back = vec![0_u16; n];
                assert!(unpack(&packed, bits, &mut back).is_ok_and(|()| back == codes), "{bits} bits, {n} codes");
                for level in Level::supported() {
                    let mut words = vec![0_u32; n];
                    unpack_tile(level, &packed, bits, &mut words);
                    assert!(words.iter().zip(&codes).all(|(word, code)| *word == u32::from(*code)), "{level:?} {bits}");
                }
                if bits <= 8 {
                    let narrow: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                    for level in Level::supported() {
                        let (mut again, mut codes) = (vec![0; packed.len()], vec![0_u8; n]);
                        let wide: Vec<u32> = codes_of(&narrow);
                        pack_tile(level, &wide, bits, &mut again);
                        assert_eq!(again, packed, "{level:?} {bits} bits, {n} wide codes");
                        pack_tile(level, &narrow, bits, &mut again);
                        unpack_tile(level, &again, bits, &mut codes);
                        assert_eq!(
                            (again, codes),
                            (packed.clone(), narrow.clone()),
                            "{level:?} {bits} bits, {n} codes"
                        );
                    }
                }
            }
        }
    }
}
