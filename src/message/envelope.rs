//! A message in the container: kind 2, one array or many by name, coded by one codec or exactly as they are.

use super::codec::Codec;
use super::coder::{Noise, Opened, room};
use super::cursor::Cursor;
use super::header::{CRC, Header, count};
use super::mean;
use crate::error::{Error, Result};
use crate::stream::{Key, Purpose};
use crate::view::View;

/// The kind of a message.
pub const KIND: u8 = 2;

/// Some number is NaN or infinite.
const NOT_FINITE: u32 = 1;

/// Arrays by name, not one array.
const MAPPING: u32 = 2;

/// Arrays start at multiples of this.
const ALIGN: usize = 16;

/// A NumPy dtype that can travel: its number on the wire, its name, its bytes, and for floats the bits of infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtype {
    /// The number on the wire.
    pub code: u8,
    /// NumPy's name.
    pub name: &'static str,
    /// Bytes per element.
    pub size: usize,
    /// The exponent bits of a float.
    exponent: u64,
}

/// Every dtype that can travel.
pub const DTYPES: [Dtype; 13] = [
    Dtype { code: 1, name: "float16", size: 2, exponent: 0x7c00 },
    Dtype { code: 2, name: "bfloat16", size: 2, exponent: 0x7f80 },
    Dtype { code: 3, name: "float32", size: 4, exponent: 0x7f80_0000 },
    Dtype { code: 4, name: "float64", size: 8, exponent: 0x7ff0_0000_0000_0000 },
    Dtype { code: 5, name: "bool", size: 1, exponent: 0 },
    Dtype { code: 6, name: "int8", size: 1, exponent: 0 },
    Dtype { code: 7, name: "int16", size: 2, exponent: 0 },
    Dtype { code: 8, name: "int32", size: 4, exponent: 0 },
    Dtype { code: 9, name: "int64", size: 8, exponent: 0 },
    Dtype { code: 10, name: "uint8", size: 1, exponent: 0 },
    Dtype { code: 11, name: "uint16", size: 2, exponent: 0 },
    Dtype { code: 12, name: "uint32", size: 4, exponent: 0 },
    Dtype { code: 13, name: "uint64", size: 8, exponent: 0 },
];

impl Dtype {
    /// The dtype of this name.
    pub fn named(name: &str) -> Option<Dtype> {
        DTYPES.into_iter().find(|dtype| dtype.name == name)
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        self.exponent != 0
    }

    /// Whether all elements are finite.
    fn is_finite(self, bytes: &[u8]) -> bool {
        !self.is_float() || bytes.chunks_exact(self.size).all(|bytes| word(bytes) & self.exponent != self.exponent)
    }

    /// One element as a float64.
    fn number(self, bytes: &[u8]) -> f64 {
        let word = word(bytes);
        match self.code {
            1 => f64::from(half::f16::from_bits(word as u16)),
            2 => f64::from(half::bf16::from_bits(word as u16)),
            3 => f64::from(f32::from_bits(word as u32)),
            4 => f64::from_bits(word),
            6 => f64::from(word as i8),
            7 => f64::from(word as i16),
            8 => f64::from(word as i32),
            9 => word as i64 as f64,
            _ => word as f64,
        }
    }
}

/// The bits of one little-endian element.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// What a message says of one array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name; empty if the message is one array.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it was before it was coded.
    pub dtype: Dtype,
    /// Whether it travels as it is.
    pub exact: bool,
}

/// An array to be sent.
#[derive(Debug)]
pub enum Data<'a> {
    /// By the codec.
    Coded(View<'a>),
    /// These bytes, little-endian in C order.
    Exact(&'a [u8]),
}

/// Tells the key of a message from others without giving it away: the second word, for the first is a chain of bijections of
/// the key's own first word, and could be undone.
pub fn key_id(key: Key) -> u64 {
    key.purpose(Purpose::Id).k1
}

/// Writes a message.
pub fn encode(codec: &Codec, arrays: &[(Entry, Data<'_>)], mapping: bool, noise: Noise) -> Result<Vec<u8>> {
    let key_id = if codec.needs_key() { key_id(noise.key()?) } else { 0 };
    let length = u16::try_from(codec.parameters.len())
        .map_err(|_| Error::argument("codec", "its parameters are more than a message can hold"))?;
    let mut parameters = length.to_le_bytes().to_vec();
    parameters.extend(&codec.parameters);
    let mut shape = Vec::new();
    if mapping {
        parameters.extend((arrays.len() as u32).to_le_bytes());
        let mut total = 0_usize;
        for (entry, _) in arrays {
            let name = u16::try_from(entry.name.len())
                .map_err(|_| Error::argument("x", "a name is longer than 65535 bytes of UTF-8"))?;
            parameters.extend([u8::from(entry.exact), entry.dtype.code, entry.shape.len() as u8, 0]);
            parameters.extend(name.to_le_bytes());
            entry.shape.iter().for_each(|length| parameters.extend((*length as u64).to_le_bytes()));
            parameters.extend(entry.name.bytes());
            total = total.saturating_add(count(&entry.shape)?);
        }
        shape.push(total);
    } else if let Some((entry, _)) = arrays.first() {
        parameters.push(entry.dtype.code);
        shape.clone_from(&entry.shape);
    }
    let flags = if mapping { MAPPING } else { 0 };
    let mut header = Header { kind: KIND, codec: codec.id, flags, key_id, sender: noise.sender, shape, parameters };
    let head = header.to_bytes(0)?.0.len();
    let mut out = vec![0; head];
    let mut finite = true;
    for (index, (entry, data)) in arrays.iter().enumerate() {
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        finite &= match data {
            Data::Coded(x) if x.is_empty() => true,
            Data::Coded(x) => {
                let noise = if mapping { noise.of_array(index) } else { noise };
                codec.coder.encode(x, noise, &mut out)?
            }
            Data::Exact(bytes) => {
                out.extend(*bytes);
                entry.dtype.is_finite(bytes)
            }
        };
    }
    header.flags |= if finite { 0 } else { NOT_FINITE };
    let (bytes, framed) = header.to_bytes(out.len() - head)?;
    out[..head].copy_from_slice(&bytes);
    let end = head + framed;
    let padding = end - CRC - out.len();
    room(&mut out, padding);
    let crc = crc32c::crc32c(&out[head..]);
    out.extend(crc.to_le_bytes());
    Ok(out)
}

/// A message whose frame, header and parameters are sound.
#[derive(Debug)]
pub struct Message<'a> {
    /// The container's header.
    pub header: Header,
    /// What it was coded by.
    pub codec: Codec,
    /// Whether arrays have names.
    pub mapping: bool,
    /// The arrays.
    pub entries: Vec<Entry>,
    payload: &'a [u8],
}

/// One array of a message, ready to be decoded.
pub struct Array<'a> {
    state: State<'a>,
    dtype: Dtype,
}

enum State<'a> {
    Empty,
    Exact(&'a [u8]),
    Coded(Box<dyn Opened + 'a>),
}

fn as_decode(error: Error) -> Error {
    if matches!(error, Error::Decode(_)) { error } else { Error::decode(error.to_string()) }
}

impl<'a> Message<'a> {
    /// Reads everything that needs no key. More than `max_elements` numbers are refused.
    pub fn read(data: &'a [u8], max_elements: usize) -> Result<Self> {
        let (header, payload) = Header::read(data)?;
        if header.kind != KIND {
            let what =
                if header.kind == super::quantized::KIND { "; lowbit.Quantized.from_bytes reads it" } else { "" };
            return Err(Error::decode(format!("this container holds kind {}, not a message{what}", header.kind)));
        }
        if header.flags & !(NOT_FINITE | MAPPING) != 0 {
            return Err(Error::decode("unknown flags: written by a newer lowbit?"));
        }
        let elements = count(&header.shape)?;
        if elements > max_elements {
            let reason = format!(
                "{elements} numbers are more than max_elements = {max_elements}; raise it if you trust the sender"
            );
            return Err(Error::decode(reason));
        }
        let mut rest = Cursor(&header.parameters);
        let length = u16::from_le_bytes(rest.array()?);
        let codec = Codec::new(header.codec, rest.take(usize::from(length))?).map_err(as_decode)?;
        let mapping = header.flags & MAPPING != 0;
        let entries = if mapping {
            let number = u32::from_le_bytes(rest.array()?);
            let entries = (0..number).map(|_| entry(&mut rest)).collect::<Result<Vec<_>>>()?;
            let mut total = 0_usize;
            for entry in &entries {
                total = total.saturating_add(count(&entry.shape).map_err(as_decode)?);
            }
            if header.shape != [total] {
                return Err(Error::decode("the element count is not that of the arrays"));
            }
            let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            names.sort_unstable();
            if let Some([name, _]) =
                names.windows(2).find(|pair| pair[0] == pair[1]).and_then(|pair| pair.first_chunk::<2>())
            {
                return Err(Error::decode(format!("two arrays are called {name:?}")));
            }
            entries
        } else {
            let dtype = dtype(rest.byte()?)?;
            vec![Entry { name: String::new(), shape: header.shape.clone(), dtype, exact: false }]
        };
        rest.end("the parameters")?;
        if let Some(entry) = entries.iter().find(|entry| !entry.exact && !entry.dtype.is_float()) {
            return Err(Error::decode(format!("{} cannot be coded, only travel exactly", entry.dtype.name)));
        }
        if !codec.needs_key() && header.key_id != 0 {
            return Err(Error::decode("a key id where no key is needed"));
        }
        Ok(Message { header, codec, mapping, entries, payload })
    }

    /// Whether all numbers were finite.
    pub fn is_finite(&self) -> bool {
        self.header.flags & NOT_FINITE == 0
    }

    /// Checks the key and the payload.
    pub fn open(&self, key: Option<Key>) -> Result<Vec<Array<'_>>> {
        let noise = Noise { key, sender: self.header.sender };
        if self.codec.needs_key() && key_id(noise.key()?) != self.header.key_id {
            return Err(Error::decode("key: this is not the key that the message was encoded with (key ids differ)"));
        }
        let mut payload = Cursor(self.payload);
        let mut arrays = Vec::with_capacity(self.entries.len());
        for (index, entry) in self.entries.iter().enumerate() {
            let used = self.payload.len() - payload.0.len();
            payload.zeros(used.next_multiple_of(ALIGN) - used)?;
            let elements = count(&entry.shape).map_err(as_decode)?;
            let state = if elements == 0 {
                State::Empty
            } else if entry.exact {
                let bytes = payload.take(elements * entry.dtype.size)?;
                if entry.dtype.name == "bool" && bytes.iter().any(|byte| *byte > 1) {
                    return Err(Error::decode(format!("{:?} holds a bool that is neither 0 nor 1", entry.name)));
                }
                State::Exact(bytes)
            } else {
                let noise = if self.mapping { noise.of_array(index) } else { noise };
                State::Coded(self.codec.coder.open(&entry.shape, noise, &mut payload).map_err(as_decode)?)
            };
            arrays.push(Array { state, dtype: entry.dtype });
        }
        if payload.0.len() >= ALIGN {
            return Err(Error::decode("the payload is longer than its arrays"));
        }
        payload.zeros(payload.0.len())?;
        Ok(arrays)
    }

    /// Checks that a message goes together with another, so that their arrays can be added.
    pub fn check_like(&self, other: &Message<'_>) -> Result<()> {
        let differs = |what: &str| {
            let (one, two) = (other.header.sender, self.header.sender);
            let reason =
                format!("the messages of senders {one} and {two} differ in {what}; a mean needs messages alike");
            Err(Error::decode(reason))
        };
        if self.codec.id != other.codec.id {
            return differs(&format!("their codec ({} and {})", other.codec.name(), self.codec.name()));
        }
        if self.codec.parameters != other.codec.parameters {
            return differs(&format!("the parameters of their codec, {}", self.codec.name()));
        }
        if self.mapping != other.mapping || self.entries.len() != other.entries.len() {
            return differs("their number of arrays");
        }
        for (one, two) in self.entries.iter().zip(&other.entries) {
            if one.name != two.name {
                return differs(&format!("their arrays' names ({:?} and {:?})", two.name, one.name));
            }
            if one.shape != two.shape {
                return differs(&format!("the shape of an array ({:?} and {:?})", two.shape, one.shape));
            }
            if one.exact != two.exact || one.exact && one.dtype != two.dtype {
                return differs(&format!("how {:?} travels", one.name));
            }
        }
        if self.header.key_id != other.header.key_id {
            return differs("their key");
        }
        Ok(())
    }
}

fn dtype(code: u8) -> Result<Dtype> {
    DTYPES.into_iter().find(|dtype| dtype.code == code).ok_or_else(|| Error::decode(format!("dtype {code} is unknown")))
}

fn entry(rest: &mut Cursor<'_>) -> Result<Entry> {
    let [how, code, dims, zero] = rest.array()?;
    let length = u16::from_le_bytes(rest.array()?);
    let shape = (0..dims).map(|_| rest.size()).collect::<Result<Vec<_>>>()?;
    let name = str::from_utf8(rest.take(usize::from(length))?).map_err(|_| Error::decode("a name is not text"))?;
    if how > 1 || zero != 0 {
        return Err(Error::decode(format!("the array {name:?} travels in an unknown way")));
    }
    Ok(Entry { name: name.into(), shape, dtype: dtype(code)?, exact: how == 1 })
}

impl Array<'_> {
    /// The bytes of an array that travelled exactly; none if it was empty or coded.
    pub fn exact(&self) -> Option<&[u8]> {
        match self.state {
            State::Exact(bytes) => Some(bytes),
            State::Empty | State::Coded(_) => None,
        }
    }

    /// Writes the numbers of a coded array.
    pub fn decode(&self, out: &mut [f32]) -> Result<()> {
        match &self.state {
            State::Coded(array) => mean::decode(array.as_ref(), out),
            State::Empty | State::Exact(_) => Ok(()),
        }
    }

    /// Whether decoding can still fail.
    pub fn can_fail(&self) -> bool {
        matches!(&self.state, State::Coded(array) if array.can_fail())
    }

    /// Finds whether decoding will fail, for whoever must not stop half way.
    fn verify(&self) -> Result<()> {
        match &self.state {
            State::Coded(array) => array.verify(),
            State::Empty | State::Exact(_) => Ok(()),
        }
    }

    /// The elements of an array that travelled exactly, as float64.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let bytes = self.exact().unwrap_or_default();
        bytes.chunks_exact(self.dtype.size).map(|bytes| self.dtype.number(bytes))
    }
}

/// Where a mean is written.
pub enum Target<'a> {
    /// Of a coded array.
    Coded(&'a mut [f32]),
    /// Of an array that travelled exactly.
    Exact(&'a mut [f64]),
}

/// Writes the weighted mean of array `index` of messages that go together, in the order given.
pub fn mean_of(messages: &[(Vec<Array<'_>>, f64)], index: usize, target: Target<'_>) -> Result<()> {
    let total: f64 = messages.iter().map(|(_, weight)| weight).sum();
    // Of no weight is not even what is not finite.
    let counted = messages.iter().filter(|(_, weight)| *weight > 0.0);
    let arrays = counted.filter_map(|(arrays, weight)| Some((arrays.get(index)?, *weight)));
    match target {
        Target::Exact(out) => {
            out.fill(f64::from(mean::NOTHING));
            arrays.for_each(|(array, weight)| add_exact(array, weight, out));
            scale_exact(out, total);
            Ok(())
        }
        Target::Coded(out) => {
            let coded = arrays.filter_map(|(array, weight)| match &array.state {
                State::Coded(array) => Some((array.as_ref(), mean::weight(weight))),
                State::Empty | State::Exact(_) => None,
            });
            mean::mean(&coded.collect::<Vec<_>>(), total, out)
        }
    }
}

fn add_exact(array: &Array<'_>, weight: f64, out: &mut [f64]) {
    out.iter_mut().zip(array.numbers()).for_each(|(sum, number)| *sum += weight * number);
}

fn scale_exact(out: &mut [f64], total: f64) {
    let reciprocal = 1.0 / total;
    for sum in out {
        *sum *= reciprocal;
    }
}

/// The sum of one array over the messages added so far.
#[derive(Debug)]
pub enum Sum {
    /// Of the coded numbers, before a shared rotation is undone.
    Coded(mean::Lots),
    /// Of numbers that travelled exactly.
    Exact(Vec<f64>),
}

impl Array<'_> {
    /// A sum of nothing.
    pub fn no_sum(&self) -> Sum {
        match &self.state {
            State::Coded(array) => Sum::Coded(mean::Lots::new(array.summed())),
            State::Empty => Sum::Exact(Vec::new()),
            State::Exact(bytes) => Sum::Exact(vec![f64::from(mean::NOTHING); bytes.len() / self.dtype.size]),
        }
    }

    /// Adds this array, which must be like those before.
    pub fn add_to(&self, sum: &mut Sum, weight: f64) -> Result<()> {
        match (&self.state, sum) {
            (State::Coded(array), Sum::Coded(sum)) => mean::add(array.as_ref(), mean::weight(weight), sum),
            (_, Sum::Exact(sum)) => {
                add_exact(self, weight, sum);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes the mean that a sum stands for; any array that was added will do.
    pub fn finish(&self, sum: &Sum, total: f64, target: Target<'_>) -> Result<()> {
        match (&self.state, sum, target) {
            (State::Coded(array), Sum::Coded(sum), Target::Coded(out)) => mean::finish(array.as_ref(), sum, total, out),
            (_, Sum::Exact(sum), Target::Exact(out)) => {
                out.copy_from_slice(sum);
                scale_exact(out, total);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Finds whether any array of a message will fail.
pub fn verify(arrays: &[Array<'_>]) -> Result<()> {
    arrays.iter().try_for_each(Array::verify)
}
