//! The plain twins: what every target runs where nothing better is measured.

pub(super) fn merge_nibbles(codes: &[u8], out: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    for (out, pair) in out.iter_mut().zip(pairs) {
        *out = pair[0] | pair[1] << 4;
    }
    if let ([last], Some(out)) = (rest, out.get_mut(pairs.len())) {
        *out = *last;
    }
}

pub(super) fn merge_nibble_words(codes: &[u32], out: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    for (out, pair) in out.iter_mut().zip(pairs) {
        *out = (pair[0] | pair[1] << 4) as u8;
    }
    if let ([last], Some(out)) = (rest, out.get_mut(pairs.len())) {
        *out = *last as u8;
    }
}

pub(super) fn split_nibbles(packed: &[u8], codes: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(packed) {
        *pair = [byte & 15, byte >> 4];
    }
    if let ([last], Some(byte)) = (rest, packed.get(pairs.len())) {
        *last = byte & 15;
    }
}

#[inline(always)]
pub(super) fn dot(x: &[i8], z: &[i8]) -> i32 {
    let mut sum = 0;
    for (x, z) in x.iter().zip(z) {
        sum += i32::from(*x) * i32::from(*z);
    }
    sum
}
