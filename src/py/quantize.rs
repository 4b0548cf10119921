//! `quantize`, `dequantize`, `fake_quantize`, `pack`, `unpack`: arguments checked and handed on.

use numpy::{
    PyArray1, PyArrayDescr, PyArrayDescrMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::array::{Input, check_out, fill, fill_new, native, native_element, new_array, output, slice_of};
use super::error::Error;
use super::format::record;
use super::scaling::{Scale, check_few_bits};
use crate::error::{Error as Reason, Result};
use crate::formats::{Codes, Format, Visit};
use crate::pack::{self as packing, packed_len};
use crate::quantize::{self as kernels, Grouping, Rounding, Scaling, Spec};
use crate::scale::TENSOR_RANGE;
use crate::stream::{Key, Purpose};

fn rounding_named(name: &str, key: Option<(u64, u64)>) -> PyResult<Rounding> {
    let keyed = |purpose| match key {
        Some((k0, k1)) => Ok(Key { k0, k1 }.purpose(purpose).stream()),
        None => {
            Err(Reason::argument("key", format!("rounding={name:?} needs one; give key=lowbit.Key(1234) or an int")))
        }
    };
    Ok(match name {
        "nearest" => Rounding::Nearest,
        "stochastic" => Rounding::Stochastic(keyed(Purpose::Rounding)?),
        "dither" => Rounding::Dither(keyed(Purpose::Dither)?),
        _ => {
            let known = "nearest, stochastic, dither".into();
            return Err(Reason::Unknown { argument: "rounding", name: name.into(), known }.into());
        }
    })
}

fn check_tensor_scale(format: &Format, tensor_scale: Option<f32>) -> Result<()> {
    let Some(scale) = tensor_scale else { return Ok(()) };
    if !format.scaling.is_some_and(|scaling| scaling.format.has_tensor_scale()) {
        let reason = format!("{} has none; leave it out (nvfp4 and e4m3 block formats have one)", format.name);
        return Err(Reason::argument("tensor_scale", reason));
    }
    if !(TENSOR_RANGE.0..=TENSOR_RANGE.1).contains(&scale) {
        return Err(Reason::argument("tensor_scale", format!("{scale} is out of range; give 2^-117 to 2^117")));
    }
    Ok(())
}

fn grouping_for(format: &Format, ndim: usize, axis: Option<isize>, block_size: Option<usize>) -> Result<Grouping> {
    let Some(block) = format.default_block.filter(|_| ndim > 0) else { return Grouping::new(ndim, axis, block_size) };
    if format.scaling.is_none() {
        return Grouping::new(ndim, axis, block_size.or(if axis.is_none() { Some(block) } else { None }));
    }
    if let Some(size) = block_size.filter(|size| *size != block) {
        let reason = format!("{} has blocks of {block}, not {size}; leave it out", format.name);
        return Err(Reason::argument("block_size", reason));
    }
    Grouping::new(ndim, axis, Some(block))
}

#[pyfunction]
#[pyo3(signature = (x, format, scale, offset, tensor_scale, axis, block_size, rounding, key, out))]
pub(super) fn fake_quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    format: &Bound<'py, PyAny>,
    scale: Option<Bound<'py, PyAny>>,
    offset: Option<Bound<'py, PyUntypedArray>>,
    tensor_scale: Option<f32>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    let grouping = grouping_for(&format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let scale = Scale::new(&format, x.shape(), grouping, scale.as_ref(), offset.as_ref())?;
    check_tensor_scale(&format, tensor_scale)?;
    let descr = native(x)?;
    let out = match out {
        Some(out) => {
            check_out(&out, x.shape(), &descr, Some(x), None)?;
            out
        }
        None => new_array(py, x.shape(), descr)?,
    };
    {
        let mut target = output(&out, input.element);
        py.detach(|| {
            let tensor = tensor_scale.unwrap_or_else(|| scale.tensor(&input.view, &format));
            let spec = Spec { format: &format, grouping, rounding, tensor };
            kernels::fake_quantize(&input.view, spec, scale.scaling((&mut [], &mut [])), &mut target)
        })?;
    }
    Ok(out)
}

type Untyped<'py> = Bound<'py, PyUntypedArray>;
type Packed<'py> = (Untyped<'py>, Untyped<'py>, Option<Untyped<'py>>, Option<f32>);

/// Packed codes, scales (codes of a byte where the format says of what), offsets and the scale of the whole tensor; scales
/// and offsets have as many dimensions as `x`.
#[pyfunction]
#[pyo3(signature = (x, format, scale, offset, tensor_scale, axis, block_size, rounding, key, out))]
pub(super) fn quantize<'py>(
    py: Python<'py>,
    x: &Untyped<'py>,
    format: &Bound<'py, PyAny>,
    scale: Option<Bound<'py, PyAny>>,
    offset: Option<Untyped<'py>>,
    tensor_scale: Option<f32>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Untyped<'py>>,
) -> PyResult<Packed<'py>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    format.check_coded()?;
    let grouping = grouping_for(&format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let scale = Scale::new(&format, x.shape(), grouping, scale.as_ref(), offset.as_ref())?;
    check_tensor_scale(&format, tensor_scale)?;
    let bytes = packed_len(x.len(), format.bits);
    let descr = numpy::dtype::<u8>(py);
    let packed = match out {
        Some(out) => {
            check_out(&out, &[bytes], &descr, None, Some(("x", x)))?;
            if !out.is_c_contiguous() {
                return Err(Error::new_err("out: packed codes need a contiguous array"));
            }
            out
        }
        None => new_array(py, &[bytes], descr)?,
    };
    // Scales with the dimensions that the caller left out.
    let padded = |shape: &[usize]| [vec![1; x.ndim() - shape.len()], shape.to_vec()].concat();
    let (shape, affine) = match &scale {
        Scale::Rule(rule) if rule.is_one() => (vec![1; x.ndim()], false),
        Scale::Rule(rule) => (grouping.scale_shape(x.shape()), rule.affine()),
        Scale::Given { scale, offset, .. } => (padded(&scale.shape), offset.is_some()),
    };
    let few_bits = format.scaling.map(|scaling| scaling.format);
    let mut floats = vec![0.0; if few_bits.is_some() { shape.iter().product() } else { 0 }];
    let descr = if few_bits.is_some() { numpy::dtype::<u8>(py) } else { numpy::dtype::<f32>(py) };
    let scales = new_array(py, &shape, descr)?;
    let offsets = if affine { Some(new_array(py, &shape, numpy::dtype::<f32>(py))?) } else { None };
    let tensor;
    {
        // SAFETY: all three are contiguous and writeable and apart from the input: new, or passed by `check_out`.
        let (target, numbers, offsets) = unsafe {
            (
                fill::<u8>(&packed),
                if few_bits.is_some() { &mut floats[..] } else { fill::<f32>(&scales) },
                offsets.as_ref().map_or(&mut [][..], |offsets| fill(offsets)),
            )
        };
        let scaling = match &scale {
            Scale::Rule(_) => None,
            Scale::Given { scale: given, offset, .. } => {
                numbers.copy_from_slice(&given.values);
                if let Some(offset) = offset {
                    offsets.copy_from_slice(&offset.values);
                }
                Some(scale.scaling((&mut [], &mut [])))
            }
        };
        let scaling = scaling.unwrap_or_else(|| scale.scaling((numbers, offsets)));
        tensor = py.detach(|| {
            let tensor = tensor_scale.unwrap_or_else(|| scale.tensor(&input.view, &format));
            let spec = Spec { format: &format, grouping, rounding, tensor };
            kernels::quantize(&input.view, spec, scaling, target)?;
            Ok::<_, Reason>(tensor)
        })?;
    }
    if let Some(few_bits) = few_bits {
        // SAFETY: as above.
        let codes = unsafe { fill::<u8>(&scales) };
        few_bits.encode_all(&floats, codes);
    }
    Ok((packed, scales, offsets, few_bits.filter(|few_bits| few_bits.has_tensor_scale()).map(|_| tensor)))
}

#[pyfunction]
#[pyo3(signature = (packed, format, shape, scale, offset, tensor_scale, axis, block_size, key, dtype, out))]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    packed: &Untyped<'py>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    scale: &Untyped<'py>,
    offset: Option<Untyped<'py>>,
    tensor_scale: Option<f32>,
    axis: Option<isize>,
    block_size: Option<usize>,
    key: Option<(u64, u64)>,
    dtype: Bound<'py, PyArrayDescr>,
    out: Option<Untyped<'py>>,
) -> PyResult<Untyped<'py>> {
    let format = record(format)?;
    if shape.iter().try_fold(1_usize, |n, &length| n.checked_mul(length)).is_none_or(|n| n > isize::MAX as usize) {
        return Err(Error::new_err(format!("shape: {shape:?} is too large")));
    }
    let Some(element) = native_element(&dtype)? else {
        return Err(PyTypeError::new_err(format!("dtype: {dtype} is not float16, bfloat16, float32 or float64")));
    };
    let grouping = Grouping::new(shape.len(), axis, block_size)?;
    let rounding = rounding_named(if key.is_some() { "dither" } else { "nearest" }, key)?;
    let given = Scale::stored(&format, &shape, grouping, scale, offset.as_ref())?;
    let Scaling::Given(given) = given.scaling((&mut [], &mut [])) else {
        return Err(PyTypeError::new_err("scale: expected numbers"));
    };
    let out = match out {
        Some(out) => {
            // Scales have been copied; they may be overwritten.
            check_out(&out, &shape, &dtype, None, Some(("packed", packed)))?;
            out
        }
        None => new_array(py, &shape, dtype)?,
    };
    {
        let mut target = output(&out, element);
        let packed = slice_of::<u8>("packed", packed)?;
        let spec = Spec { format: &format, grouping, rounding, tensor: tensor_scale.unwrap_or(1.0) };
        py.detach(|| kernels::dequantize(packed, spec, &shape, given, &mut target))?;
    }
    Ok(out)
}

/// The codes of scales, which must be numbers of the format that the scales of `format` have.
#[pyfunction]
pub(super) fn scale_codes<'py>(
    py: Python<'py>,
    format: &Bound<'py, PyAny>,
    scale: &Untyped<'py>,
) -> PyResult<Untyped<'py>> {
    let format = record(format)?;
    let Some(scaling) = format.scaling else {
        return Err(Error::new_err(format!("format: the scales of {} are float32", format.name)));
    };
    let scales = slice_of::<f32>("scale", scale)?;
    check_few_bits(&format, scaling.format, scales)?;
    fill_new::<u8>(py, scale.shape(), |codes| {
        scaling.format.encode_all(scales, codes);
        Ok(())
    })
}

/// The scales that codes stand for.
#[pyfunction]
pub(super) fn scale_values<'py>(
    py: Python<'py>,
    format: &Bound<'py, PyAny>,
    codes: &Untyped<'py>,
) -> PyResult<Untyped<'py>> {
    let format = record(format)?;
    let Some(scaling) = format.scaling else {
        return Err(Error::new_err(format!("format: the scales of {} are float32", format.name)));
    };
    let bytes = slice_of::<u8>("codes", codes)?;
    fill_new::<f32>(py, codes.shape(), |scales| {
        let table = scaling.format.table();
        scales.iter_mut().zip(bytes).for_each(|(scale, code)| {
            *scale = table[usize::from(*code)];
        });
        Ok(())
    })
}

#[pyfunction]
pub(super) fn pack<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyUntypedArray>,
    bits: u32,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    packing::check_bits(bits)?;
    fill_new::<u8>(py, &[packed_len(codes.len(), bits)], |out| {
        if codes.dtype().itemsize() == 1 {
            let codes = slice_of::<u8>("codes", codes)?;
            return Ok(py.detach(|| packing::pack(codes, bits, out))?);
        }
        let codes = slice_of::<u16>("codes", codes)?;
        Ok(py.detach(|| packing::pack(codes, bits, out))?)
    })
}

/// Zeros in `y` where `x` is outside `low..=high`.
#[pyfunction]
pub(super) fn keep_inside(
    py: Python<'_>,
    mut y: PyReadwriteArray1<'_, f32>,
    x: &Bound<'_, PyUntypedArray>,
    low: f32,
    high: f32,
    factor: f32,
) -> PyResult<()> {
    let x = Input::new("x", x)?.view;
    let y = y.as_slice_mut().map_err(|_| Reason::argument("y", "it is not contiguous"))?;
    Ok(py.detach(|| crate::clip::keep_inside(y, &x, low, high, factor))?)
}

/// Numbers and where they were.
type Taken<'py> = (Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<i64>>);

/// Takes the numbers whose bit is not set out of y, in place; lists them and where they were.
#[pyfunction]
pub(super) fn take_outside<'py>(
    py: Python<'py>,
    mut y: PyReadwriteArray1<'py, f32>,
    bits: PyReadonlyArray1<'py, u8>,
) -> PyResult<Taken<'py>> {
    let y = y.as_slice_mut().map_err(|_| Reason::argument("y", "it is not contiguous"))?;
    let bits = bits.as_slice().map_err(|_| Reason::argument("bits", "it is not contiguous"))?;
    let (taken, places) = py.detach(|| crate::clip::take_outside(y, bits))?;
    Ok((PyArray1::from_vec(py, taken), PyArray1::from_vec(py, places)))
}

/// A bit for each number of `low..=high`, and how many others there are.
#[pyfunction]
pub(super) fn clip_bits<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    low: f32,
    high: f32,
) -> PyResult<(Bound<'py, PyUntypedArray>, usize)> {
    let (x, mut outside) = (Input::new("x", x)?.view, 0);
    let bits = fill_new::<u8>(py, &[x.len().div_ceil(8)], |bits| {
        outside = py.detach(|| crate::clip::inside(&x, low, high, bits))?;
        Ok(())
    })?;
    Ok((bits, outside))
}

#[pyfunction]
pub(super) fn unpack<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyUntypedArray>,
    bits: u32,
    n: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let packed = slice_of::<u8>("packed", packed)?;
    packing::check(packed, n, bits)?;
    if bits <= 8 {
        return fill_new::<u8>(py, &[n], |codes| Ok(py.detach(|| packing::unpack(packed, bits, codes))?));
    }
    fill_new::<u16>(py, &[n], |codes| Ok(py.detach(|| packing::unpack(packed, bits, codes))?))
}

/// Codes of three values, five a byte.
#[pyfunction]
pub(super) fn pack_three<'py>(py: Python<'py>, codes: &Untyped<'py>) -> PyResult<Untyped<'py>> {
    fill_new::<u8>(py, &[packing::trits_len(codes.len())], |out| {
        if codes.dtype().itemsize() == 1 {
            let codes = slice_of::<u8>("codes", codes)?;
            return Ok(py.detach(|| packing::pack_three(codes, out))?);
        }
        let codes = slice_of::<u16>("codes", codes)?;
        Ok(py.detach(|| packing::pack_three(codes, out))?)
    })
}

#[pyfunction]
pub(super) fn unpack_three<'py>(py: Python<'py>, packed: &Untyped<'py>, n: usize) -> PyResult<Untyped<'py>> {
    let packed = slice_of::<u8>("packed", packed)?;
    packing::check_three(packed, n)?;
    fill_new::<u8>(py, &[n], |codes| Ok(py.detach(|| packing::unpack_three(packed, codes))?))
}

/// Grid values of `t` for chosen random words, before any scale: what the tests bisect.
#[pyfunction]
pub(super) fn round_with_words<'py>(
    py: Python<'py>,
    t: PyReadonlyArray1<'py, f32>,
    format: &Bound<'py, PyAny>,
    words: PyReadonlyArray1<'py, u32>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    struct Round<'a>(&'a [f32], &'a [u32]);
    impl Visit for Round<'_> {
        type Out = Vec<f32>;
        fn visit<G: Codes>(self, grid: G) -> Vec<f32> {
            crate::cpu::Level::current().run(
                #[inline(always)]
                || self.0.iter().zip(self.1).map(|(t, word)| grid.stochastic(*t, *word)).collect(),
            )
        }
    }
    Ok(PyArray1::from_vec(py, record(format)?.grid.visit(Round(t.as_slice()?, words.as_slice()?))))
}
