//! The steps of `lowbit.torch.optim`: the border of [`crate::optim`].

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::array::{extent, plain, slice_of};
use super::error::Error;
use crate::optim::{self, Adam, Gradient, Rule, Sgd, States, Tensor};
use crate::stream::Key;

type Untyped<'py> = Bound<'py, PyUntypedArray>;
/// A parameter's number, its weight, gradient and states; bfloat16 as uint16.
type Parts<'py> = (u64, Untyped<'py>, Untyped<'py>, Vec<Untyped<'py>>);

/// Memory that a step writes.
fn written<'a, T: numpy::Element>(name: &str, array: &'a Untyped<'_>) -> PyResult<&'a mut [T]> {
    plain(array, array.shape()).ok_or_else(|| {
        let want = dtype::<T>(array.py());
        PyTypeError::new_err(format!("{name}: expected a contiguous, aligned, writeable array of {want}"))
    })
}

/// Refuses memory that one step would write twice, or write and read.
fn check_apart(tensors: &[Parts<'_>]) -> PyResult<()> {
    let mut places: Vec<(usize, usize, bool)> = Vec::with_capacity(4 * tensors.len());
    for (_, weight, gradient, states) in tensors {
        let mut add = |array, is_written| {
            let (low, high) = extent(array);
            places.push((low, high, is_written));
        };
        add(gradient, false);
        add(weight, true);
        for state in states {
            add(state, true);
        }
    }
    places.sort_unstable();
    let (mut read, mut wrote) = (0, 0);
    for (low, high, is_written) in places.into_iter().filter(|(low, high, _)| low < high) {
        if low < wrote || (is_written && low < read) {
            return Err(Error::new_err("tensors: weights, gradients and states share memory; give each its own"));
        }
        read = read.max(high);
        wrote = if is_written { high } else { wrote };
    }
    Ok(())
}

fn run(
    py: Python<'_>,
    rule: Rule,
    tensors: &[Parts<'_>],
    key: (u64, u64),
    labels: &[(u64, u64)],
    nearest: bool,
) -> PyResult<()> {
    check_apart(tensors)?;
    let key = Key { k0: key.0, k1: key.1 };
    let mut given = Vec::with_capacity(tensors.len());
    for (number, weight, gradient, states) in tensors {
        let is_float = |array: &Untyped<'_>| array.dtype().itemsize() == 4;
        let of_parameter = key.fold(*number);
        given.push(Tensor {
            weight: written("weight", weight)?,
            gradient: if is_float(gradient) {
                Gradient::Float(slice_of("gradient", gradient)?)
            } else {
                Gradient::Brain(slice_of("gradient", gradient)?)
            },
            states: if states.first().is_none_or(is_float) {
                States::Float(states.iter().map(|state| written("state", state)).collect::<PyResult<_>>()?)
            } else {
                States::Brain(states.iter().map(|state| written("state", state)).collect::<PyResult<_>>()?)
            },
            keys: labels.iter().map(|(h0, h1)| of_parameter.fold(*h0).fold(*h1)).collect(),
        });
    }
    Ok(py.detach(|| optim::step(rule, given, nearest))?)
}

/// Steps bfloat16 weights by stochastic gradient descent, in place.
#[pyfunction]
pub(super) fn sgd_step(
    py: Python<'_>,
    tensors: Vec<Parts<'_>>,
    key: (u64, u64),
    labels: Vec<(u64, u64)>,
    nearest: bool,
    numbers: [f32; 5],
    nesterov: bool,
) -> PyResult<()> {
    let [lr, sign, weight_decay, momentum, share] = numbers;
    let rule = Rule::Sgd(Sgd { lr, sign, weight_decay, momentum, share, nesterov });
    run(py, rule, &tensors, key, &labels, nearest)
}

/// Steps bfloat16 weights by Adam or AdamW, in place.
#[pyfunction]
pub(super) fn adam_step(
    py: Python<'_>,
    tensors: Vec<Parts<'_>>,
    key: (u64, u64),
    labels: Vec<(u64, u64)>,
    nearest: bool,
    numbers: [f32; 9],
) -> PyResult<()> {
    let [sign, weight_decay, keep, share1, beta2, share2, root, size, eps] = numbers;
    let rule = Rule::Adam(Adam { sign, weight_decay, keep, share1, beta2, share2, root, size, eps });
    run(py, rule, &tensors, key, &labels, nearest)
}
