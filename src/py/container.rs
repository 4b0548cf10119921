//! `Quantized`: its fields checked and frozen, `to_bytes` and `from_bytes`.

use std::borrow::Cow;

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::array::{fill_new, slice_of};
use super::error::Error;
use super::format::{Format, record};
use crate::formats::Format as Record;
use crate::message::quantized::{Parts, Quantized, fill, floats};
use crate::quantize::Grouping;

type Untyped<'py> = Bound<'py, PyUntypedArray>;

/// The fields of a quantized array, borrowed from Python's.
struct Fields<'a> {
    record: Quantized,
    scale: &'a [f32],
    offset: &'a [f32],
    packed: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(
        packed: &'a Untyped<'_>,
        scale: &'a Untyped<'_>,
        offset: Option<&'a Untyped<'_>>,
        format: &Bound<'_, PyAny>,
        (shape, axis, block_size): (Vec<usize>, Option<usize>, Option<usize>),
        key_id: Option<[u8; 8]>,
    ) -> PyResult<Self> {
        if offset.is_some_and(|offset| offset.shape() != scale.shape()) {
            return Err(Error::new_err("offset: its shape is not that of scale"));
        }
        Ok(Fields {
            record: Quantized {
                format: record(format)?.name,
                shape,
                axis,
                block_size,
                key_id: key_id.map(u64::from_le_bytes),
                scale_shape: scale.shape().to_vec(),
                has_offset: offset.is_some(),
            },
            scale: slice_of("scale", scale)?,
            offset: offset.map(|offset| slice_of("offset", offset)).transpose()?.unwrap_or_default(),
            packed: slice_of("packed", packed)?,
        })
    }
}

/// Checks the fields of a quantized array as a reader of its bytes would; gives its axis, counted from the front.
#[pyfunction]
pub(super) fn quantized_check<'py>(
    py: Python<'py>,
    packed: Untyped<'py>,
    scale: Untyped<'py>,
    offset: Option<Untyped<'py>>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    axis: Option<isize>,
    block_size: Option<usize>,
    key_id: Option<[u8; 8]>,
) -> PyResult<Option<usize>> {
    let axis = match Grouping::new(shape.len(), axis, block_size)? {
        Grouping::Array => None,
        Grouping::Axis(axis) | Grouping::Blocks { axis, .. } => Some(axis),
    };
    let fields = Fields::new(&packed, &scale, offset.as_ref(), format, (shape, axis, block_size), key_id)?;
    py.detach(|| fields.record.check(fields.scale.iter().copied(), fields.offset.iter().copied(), fields.packed))?;
    Ok(axis)
}

#[pyfunction]
pub(super) fn quantized_to_bytes<'py>(
    py: Python<'py>,
    packed: Untyped<'py>,
    scale: Untyped<'py>,
    offset: Option<Untyped<'py>>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    axis: Option<usize>,
    block_size: Option<usize>,
    key_id: Option<[u8; 8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    let fields = Fields::new(&packed, &scale, offset.as_ref(), format, (shape, axis, block_size), key_id)?;
    let (scale, offset) = (little_endian(fields.scale), little_endian(fields.offset));
    let parts = Parts { scale: &scale, offset: &offset, packed: fields.packed };
    let (head, length) = fields.record.head(parts)?;
    PyBytes::new_with(py, length, |memory| {
        py.detach(|| fill(&head, parts, memory));
        Ok(())
    })
}

/// The numbers' bytes as they are written, without a copy where the machine has them so.
fn little_endian(numbers: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(numbers))
    } else {
        Cow::Owned(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }
}

type Read<'py> = (
    Untyped<'py>,
    Untyped<'py>,
    Option<Untyped<'py>>,
    Option<f32>,
    Format,
    Vec<usize>,
    Option<usize>,
    Option<usize>,
    Option<Bound<'py, PyBytes>>,
);

#[pyfunction]
pub(super) fn quantized_from_bytes<'py>(py: Python<'py>, data: &Bound<'py, PyBytes>) -> PyResult<Read<'py>> {
    let data = data.as_bytes();
    let (record, parts) = py.detach(|| Quantized::read(data))?;
    let numbers = |bytes: &[u8]| {
        fill_new::<f32>(py, &record.scale_shape, |target| {
            py.detach(|| target.iter_mut().zip(floats(bytes)).for_each(|(place, number)| *place = number));
            Ok(())
        })
    };
    let packed = fill_new::<u8>(py, &[parts.packed.len()], |target| {
        py.detach(|| target.copy_from_slice(parts.packed));
        Ok(())
    })?;
    Ok((
        packed,
        numbers(parts.scale)?,
        if record.has_offset { Some(numbers(parts.offset)?) } else { None },
        None,
        Format(Record::named(record.format)?),
        record.shape,
        record.axis,
        record.block_size,
        record.key_id.map(|id| PyBytes::new(py, &id.to_le_bytes())),
    ))
}

/// A view that cannot be written; the array itself stays as it is.
fn frozen<'py>(array: &Untyped<'py>) -> PyResult<Untyped<'py>> {
    let py = array.py();
    // SAFETY: the C API's own call on a live array; the view keeps it alive, and nobody else has the view yet.
    unsafe {
        let view =
            numpy::PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), std::ptr::null_mut(), std::ptr::null_mut());
        let view = Bound::from_owned_ptr_or_err(py, view)?.cast_into_unchecked::<PyUntypedArray>();
        (*view.as_array_ptr()).fields.flags &= !NPY_ARRAY_WRITEABLE;
        Ok(view)
    }
}

/// Views of a quantized array's three arrays that cannot be written.
#[pyfunction]
pub(super) fn read_only<'py>(
    packed: &Untyped<'py>,
    scale: &Untyped<'py>,
    offset: Option<&Untyped<'py>>,
) -> PyResult<(Untyped<'py>, Untyped<'py>, Option<Untyped<'py>>)> {
    Ok((frozen(packed)?, frozen(scale)?, offset.map(frozen).transpose()?))
}
