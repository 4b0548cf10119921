//! What is done with an input, and what must hold whatever the input is.

use lowbit::error::{Error, Result};
use lowbit::message::envelope::{Array, Message, Target as Out, mean_of};
use lowbit::message::header::{Header, count};
use lowbit::message::quantized::{self, Quantized, floats};
use lowbit::message::sum::{Mean, Round};
use lowbit::quantize::{Given, Grouping, Rounding, Spec, dequantize};
use lowbit::stream::{Key, Purpose};
use lowbit::view::ViewMut;

use crate::memory::peak;
use crate::wire::{self, MAX_ELEMENTS};

/// What a message is read with.
pub fn key() -> Key {
    Key::from_seed(7)
}

/// Reading may take this many bytes for each byte of the message: names, shapes, boxes and tables.
const FOR_EACH_BYTE: usize = 64;

/// Opening, for each number besides: the table of an entropy coder.
const FOR_EACH_NUMBER: usize = 16;

/// Reading and opening, whatever the message: a codec's tables.
const FOR_ALL: usize = 16 << 10;

/// Decoding besides: the buffers of a thread, a few blocks of the longest rotation and one table.
const SCRATCH: usize = 2 << 20;

/// The most bytes that were needed of those allowed.
#[derive(Default)]
pub struct Worst {
    pub used: usize,
    pub allowed: usize,
    pub length: usize,
}

/// A target: an input goes in, and nothing happens.
pub struct Target {
    decodes: bool,
    /// How many inputs were sound.
    pub sound: u64,
    pub worst: Worst,
}

impl Target {
    pub fn new(name: &str) -> Option<Self> {
        let decodes = match name {
            "header" => false,
            "payload" => true,
            _ => return None,
        };
        Some(Target { decodes, sound: 0, worst: Worst::default() })
    }

    /// Decodes an input as far as it goes. `peer` is a sound message from another sender.
    pub fn run(&mut self, data: &[u8], peer: &[u8]) {
        self.header(data);
        self.quantized(data);
        if self.decodes {
            self.message(data, peer);
        } else {
            self.describe(data);
        }
    }

    /// Calls `work`, which may take so many bytes.
    fn within<R>(&mut self, data: &[u8], more: usize, work: impl FnOnce() -> R) -> R {
        let allowed = FOR_EACH_BYTE * data.len() + FOR_ALL + more;
        let (result, used) = peak(work);
        assert!(used <= allowed, "{used} bytes for a message of {}, to which {allowed} are allowed", data.len());
        if used as u128 * self.worst.allowed as u128 >= self.worst.used as u128 * allowed as u128 {
            self.worst = Worst { used, allowed, length: data.len() };
        }
        result
    }

    /// What a header says is what it was written from.
    fn header(&mut self, data: &[u8]) {
        let Some((header, payload)) = decoded(self.within(data, 0, || Header::read(data))) else { return };
        if (payload.len() + 4).is_multiple_of(16) {
            let (mut bytes, framed) = header.to_bytes(payload.len()).expect("it was read");
            assert_eq!(bytes.len() + framed, data.len(), "the length of the whole");
            bytes[9] = data[9];
            assert_eq!(bytes[..bytes.len() - 4], data[..bytes.len() - 4], "one header for one content");
        }
    }

    /// What can be said without a key and without a bound on the elements.
    fn describe(&mut self, data: &[u8]) {
        let Some(message) = decoded(self.within(data, 0, || Message::read(data, usize::MAX))) else { return };
        let elements = count(&message.header.shape).expect("it was checked");
        let allowed = elements.min(MAX_ELEMENTS);
        let opened =
            self.within(data, FOR_EACH_NUMBER * allowed, || message.open(Some(key())).map(|arrays| arrays.len()));
        if let Some(arrays) = decoded(opened) {
            self.sound += 1;
            assert_eq!(arrays, message.entries.len(), "one array for each entry");
        }
        if message.codec.needs_key() {
            assert!(matches!(message.open(None), Err(Error::Argument { argument: "key", .. })), "a key is needed");
        }
    }

    fn message(&mut self, data: &[u8], peer: &[u8]) {
        let read = self.within(data, 0, || Message::read(data, MAX_ELEMENTS));
        let Some(message) = decoded(read) else { return };
        let elements = count(&message.header.shape).expect("it was checked");
        assert!(elements <= MAX_ELEMENTS, "{elements} passed");
        let opened = self.within(data, FOR_EACH_NUMBER * elements, || message.open(Some(key())));
        let arrays = decoded(opened);
        let numbers = arrays.and_then(|arrays| self.numbers(data, &message, &arrays));
        self.sound += u64::from(numbers.is_some());
        self.means(data, &message, numbers.as_deref());
        join(data, peer, numbers.is_some());
    }

    /// The numbers of every array.
    fn numbers(&mut self, data: &[u8], message: &Message, arrays: &[Array]) -> Option<Vec<Numbers>> {
        let mut all = Vec::with_capacity(arrays.len());
        for (entry, array) in message.entries.iter().zip(arrays) {
            let elements = count(&entry.shape).expect("it was checked");
            if entry.exact {
                let bytes = array.exact().unwrap_or_default();
                assert_eq!(bytes.len(), elements * entry.dtype.size, "the bytes of an exact array");
                all.push(Numbers::Exact);
            } else {
                let mut numbers = vec![0.0; elements];
                decoded(self.within(data, SCRATCH, || array.decode(&mut numbers)))?;
                all.push(Numbers::Coded(numbers));
            }
        }
        Some(all)
    }

    /// The mean of one message, by either way, is that message; or both ways refuse what decoding refuses.
    fn means(&mut self, data: &[u8], message: &Message, numbers: Option<&[Numbers]>) {
        let elements: usize = message.entries.iter().map(|entry| count(&entry.shape).unwrap_or(0)).sum();
        let mut mean = Mean::new(Some(key()), MAX_ELEMENTS);
        let more = SCRATCH + (FOR_EACH_NUMBER + 8) * elements + 2 * data.len();
        let added = decoded(self.within(data, more, || mean.add(data, 1.0)));
        assert_eq!(added.is_some(), numbers.is_some(), "Mean and decode disagree");
        let round = decoded(Round::read(&[data], None, MAX_ELEMENTS)).expect("the message could be read");
        let opened = decoded(round.open(Some(key())));
        let whole = |target: &mut dyn FnMut(usize, Out) -> Result<()>| {
            message.entries.iter().enumerate().all(|(index, entry)| {
                let elements = count(&entry.shape).expect("it was checked");
                if entry.exact {
                    return decoded(target(index, Out::Exact(&mut vec![0.0; elements]))).is_some();
                }
                let mut out = vec![0.0; elements];
                let fine = decoded(target(index, Out::Coded(&mut out))).is_some();
                if let Some(Numbers::Coded(numbers)) = numbers.and_then(|numbers| numbers.get(index)) {
                    assert!(fine && same(&out, numbers), "the mean of one message is not that message");
                }
                fine
            })
        };
        let averaged = opened.is_some_and(|opened| whole(&mut |index, target| mean_of(&opened, index, target)));
        assert_eq!(averaged, numbers.is_some(), "decode_mean and decode disagree");
        if numbers.is_some() {
            let result = mean.result(|_, _, write| whole(&mut |index, target| write(index, target)));
            assert!(decoded(result) == Some(true), "a mean without a result");
        }
    }

    /// A quantized array that is read can be written and dequantized.
    fn quantized(&mut self, data: &[u8]) {
        let Some((record, parts)) = decoded(self.within(data, 0, || Quantized::read(data))) else { return };
        let (_, length) = record.head(parts).expect("what was read can be written");
        assert!(length <= data.len(), "no longer than it was");
        let elements = count(&record.shape).expect("it was checked");
        if elements > MAX_ELEMENTS {
            return;
        }
        let axis = record.axis.map(|axis| axis as isize);
        let grouping = Grouping::new(record.shape.len(), axis, record.block_size).expect("it was checked");
        let rounding = match record.key_id {
            Some(_) => Rounding::Dither(key().purpose(Purpose::Rounding).stream()),
            None => Rounding::Nearest,
        };
        let tensor = floats(parts.tensor_scale).next().unwrap_or(1.0);
        let spec = Spec { format: &record.format, grouping, rounding, tensor };
        let scale: Vec<f32> = match record.format.scaling {
            Some(scaling) => parts.scale.iter().map(|code| scaling.format.decode(*code)).collect(),
            None => floats(parts.scale).collect(),
        };
        let offset: Vec<f32> = floats(parts.offset).collect();
        let (mut strides, mut step) = (vec![0; record.scale_shape.len()], 1);
        for (axis, stride) in strides.iter_mut().enumerate().rev() {
            *stride = if record.scale_shape[axis] == 1 { 0 } else { step };
            step *= record.scale_shape[axis];
        }
        let given = Given { scale: &scale, offset: record.has_offset.then_some(&offset), strides: &strides };
        let mut out = vec![0.0; elements];
        self.within(data, SCRATCH, || {
            dequantize(
                parts.packed,
                spec,
                &record.shape,
                given,
                &mut ViewMut::from_slice_shaped(&mut out, &record.shape),
            )
        })
        .expect("what was read can be dequantized");
        self.sound += 1;
    }
}

enum Numbers {
    Exact,
    Coded(Vec<f32>),
}

/// Nothing but a `DecodeError` is the message's fault.
fn decoded<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Decode(_)) => None,
        Err(other) => panic!("not a DecodeError: {other}"),
    }
}

fn same(one: &[f32], two: &[f32]) -> bool {
    one.len() == two.len() && one.iter().zip(two).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// After an error a mean is what it was before.
fn join(data: &[u8], peer: &[u8], sound: bool) {
    let mut mean = Mean::new(Some(key()), MAX_ELEMENTS);
    if mean.add(peer, 1.0).is_err() {
        return;
    }
    let before = sums(&mean);
    let added = decoded(mean.add(data, 0.5)).is_some();
    assert!(sound || !added, "a message that cannot be decoded was added");
    assert_eq!(mean.count(), 1 + usize::from(added), "how many were added");
    if !added {
        assert!(before.iter().zip(&sums(&mean)).all(|(one, two)| same(one, two)), "an error changed the mean");
    }
    decoded(
        Round::read(&[peer, data], Some(&[1.0, 0.5]), MAX_ELEMENTS)
            .and_then(|round| round.open(Some(key())).map(|_| ())),
    );
}

/// The coded arrays of a mean.
fn sums(mean: &Mean) -> Vec<Vec<f32>> {
    let result = mean.result(|_, entries, write| {
        let coded = entries.iter().enumerate().filter(|(_, entry)| !entry.exact);
        coded
            .map(|(index, entry)| {
                let mut out = vec![0.0; count(&entry.shape).expect("it was checked")];
                write(index, Out::Coded(&mut out)).expect("the message was sound");
                out
            })
            .collect()
    });
    result.expect("a message was added")
}

/// Whether an input can be decoded to the end.
pub fn is_sound(data: &[u8]) -> bool {
    if wire::kind(data) == quantized::KIND {
        return Quantized::read(data).is_ok();
    }
    Mean::new(Some(key()), MAX_ELEMENTS).add(data, 1.0).is_ok()
}
