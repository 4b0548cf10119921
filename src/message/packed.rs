//! Any registered format as a codec: scales and packed codes, as `quantize` makes them with the format's own scale rule.

use std::sync::Arc;

use super::coder::{Coder, Noise, Opened, Pieces, room};
use super::cursor::{Cursor, floats};
use super::quantized::{check_scales, tensor_scale_fits};
use super::rotated::NAN;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::pack::packed_len;
use crate::quantize::{self, Given, Grouping, Rounding, Scaling, Spec, observe_all, tensor_scale};
use crate::scale::{Rule, Statistic};
use crate::stream::Purpose;
use crate::view::{View, ViewMut};

/// A format's codes.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    format: Arc<Format>,
    block_size: Option<usize>,
    stochastic: bool,
}

impl Packed {
    pub fn new(format: &str, block_size: usize, rounding: u8) -> Result<Self> {
        let format = Format::named(format)?;
        format.check_coded()?;
        if rounding > 1 {
            return Err(Error::argument("rounding", format!("code {rounding} is neither nearest nor stochastic")));
        }
        let block_size = (block_size > 0).then_some(block_size);
        if block_size.is_some() && format.scaling.is_some() && format.default_block.is_some() {
            return Err(Error::argument("block_size", format!("{} has its own; leave it out", format.name)));
        }
        Ok(Packed { format, block_size, stochastic: rounding == 1 })
    }

    fn grouping(&self, ndim: usize) -> Result<Grouping> {
        if self.rule()?.is_one() {
            return Ok(Grouping::Array);
        }
        // A number alone is a block of its own.
        let default_block = self.format.default_block.filter(|_| ndim > 0);
        Grouping::new(ndim, None, self.block_size.or(default_block))
    }

    fn rule(&self) -> Result<&'static Rule> {
        Rule::named(self.format.default_scale, &self.format)
    }

    fn has_tensor_scale(&self) -> bool {
        self.format.scaling.is_some_and(|scaling| scaling.format.has_tensor_scale())
    }
}

impl Coder for Packed {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let grouping = self.grouping(x.shape().len())?;
        let rounding =
            if self.stochastic { Rounding::Stochastic(noise.stream(Purpose::Rounding)?) } else { Rounding::Nearest };
        let mut scales: Vec<f32> = vec![NAN; grouping.scale_shape(x.shape()).iter().product()];
        let mut packed = vec![0; packed_len(x.len(), self.format.bits)];
        let finite = observe_all(x, Statistic::Amax).is_finite();
        let mut tensor = NAN;
        if finite {
            tensor = tensor_scale(x, &self.format, self.rule()?);
            let spec = Spec { format: &self.format, grouping, rounding, tensor };
            quantize::quantize(x, spec, Scaling::Rule(self.rule()?, &mut scales, &mut []), &mut packed)?;
        }
        if self.has_tensor_scale() {
            out.extend(tensor.to_le_bytes());
        }
        match self.format.scaling {
            Some(scaling) => {
                let code = |scale: &f32| if finite { scaling.format.encode(*scale) } else { ALL_ONES };
                out.extend(scales.iter().map(code));
            }
            None => {
                for (place, scale) in room(out, 4 * scales.len()).as_chunks_mut::<4>().0.iter_mut().zip(&scales) {
                    *place = scale.to_le_bytes();
                }
            }
        }
        out.extend(packed);
        Ok(finite)
    }

    fn open<'a>(&'a self, shape: &[usize], _: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let grouping = self.grouping(shape.len())?;
        let scale_shape = grouping.scale_shape(shape);
        let count = scale_shape.iter().product::<usize>();
        let tensor = if self.has_tensor_scale() { payload.float()? } else { 1.0 };
        let (scales, undefined): (Vec<f32>, bool) = if let Some(scaling) = self.format.scaling {
            let (codes, table) = (payload.take(count)?, scaling.format.table());
            let scales = codes.iter().map(|code| table[usize::from(*code)]).collect();
            (scales, codes.iter().all(|code| *code == ALL_ONES))
        } else {
            let bytes = count.checked_mul(4).ok_or_else(|| Error::decode("more scales than can be"))?;
            let scales = payload.take(bytes)?;
            let undefined = floats(scales).all(f32::is_nan);
            if !undefined {
                check_scales("scale", floats(scales)).map_err(|error| Error::decode(error.to_string()))?;
            }
            (floats(scales).collect(), undefined)
        };
        if !undefined && (scales.iter().any(|scale| scale.is_nan()) || !tensor_scale_fits(tensor)) {
            return Err(Error::decode("a scale is no positive number of its format"));
        }
        let packed = payload.packed(shape.iter().product(), self.format.bits)?;
        let scales = if undefined { vec![] } else { scales };
        Ok(Box::new(Sent {
            format: &self.format,
            grouping,
            shape: shape.to_vec(),
            scale_shape,
            scales,
            tensor,
            packed,
        }))
    }

    fn needs_key(&self) -> bool {
        false
    }
}

/// The code of no scale in either format of scales.
const ALL_ONES: u8 = 0xff;

struct Sent<'a> {
    format: &'a Format,
    grouping: Grouping,
    shape: Vec<usize>,
    scale_shape: Vec<usize>,
    /// None if some number was not finite.
    scales: Vec<f32>,
    tensor: f32,
    packed: &'a [u8],
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Whole(self.shape.iter().product())
    }

    fn decode(&self, _: Level, _: usize, out: &mut [f32]) -> Result<()> {
        if self.scales.is_empty() {
            out.fill(NAN);
            return Ok(());
        }
        let (format, grouping, tensor) = (self.format, self.grouping, self.tensor);
        let spec = Spec { format, grouping, rounding: Rounding::Nearest, tensor };
        // Dense strides, 0 where a scale serves the whole dimension.
        let blocked = self.grouping.blocked_shape(&self.shape);
        let mut strides = vec![0; self.scale_shape.len()];
        let mut step = 1;
        for (axis, stride) in strides.iter_mut().enumerate().rev() {
            *stride = if self.scale_shape[axis] == blocked[axis] { step } else { 0 };
            step *= self.scale_shape[axis];
        }
        let given = Given { scale: &self.scales, offset: None, strides: &strides };
        quantize::dequantize(self.packed, spec, &self.shape, given, &mut ViewMut::from_slice_shaped(out, &self.shape))
    }
}
