//! `lowbit.onebit`: the border of [`crate::onebit`].

use numpy::PyUntypedArray;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::{Input, fill_new, slice_of};
use crate::onebit::{self, Interval, Scheme};
use crate::stream::Key;

fn key(words: Option<(u64, u64)>) -> Option<Key> {
    words.map(|(k0, k1)| Key { k0, k1 })
}

/// The scheme of this name; text that UTF-8 cannot hold is the name of none.
fn scheme_of((name, shared_bits): (Bound<'_, PyAny>, Option<u32>)) -> PyResult<Scheme> {
    let Ok(name) = name.cast::<PyString>() else {
        let what = format!("scheme: expected a name such as \"dither\", got {}", name.get_type().name()?);
        return Err(PyTypeError::new_err(what));
    };
    Ok(Scheme::new(&name.to_string_lossy(), shared_bits)?)
}

/// Whether words are shared with the receiver, whether the sender throws a coin of its own.
#[pyfunction]
pub(super) fn onebit_noise(scheme: Bound<'_, PyAny>, shared_bits: Option<u32>) -> PyResult<(bool, bool)> {
    let scheme = scheme_of((scheme, shared_bits))?;
    Ok((scheme.is_shared(), scheme.is_private()))
}

/// The pairs of values that the shared bits choose from, or `None` if there is no end to them.
#[pyfunction]
pub(super) fn onebit_pairs(scheme: Bound<'_, PyAny>, shared_bits: Option<u32>) -> PyResult<Option<Vec<(f64, f64)>>> {
    Ok(scheme_of((scheme, shared_bits))?.pairs())
}

#[pyfunction]
pub(super) fn onebit_encode<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    scheme: (Bound<'py, PyAny>, Option<u32>),
    words: Option<(u64, u64)>,
    sender: u64,
    interval: (f64, f64),
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let scheme = scheme_of(scheme)?;
    let interval = Interval::new(interval.0, interval.1)?;
    let x = Input::new("x", x)?.view;
    fill_new::<u8>(py, &[x.len().div_ceil(8)], |bits| {
        Ok(py.detach(|| scheme.encode(&x, interval, key(words), sender, bits))?)
    })
}

#[pyfunction]
pub(super) fn onebit_decode<'py>(
    py: Python<'py>,
    bits: &Bound<'py, PyUntypedArray>,
    n: usize,
    scheme: (Bound<'py, PyAny>, Option<u32>),
    words: Option<(u64, u64)>,
    sender: u64,
    interval: (f64, f64),
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let scheme = scheme_of(scheme)?;
    let interval = Interval::new(interval.0, interval.1)?;
    let bits = slice_of::<u8>("bits", bits)?;
    onebit::check_bytes(n, bits.len())?;
    fill_new::<f32>(py, &[n], |y| Ok(py.detach(|| scheme.decode(bits, interval, key(words), sender, y))?))
}
