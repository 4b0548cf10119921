//! `lowbit.torch.qtorch`: the border of [`crate::qtorch`].

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::array::{Input, native, new_array, output};
use crate::error::Result;
use crate::qtorch;
use crate::stream::{Key, Purpose, Stream};
use crate::view::{View, ViewMut};

/// Runs a rounding into a new array of x's dtype: to nearest, or stochastically by the words of a key.
fn rounded<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    key: Option<(u64, u64)>,
    round: impl FnOnce(&View, Option<Stream>, &ViewMut) -> Result<()> + Send,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let input = Input::new("x", x)?;
    let stream = key.map(|(k0, k1)| Key { k0, k1 }.purpose(Purpose::Rounding).stream());
    let out = new_array(py, x.shape(), native(x)?)?;
    let target = output(&out, input.element);
    py.detach(|| round(&input.view, stream, &target))?;
    Ok(out)
}

#[pyfunction]
pub(super) fn qtorch_float<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    exp: i64,
    man: i64,
    key: Option<(u64, u64)>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    rounded(py, x, key, |x, stream, out| qtorch::float(x, exp, man, stream, out))
}

#[pyfunction]
pub(super) fn qtorch_fixed<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    wl: i64,
    fl: i64,
    clamp: bool,
    symmetric: bool,
    key: Option<(u64, u64)>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    rounded(py, x, key, |x, stream, out| qtorch::fixed(x, (wl, fl), clamp, symmetric, stream, out))
}

#[pyfunction]
pub(super) fn qtorch_block<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    wl: i64,
    dim: i64,
    key: Option<(u64, u64)>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    rounded(py, x, key, |x, stream, out| qtorch::block(x, wl, dim, stream, out))
}
