//! NumPy arrays in and out: dtype, layout, overlap. What reaches the kernels has been checked here.

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::error::Error;
use crate::view::{Element, View, ViewMut};

/// The float type of a dtype, and whether its byte order is the other one.
fn element(descr: &Bound<'_, PyArrayDescr>) -> PyResult<Option<(Element, bool)>> {
    let swapped = descr.is_native_byteorder() == Some(false);
    let element = match (descr.kind(), descr.itemsize()) {
        (b'f', 2) => Element::F16,
        (b'f', 4) => Element::F32,
        (b'f', 8) => Element::F64,
        // ml_dtypes registers bfloat16 as a user type: kind V, recognised by its name.
        (_, 2) if descr.getattr("name")?.extract::<String>()? == "bfloat16" => Element::Bf16,
        _ => return Ok(None),
    };
    Ok(Some((element, swapped)))
}

/// The float type of a dtype that can be written: native byte order only.
pub(super) fn native_element(descr: &Bound<'_, PyArrayDescr>) -> PyResult<Option<Element>> {
    Ok(element(descr)?.and_then(|(element, swapped)| (!swapped).then_some(element)))
}

/// A pointer into an array's memory.
fn data(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    // SAFETY: `as_array_ptr` points to a live PyArrayObject.
    unsafe { (*array.as_array_ptr()).fields.data.cast() }
}

fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: `as_array_ptr` points to a live PyArrayObject.
    unsafe { (*array.as_array_ptr()).fields.flags & NPY_ARRAY_WRITEABLE != 0 }
}

/// The half-open range of addresses that an array's elements take.
pub(super) fn extent(array: &Bound<'_, PyUntypedArray>) -> (usize, usize) {
    let start = data(array) as isize;
    if array.is_empty() {
        return (start as usize, start as usize);
    }
    let (mut low, mut high) = (start, start + array.dtype().itemsize() as isize);
    for (&length, &stride) in array.shape().iter().zip(array.strides()) {
        let reach = (length as isize - 1) * stride;
        if reach < 0 { low += reach } else { high += reach }
    }
    (low as usize, high as usize)
}

fn overlap(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> bool {
    let ((a_low, a_high), (b_low, b_high)) = (extent(a), extent(b));
    a_low < b_high && b_low < a_high
}

/// A float array that is read. Another Python thread that writes it meanwhile gets an undefined mixture of old and new
/// numbers, as with NumPy itself.
pub(super) struct Input<'a> {
    pub element: Element,
    pub view: View<'a>,
}

impl<'a> Input<'a> {
    pub fn new(argument: &str, array: &'a Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let descr = array.dtype();
        let Some((element, swapped)) = element(&descr)? else {
            return Err(PyTypeError::new_err(format!(
                "{argument}: dtype {descr} is not a float that rounds; use float32 (x.astype(numpy.float32)), float16, bfloat16 or float64"
            )));
        };
        // SAFETY: NumPy vouches for the memory of a live array, which the borrow keeps alive.
        let view = unsafe { View::new(data(array), element, swapped, array.shape(), array.strides()) };
        Ok(Input { element, view })
    }
}

/// A new C-contiguous array; a `MemoryError` or `ValueError` of NumPy's if there can be none.
pub(super) fn new_array<'py>(
    py: Python<'py>,
    shape: &[usize],
    descr: Bound<'py, PyArrayDescr>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    // NumPy allocates: it asks for huge pages, without which a large fresh buffer costs more than any kernel.
    let mut dims: Vec<isize> = shape.iter().map(|&length| length as isize).collect();
    // SAFETY: the C API's own call; `descr` is a reference that it steals, and every element is written before use.
    unsafe {
        let array = numpy::PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            numpy::npyffi::get_type_object(py, numpy::npyffi::NpyTypes::PyArray_Type),
            descr.into_ptr().cast(),
            dims.len() as _,
            dims.as_mut_ptr().cast(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        Ok(Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked())
    }
}

/// The dtype of an array, in native byte order.
pub(super) fn native<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyArrayDescr>> {
    let descr = array.dtype();
    if descr.is_native_byteorder() == Some(false) {
        return Ok(descr.call_method1("newbyteorder", ("=",))?.cast_into()?);
    }
    Ok(descr)
}

/// Checks `out` against the shape and dtype it must have. It may be exactly `x`; it must not overlap another input.
pub(super) fn check_out(
    out: &Bound<'_, PyUntypedArray>,
    shape: &[usize],
    descr: &Bound<'_, PyArrayDescr>,
    x: Option<&Bound<'_, PyUntypedArray>>,
    input: Option<(&str, &Bound<'_, PyUntypedArray>)>,
) -> PyResult<()> {
    if !out.dtype().is_equiv_to(descr) {
        return Err(PyTypeError::new_err(format!("out: has dtype {}, but the result is {descr}", out.dtype())));
    }
    if out.shape() != shape {
        return Err(Error::new_err(format!("out: has shape {:?}, but the result has {shape:?}", out.shape())));
    }
    if !is_writeable(out) {
        return Err(Error::new_err("out: is read-only; give an array that can be written"));
    }
    if overlaps_itself(out) {
        return Err(Error::new_err("out: elements share memory (a broadcast or strided view); give one with its own"));
    }
    if let Some((name, _)) = input.filter(|(_, input)| overlap(out, input)) {
        return Err(Error::new_err(format!("out: overlaps {name} in memory; give separate memory")));
    }
    let Some(x) = x else { return Ok(()) };
    let lines = |array: &Bound<'_, PyUntypedArray>| -> Vec<(usize, isize)> {
        let both = array.shape().iter().copied().zip(array.strides().iter().copied());
        both.filter(|(length, _)| *length != 1).collect()
    };
    let same = data(out) == data(x) && lines(out) == lines(x) && out.dtype().is_equiv_to(&x.dtype());
    if !same && overlap(out, x) {
        return Err(Error::new_err("out: partly overlaps x in memory; give exactly x or separate memory"));
    }
    Ok(())
}

/// Whether two elements may share memory: unless every stride steps over all that smaller strides reach.
fn overlaps_itself(array: &Bound<'_, PyUntypedArray>) -> bool {
    let mut lines: Vec<(usize, usize)> = array
        .shape()
        .iter()
        .zip(array.strides())
        .filter(|(length, _)| **length > 1)
        .map(|(&length, &stride)| (stride.unsigned_abs(), length))
        .collect();
    lines.sort_unstable();
    let mut reach = array.dtype().itemsize();
    lines.into_iter().any(|(stride, length)| {
        let overlaps = stride < reach;
        reach += stride * (length - 1);
        overlaps
    }) && !array.is_empty()
}

/// The elements of a C-contiguous array of exactly this type. Other Python threads that write it meanwhile change what is
/// read, as with NumPy itself.
pub(super) fn slice_of<'a, T: numpy::Element>(
    argument: &str,
    array: &'a Bound<'_, PyUntypedArray>,
) -> PyResult<&'a [T]> {
    let start = data(array).cast::<T>();
    if !array.dtype().is_equiv_to(&dtype::<T>(array.py())) || !array.is_c_contiguous() || !start.is_aligned() {
        let want = dtype::<T>(array.py());
        return Err(PyTypeError::new_err(format!("{argument}: expected a contiguous, aligned array of {want}")));
    }
    // SAFETY: checked to be a dense, aligned run of T in a live array, which the borrow keeps alive.
    Ok(unsafe { std::slice::from_raw_parts(start, array.len()) })
}

/// The bytes of a C-contiguous array in little-endian byte order.
pub(super) fn bytes_of<'a>(argument: &str, array: &'a Bound<'_, PyUntypedArray>) -> PyResult<&'a [u8]> {
    let descr = array.dtype();
    let little =
        descr.itemsize() == 1 || (descr.is_native_byteorder() != Some(false)) == cfg!(target_endian = "little");
    if !little || !array.is_c_contiguous() {
        return Err(PyTypeError::new_err(format!("{argument}: expected a contiguous, little-endian array")));
    }
    // SAFETY: a dense run of bytes in a live array, which the borrow keeps alive.
    Ok(unsafe { std::slice::from_raw_parts(data(array), array.len() * descr.itemsize()) })
}

/// The bytes of a C-contiguous array, to be written.
///
/// # Safety
/// As for [`fill`], but of any element type.
#[allow(clippy::mut_from_ref, reason = "the array's memory is not Rust's")]
pub(super) unsafe fn raw<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a mut [u8] {
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(data(array), array.len() * array.dtype().itemsize()) }
}

/// The memory of a C-contiguous array, to be written. (rust-numpy's borrows are not used for this: one that is held while the
/// GIL is released is a shared flag that outlives a fork and refuses innocent readers.)
///
/// # Safety
/// The array is C-contiguous, writeable, of element type T, and nobody else touches it meanwhile.
#[allow(clippy::mut_from_ref, reason = "the array's memory is not Rust's")]
pub(super) unsafe fn fill<'a, T: numpy::Element>(array: &'a Bound<'_, PyUntypedArray>) -> &'a mut [T] {
    debug_assert!(array.is_c_contiguous(), "a plain array");
    // SAFETY: by the caller's promise; NumPy aligns what it allocates, and an empty array gives an empty slice.
    unsafe { std::slice::from_raw_parts_mut(data(array).cast::<T>(), array.len()) }
}

/// The memory of `out`, if it can take plain numbers of this type and shape as they are.
#[allow(clippy::mut_from_ref, reason = "the array's memory is not Rust's")]
pub(super) fn plain<'a, T: numpy::Element>(out: &'a Bound<'_, PyUntypedArray>, shape: &[usize]) -> Option<&'a mut [T]> {
    let fits = out.dtype().is_equiv_to(&dtype::<T>(out.py())) && out.shape() == shape;
    let ready = out.is_c_contiguous() && is_writeable(out) && data(out).cast::<T>().is_aligned();
    // SAFETY: contiguous, writeable and of this type; that nobody else touches it is the caller of `out=`'s promise.
    (fits && ready).then(|| unsafe { fill(out) })
}

/// A new C-contiguous array, filled before anybody sees it.
pub(super) fn fill_new<'py, T: numpy::Element>(
    py: Python<'py>,
    shape: &[usize],
    write: impl FnOnce(&mut [T]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = new_array(py, shape, dtype::<T>(py))?;
    // SAFETY: the array is new: contiguous, writeable, and nobody else has it.
    write(unsafe { fill(&array) })?;
    Ok(array)
}

/// A Python string as text; a lone surrogate is none.
pub(super) fn text(argument: &'static str, name: &Bound<'_, PyString>) -> PyResult<String> {
    name.to_cow()
        .map(Into::into)
        .map_err(|_| Error::new_err(format!("{argument}: a name with a lone surrogate is not text")))
}

/// A view to write an array that [`check_out`] has passed, or that is new.
pub(super) fn output<'a>(out: &'a Bound<'_, PyUntypedArray>, element: Element) -> ViewMut<'a> {
    // SAFETY: writeable memory of a live array whose elements are distinct; the borrow keeps it alive.
    unsafe { ViewMut::new(data(out), element, out.shape(), out.strides()) }
}
