//! Which numbers share a scale, and where the scale of element i is found.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::view::MAX_DIMS;

/// Which numbers share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// All of them.
    Array,
    /// Those of one index along this axis (per channel).
    Axis(usize),
    /// Runs of `size` along `axis`; the last of a row may be short.
    Blocks {
        /// Along which axis.
        axis: usize,
        /// How many numbers.
        size: usize,
    },
}

impl Grouping {
    /// The grouping that `axis` and `block_size` ask for in an array of `ndim` dimensions.
    pub fn new(ndim: usize, axis: Option<isize>, block_size: Option<usize>) -> Result<Self> {
        if axis.is_none() && block_size.is_none() {
            return Ok(Grouping::Array);
        }
        let asked = axis.unwrap_or(-1);
        let place = if asked < 0 { asked + ndim as isize } else { asked };
        if place < 0 || place >= ndim as isize {
            let reason = match ndim {
                0 => "an array of no dimensions has one scale; leave axis and block_size out".into(),
                _ => format!("{asked} is out of range; give {} to {}", -(ndim as isize), ndim - 1),
            };
            return Err(Error::argument("axis", reason));
        }
        match block_size {
            None => Ok(Grouping::Axis(place as usize)),
            Some(0) => Err(Error::argument("block_size", "0 numbers cannot share a scale; give 1 or more")),
            Some(size) => Ok(Grouping::Blocks { axis: place as usize, size }),
        }
    }

    /// The shape that a rule's scales have: dimensions kept.
    pub fn scale_shape(self, shape: &[usize]) -> Vec<usize> {
        let groups = |(d, length): (usize, &usize)| match self {
            Grouping::Blocks { axis, size } if axis == d => length.div_ceil(size),
            Grouping::Blocks { .. } => *length,
            Grouping::Axis(axis) if axis == d => *length,
            Grouping::Axis(_) | Grouping::Array => 1,
        };
        shape.iter().enumerate().map(groups).collect()
    }

    /// The shape that given scales must broadcast to: blocked along the block axis, the array's own elsewhere.
    pub fn blocked_shape(self, shape: &[usize]) -> Vec<usize> {
        match self {
            Grouping::Array | Grouping::Axis(_) => shape.to_vec(),
            Grouping::Blocks { .. } => self.scale_shape(shape),
        }
    }
}

/// From the number of an element to the index of its scale: `(length, block, stride)` per dimension, innermost first,
/// merged where possible. The scale's index is the sum of `index / block * stride`.
#[derive(Clone, Debug)]
pub(crate) struct Map(Vec<(usize, usize, usize)>);

/// Runs of one scale shorter than this are served element by element, side by side.
pub(super) const FINE: usize = 33;

impl Map {
    /// `strides` are those of the scales, per dimension of the blocked shape, zero where they broadcast.
    pub(crate) fn new(shape: &[usize], grouping: Grouping, strides: &[usize]) -> Self {
        let mut dims: Vec<(usize, usize, usize)> = Vec::with_capacity(shape.len());
        if shape.contains(&0) {
            return Map(dims);
        }
        for (d, (&length, &stride)) in shape.iter().zip(strides).enumerate().rev() {
            if length == 1 {
                continue;
            }
            let block = match grouping {
                // No longer than the row, so that the products below cannot overflow.
                Grouping::Blocks { axis, size } if axis == d => size.min(length),
                _ => 1,
            };
            let stride = if block >= length { 0 } else { stride };
            match dims.last_mut() {
                // One scale for all of the inner dimension: the two are one with larger blocks.
                Some(inner) if inner.2 == 0 => *inner = (length * inner.0, block * inner.0, stride),
                // The outer dimension steps over whole rows of scales.
                Some(inner) if block == 1 && inner.0 % inner.1 == 0 && stride == inner.2 * (inner.0 / inner.1) => {
                    inner.0 *= length;
                }
                _ => dims.push((length, block, stride)),
            }
        }
        // One scale for all: nothing to look up.
        if dims.iter().all(|dim| dim.2 == 0) {
            dims.clear();
        }
        Map(dims)
    }

    /// The map of scales that lie in C order in `grouping.scale_shape(shape)`.
    pub(crate) fn of_rule(shape: &[usize], grouping: Grouping) -> Self {
        let scale_shape = grouping.scale_shape(shape);
        let mut stride = 1;
        let mut strides: Vec<usize> = scale_shape
            .iter()
            .rev()
            .map(|&length| {
                let this = if length == 1 { 0 } else { stride };
                stride *= length;
                this
            })
            .collect();
        strides.reverse();
        Map::new(shape, grouping, &strides)
    }

    /// Whether runs of one scale are so short that a scale for each element is cheaper.
    pub(crate) fn is_fine(&self) -> bool {
        self.0.first().is_some_and(|&(length, block, stride)| if stride == 0 { length < FINE } else { block < FINE })
    }

    /// Calls `visit(position, index, step, count)` for each run of the elements `range`: `count` elements, the first of
    /// which is number `position` of the range, whose scales are `index`, `index + step`, ... (`step` 0: one scale).
    #[inline(always)]
    pub(crate) fn runs(&self, range: Range<usize>, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let total = range.len();
        let Some((&(length, block, stride), outer)) = self.0.split_first() else {
            if total > 0 {
                visit(0, 0, 0, total);
            }
            return;
        };
        let (block, step) = match (stride, block) {
            (0, _) => (length, 0),
            (_, 1) => (length, stride),
            _ => (block, 0),
        };
        let mut index = [0_usize; MAX_DIMS];
        let (mut first, mut rest) = (range.start % length, range.start / length);
        let mut base = 0;
        for (slot, &(length, block, stride)) in index.iter_mut().zip(outer) {
            (*slot, rest) = (rest % length, rest / length);
            base += *slot / block * stride;
        }
        let mut position = 0;
        while position < total {
            let row_end = position + (length - first).min(total - position);
            while position < row_end {
                let count = (block - first % block).min(row_end - position);
                let inner = if step == 0 { first / block * stride } else { first * step };
                visit(position, base + inner, step, count);
                position += count;
                first += count;
            }
            first = 0;
            for (slot, &(length, block, stride)) in index.iter_mut().zip(outer) {
                let before = *slot / block;
                *slot += 1;
                if *slot < length {
                    base += (*slot / block - before) * stride;
                    break;
                }
                base -= before * stride;
                *slot = 0;
            }
        }
    }

    /// Writes for each element of `range` the number of its group.
    #[inline(always)]
    pub(crate) fn spread(&self, range: Range<usize>, numbers: &[f32], out: &mut [f32]) {
        self.runs(
            range,
            #[inline(always)]
            |position, index, step, count| {
                let out = &mut out[position..position + count];
                match step {
                    0 => out.fill(numbers[index]),
                    1 => out.copy_from_slice(&numbers[index..index + count]),
                    _ => out.iter_mut().zip(numbers[index..].iter().step_by(step)).for_each(|(out, n)| *out = *n),
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_any_size_holds_no_more_than_its_row() {
        // One scale for all of the first two dimensions, whatever the block, and one for each of the last.
        for size in [4, 5, 1 << 62, 1 << 63, usize::MAX] {
            let map = Map::new(&[4, 2, 3], Grouping::Blocks { axis: 0, size }, &[0, 0, 1]);
            let mut found = vec![usize::MAX; 24];
            map.runs(0..24, |position, index, step, count| {
                (0..count).for_each(|i| found[position + i] = index + i * step);
            });
            assert_eq!(found, (0..24).map(|i| i % 3).collect::<Vec<_>>(), "blocks of {size}");
        }
    }

    #[test]
    fn every_element_finds_the_scale_its_index_says() {
        let shapes: [&[usize]; 7] = [&[], &[1], &[40], &[3, 5], &[4, 1, 6], &[2, 3, 4, 5], &[5, 64]];
        for shape in shapes {
            let n: usize = shape.iter().product();
            let mut groupings = vec![Grouping::Array];
            groupings.extend((0..shape.len()).map(Grouping::Axis));
            let sizes = [1, 2, 3, 4, 16, 100];
            groupings.extend((0..shape.len()).flat_map(|axis| sizes.map(|size| Grouping::Blocks { axis, size })));
            for grouping in groupings {
                let scale_shape = grouping.scale_shape(shape);
                let map = Map::of_rule(shape, grouping);
                let want: Vec<usize> = (0..n)
                    .map(|element| {
                        let (mut rest, mut places) = (element, vec![0; shape.len()]);
                        for d in (0..shape.len()).rev() {
                            places[d] = rest % shape[d];
                            rest /= shape[d];
                        }
                        (0..shape.len()).fold(0, |index, d| {
                            index * scale_shape[d]
                                + match grouping {
                                    Grouping::Array => 0,
                                    Grouping::Axis(axis) => {
                                        if axis == d {
                                            places[d]
                                        } else {
                                            0
                                        }
                                    }
                                    Grouping::Blocks { axis, size } => {
                                        if axis == d {
                                            places[d] / size
                                        } else {
                                            places[d]
                                        }
                                    }
                                }
                        })
                    })
                    .collect();
                for start in 0..n {
                    let mut found = vec![usize::MAX; n - start];
                    map.runs(start..n, |position, index, step, count| {
                        for i in 0..count {
                            found[position + i] = index + i * step;
                        }
                    });
                    assert_eq!(found, want[start..], "{shape:?} {grouping:?} from {start}: {map:?}");
                }
            }
        }
    }
}
