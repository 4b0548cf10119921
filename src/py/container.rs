//! `Quantized`: its fields checked and frozen, `to_bytes` and `from_bytes`.

use std::borrow::Cow;

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::array::{fill_new, slice_of};
use super::error::Error;
use super::format::{Format, record};
use crate::message::quantized::{Parts, Quantized, fill, floats};
use crate::quantize::Grouping;

type Untyped<'py> = Bound<'py, PyUntypedArray>;

/// The fields of a quantized array, borrowed from Python's.
struct Fields<'a> {
    record: Quantized,
    tensor_scale: Vec<u8>,
    /// Little-endian float32, or codes.
    scale: Cow<'a, [u8]>,
    offset: Cow<'a, [u8]>,
    packed: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(
        packed: &'a Untyped<'_>,
        scale: &'a Untyped<'_>,
        offset: Option<&'a Untyped<'_>>,
        tensor_scale: Option<f32>,
        format: &Bound<'_, PyAny>,
        (shape, axis, block_size): (Vec<usize>, Option<usize>, Option<usize>),
        key_id: Option<[u8; 8]>,
    ) -> PyResult<Self> {
        if offset.is_some_and(|offset| offset.shape() != scale.shape()) {
            return Err(Error::new_err("offset: its shape is not that of scale"));
        }
        let format = record(format)?;
        let has_tensor_scale = format.scaling.is_some_and(|scaling| scaling.format.has_tensor_scale());
        if tensor_scale.is_some() != has_tensor_scale {
            let what = if has_tensor_scale { "needs one: a float32" } else { "has none; give None" };
            return Err(Error::new_err(format!("tensor_scale: {} {what}", format.name)));
        }
        let few_bits = format.scaling.is_some();
        Ok(Fields {
            record: Quantized {
                format,
                shape,
                axis,
                block_size,
                key_id: key_id.map(u64::from_le_bytes),
                scale_shape: scale.shape().to_vec(),
                has_offset: offset.is_some(),
            },
            tensor_scale: tensor_scale.map(|scale| scale.to_le_bytes().to_vec()).unwrap_or_default(),
            scale: if few_bits {
                Cow::Borrowed(slice_of("scale", scale)?)
            } else {
                little_endian(slice_of("scale", scale)?)
            },
            offset: offset.map(|offset| slice_of("offset", offset).map(little_endian)).transpose()?.unwrap_or_default(),
            packed: slice_of("packed", packed)?,
        })
    }

    fn parts(&self) -> Parts<'_> {
        Parts { tensor_scale: &self.tensor_scale, scale: &self.scale, offset: &self.offset, packed: self.packed }
    }
}

/// Checks the fields of a quantized array as a reader of its bytes would; gives its axis, counted from the front.
#[pyfunction]
pub(super) fn quantized_check<'py>(
    py: Python<'py>,
    packed: Untyped<'py>,
    scale: Untyped<'py>,
    offset: Option<Untyped<'py>>,
    tensor_scale: Option<f32>,
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
    let fields =
        Fields::new(&packed, &scale, offset.as_ref(), tensor_scale, format, (shape, axis, block_size), key_id)?;
    py.detach(|| fields.record.check(fields.parts()))?;
    Ok(axis)
}

#[pyfunction]
pub(super) fn quantized_to_bytes<'py>(
    py: Python<'py>,
    packed: Untyped<'py>,
    scale: Untyped<'py>,
    offset: Option<Untyped<'py>>,
    tensor_scale: Option<f32>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    axis: Option<usize>,
    block_size: Option<usize>,
    key_id: Option<[u8; 8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    let fields =
        Fields::new(&packed, &scale, offset.as_ref(), tensor_scale, format, (shape, axis, block_size), key_id)?;
    let parts = fields.parts();
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
    let scale = if record.format.scaling.is_some() {
        fill_new::<u8>(py, &record.scale_shape, |target| {
            target.copy_from_slice(parts.scale);
            Ok(())
        })?
    } else {
        numbers(parts.scale)?
    };
    Ok((
        packed,
        scale,
        if record.has_offset { Some(numbers(parts.offset)?) } else { None },
        floats(parts.tensor_scale).next(),
        Format(record.format.clone()),
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
