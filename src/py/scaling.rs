//! The arguments `scale` and `offset`: a rule's name or numbers, checked.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::array::{Input, slice_of, text};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::formats::blocks::ScaleFormat;
use crate::quantize::{Given, Grouping, Scaling, tensor_scale};
use crate::scale::{Rule, SCALE_RANGE};
use crate::view::View;

/// Real numbers of any float dtype and layout, as float32.
pub(super) struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Numbers {
    fn new(argument: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let input = Input::new(argument, array)?;
        let mut values = vec![0.0; input.view.len()];
        // In a clean float state: a caller who flushes subnormals gets the same numbers.
        Level::current().run(|| input.view.copy(0..input.view.len(), &mut values));
        Ok(Numbers { shape: input.view.shape().to_vec(), values })
    }
}

/// Checked `scale` and `offset`.
pub(super) enum Scale {
    Rule(&'static Rule),
    Given { scale: Numbers, offset: Option<Numbers>, strides: Vec<usize> },
}

impl Scale {
    /// Checks what the caller gave for an array of `shape`.
    pub fn new(
        format: &Format,
        shape: &[usize],
        grouping: Grouping,
        scale: Option<&Bound<'_, PyAny>>,
        offset: Option<&Bound<'_, PyUntypedArray>>,
    ) -> PyResult<Self> {
        let name = match scale {
            None => format.default_scale.into(),
            Some(scale) => match scale.cast::<PyString>() {
                Ok(name) => text("scale", name)?,
                Err(_) => return Scale::given(format, shape, grouping, scale.cast::<PyUntypedArray>()?, offset),
            },
        };
        if offset.is_some() {
            let reason = "goes with given numbers for scale; a rule makes its own";
            return Err(Error::argument("offset", reason).into());
        }
        Ok(Scale::Rule(Rule::named(&name, format)?))
    }

    /// Scales as a quantized array keeps them: codes where the format says of what.
    pub fn stored(
        format: &Format,
        shape: &[usize],
        grouping: Grouping,
        scale: &Bound<'_, PyUntypedArray>,
        offset: Option<&Bound<'_, PyUntypedArray>>,
    ) -> PyResult<Self> {
        let Some(scaling) = format.scaling else { return Scale::given(format, shape, grouping, scale, offset) };
        let codes = slice_of::<u8>("scale", scale)?;
        let table = scaling.format.table();
        // What is stored has been checked.
        let values: Vec<f32> = codes.iter().map(|code| table[usize::from(*code)]).collect();
        let strides = broadcast("scale", scale.shape(), &grouping.blocked_shape(shape))?;
        Ok(Scale::Given { scale: Numbers { shape: scale.shape().to_vec(), values }, offset: None, strides })
    }

    /// The scale of the whole tensor that goes with these.
    pub fn tensor(&self, x: &View, format: &Format) -> f32 {
        match self {
            Scale::Rule(rule) => tensor_scale(x, format, rule),
            Scale::Given { .. } => 1.0,
        }
    }

    fn given(
        format: &Format,
        shape: &[usize],
        grouping: Grouping,
        scale: &Bound<'_, PyUntypedArray>,
        offset: Option<&Bound<'_, PyUntypedArray>>,
    ) -> PyResult<Self> {
        let scale = Numbers::new("scale", scale)?;
        let argument = if offset.is_some() { "scale and offset" } else { "scale" };
        let strides = broadcast(argument, &scale.shape, &grouping.blocked_shape(shape))?;
        if let Some(scaling) = format.scaling {
            check_few_bits(format, scaling.format, &scale.values)?;
        }
        let (least, most) = if format.scaling.is_some() { (0.0, f32::INFINITY) } else { SCALE_RANGE };
        if let Some(index) = scale.values.iter().position(|scale| !(least..=most).contains(scale)) {
            let reason = format!("element {index} is {}; a scale must be from 2^-126 to 2^126", scale.values[index]);
            return Err(Error::argument("scale", reason).into());
        }
        let offset = offset.map(|offset| Numbers::new("offset", offset)).transpose()?;
        if let Some(offset) = &offset {
            check_offset(format, &scale, offset)?;
        }
        Ok(Scale::Given { scale, offset, strides })
    }

    /// For the kernels; a rule writes what it finds to `written`, where there is room.
    pub fn scaling<'a>(&'a self, written: (&'a mut [f32], &'a mut [f32])) -> Scaling<'a> {
        match self {
            Scale::Rule(rule) => Scaling::Rule(rule, written.0, written.1),
            Scale::Given { scale, offset, strides } => Scaling::Given(Given {
                scale: &scale.values,
                offset: offset.as_ref().map(|offset| offset.values.as_slice()),
                strides,
            }),
        }
    }
}

/// Refuses scales that are no numbers of a scale format.
pub(super) fn check_few_bits(format: &Format, scales: ScaleFormat, values: &[f32]) -> Result<()> {
    let Some(index) = values.iter().position(|scale| !scales.has(*scale)) else { return Ok(()) };
    let possible = match scales {
        ScaleFormat::E8m0 => "powers of two from 2^-127 to 2^127",
        ScaleFormat::E4m3 => "positive numbers of fp8_e4m3fn",
    };
    let reason = format!("element {index} is {}; the scales of {} are {possible}", values[index], format.name);
    Err(Error::argument("scale", reason))
}

fn check_offset(format: &Format, scale: &Numbers, offset: &Numbers) -> Result<()> {
    if format.uniform().is_none() {
        let reason = format!("{} has no equal steps, so no offset; int4, uint8 and other integers have", format.name);
        return Err(Error::argument("offset", reason));
    }
    // The Python layer gives both one shape.
    if offset.shape != scale.shape {
        let reason = format!("has shape {:?}, but scale has {:?}", offset.shape, scale.shape);
        return Err(Error::argument("offset", reason));
    }
    match offset.values.iter().position(|offset| !offset.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let reason = format!("element {index} is {}; it must be finite", offset.values[index]);
            Err(Error::argument("offset", reason))
        }
    }
}

/// Strides, in elements and 0 where it broadcasts, of a C-contiguous array of `shape` seen as `target`.
fn broadcast(argument: &'static str, shape: &[usize], target: &[usize]) -> Result<Vec<usize>> {
    let fits = shape.len() <= target.len()
        && shape.iter().rev().zip(target.iter().rev()).all(|(length, target)| length == target || *length == 1);
    if !fits {
        return Err(Error::argument(argument, format!("shape {shape:?} does not broadcast to {target:?}")));
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
