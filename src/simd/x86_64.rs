//! AVX2 forms of the primitives.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_GT_OQ, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
    _mm256_add_epi32, _mm256_and_si256, _mm256_blendv_ps, _mm256_broadcastsi128_si256, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cmpgt_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_cvttps_epi32, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_si256,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32,
    _mm256_permutevar8x32_ps, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_srlv_epi32, _mm256_storeu_si256, _mm256_stream_si256, _mm256_sub_epi32, _mm256_sub_ps,
};

use super::table::{self, MOST, STEPS, Shown, Sixteen, Tree};
use super::{Eights, portable};

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

/// 1.9 times as fast as the plain loop, whose products are made in halves of the registers.
#[target_feature(enable = "avx2")]
pub(super) fn dot(x: &[i8], z: &[i8]) -> i32 {
    let ((xs, x), (zs, z)) = (x.as_chunks::<32>(), z.as_chunks::<32>());
    let mut sums = [_mm256_setzero_si256(); 2];
    for (x, z) in xs.iter().zip(zs) {
        let (x, z) = (x.as_ptr().cast::<__m128i>(), z.as_ptr().cast::<__m128i>());
        for (half, sum) in sums.iter_mut().enumerate() {
            // SAFETY: two halves of 16 bytes, read without alignment.
            let (x, z) = unsafe { (_mm_loadu_si128(x.add(half)), _mm_loadu_si128(z.add(half))) };
            let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(x), _mm256_cvtepi8_epi16(z));
            *sum = _mm256_add_epi32(*sum, products);
        }
    }
    let mut lanes = [0_i32; 8];
    // SAFETY: 32 bytes are written, without alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(sums[0], sums[1])) };
    lanes.iter().sum::<i32>() + portable::dot(x, z)
}

/// A quarter of the instructions of narrowing lane by lane: three saturating packs, then first + 16 second.
#[target_feature(enable = "avx2")]
pub(super) fn merge_nibble_words(codes: &[u32], out: &mut [u8]) {
    let (blocks, rest) = codes.as_chunks::<64>();
    let (filled, tail) = out.split_at_mut(blocks.len() * 32);
    let weights = _mm256_set1_epi16(0x1001);
    // What the packs, which work within halves of 128 bits, have put where.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (block, out) in blocks.iter().zip(filled.as_chunks_mut::<32>().0) {
        let half = |first: usize| {
            // SAFETY: `first` is 0 or 32, and 32 words are read from there, without alignment.
            let lanes = |at: usize| unsafe { _mm256_loadu_si256(block.as_ptr().add(first + at).cast()) };
            let low = _mm256_packs_epi32(lanes(0), lanes(8));
            let high = _mm256_packs_epi32(lanes(16), lanes(24));
            _mm256_maddubs_epi16(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order), weights)
        };
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(half(0), half(32)));
        // SAFETY: 32 bytes are written, without alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
    portable::merge_nibble_words(rest, tail);
}

/// Halves of 32 bytes at either end are streamed too: a cache line that is partly streamed and partly stored costs a read,
/// and consecutive calls share the line between them. (NumPy's large arrays start 16 bytes into a page.)
#[target_feature(enable = "avx2")]
pub(super) fn stream_copy(from: &[u8], to: &mut [u8]) {
    let head = to.as_ptr().align_offset(16).min(to.len());
    let (from_head, from) = from.split_at(head);
    let (to_head, to) = to.split_at_mut(head);
    to_head.copy_from_slice(from_head);
    let to_32 = to.as_ptr().align_offset(32).min(to.len());
    let (from_half, from) = from.split_at(to_32);
    let (to_half, to) = to.split_at_mut(to_32);
    stream_halves(from_half, to_half);
    let (from, from_rest) = from.as_chunks::<32>();
    let (to, to_rest) = to.as_chunks_mut::<32>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 32 bytes each; the target is aligned by the choice of `to_32`.
        unsafe { _mm256_stream_si256(to.as_mut_ptr().cast(), _mm256_loadu_si256(from.as_ptr().cast())) };
    }
    stream_halves(from_rest, to_rest);
}

/// `to` is aligned to 16 bytes, or empty.
#[target_feature(enable = "avx2")]
fn stream_halves(from: &[u8], to: &mut [u8]) {
    let (from, from_rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 bytes each; the target is aligned.
        unsafe { _mm_stream_si128(to.as_mut_ptr().cast(), _mm_loadu_si128(from.as_ptr().cast())) };
    }
    to_rest.copy_from_slice(from_rest);
}

pub(super) fn prefetch(from: *const f32, count: usize) {
    // A cache line holds 16 numbers.
    for line in (0..count).step_by(16) {
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
}

pub(super) fn stream_done() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}

/// Entry `index` (below 16) of a table in two registers, for each lane.
#[target_feature(enable = "avx2")]
fn entry((low, high): (__m256, __m256), index: __m256i) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper)
}

#[target_feature(enable = "avx2")]
fn halves(table: &[f32; 16]) -> (__m256, __m256) {
    // SAFETY: sixteen readable floats; the loads ask for no alignment.
    unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) }
}

#[target_feature(enable = "avx2")]
fn levels(tree: &Tree) -> [__m256; 4] {
    // SAFETY: eight readable floats each; the loads ask for no alignment.
    tree.levels().map(|level| unsafe { _mm256_loadu_ps(level.as_ptr()) })
}

/// How many of a tree's boundaries are below `t`, for each lane.
#[target_feature(enable = "avx2")]
fn rank(levels: [__m256; 4], t: __m256) -> __m256i {
    let mut rank = _mm256_setzero_si256();
    for level in levels {
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(t, _mm256_permutevar8x32_ps(level, rank));
        // A lane of all ones is -1.
        rank = _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
    }
    rank
}

#[target_feature(enable = "avx2")]
pub(super) fn nearest_of_sixteen(table: &Sixteen, lanes: &mut [u32], shown: Shown) {
    let (middles, values) = (levels(&table.middles), halves(&table.values));
    let (blocks, rest) = lanes.as_chunks_mut::<8>();
    for block in blocks {
        // SAFETY: eight floats are read and eight words written, without alignment.
        unsafe {
            let code = rank(middles, _mm256_loadu_ps(block.as_ptr().cast()));
            let result = if shown == Shown::Codes { code } else { _mm256_castps_si256(entry(values, code)) };
            _mm256_storeu_si256(block.as_mut_ptr().cast(), result);
        }
    }
    table::portable_nearest(table, rest, shown);
}

#[target_feature(enable = "avx2")]
pub(super) fn stochastic_of_sixteen(table: &Sixteen, lanes: &mut [u32], words: &[u32], shown: Shown) {
    let (cuts, values, shares) = (levels(&table.cuts), halves(&table.values), halves(&table.shares));
    let (blocks, rest) = lanes.as_chunks_mut::<8>();
    let (word_blocks, word_rest) = words.as_chunks::<8>();
    let (least, greatest) = (_mm256_set1_ps(table.values[0]), _mm256_set1_ps(table.values[15]));
    let (most, all) = (_mm256_set1_ps(MOST), _mm256_set1_ps(STEPS));
    for (block, words) in blocks.iter_mut().zip(word_blocks) {
        // SAFETY: eight floats and eight words are read and eight words written, without alignment.
        unsafe {
            // NaN is the first operand, so the second is the maximum.
            let t = _mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(block.as_ptr().cast()), least), greatest);
            let code = rank(cuts, t);
            let way = _mm256_mul_ps(_mm256_mul_ps(_mm256_sub_ps(t, entry(values, code)), entry(shares, code)), all);
            let threshold = _mm256_cvttps_epi32(_mm256_min_ps(way, most));
            let word = _mm256_srli_epi32::<1>(_mm256_loadu_si256(words.as_ptr().cast()));
            let code = _mm256_sub_epi32(code, _mm256_cmpgt_epi32(threshold, word));
            let result = if shown == Shown::Codes { code } else { _mm256_castps_si256(entry(values, code)) };
            _mm256_storeu_si256(block.as_mut_ptr().cast(), result);
        }
    }
    table::portable_stochastic(table, rest, word_rest, shown);
}

#[target_feature(enable = "avx2")]
pub(super) fn look_up_sixteen(values: &[f32; 16], lanes: &mut [u32]) {
    let table = halves(values);
    let (blocks, rest) = lanes.as_chunks_mut::<8>();
    for block in blocks {
        // SAFETY: eight words are read and written, without alignment.
        unsafe {
            let code = _mm256_loadu_si256(block.as_ptr().cast());
            _mm256_storeu_si256(block.as_mut_ptr().cast(), _mm256_castps_si256(entry(table, code)));
        }
    }
    table::portable_look_up(values, rest);
}

/// Eight codes at a time: each lane is given the bytes that its code lies in, and shifts it down.
#[target_feature(enable = "avx2")]
pub(super) fn unpack_eights(eights: &Eights, packed: &[u8], codes: &mut [u32]) -> usize {
    let step = eights.bits as usize;
    let readable = if packed.len() < 16 { 0 } else { (packed.len() - 16) / step + 1 };
    let blocks = codes.as_chunks_mut::<8>().0;
    let count = readable.min(blocks.len());
    let low = _mm256_set1_epi32((1 << step) - 1);
    // SAFETY: 32 readable bytes each, without alignment.
    let (places, shifts) = unsafe {
        (_mm256_loadu_si256(eights.places.as_ptr().cast()), _mm256_loadu_si256(eights.shifts.as_ptr().cast()))
    };
    for (i, block) in blocks[..count].iter_mut().enumerate() {
        // SAFETY: the last sixteen bytes end within `packed` by the choice of `count`; 32 bytes are written.
        unsafe {
            let source = _mm_loadu_si128(packed.as_ptr().add(i * step).cast::<__m128i>());
            let lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(source), places);
            _mm256_storeu_si256(block.as_mut_ptr().cast(), _mm256_and_si256(_mm256_srlv_epi32(lanes, shifts), low));
        }
    }
    8 * count
}
