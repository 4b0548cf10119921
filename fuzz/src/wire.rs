//! A container taken apart leniently and put together again with lengths and checksums that are right: what a forger does,
//! and what lets a mutation reach the checks behind them.

use lowbit::message::codec::Codec;
use lowbit::message::envelope::{self, Message, key_id};

use crate::target::key;

/// More numbers are refused.
pub const MAX_ELEMENTS: usize = 1 << 20;

/// Bytes before the shape.
const FIXED: usize = 64;

/// The kind of a container, if these bytes are one.
pub fn kind(data: &[u8]) -> u8 {
    data.get(10).copied().unwrap_or(0)
}

/// A container's parts, without lengths and checksums.
#[derive(Clone)]
pub struct Parts {
    /// From the magic to the sender: 48 bytes, of which 16..32 are the element count and the payload's length.
    pub fixed: Vec<u8>,
    pub shape: Vec<u64>,
    pub parameters: Vec<u8>,
    pub payload: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

impl Parts {
    /// Takes a container apart, if its lengths are not beyond it.
    pub fn new(data: &[u8]) -> Option<Parts> {
        let (dims, parameters, length) = (word(data, 48), word(data, 52), word(data, 56));
        let (shape, rest) = data.get(FIXED..)?.split_at_checked(8 * dims)?;
        let payload = data.get(length..)?;
        Some(Parts {
            fixed: data[..48].to_vec(),
            shape: shape.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect(),
            parameters: rest.get(..parameters)?.to_vec(),
            payload: payload.split_last_chunk::<4>()?.0.to_vec(),
        })
    }

    /// The container, with the element count as it is.
    pub fn join(&self) -> Vec<u8> {
        let used = FIXED + 8 * self.shape.len() + self.parameters.len();
        let length = (used + 4).next_multiple_of(16);
        let mut bytes = self.fixed.clone();
        bytes.resize(48, 0);
        let framed = (self.payload.len() + 4).next_multiple_of(16);
        bytes[24..32].copy_from_slice(&(framed as u64).to_le_bytes());
        for word in [self.shape.len(), self.parameters.len(), length, 0] {
            bytes.extend((word as u32).to_le_bytes());
        }
        bytes.extend(self.shape.iter().flat_map(|dimension| dimension.to_le_bytes()));
        bytes.extend(&self.parameters);
        bytes.resize(length, 0);
        bytes.extend(&self.payload);
        bytes.resize(length + framed, 0);
        seal(&mut bytes, length);
        bytes
    }

    /// Makes the element count and the key id what the rest says, as far as it can be told.
    pub fn agree(&mut self) {
        self.fixed.resize(48, 0);
        let parameters = word(&self.parameters, 0) & 0xffff;
        if self.fixed[10] == envelope::KIND {
            if self.fixed[12] & 2 != 0 {
                self.shape = vec![self.total(2 + parameters)];
            }
            let codec = self.parameters.get(2..2 + parameters).and_then(|bytes| Codec::new(self.fixed[11], bytes).ok());
            let id = codec.map_or(0, |codec| if codec.needs_key() { key_id(key()) } else { 0 });
            self.fixed[32..40].copy_from_slice(&id.to_le_bytes());
        }
        self.fixed[16..24].copy_from_slice(&product(self.shape.iter().copied()).to_le_bytes());
    }

    /// The elements of all entries of a mapping, whose list begins at `place` of the parameters.
    fn total(&self, mut place: usize) -> u64 {
        let mut total = 0_u64;
        let entries = word(&self.parameters, place);
        place += 4;
        for _ in 0..entries {
            let Some([_, _, dims, _, low, high]) = self.parameters.get(place..).and_then(<[u8]>::first_chunk) else {
                break;
            };
            let dims = 8 * usize::from(*dims);
            let shape = self.parameters.get(place + 6..place + 6 + dims).unwrap_or_default().as_chunks::<8>().0;
            total = total.saturating_add(product(shape.iter().map(|bytes| u64::from_le_bytes(*bytes))));
            place += 6 + dims + usize::from(u16::from_le_bytes([*low, *high]));
        }
        total
    }

    /// Makes the payload just as long as the arrays ask for, if some length up to 16 KiB is.
    pub fn fit(&mut self) {
        const MOST: usize = 1 << 10;
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(16 * MOST, 0);
        let enough = |sixteens: &usize| {
            let part = Parts { payload: payload[..16 * sixteens].to_vec(), ..self.clone() }.join();
            match Message::read(&part, MAX_ELEMENTS) {
                Ok(message) => match message.open(Some(key())) {
                    Ok(_) => true,
                    Err(error) => !error.to_string().contains("shorter than"),
                },
                Err(_) => true,
            }
        };
        let (mut low, mut high) = (0, MOST);
        while low < high {
            let middle = low.midpoint(high);
            if enough(&middle) { high = middle } else { low = middle + 1 }
        }
        payload.truncate(16 * low);
        self.payload = payload;
    }
}

/// NumPy's product: zero if any is, else without wrapping.
fn product(shape: impl Iterator<Item = u64> + Clone) -> u64 {
    if shape.clone().any(|length| length == 0) { 0 } else { shape.fold(1, u64::saturating_mul) }
}

/// Writes both checksums of a container whose header has this length.
fn seal(bytes: &mut [u8], length: usize) {
    if let Some((header, payload)) = bytes.split_at_mut_checked(length) {
        for part in [header, payload] {
            if let Some((body, crc)) = part.split_last_chunk_mut::<4>() {
                *crc = crc32c::crc32c(body).to_le_bytes();
            }
        }
    }
}

/// Writes both checksums where the header says they are.
pub fn reseal(bytes: &mut [u8]) {
    let length = word(bytes, 56);
    seal(bytes, length);
}
