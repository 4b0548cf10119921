//! Convolutions as matrix products, one for each group of channels.
//!
//! Forward and towards the input, a is the weight, and b has a column for every place of every sample; towards the weight,
//! a is the gradient, b has a column for every number of a kernel, and the sum goes over all places of all samples.

use super::operand::{Codes, Steps};
use super::patches::{Axis, Patches};
use super::{Operand, Scaling, product};
use crate::error::{Error, Result};
use crate::pack::{pack, packed_len, unpack};

/// The geometry of a two-dimensional convolution with zero padding.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// Places from one kernel to the next.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    /// Places from one number of a kernel to the next.
    pub dilation: [usize; 2],
    /// Groups of channels that meet only each other.
    pub groups: usize,
}

/// Which product of a convolution's input x, weight w and result y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// y of x and w.
    Forward,
    /// dL/dx of dL/dy and w.
    GradInput,
    /// dL/dw of dL/dy and x.
    GradWeight,
}

/// Codes of an operand, what they are, and its shape.
pub type Tensor<'a> = (&'a [u8], &'a Steps, [usize; 4]);

impl Convolution {
    /// Computes a product, in exact arithmetic, rounded once.
    pub fn product(&self, which: Product, a: Tensor, b: Tensor, (shape, out): ([usize; 4], &mut [f32])) -> Result<()> {
        let (x, w, y) = match which {
            Product::Forward => (a.2, b.2, shape),
            Product::GradInput => (shape, b.2, a.2),
            Product::GradWeight => (b.2, shape, a.2),
        };
        self.check(x, w, y)?;
        let groups: Vec<usize> = (0..self.groups).collect();
        let lines = w[0] / self.groups;
        let input = self.patches(x[1], |axis| Axis {
            size: x[axis + 2],
            taps: w[axis + 2],
            places: y[axis + 2],
            stride: self.stride[axis] as isize,
            dilation: self.dilation[axis] as isize,
            offset: -(self.padding[axis] as isize),
            spread: 1,
        });
        let mut turned = vec![];
        let codes = match which {
            Product::Forward => {
                let weight = Codes::new("b", b.0, b.1.bits(), (self.groups, lines, input.taps()), true)?;
                [weight, Codes::of_patches("a", a.0, a.1.bits(), x[0], input, false)?]
            }
            Product::GradInput => {
                // Every number of the result meets what the kernel took it to.
                let patches = self.patches(y[1], |axis| Axis {
                    size: y[axis + 2],
                    places: x[axis + 2],
                    stride: 1,
                    dilation: -(self.dilation[axis] as isize),
                    offset: self.padding[axis] as isize,
                    spread: self.stride[axis] as isize,
                    ..input.axes[axis]
                });
                let stored = (self.groups, lines, w[1], w[2] * w[3]);
                turn(b.0, b.1.bits(), stored, &mut turned)?;
                let weight = Codes::new("b", &turned, b.1.bits(), (self.groups, w[1], patches.taps()), true)?;
                [weight, Codes::of_patches("a", a.0, a.1.bits(), y[0], patches, false)?]
            }
            Product::GradWeight => {
                let own = self.patches(y[1], |axis| Axis::alone(y[axis + 2]));
                let gradient = Codes::of_patches("a", a.0, a.1.bits(), y[0], own, true)?;
                [gradient, Codes::of_patches("b", b.0, b.1.bits(), x[0], input, true)?]
            }
        };
        let steps = if which == Product::GradWeight { [a.1, b.1] } else { [b.1, a.1] };
        let [a, b] = [0, 1].map(|i| Operand { codes: codes[i], steps: steps[i], matrices: &groups });
        product(&a, &b, &Scaling::Factor(1.0), out)
    }

    fn patches(&self, channels: usize, axis: impl Fn(usize) -> Axis) -> Patches {
        Patches { groups: self.groups, channels: channels / self.groups, axes: [0, 1].map(axis) }
    }

    /// Whether shapes are those of a convolution.
    fn check(&self, x: [usize; 4], w: [usize; 4], y: [usize; 4]) -> Result<()> {
        let wrong = |argument, reason: String| Err(Error::argument(argument, reason));
        if self.groups == 0 || !w[0].is_multiple_of(self.groups) || w[1].checked_mul(self.groups) != Some(x[1]) {
            let reason = format!("{} do not divide {} channels into {} of {} each", self.groups, x[1], w[0], w[1]);
            return wrong("groups", reason);
        }
        if x[0] != y[0] || w[0] != y[1] {
            return wrong("out", format!("shapes {x:?} and {w:?} make no {y:?}"));
        }
        for axis in 0..2 {
            let (stride, padding, dilation) = (self.stride[axis], self.padding[axis], self.dilation[axis]);
            for (argument, value, least) in [("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)]
            {
                if value < least || value > i32::MAX as usize {
                    return wrong(argument, format!("{value} is not one of {least} to {}", i32::MAX));
                }
            }
            let (size, taps, places) = (x[axis + 2], w[axis + 2], y[axis + 2]);
            let room = taps.checked_sub(1).and_then(|gaps| gaps.checked_mul(dilation));
            let room = room.and_then(|reach| size.checked_add(2 * padding)?.checked_sub(reach));
            let want = room.and_then(|room| Some(room.checked_sub(1)? / stride + 1)).unwrap_or(0);
            if want != places {
                return wrong("out", format!("{size} numbers and a kernel of {taps} make {want} places, not {places}"));
            }
        }
        Ok(())
    }
}

/// Packs a weight's codes anew, input channels before output channels.
fn turn(
    packed: &[u8],
    bits: u32,
    (groups, out, channels, taps): (usize, usize, usize, usize),
    to: &mut Vec<u8>,
) -> Result<()> {
    Codes::new("b", packed, bits, (groups, out, channels * taps), true)?;
    let mut codes = vec![0_u8; groups * out * channels * taps];
    unpack(packed, bits, &mut codes)?;
    let mut turned = Vec::with_capacity(codes.len());
    for group in 0..groups {
        for channel in 0..channels {
            for row in 0..out {
                let first = ((group * out + row) * channels + channel) * taps;
                turned.extend_from_slice(&codes[first..first + taps]);
            }
        }
    }
    to.resize(packed_len(turned.len(), bits), 0);
    pack(&turned, bits, to)
}
