//! `Quantized`: its fields checked and frozen, `to_bytes` and `from_bytes`.

use std::borrow::Cow;

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::array::new_array_of;
use super::error::Error;
use super::format::{Format, record};
use crate::formats::Format as Record;
use crate::message::quantized::{Parts, Quantized, fill, floats};
use crate::quantize::Grouping;

type Untyped<'py> = Bound<'py, PyUntypedArray>;
type Floats<'py> = Bound<'py, PyArrayDyn<f32>>;

/// The elements of a C-contiguous array in C order. NumPy's rules hold, not rust-numpy's borrows, which would refuse to
/// read an array that another thread reads and writes elsewhere.
fn slice<'a, T: Element>(argument: &str, array: &'a Bound<'_, PyArrayDyn<T>>) -> PyResult<&'a [T]> {
    // An F-contiguous array is a slice to rust-numpy, too, but in another order.
    if !array.is_c_contiguous() || !array.data().cast_const().is_aligned() {
        return Err(Error::new_err(format!("{argument}: needs a C-contiguous, aligned array")));
    }
    // SAFETY: contiguous and aligned memory of a live array. A thread that writes it meanwhile gets an undefined
    // mixture of old and new numbers, as with NumPy itself.
    Ok(unsafe { array.as_slice()? })
}

/// The fields of a quantized array, borrowed from Python's.
struct Fields<'a> {
    record: Quantized,
    scale: &'a [f32],
    offset: &'a [f32],
    packed: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(
        packed: &'a Bound<'_, PyArrayDyn<u8>>,
        scale: &'a Floats<'_>,
        offset: Option<&'a Floats<'_>>,
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
            scale: slice("scale", scale)?,
            offset: offset.map(|offset| slice("offset", offset)).transpose()?.unwrap_or_default(),
            packed: slice("packed", packed)?,
        })
    }
}

/// Checks the fields of a quantized array as a reader of its bytes would; gives its axis, counted from the front.
#[pyfunction]
pub(super) fn quantized_check<'py>(
    py: Python<'py>,
    packed: Bound<'py, PyArrayDyn<u8>>,
    scale: Floats<'py>,
    offset: Option<Floats<'py>>,
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
    packed: Bound<'py, PyArrayDyn<u8>>,
    scale: Floats<'py>,
    offset: Option<Floats<'py>>,
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
    Bound<'py, PyArrayDyn<u8>>,
    Floats<'py>,
    Option<Floats<'py>>,
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
    let numbers = |bytes: &[u8]| -> PyResult<Floats<'py>> {
        written(py, &record.scale_shape, |target: &mut [f32]| {
            target.iter_mut().zip(floats(bytes)).for_each(|(place, number)| *place = number);
        })
    };
    Ok((
        written(py, &[parts.packed.len()], |target: &mut [u8]| target.copy_from_slice(parts.packed))?,
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

/// A new array that `write` fills with the GIL released.
fn written<'py, T: Element + Send>(
    py: Python<'py>,
    shape: &[usize],
    write: impl FnOnce(&mut [T]) + Send,
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    let array = new_array_of::<T>(py, shape)?;
    {
        let mut target = array.try_readwrite()?;
        let target = target.as_slice_mut()?;
        py.detach(|| write(target));
    }
    Ok(array)
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
