//! `lowbit.hadamard_transform` and `lowbit.randomized_hadamard_transform`: the border of [`crate::fwht`].

use numpy::{PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::prelude::*;

use super::array::{Input, check_out, fill, new_array, output};
use crate::error::Result;
use crate::fwht;
use crate::stream::{Key, Purpose};
use crate::view::{Element, View, ViewMut};

/// Runs a transform into `out`, or into a new float32 array of x's shape. Where it wants `plain` memory and `out` is not,
/// it runs in an array of its own, which is then copied.
fn transformed<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    out: Option<Bound<'py, PyUntypedArray>>,
    plain: bool,
    transform: impl FnOnce(&View, &mut ViewMut) -> Result<()> + Send,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let input = Input::new("x", x)?;
    let fresh = || new_array(py, x.shape(), dtype::<f32>(py));
    let Some(out) = out else {
        let fresh = fresh()?;
        let mut target = output(&fresh, Element::F32);
        py.detach(|| transform(&input.view, &mut target))?;
        return Ok(fresh);
    };
    check_out(&out, x.shape(), &dtype::<f32>(py), Some(x), None)?;
    let mut target = output(&out, Element::F32);
    if target.is_plain() || !plain {
        py.detach(|| transform(&input.view, &mut target))?;
    } else {
        let fresh = fresh()?;
        // SAFETY: the array is new: contiguous, writeable, and nobody else has it.
        let values: &mut [f32] = unsafe { fill(&fresh) };
        py.detach(|| {
            transform(&input.view, &mut ViewMut::from_slice(values))?;
            // SAFETY: as long as the output, which only this thread writes.
            unsafe { target.write(0, values) };
            Result::Ok(())
        })?;
    }
    Ok(out)
}

#[pyfunction]
pub(super) fn hadamard_transform<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let long = x.shape().last().is_some_and(|d| *d > fwht::BLOCK_MAX);
    transformed(py, x, out, long, fwht::hadamard_transform)
}

#[pyfunction]
pub(super) fn randomized_hadamard_transform<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    words: (u64, u64),
    rounds: u32,
    inverse: bool,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let key = Key { k0: words.0, k1: words.1 }.purpose(Purpose::Rotation);
    transformed(py, x, out, false, |x, out| fwht::randomized_hadamard_transform(x, key, rounds, inverse, out))
}
