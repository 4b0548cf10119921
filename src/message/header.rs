//! The container that everything lowbit writes shares, version 1.0; `docs/wire.md` is its specification.

use crate::error::{Error, Result};

/// The first eight bytes.
pub const MAGIC: [u8; 8] = *b"\x89LOWBIT\n";

/// The container's version. A reader refuses other majors; a later minor adds only flags and kinds.
pub const VERSION: (u8, u8) = (1, 0);

/// Bytes before the shape.
const FIXED: usize = 64;

/// Bytes of a CRC-32C.
pub(super) const CRC: usize = 4;

/// Everything is padded to a multiple of this.
const ALIGN: usize = 16;

/// Most dimensions an array may have.
const MAX_DIMS: usize = crate::view::MAX_DIMS;

/// A container's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the container holds: 1 is a quantized array.
    pub kind: u8,
    /// Which codec made it; 0 for kind 1.
    pub codec: u8,
    /// The kind's own flags.
    pub flags: u32,
    /// Tells the key of the sender from others; 0 where no key is needed.
    pub key_id: u64,
    /// Who sent it; 0 for kind 1.
    pub sender: u64,
    /// The array's shape.
    pub shape: Vec<usize>,
    /// The codec's parameters.
    pub parameters: Vec<u8>,
}

impl Header {
    /// The whole header for a payload of `payload` bytes, and the bytes that payload, padding and checksum will take.
    pub fn to_bytes(&self, payload: usize) -> Result<(Vec<u8>, usize)> {
        let length = (FIXED + 8 * self.shape.len() + self.parameters.len() + CRC).next_multiple_of(ALIGN);
        let framed = (payload + CRC).next_multiple_of(ALIGN);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.extend([VERSION.0, VERSION.1, self.kind, self.codec]);
        bytes.extend(self.flags.to_le_bytes());
        for word in [count(&self.shape)? as u64, framed as u64, self.key_id, self.sender] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [self.shape.len() as u32, self.parameters.len() as u32, length as u32, 0] {
            bytes.extend(word.to_le_bytes());
        }
        for &dimension in &self.shape {
            bytes.extend((dimension as u64).to_le_bytes());
        }
        bytes.extend(&self.parameters);
        bytes.resize(length - CRC, 0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        Ok((bytes, framed))
    }

    /// Reads and checks a container: the header and the payload with its padding, but without its checksum.
    pub fn read(data: &[u8]) -> Result<(Header, &[u8])> {
        let fixed: &[u8; FIXED] = data.first_chunk().ok_or_else(|| truncated("the header", FIXED, data.len()))?;
        if fixed[..8] != MAGIC {
            return Err(Error::decode("these bytes do not begin as a lowbit container does"));
        }
        if fixed[8] != VERSION.0 {
            let reason =
                format!("container version {}.{} is not one this lowbit reads ({}.x)", fixed[8], fixed[9], VERSION.0);
            return Err(Error::decode(reason));
        }
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (dims, parameters, length) = (word(48) as usize, word(52) as usize, word(56) as usize);
        if dims > MAX_DIMS {
            return Err(Error::decode(format!("{dims} dimensions are more than {MAX_DIMS}")));
        }
        // Without wrapping, where a length has 32 bits.
        let used = (FIXED + 8 * dims).saturating_add(parameters);
        if used.checked_add(CRC).and_then(|used| used.checked_next_multiple_of(ALIGN)) != Some(length) {
            return Err(Error::decode("the header's lengths contradict each other"));
        }
        let header = data.get(..length).ok_or_else(|| truncated("the header", length, data.len()))?;
        checked("header", header)?;
        if header[used..length - CRC].iter().any(|byte| *byte != 0) || word(60) != 0 {
            return Err(Error::decode("the header's padding is not zero"));
        }
        let shape: Vec<usize> = header[FIXED..FIXED + 8 * dims]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)).unwrap_or(usize::MAX))
            .collect();
        let elements = count(&shape).map_err(|error| Error::decode(error.to_string()))?;
        if elements as u64 != long(16) {
            return Err(Error::decode("the element count is not that of the shape"));
        }
        let rest = &data[length..];
        if long(24) != rest.len() as u64 {
            let want = usize::try_from(long(24)).unwrap_or(usize::MAX);
            return Err(truncated("the payload", want, rest.len()));
        }
        checked("payload", rest)?;
        let parameters = header[FIXED + 8 * dims..used].to_vec();
        let header = Header {
            kind: fixed[10],
            codec: fixed[11],
            flags: word(12),
            key_id: long(32),
            sender: long(40),
            shape,
            parameters,
        };
        Ok((header, &rest[..rest.len() - CRC]))
    }
}

/// The number of elements of a shape, if an array could have it.
pub fn count(shape: &[usize]) -> Result<usize> {
    if shape.len() > MAX_DIMS {
        return Err(Error::argument("shape", format!("{} dimensions are more than {MAX_DIMS}", shape.len())));
    }
    // NumPy's rule: the dimensions other than zero must not overflow, even if there are no elements.
    let product = shape.iter().filter(|length| **length > 0).try_fold(1_usize, |n, length| n.checked_mul(*length));
    match product {
        // Eight bytes per element is the most that anybody asks for.
        Some(n) if n <= isize::MAX as usize / 8 => Ok(if shape.contains(&0) { 0 } else { n }),
        _ => Err(Error::argument("shape", format!("no array can have the shape {shape:?}"))),
    }
}

fn truncated(what: &str, want: usize, have: usize) -> Error {
    Error::decode(format!("{what} needs {want} bytes, but there are {have}"))
}

/// Checks that the last four bytes are the CRC-32C of those before.
fn checked(what: &str, bytes: &[u8]) -> Result<()> {
    match bytes.split_last_chunk::<CRC>() {
        Some((body, crc)) if crc32c::crc32c(body).to_le_bytes() == *crc => Ok(()),
        _ => Err(Error::decode(format!("the {what} is damaged (its checksum does not match)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Header, Vec<u8>) {
        let header =
            Header { kind: 1, codec: 0, flags: 3, key_id: 7, sender: 9, shape: vec![3, 5], parameters: vec![1, 2, 3] };
        let payload = [5_u8; 21];
        let (mut bytes, framed) = header.to_bytes(payload.len()).unwrap_or_default();
        let start = bytes.len();
        bytes.extend(payload);
        bytes.resize(start + framed - CRC, 0);
        bytes.extend(crc32c::crc32c(&bytes[start..]).to_le_bytes());
        (header, bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let (header, bytes) = sample();
        assert_eq!(bytes.len() % ALIGN, 0, "containers are aligned");
        let read = Header::read(&bytes);
        assert!(read.is_ok_and(|(read, payload)| read == header && payload[..21] == [5; 21]), "the same header");
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_error() {
        let (_, bytes) = sample();
        for length in 0..bytes.len() {
            assert!(Header::read(&bytes[..length]).is_err(), "{length} bytes passed");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::read(&damaged).is_err(), "flipped bit {bit} passed");
        }
    }
}
