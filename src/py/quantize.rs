//! `quantize`, `dequantize`, `fake_quantize`, `pack`, `unpack`: arguments checked and handed on.

use numpy::{
    PyArray1, PyArrayDescr, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::{Input, check_out, native, new_array, new_array_of, output};
use super::error::Error;
use super::format::record;
use crate::error::{Error as Reason, Result};
use crate::formats::{AnyGrid, Codes, Format, Visit};
use crate::pack::{self as packing, packed_len};
use crate::quantize::{self as kernels, Given, Grouping, Rounding, Scaling, Spec};
use crate::scale::{Rule, SCALE_RANGE};
use crate::stream::{Key, Purpose};

/// What the caller gave as `scale`, if anything: a rule's name or numbers.
enum ScaleArgument<'py> {
    Rule(String),
    Numbers(PyReadonlyArrayDyn<'py, f32>),
}

impl<'py> ScaleArgument<'py> {
    fn new(scale: Option<&Bound<'py, PyAny>>) -> PyResult<Option<Self>> {
        let Some(scale) = scale else { return Ok(None) };
        Ok(Some(match scale.cast::<PyString>() {
            Ok(name) => ScaleArgument::Rule(name.to_cow()?.into_owned()),
            Err(_) => ScaleArgument::Numbers(scale.cast::<PyArrayDyn<f32>>()?.try_readonly()?),
        }))
    }
}

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

/// Given scales: checked, and with the strides by which they broadcast to the blocked shape.
struct GivenArrays<'a> {
    scale: &'a [f32],
    offset: Option<&'a [f32]>,
    strides: Vec<usize>,
}

impl<'a> GivenArrays<'a> {
    fn new(
        format: &Format,
        shape: &[usize],
        grouping: Grouping,
        scale: &'a PyReadonlyArrayDyn<'_, f32>,
        offset: Option<&'a PyReadonlyArrayDyn<'_, f32>>,
    ) -> PyResult<Self> {
        let blocked = grouping.blocked_shape(shape);
        let strides = broadcast(if offset.is_some() { "scale and offset" } else { "scale" }, scale.shape(), &blocked)?;
        let numbers = scale.as_slice()?;
        let (least, most) = SCALE_RANGE;
        if let Some(index) = numbers.iter().position(|scale| !(least..=most).contains(scale)) {
            let reason = format!("element {index} is {}; a scale must be from 2^-126 to 2^126", numbers[index]);
            return Err(Reason::argument("scale", reason).into());
        }
        let offset = match offset {
            None => None,
            Some(offset) => {
                check_offset(format, offset)?;
                // The Python layer has given both one shape.
                if offset.shape() != scale.shape() {
                    return Err(Error::new_err(format!(
                        "offset: has shape {:?}, but scale has {:?}",
                        offset.shape(),
                        scale.shape()
                    )));
                }
                Some(offset.as_slice()?)
            }
        };
        Ok(GivenArrays { scale: numbers, offset, strides })
    }

    fn given(&self) -> Given<'_> {
        Given { scale: self.scale, offset: self.offset, strides: &self.strides }
    }
}

fn check_offset(format: &Format, offset: &PyReadonlyArrayDyn<'_, f32>) -> PyResult<()> {
    if format.uniform().is_none() {
        let reason = format!("{} has no equal steps, so no offset; int4, int4_symmetric and uint4 have", format.name);
        return Err(Reason::argument("offset", reason).into());
    }
    let numbers = offset.as_slice()?;
    if let Some(index) = numbers.iter().position(|offset| !offset.is_finite()) {
        return Err(
            Reason::argument("offset", format!("element {index} is {}; it must be finite", numbers[index])).into()
        );
    }
    Ok(())
}

/// Strides, in elements and 0 where it broadcasts, of a C-contiguous array of `shape` seen as `target`.
fn broadcast(argument: &'static str, shape: &[usize], target: &[usize]) -> Result<Vec<usize>> {
    let fits = shape.len() <= target.len()
        && shape.iter().rev().zip(target.iter().rev()).all(|(length, target)| length == target || *length == 1);
    if !fits {
        return Err(Reason::argument(argument, format!("shape {shape:?} does not broadcast to {target:?}")));
    }
    let mut strides = vec![0; target.len()];
    let mut stride = 1;
    for (slot, &length) in strides.iter_mut().rev().zip(shape.iter().rev()) {
        if length != 1 {
            *slot = stride;
        }
        stride *= length;
    }
    Ok(strides)
}

/// Checks and runs `work` with the scaling that the arguments ask for.
fn with_scaling<R>(
    format: &'static Format,
    shape: &[usize],
    grouping: Grouping,
    scale: Option<&ScaleArgument<'_>>,
    offset: Option<&PyReadonlyArrayDyn<'_, f32>>,
    written: (&mut [f32], &mut [f32]),
    work: impl FnOnce(Scaling) -> R,
) -> PyResult<R> {
    let name = match scale {
        Some(ScaleArgument::Numbers(numbers)) => {
            let arrays = GivenArrays::new(format, shape, grouping, numbers, offset)?;
            return Ok(work(Scaling::Given(arrays.given())));
        }
        Some(ScaleArgument::Rule(name)) => name,
        None => format.default_scale,
    };
    if offset.is_some() {
        return Err(Error::new_err("offset: goes with given numbers for scale; a rule makes its own"));
    }
    Ok(work(Scaling::Rule(Rule::named(name, format)?, written.0, written.1)))
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
    offset: Option<PyReadonlyArrayDyn<'py, f32>>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    let scale = ScaleArgument::new(scale.as_ref())?;
    let grouping = grouping_for(format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let descr = native(x)?;
    let out = match out {
        Some(out) => {
            check_out(&out, x.shape(), &descr, Some(input.array))?;
            out
        }
        None => new_array(py, x.shape(), descr)?,
    };
    {
        let target = output(&out, input.element);
        with_scaling(format, x.shape(), grouping, scale.as_ref(), offset.as_ref(), (&mut [], &mut []), |scaling| {
            py.detach(|| kernels::fake_quantize(&input.view, Spec { format, grouping, rounding }, scaling, &target))
        })??;
    }
    Ok(out)
}

type Packed<'py> = (Bound<'py, PyArray1<u8>>, Option<Bound<'py, PyArrayDyn<f32>>>, Option<Bound<'py, PyArrayDyn<f32>>>);

/// Packed codes and, where a rule made them, scales and offsets.
#[pyfunction]
#[pyo3(signature = (x, format, scale, offset, axis, block_size, rounding, key, out))]
pub(super) fn quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyUntypedArray>,
    format: &Bound<'py, PyAny>,
    scale: Option<Bound<'py, PyAny>>,
    offset: Option<PyReadonlyArrayDyn<'py, f32>>,
    axis: Option<isize>,
    block_size: Option<usize>,
    rounding: &str,
    key: Option<(u64, u64)>,
    out: Option<Bound<'py, PyUntypedArray>>,
) -> PyResult<Packed<'py>> {
    let (format, input) = (record(format)?, Input::new("x", x)?);
    let scale = ScaleArgument::new(scale.as_ref())?;
    let grouping = grouping_for(format, x.ndim(), axis, block_size)?;
    let rounding = rounding_named(rounding, key)?;
    let bytes = packed_len(x.len(), format.bits);
    let descr = numpy::dtype::<u8>(py);
    let packed = match out {
        Some(out) => {
            check_out(&out, &[bytes], &descr, Some(input.array))?;
            if !out.is_c_contiguous() {
                return Err(Error::new_err("out: packed codes need a contiguous array"));
            }
            out
        }
        None => new_array(py, &[bytes], descr)?,
    };
    let packed = packed.cast_into::<PyArray1<u8>>()?;
    let rule = match &scale {
        Some(ScaleArgument::Numbers(_)) => None,
        Some(ScaleArgument::Rule(name)) => Some(Rule::named(name, format)?),
        None => Some(Rule::named(format.default_scale, format)?),
    };
    let scale_shape = grouping.scale_shape(x.shape());
    let new_scale = rule.map(|_| new_array_of::<f32>(py, &scale_shape)).transpose()?;
    let new_offset = rule.filter(|rule| rule.affine).map(|_| new_array_of::<f32>(py, &scale_shape)).transpose()?;
    {
        let mut target = packed.try_readwrite()?;
        let target = target.as_slice_mut()?;
        let mut scales = new_scale.as_ref().map(PyArrayMethods::try_readwrite).transpose()?;
        let mut offsets = new_offset.as_ref().map(PyArrayMethods::try_readwrite).transpose()?;
        let written = (
            scales.as_mut().map(|scales| scales.as_slice_mut()).transpose()?.unwrap_or_default(),
            offsets.as_mut().map(|offsets| offsets.as_slice_mut()).transpose()?.unwrap_or_default(),
        );
        with_scaling(format, x.shape(), grouping, scale.as_ref(), offset.as_ref(), written, |scaling| {
            py.detach(|| kernels::quantize(&input.view, Spec { format, grouping, rounding }, scaling, target))
        })??;
    }
    Ok((packed, new_scale, new_offset))
}

#[pyfunction]
#[pyo3(signature = (packed, format, shape, scale, offset, axis, block_size, key, dtype, out))]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    packed: PyReadonlyArray1<'py, u8>,
    format: &Bound<'py, PyAny>,
    shape: Vec<usize>,
    scale: PyReadonlyArrayDyn<'py, f32>,
    offset: Option<PyReadonlyArrayDyn<'py, f32>>,
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
    let grouping = Grouping::new(shape.len(), axis, block_size)?;
    let rounding = rounding_named(if key.is_some() { "dither" } else { "nearest" }, key)?;
    let arrays = GivenArrays::new(format, &shape, grouping, &scale, offset.as_ref())?;
    let out = match out {
        Some(out) => {
            check_out(&out, &shape, &dtype, None)?;
            out
        }
        None => new_array(py, &shape, dtype)?,
    };
    {
        let Some(element) = super::array::native_element(&out.dtype())? else {
            return Err(PyTypeError::new_err(format!(
                "dtype: {} is not float16, bfloat16, float32 or float64",
                out.dtype()
            )));
        };
        let target = output(&out, element);
        let packed = packed.as_slice()?;
        py.detach(|| {
            kernels::dequantize(packed, Spec { format, grouping, rounding }, &shape, arrays.given(), &target)
        })?;
    }
    Ok(out)
}

/// Codes of either width.
#[derive(FromPyObject)]
pub(super) enum CodesArgument<'py> {
    Bytes(PyReadonlyArray1<'py, u8>),
    Words(PyReadonlyArray1<'py, u16>),
}

#[pyfunction]
pub(super) fn pack<'py>(py: Python<'py>, codes: CodesArgument<'py>, bits: u32) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    packing::check_bits(bits)?;
    let n = match &codes {
        CodesArgument::Bytes(codes) => codes.len(),
        CodesArgument::Words(codes) => codes.len(),
    };
    let out = new_array_of::<u8>(py, &[packed_len(n, bits)])?;
    {
        let mut target = out.try_readwrite()?;
        let target = target.as_slice_mut()?;
        match &codes {
            CodesArgument::Bytes(codes) => {
                let codes = codes.as_slice()?;
                py.detach(|| packing::pack(codes, bits, target))?;
            }
            CodesArgument::Words(codes) => {
                let codes = codes.as_slice()?;
                py.detach(|| packing::pack(codes, bits, target))?;
            }
        }
    }
    Ok(out)
}

#[pyfunction]
pub(super) fn unpack<'py>(
    py: Python<'py>,
    packed: PyReadonlyArray1<'py, u8>,
    bits: u32,
    n: usize,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let packed = packed.as_slice()?;
    packing::check(packed, n, bits)?;
    if bits <= 8 {
        let out = new_array_of::<u8>(py, &[n])?;
        {
            let mut codes = out.try_readwrite()?;
            let codes = codes.as_slice_mut()?;
            py.detach(|| packing::unpack(packed, bits, codes))?;
        }
        return Ok(out.as_untyped().clone());
    }
    let out = new_array_of::<u16>(py, &[n])?;
    {
        let mut codes = out.try_readwrite()?;
        let codes = codes.as_slice_mut()?;
        py.detach(|| packing::unpack(packed, bits, codes))?;
    }
    Ok(out.as_untyped().clone())
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
