//! `lowbit.onebit`: the border of [`crate::onebit`].

use numpy::{PyArray1, PyArrayDyn, PyArrayMethods, PyUntypedArray};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::{Input, new_array_of};
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
) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    let scheme = scheme_of(scheme)?;
    let interval = Interval::new(interval.0, interval.1)?;
    let x = Input::new("x", x)?.view;
    let out = new_array_of::<u8>(py, &[x.len().div_ceil(8)])?;
    {
        let mut bits = out.try_readwrite()?;
        let bits = bits.as_slice_mut()?;
        py.detach(|| scheme.encode(&x, interval, key(words), sender, bits))?;
    }
    Ok(out)
}

#[pyfunction]
pub(super) fn onebit_decode<'py>(
    py: Python<'py>,
    bits: &Bound<'py, PyArray1<u8>>,
    n: usize,
    scheme: (Bound<'py, PyAny>, Option<u32>),
    words: Option<(u64, u64)>,
    sender: u64,
    interval: (f64, f64),
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let scheme = scheme_of(scheme)?;
    let interval = Interval::new(interval.0, interval.1)?;
    let bits = bits.try_readonly()?;
    let bits = bits.as_slice()?;
    onebit::check_bytes(n, bits.len())?;
    let out = new_array_of::<f32>(py, &[n])?;
    {
        let mut y = out.try_readwrite()?;
        let y = y.as_slice_mut()?;
        py.detach(|| scheme.decode(bits, interval, key(words), sender, y))?;
    }
    Ok(out)
}
