//! `lowbit.Format`: what a number format is, as Python sees it.

use numpy::PyArray1;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::text;
use crate::formats::{Format as Record, all};
use crate::scale::Rule;

/// A number format; `get_format` gives one by name.
///
/// Formats of one name are equal, and ``str(format)`` is the name.
///
/// Examples
/// --------
/// >>> import lowbit as lb
/// >>> format = lb.get_format("int4")
/// >>> format.bits, format.max, format.default_scale
/// (4, 7.0, 'amax')
/// >>> isinstance(format, lb.Format)
/// True
#[pyclass(frozen, module = "lowbit", from_py_object)]
#[derive(Clone, Copy)]
pub(super) struct Format(pub &'static Record);

/// The record of a format or of its name.
pub(super) fn record(format: &Bound<'_, PyAny>) -> PyResult<&'static Record> {
    if let Ok(format) = format.cast::<Format>() {
        return Ok(format.get().0);
    }
    if let Ok(name) = format.cast::<PyString>() {
        return Ok(Record::named(&text("format", name)?)?);
    }
    let kind = format.get_type().name()?;
    Err(PyTypeError::new_err(format!("format: expected a format's name or a lowbit.Format, got {kind}")))
}

/// Name every format, in order.
///
/// Returns
/// -------
/// list of str
///
/// Examples
/// --------
/// >>> import lowbit as lb
/// >>> print(*lb.formats())
/// int4 int4_symmetric uint4 radix4 radix4_odd
#[pyfunction]
pub(super) fn formats() -> Vec<&'static str> {
    all().map(|format| format.name).collect()
}

/// Look up a format by name.
///
/// Parameters
/// ----------
/// format : str or Format
///     A name of ``lowbit.formats()``; a Format is returned as it is.
///
/// Returns
/// -------
/// Format
///
/// Raises
/// ------
/// TypeError
///     `format` is neither.
/// lowbit.Error
///     No format has this name; the message lists those there are.
///
/// Examples
/// --------
/// >>> import lowbit as lb
/// >>> lb.get_format("radix4").values[-4:]
/// array([ 1.,  4., 16., 64.], dtype=float32)
#[pyfunction]
pub(super) fn get_format(format: &Bound<'_, PyAny>) -> PyResult<Format> {
    Ok(Format(record(format)?))
}

fn frozen(py: Python<'_>, values: Vec<f32>) -> PyResult<Bound<'_, PyArray1<f32>>> {
    let array = PyArray1::from_vec(py, values);
    array.call_method1("setflags", (false,))?;
    Ok(array)
}

#[pymethods]
impl Format {
    /// The name users give.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }
    /// Bits per code.
    #[getter]
    fn bits(&self) -> u32 {
        self.0.bits
    }
    /// The distinct values that rounding gives, ascending: float32, read-only.
    #[getter]
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        frozen(py, self.0.values())
    }
    /// The value of every code: float32, ``2**bits`` entries, read-only.
    #[getter]
    fn decode_table<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        frozen(py, self.0.decode_table())
    }
    /// The largest value.
    #[getter]
    fn max(&self) -> f32 {
        self.0.values().last().copied().unwrap_or(f32::NAN)
    }
    /// The smallest positive value.
    #[getter]
    fn smallest(&self) -> f32 {
        self.0.values().into_iter().find(|value| *value > 0.0).unwrap_or(f32::NAN)
    }
    /// Whether there are negative values.
    #[getter]
    fn signed(&self) -> bool {
        self.0.values().first().is_some_and(|value| *value < 0.0)
    }
    /// Whether the steps are equal: what offsets and dither need.
    #[getter]
    fn uniform(&self) -> bool {
        self.0.uniform().is_some()
    }
    /// The value that the rule ``"amax"`` scales the largest magnitude to.
    #[getter]
    fn reference(&self) -> f32 {
        self.0.reference
    }
    /// The rule that ``scale=None`` means.
    #[getter]
    fn default_scale(&self) -> &'static str {
        self.0.default_scale
    }
    /// The block size that ``block_size=None`` means; None for none.
    #[getter]
    fn default_block(&self) -> Option<usize> {
        self.0.default_block
    }
    /// The scale rules it can use.
    #[getter]
    fn scale_rules(&self) -> Vec<&'static str> {
        Rule::names_for(self.0)
    }
    /// Where it is defined.
    #[getter]
    fn source(&self) -> &'static str {
        self.0.source
    }
    fn __repr__(&self) -> String {
        format!("lowbit.get_format({:?})", self.0.name)
    }
    fn __str__(&self) -> &'static str {
        self.0.name
    }
    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Format>().is_ok_and(|other| other.get().0.name == self.0.name)
    }
    fn __hash__(&self) -> u64 {
        self.0.name.bytes().fold(0, |hash, byte| hash.wrapping_mul(257).wrapping_add(u64::from(byte)))
    }
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (&'static str,))> {
        Ok((py.import("lowbit._core")?.getattr("get_format")?, (self.0.name,)))
    }
}
