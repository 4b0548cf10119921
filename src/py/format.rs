//! `lowbit.Format`: what a number format is, as Python sees it.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::text;
use crate::error::Result;
use crate::formats::blocks::{self, ScaleFormat};
use crate::formats::coding::Specials;
use crate::formats::{Format as Record, all, fixed, int, minifloat, radix, table};
use crate::scale::Rule;

/// A number format; `get_format` gives one by name, factories such as `float_format` make more.
///
/// Formats of one name are equal, and ``str(format)`` is the name, from which `get_format` makes the same format again.
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
#[derive(Clone)]
pub(super) struct Format(pub Arc<Record>);

/// The record of a format or of its name.
pub(super) fn record(format: &Bound<'_, PyAny>) -> PyResult<Arc<Record>> {
    if let Ok(format) = format.cast::<Format>() {
        return Ok(format.get().0.clone());
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
/// >>> print(*lb.formats()[:7])
/// int4 int4_symmetric uint4 radix4 radix4_odd luq4 nf4
#[pyfunction]
pub(super) fn formats() -> Vec<&'static str> {
    all().map(|format| &*format.name).collect()
}

/// Look up a format by name.
///
/// Parameters
/// ----------
/// format : str or Format
///     A name of ``lowbit.formats()``, or one that a factory gave; a Format is returned as it is.
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

/// A Format of what a factory made.
fn made(format: Result<Record>) -> PyResult<Format> {
    Ok(Format(format?.registered()))
}

#[pyfunction]
pub(super) fn int_format(bits: u32, symmetric: bool, signed: bool) -> PyResult<Format> {
    made(int::integer(bits, symmetric, signed))
}

#[pyfunction]
pub(super) fn radix_format(base: u32, exponent_bits: u32, zero: bool) -> PyResult<Format> {
    made(radix::radix(base, exponent_bits, zero))
}

#[pyfunction]
#[pyo3(signature = (exponent_bits, mantissa_bits, bias, inf_nan, subnormals))]
pub(super) fn float_format(
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: Option<i32>,
    inf_nan: &str,
    subnormals: bool,
) -> PyResult<Format> {
    let specials = Specials::named(inf_nan)?;
    made(minifloat::float(exponent_bits, mantissa_bits, bias, specials, subnormals))
}

#[pyfunction]
pub(super) fn cfloat8(exponent_bits: u32, bias: i32) -> PyResult<Format> {
    made(minifloat::cfloat8(exponent_bits, bias))
}

#[pyfunction]
pub(super) fn cfloat16_shp(bias: i32) -> PyResult<Format> {
    made(minifloat::cfloat16_shp(bias))
}

#[pyfunction]
pub(super) fn cfloat16_uhp(reserved: bool) -> PyResult<Format> {
    made(Ok(minifloat::cfloat16_uhp(reserved)))
}

#[pyfunction]
pub(super) fn fixed_point(bits: u32, fraction_bits: i32, symmetric: bool, clamp: bool) -> PyResult<Format> {
    made(fixed::fixed_point(bits, fraction_bits, symmetric, clamp))
}

#[pyfunction]
pub(super) fn log_grid(zeta: f64, delta: f64, bits: u32) -> PyResult<Format> {
    made(table::log_grid(zeta, delta, bits))
}

#[pyfunction]
pub(super) fn table_format(values: Vec<f32>) -> PyResult<Format> {
    made(table::codebook(&values))
}

#[pyfunction]
pub(super) fn block_float(bits: u32) -> PyResult<Format> {
    made(blocks::block_float(bits))
}

#[pyfunction]
#[pyo3(signature = (element, scale_format, block_size))]
pub(super) fn block_format(
    element: &Bound<'_, PyAny>,
    scale_format: &str,
    block_size: Option<usize>,
) -> PyResult<Format> {
    let element = record(element)?;
    made(ScaleFormat::named(scale_format).and_then(|format| blocks::block_format(&element, format, block_size)))
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
    fn name(&self) -> &str {
        &self.0.name
    }
    /// Bits per code.
    #[getter]
    fn bits(&self) -> u32 {
        self.0.bits
    }
    /// Whether its numbers have codes and can be stored: at most 16 bits, and bounds.
    #[getter]
    fn coded(&self) -> bool {
        self.0.coded
    }
    /// The distinct values that rounding gives, ascending: float32, read-only.
    #[getter]
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.0.check_coded()?;
        frozen(py, self.0.values())
    }
    /// The value of every code: float32, ``2**bits`` entries, read-only.
    #[getter]
    fn decode_table<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.0.check_coded()?;
        frozen(py, self.0.decode_table())
    }
    /// The largest value.
    #[getter]
    fn max(&self) -> f32 {
        self.0.extremes().2
    }
    /// The smallest positive value.
    #[getter]
    fn smallest(&self) -> f32 {
        self.0.extremes().1
    }
    /// Whether there are negative values.
    #[getter]
    fn signed(&self) -> bool {
        self.0.extremes().0 < 0.0
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
    /// The format of the scales, ``"e8m0"`` or ``"e4m3"``; None where they are float32.
    #[getter]
    fn scale_format(&self) -> Option<&'static str> {
        self.0.scaling.map(|scaling| scaling.format.name())
    }
    /// The scale rules it can use.
    #[getter]
    fn scale_rules(&self) -> Vec<&'static str> {
        Rule::names_for(&self.0)
    }
    /// Where it is defined.
    #[getter]
    fn source(&self) -> &'static str {
        self.0.source
    }
    fn __repr__(&self) -> String {
        format!("lowbit.get_format({:?})", self.0.name)
    }
    fn __str__(&self) -> &str {
        &self.0.name
    }
    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Format>().is_ok_and(|other| other.get().0.name == self.0.name)
    }
    fn __hash__(&self) -> u64 {
        self.0.name.bytes().fold(0, |hash, byte| hash.wrapping_mul(257).wrapping_add(u64::from(byte)))
    }
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((py.import("lowbit._core")?.getattr("get_format")?, (self.0.name.to_string(),)))
    }
}
