//! `lowbit.Format`: what a number format is, as Python sees it.

use numpy::PyArray1;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::text;
use crate::formats::{Format as Record, all};
use crate::scale::Rule;

/// A number format; `get_format` gives one by name.
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

/// The names of every format, in order.
#[pyfunction]
pub(super) fn formats() -> Vec<&'static str> {
    all().map(|format| format.name).collect()
}

/// The format of this name; an error that lists the known ones if there is none.
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
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }
    #[getter]
    fn bits(&self) -> u32 {
        self.0.bits
    }
    #[getter]
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        frozen(py, self.0.values())
    }
    #[getter]
    fn decode_table<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        frozen(py, self.0.decode_table())
    }
    #[getter]
    fn max(&self) -> f32 {
        self.0.values().last().copied().unwrap_or(f32::NAN)
    }
    #[getter]
    fn smallest(&self) -> f32 {
        self.0.values().into_iter().find(|value| *value > 0.0).unwrap_or(f32::NAN)
    }
    #[getter]
    fn signed(&self) -> bool {
        self.0.values().first().is_some_and(|value| *value < 0.0)
    }
    #[getter]
    fn uniform(&self) -> bool {
        self.0.uniform().is_some()
    }
    #[getter]
    fn reference(&self) -> f32 {
        self.0.reference
    }
    #[getter]
    fn default_scale(&self) -> &'static str {
        self.0.default_scale
    }
    #[getter]
    fn default_block(&self) -> Option<usize> {
        self.0.default_block
    }
    #[getter]
    fn scale_rules(&self) -> Vec<&'static str> {
        Rule::names_for(self.0)
    }
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
        self.0.name.bytes().fold(0, |hash, byte| hash * 257 + u64::from(byte))
    }
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (&'static str,))> {
        Ok((py.import("lowbit._core")?.getattr("get_format")?, (self.0.name,)))
    }
}
