//! Any registered format as a codec: scales and packed codes, as `quantize` makes them with the format's own scale rule.

use super::coder::{Coder, Noise, Opened, Pieces, room};
use super::cursor::{Cursor, floats};
use super::rotated::NAN;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::pack::packed_len;
use crate::quantize::{self, Given, Grouping, Rounding, Scaling, Spec, observe_all};
use crate::scale::{Rule, SCALE_RANGE, Statistic};
use crate::stream::Purpose;
use crate::view::{View, ViewMut};

/// A format's codes.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    format: &'static Format,
    block_size: Option<usize>,
    stochastic: bool,
}

impl Packed {
    pub fn new(format: &str, block_size: usize, rounding: u8) -> Result<Self> {
        let format = Format::named(format)?;
        if rounding > 1 {
            return Err(Error::argument("rounding", format!("code {rounding} is neither nearest nor stochastic")));
        }
        Ok(Packed { format, block_size: (block_size > 0).then_some(block_size), stochastic: rounding == 1 })
    }

    fn grouping(&self, ndim: usize) -> Result<Grouping> {
        let default_block = self.format.default_block.filter(|_| ndim > 0);
        Grouping::new(ndim, None, self.block_size.or(default_block))
    }

    fn rule(&self) -> Result<&'static Rule> {
        Rule::named(self.format.default_scale, self.format)
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
        if finite {
            let spec = Spec { format: self.format, grouping, rounding };
            quantize::quantize(x, spec, Scaling::Rule(self.rule()?, &mut scales, &mut []), &mut packed)?;
        }
        for (place, scale) in room(out, 4 * scales.len()).as_chunks_mut::<4>().0.iter_mut().zip(&scales) {
            *place = scale.to_le_bytes();
        }
        out.extend(packed);
        Ok(finite)
    }

    fn open<'a>(&'a self, shape: &[usize], _: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let grouping = self.grouping(shape.len())?;
        let scale_shape = grouping.scale_shape(shape);
        let count = scale_shape.iter().product::<usize>();
        let scales = payload.take(count.checked_mul(4).ok_or_else(|| Error::decode("more scales than can be"))?)?;
        let (least, most) = SCALE_RANGE;
        let undefined = floats(scales).all(f32::is_nan);
        if let Some(scale) = floats(scales).find(|scale| !undefined && !(least..=most).contains(scale)) {
            return Err(Error::decode(format!("a scale is {scale}, but must lie between 2^-126 and 2^126")));
        }
        let packed = payload.packed(shape.iter().product(), self.format.bits)?;
        let scales = if undefined { vec![] } else { floats(scales).collect() };
        Ok(Box::new(Sent { format: self.format, grouping, shape: shape.to_vec(), scale_shape, scales, packed }))
    }

    fn needs_key(&self) -> bool {
        false
    }
}

struct Sent<'a> {
    format: &'static Format,
    grouping: Grouping,
    shape: Vec<usize>,
    scale_shape: Vec<usize>,
    /// None if some number was not finite.
    scales: Vec<f32>,
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
        let spec = Spec { format: self.format, grouping: self.grouping, rounding: Rounding::Nearest };
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
