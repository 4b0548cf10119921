//! `quantize`, `dequantize`, `fake_quantize`, `pack`, `unpack`: arguments checked and handed on.

use numpy::{PyArray1, PyArrayDescr, PyArrayDescrMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::array::{Input, check_out, fill, fill_new, native, native_element, new_array, output, slice_of};
use super::error::Error;
use super::format::record;
use super::scaling::Scale;
use crate::error::{Error as Reason, Result};
use crate::formats::{AnyGrid, Codes, Format, Visit};
use crate::pack::{self as packing, packed_len};
use crate::quantize::{self as kernels, Grouping, Rounding, Scaling, Spec};
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

fn grouping_for(format: &Format, ndim: usize, axis: Option<isize>, block_size: Option<usize>) -> Result<Grouping> {
    let default_block = if axis.is_none() && ndim > 0 { format.default_block } else { None };
    Grouping::new(ndim, axis, block_size.or(default_block))
}

#[pyfunction]
#[pyo3(signature = (x, format, scale, offset, axis, block_size, rounding, key, out))]
pub(super) fn fake_quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    format: &Bound<'py, PyAny>,
    scale: Option<Bound<'py, PyAny>>,
    offset: Option<Bound<'py, PyUntypedArray>>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    let grouping = grouping_for(format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let scale = Scale::new(format, x.shape(), grouping, scale.as_ref(), offset.as_ref())?;
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
        let spec = Spec { format, grouping, rounding };
        let scaling = scale.scaling((&mut [], &mut []));
        py.detach(|| kernels::fake_quantize(&input.view, spec, scaling, &mut target))?;
    }
    Ok(out)
}

type Packed<'py> = (Bound<'py, PyUntypedArray>, Bound<'py, PyUntypedArray>, Option<Bound<'py, PyUntypedArray>>);

/// Packed codes, scales and offsets; the last two have as many dimensions as `x`.
#[pyfunction]
#[pyo3(signature = (x, format, scale, offset, axis, block_size, rounding, key, out))]
pub(super) fn quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    format: &Bound<'py, PyAny>,
    scale: Option<Bound<'py, PyAny>>,
    offset: Option<Bound<'py, PyUntypedArray>>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Packed<'py>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    let grouping = grouping_for(format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let scale = Scale::new(format, x.shape(), grouping, scale.as_ref(), offset.as_ref())?;
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
    let spec = Spec { format, grouping, rounding };
    // Scales with the dimensions that the caller left out.
    let padded = |shape: &[usize]| [vec![1; x.ndim() - shape.len()], shape.to_vec()].concat();
    let (shape, affine) = match &scale {
        Scale::Rule(rule) => (grouping.scale_shape(x.shape()), rule.affine),
        Scale::Given { scale, offset, .. } => (padded(&scale.shape), offset.is_some()),
    };
    let scales = new_array(py, &shape, numpy::dtype::<f32>(py))?;
    let offsets = if affine { Some(new_array(py, &shape, numpy::dtype::<f32>(py))?) } else { None };
    {
        // SAFETY: all three are contiguous and writeable and apart from the input: new, or passed by `check_out`.
        let (target, scales, offsets) = unsafe {
            (fill::<u8>(&packed), fill::<f32>(&scales), offsets.as_ref().map_or(&mut [][..], |offsets| fill(offsets)))
        };
        let scaling = match &scale {
            Scale::Rule(_) => scale.scaling((scales, offsets)),
            Scale::Given { scale: numbers, offset, .. } => {
                scales.copy_from_slice(&numbers.values);
                if let Some(offset) = offset {
                    offsets.copy_from_slice(&offset.values);
                }
                scale.scaling((&mut [], &mut []))
            }
        };
        py.detach(|| kernels::quantize(&input.view, spec, scaling, target))?;
    }
    Ok((packed, scales, offsets))
}

#[pyfunction]
#[pyo3(signature = (packed, format, shape, scale, offset, axis, block_size, key, dtype, out))]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyUntypedArray>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    scale: &Bound<'py, PyUntypedArray>,
    offset: Option<Bound<'py, PyUntypedArray>>,
    axis: Option<isize>,
    block_size: Option<usize>,
    key: Option<(u64, u64)>,
    dtype: Bound<'py, PyArrayDescr>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let format = record(format)?;
    if shape.iter().try_fold(1_usize, |n, &length| n.checked_mul(length)).is_none_or(|n| n > isize::MAX as usize) {
        return Err(Error::new_err(format!("shape: {shape:?} is too large")));
    }
    let Some(element) = native_element(&dtype)? else {
        return Err(PyTypeError::new_err(format!("dtype: {dtype} is not float16, bfloat16, float32 or float64")));
    };
    let grouping = Grouping::new(shape.len(), axis, block_size)?;
    let rounding = rounding_named(if key.is_some() { "dither" } else { "nearest" }, key)?;
    let given = Scale::new(format, &shape, grouping, Some(scale.as_any()), offset.as_ref())?;
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
        let spec = Spec { format, grouping, rounding };
        py.detach(|| kernels::dequantize(packed, spec, &shape, given, &mut target))?;
    }
    Ok(out)
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
    let grid: AnyGrid = record(format)?.grid;
    Ok(PyArray1::from_vec(py, grid.visit(Round(t.as_slice()?, words.as_slice()?))))
}
