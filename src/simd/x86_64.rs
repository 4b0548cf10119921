//! AVX2 forms of the primitives, and SSE2 streaming stores (always there on x86-64).

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128, _mm256_and_si256, _mm256_cvtepu8_epi16,
    _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_or_si256, _mm256_packus_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi16, _mm256_slli_epi16, _mm256_storeu_si256,
};

use super::portable;

#[target_feature(enable = "avx2")]
pub(super) fn merge_nibbles(codes: &[u8], out: &mut [u8]) {
    let (blocks, rest) = codes.as_chunks::<64>();
    let (filled, tail) = out.split_at_mut(blocks.len() * 32);
    for (block, out) in blocks.iter().zip(filled.as_chunks_mut::<32>().0) {
        // first + 16 second, as 16-bit numbers below 256
        let weights = _mm256_set1_epi16(0x1001);
        let source = block.as_ptr().cast::<__m256i>();
        // SAFETY: a block has 64 bytes, and the loads and the store need no alignment.
        unsafe {
            let low = _mm256_maddubs_epi16(_mm256_loadu_si256(source), weights);
            let high = _mm256_maddubs_epi16(_mm256_loadu_si256(source.add(1)), weights);
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(low, high));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
        }
    }
    portable::merge_nibbles(rest, tail);
}

#[target_feature(enable = "avx2")]
pub(super) fn split_nibbles(packed: &[u8], codes: &mut [u8]) {
    let (blocks, rest) = codes.as_chunks_mut::<32>();
    let (filled, tail) = packed.split_at(blocks.len() * 16);
    for (bytes, block) in filled.as_chunks::<16>().0.iter().zip(blocks) {
        let low_half = _mm256_set1_epi16(0x0f0f);
        // SAFETY: 16 bytes are read and 32 written, without alignment.
        unsafe {
            let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()));
            let codes = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide)), low_half);
            _mm256_storeu_si256(block.as_mut_ptr().cast(), codes);
        }
    }
    portable::split_nibbles(tail, rest);
}

pub(super) fn stream_copy(from: &[u8], to: &mut [u8]) {
    let head = to.as_ptr().align_offset(16).min(to.len());
    let (from_head, from) = from.split_at(head);
    let (to_head, to) = to.split_at_mut(head);
    to_head.copy_from_slice(from_head);
    let (from, from_rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 bytes each; the target is aligned by the choice of `head`. SSE2 is part of x86-64.
        unsafe { _mm_stream_si128(to.as_mut_ptr().cast(), _mm_loadu_si128(from.as_ptr().cast())) };
    }
    to_rest.copy_from_slice(from_rest);
}

pub(super) fn stream_done() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}
