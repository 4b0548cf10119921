//! Messages: arrays in, bytes out, and back.

use std::sync::{Mutex, PoisonError};

use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyBytesMethods, PyString};

use super::array::{Input, bytes_of, fill, fill_new, new_array, plain, slice_of, text};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::fwht::{BLOCK_MIN, Blocks};
use crate::message::codec::Codec;
use crate::message::envelope::{self, Array, Data, Dtype, Entry, Message, Target, encode, mean_of};
use crate::message::header::Header;
use crate::message::sum::{Mean, Round};
use crate::message::{Noise, Summable, quantized};
use crate::stream::Key;

type Untyped<'py> = Bound<'py, PyUntypedArray>;
type Words = Option<(u64, u64)>;

/// What comes out: whether arrays have names, and the arrays.
type Decoded<'py> = (bool, Vec<(String, Untyped<'py>)>);

fn key(words: Words) -> Option<Key> {
    words.map(|(k0, k1)| Key { k0, k1 })
}

/// Runs without the GIL and in a clean float state: the caller's may flush what is small.
fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    py.detach(|| Level::PORTABLE.run(work))
}

fn dtype_of(array: &Untyped<'_>) -> PyResult<Dtype> {
    let descr = array.dtype();
    let name: String = descr.getattr("name")?.extract()?;
    Dtype::named(&name)
        .ok_or_else(|| PyTypeError::new_err(format!("x: dtype {name} cannot be sent; floats, integers and bools can")))
}

/// A new array of a dtype on the wire; bfloat16 where `ml_dtypes` has registered it, else `None`.
fn descr_of(py: Python<'_>, dtype: Dtype) -> Option<Bound<'_, PyArrayDescr>> {
    PyArrayDescr::new(py, dtype.name).ok()
}

/// Whether a receiver of this codec needs the key; an error if its parameters are out of range.
#[pyfunction]
pub(super) fn codec_check(codec: (u8, Vec<u8>)) -> PyResult<bool> {
    Ok(Level::PORTABLE.run(|| Codec::new(codec.0, &codec.1))?.needs_key())
}

/// A number rounded to float32, whatever the caller's float state.
#[pyfunction]
pub(super) fn float32(value: f64) -> f32 {
    Level::PORTABLE.run(|| value as f32)
}

/// The grid step of entropy-coded EDEN for so many bits.
#[pyfunction]
pub(super) fn entropy_step(bits: f64) -> f32 {
    Level::PORTABLE.run(|| crate::message::entropy_step(bits))
}

#[pyfunction]
pub(super) fn message_encode<'py>(
    py: Python<'py>,
    codec: (u8, Vec<u8>),
    arrays: Vec<(Option<Bound<'py, PyString>>, Untyped<'py>, bool)>,
    mapping: bool,
    words: Words,
    sender: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let codec = Level::PORTABLE.run(|| Codec::new(codec.0, &codec.1))?;
    let mut parts = Vec::with_capacity(arrays.len());
    for (name, array, exact) in &arrays {
        let name = name.as_ref().map(|name| text("x", name)).transpose()?.unwrap_or_default();
        let entry = Entry { name, shape: array.shape().to_vec(), dtype: dtype_of(array)?, exact: *exact };
        let data = if *exact { Data::Exact(bytes_of("x", array)?) } else { Data::Coded(Input::new("x", array)?.view) };
        parts.push((entry, data));
    }
    let noise = Noise { key: key(words), sender };
    let bytes = detached(py, || encode(&codec, &parts, mapping, noise))?;
    Ok(PyBytes::new(py, &bytes))
}

/// An array that travelled exactly.
fn exact<'py>(py: Python<'py>, entry: &Entry, bytes: &[u8]) -> PyResult<Untyped<'py>> {
    if let Some(descr) = descr_of(py, entry.dtype) {
        let array = new_array(py, &entry.shape, descr)?;
        if !bytes.is_empty() {
            // SAFETY: the array is new and contiguous, and has the dtype's size for each of its elements, as `bytes` has.
            unsafe { super::array::raw(&array) }.copy_from_slice(bytes);
        }
        return Ok(array);
    }
    // bfloat16 without ml_dtypes: every number is a float32 as well.
    fill_new::<f32>(py, &entry.shape, |numbers| {
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *number = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
        Ok(())
    })
}

/// Numbers that `write` gives: written to `out` if it is there and can take them as they are, else to a new array.
fn numbers<'py>(
    py: Python<'py>,
    entry: &Entry,
    out: Option<&Untyped<'py>>,
    write: impl FnOnce(&mut [f32]) -> Result<()> + Send,
) -> PyResult<Untyped<'py>> {
    if let Some(out) = out
        && let Some(memory) = plain::<f32>(out, &entry.shape)
    {
        detached(py, || write(memory))?;
        return Ok(out.clone());
    }
    fill_new::<f32>(py, &entry.shape, |memory| Ok(detached(py, || write(memory))?))
}

/// What is decoded is written to `out` only if it is one array, fits as it is, and nothing can go wrong on the way.
#[pyfunction]
#[pyo3(signature = (data, words, max_elements, out))]
pub(super) fn message_decode<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyBytes>,
    words: Words,
    max_elements: usize,
    out: Option<Untyped<'py>>,
) -> PyResult<Decoded<'py>> {
    let data = data.as_bytes();
    let message = detached(py, || Message::read(data, max_elements))?;
    let arrays = detached(py, || message.open(key(words)))?;
    let decoded = message.entries.iter().zip(&arrays).map(|(entry, array): (&Entry, &Array<'_>)| {
        let value = if entry.exact {
            exact(py, entry, array.exact().unwrap_or_default())?
        } else {
            let out = out.as_ref().filter(|_| !message.mapping && !array.can_fail());
            numbers(py, entry, out, |memory| array.decode(memory))?
        };
        Ok((entry.name.clone(), value))
    });
    Ok((message.mapping, decoded.collect::<PyResult<_>>()?))
}

/// The mean of one array in the dtype that means have: float32, or float64 for what float32 may not hold.
fn averaged<'py>(
    py: Python<'py>,
    entry: &Entry,
    out: Option<&Untyped<'py>>,
    write: impl Fn(Target<'_>) -> Result<()> + Send + Sync,
) -> PyResult<(String, Untyped<'py>)> {
    let value = if entry.exact {
        let wide = fill_new::<f64>(py, &entry.shape, |numbers| Ok(detached(py, || write(Target::Exact(numbers)))?))?;
        if entry.dtype.is_float() && entry.dtype.size < 8 {
            // Rounded here: NumPy would do it in the caller's float state.
            let wide = slice_of::<f64>("mean", &wide)?;
            fill_new::<f32>(py, &entry.shape, |narrow| {
                detached(py, || narrow.iter_mut().zip(wide).for_each(|(narrow, wide)| *narrow = *wide as f32));
                Ok(())
            })?
        } else {
            wide
        }
    } else {
        numbers(py, entry, out, |memory| write(Target::Coded(memory)))?
    };
    Ok((entry.name.clone(), value))
}

#[pyfunction]
#[pyo3(signature = (messages, words, weights, max_elements, out))]
pub(super) fn message_mean<'py>(
    py: Python<'py>,
    messages: Vec<Bound<'py, PyBytes>>,
    words: Words,
    weights: Option<Vec<f64>>,
    max_elements: usize,
    out: Option<Untyped<'py>>,
) -> PyResult<Decoded<'py>> {
    let data: Vec<&[u8]> = messages.iter().map(PyBytesMethods::as_bytes).collect();
    let round = detached(py, || Round::read(&data, weights.as_deref(), max_elements))?;
    let opened = detached(py, || round.open(key(words)))?;
    let can_fail = opened.iter().any(|(arrays, _)| arrays.iter().any(Array::can_fail));
    let out = out.as_ref().filter(|_| !round.mapping() && !can_fail);
    let entries = round.entries().iter().enumerate();
    let means = entries.map(|(index, entry)| averaged(py, entry, out, |target| mean_of(&opened, index, target)));
    Ok((round.mapping(), means.collect::<PyResult<_>>()?))
}

/// A mean that messages are added to one by one, by any number of threads. Nobody waits for the lock with the GIL in hand.
#[pyclass(module = "lowbit._core", frozen)]
pub(super) struct MessageMean(Mutex<Mean>);

#[pymethods]
impl MessageMean {
    #[new]
    fn new(words: Words, max_elements: usize) -> Self {
        MessageMean(Mutex::new(Mean::new(key(words), max_elements)))
    }

    /// Adds a message.
    fn add(&self, py: Python<'_>, data: &Bound<'_, PyBytes>, weight: f64) -> PyResult<()> {
        let data = data.as_bytes();
        let add = || self.0.lock().unwrap_or_else(PoisonError::into_inner).add(data, weight);
        Ok(detached(py, add)?)
    }

    /// The mean of what was added so far.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Decoded<'py>> {
        let mean = self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        mean.result(|mapping, entries, write| {
            let entries = entries.iter().enumerate();
            let means = entries.map(|(index, entry)| averaged(py, entry, None, |target| write(index, target)));
            Ok((mapping, means.collect::<PyResult<_>>()?))
        })?
    }

    /// How many messages were added.
    #[getter]
    fn count(&self, py: Python<'_>) -> usize {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner).count()
    }
}

type Described = (u8, (u8, u8), u8, Vec<u8>, u32, Vec<usize>, u64, u64, Vec<(String, Vec<usize>, &'static str, bool)>);

/// What a container's header says, without the key.
#[pyfunction]
pub(super) fn message_describe(py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<Described> {
    let data = data.as_bytes();
    let (header, _) = detached(py, || Header::read(data))?;
    let Header { kind, codec, flags, key_id, sender, shape, parameters } = header;
    let version = (data[8], data[9]);
    if kind == envelope::KIND {
        let message = Message::read(data, usize::MAX)?;
        let entries = message.entries.into_iter().map(|e| (e.name, e.shape, e.dtype.name, e.exact)).collect();
        return Ok((kind, version, codec, message.codec.parameters, flags, shape, key_id, sender, entries));
    }
    let (record, _) = quantized::Quantized::read(data)?;
    let _ = parameters;
    Ok((kind, version, codec, record.format.name.as_bytes().to_vec(), flags, shape, key_id, sender, Vec::new()))
}

fn summable(parameters: &[u8]) -> Result<Summable> {
    match parameters {
        [bits, rounds] => Level::PORTABLE.run(|| Summable::new(u32::from(*bits), u32::from(*rounds))),
        _ => Err(Error::argument("codec", "a Summable has two parameters")),
    }
}

/// The norm of every block.
#[pyfunction]
pub(super) fn summable_norms<'py>(py: Python<'py>, x: &Untyped<'py>, parameters: Vec<u8>) -> PyResult<Untyped<'py>> {
    let (codec, x) = (summable(&parameters)?, Input::new("x", x)?.view);
    fill_new::<f32>(py, &[Blocks::new(x.len(), BLOCK_MIN).len()], |norms| Ok(detached(py, || codec.norms(&x, norms))?))
}

/// The integer of every number, padding included.
#[pyfunction]
pub(super) fn summable_integers<'py>(
    py: Python<'py>,
    x: &Untyped<'py>,
    parameters: Vec<u8>,
    norms: &Untyped<'py>,
    words: Words,
    sender: u64,
) -> PyResult<Untyped<'py>> {
    let (codec, x, norms) = (summable(&parameters)?, Input::new("x", x)?.view, slice_of::<f32>("norms", norms)?);
    let noise = Noise { key: key(words), sender };
    let total = Blocks::new(x.len(), BLOCK_MIN).total();
    fill_new::<u8>(py, &[total], |codes| Ok(detached(py, || codec.integers(&x, norms, noise, codes))?))
}

/// The sum of the vectors whose integers add up to `total`.
#[pyfunction]
pub(super) fn summable_decode<'py>(
    py: Python<'py>,
    total: &Untyped<'py>,
    parameters: Vec<u8>,
    norms: &Untyped<'py>,
    shape: Vec<usize>,
    words: Words,
    senders: Vec<u64>,
) -> PyResult<Untyped<'py>> {
    let (codec, norms) = (summable(&parameters)?, slice_of::<f32>("norms", norms)?);
    let total = slice_of::<i64>("total", total)?;
    let noise = Noise { key: key(words), sender: 0 };
    let key = noise.key()?;
    let out = new_array(py, &shape, dtype::<f32>(py))?;
    // SAFETY: the array is new: contiguous, writeable, and nobody else has it.
    let numbers = unsafe { fill::<f32>(&out) };
    detached(py, || codec.decode_sum(total, norms, key, &senders, numbers))?;
    Ok(out)
}
