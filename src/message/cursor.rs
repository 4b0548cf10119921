//! Bytes read from the front, each read checked against what is there.

use crate::error::{Error, Result};
use crate::pack::{check_packed, packed_len};

/// Bytes read from the front.
pub(super) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or_else(|| Error::decode("shorter than its header says"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `n` packed codes of `bits` bits, from a whole byte on; what is left of the last byte must be zero.
    pub fn packed(&mut self, n: usize, bits: u32) -> Result<&'a [u8]> {
        let bytes = self.take(packed_len(n, bits))?;
        check_packed("codes", bytes, n, bits)?;
        Ok(bytes)
    }

    /// The next bytes as a fixed array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.first_chunk::<N>().copied().unwrap_or([0; N]))
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A float32.
    pub fn float(&mut self) -> Result<f32> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// A 64-bit length that this machine can hold.
    pub fn size(&mut self) -> Result<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| Error::decode("a length is beyond this machine"))
    }

    /// Refuses bytes that nothing explains.
    pub fn end(&self, what: &str) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::decode(format!("{what} are longer than they should be"))) }
    }

    /// Reads padding: `count` zero bytes.
    pub fn zeros(&mut self, count: usize) -> Result<()> {
        if self.take(count)?.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(Error::decode("the payload's padding is not zero"))
        }
    }
}

/// Little-endian float32 numbers.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}
