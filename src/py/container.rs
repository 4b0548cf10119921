//! `Quantized.to_bytes` and `from_bytes`.

use numpy::{PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::error::Error;
use super::format::{Format, record};
use crate::formats::Format as Record;
use crate::message::quantized::{Parts, Quantized, fill, floats};

#[pyfunction]
pub(super) fn quantized_to_bytes<'py>(
    py: Python<'py>,
    packed: PyReadonlyArray1<'py, u8>,
    scale: PyReadonlyArrayDyn<'py, f32>,
    offset: Option<PyReadonlyArrayDyn<'py, f32>>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    axis: Option<usize>,
    block_size: Option<usize>,
    key_id: Option<[u8; 8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    use numpy::PyUntypedArrayMethods;
    if offset.as_ref().is_some_and(|offset| offset.shape() != scale.shape()) {
        return Err(Error::new_err("offset: its shape is not that of scale"));
    }
    let this = Quantized {
        format: record(format)?.name,
        shape,
        axis,
        block_size,
        key_id: key_id.map(u64::from_le_bytes),
        scale_shape: scale.shape().to_vec(),
        has_offset: offset.is_some(),
    };
    let little = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
    let scale = little(scale.as_slice()?);
    let offset = offset.map(|offset| offset.as_slice().map(little)).transpose()?.unwrap_or_default();
    let packed = packed.as_slice()?;
    let parts = Parts { scale: &scale, offset: &offset, packed };
    let (head, length) = this.head(parts)?;
    PyBytes::new_with(py, length, |memory| {
        fill(&head, parts, memory);
        Ok(())
    })
}

type Fields<'py> = (
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArrayDyn<f32>>,
    Option<Bound<'py, PyArrayDyn<f32>>>,
    Option<f32>,
    Format,
    Vec<usize>,
    Option<usize>,
    Option<usize>,
    Option<Bound<'py, PyBytes>>,
);

#[pyfunction]
pub(super) fn quantized_from_bytes<'py>(py: Python<'py>, data: &Bound<'py, PyBytes>) -> PyResult<Fields<'py>> {
    let (record, parts) = Quantized::read(data.as_bytes())?;
    let array = |bytes: &[u8]| PyArray1::from_iter(py, floats(bytes)).reshape(record.scale_shape.clone());
    let offset = if record.has_offset { Some(array(parts.offset)?) } else { None };
    Ok((
        PyArray1::from_slice(py, parts.packed),
        array(parts.scale)?,
        offset,
        None,
        Format(Record::named(record.format)?),
        record.shape,
        record.axis,
        record.block_size,
        record.key_id.map(|id| PyBytes::new(py, &id.to_le_bytes())),
    ))
}
