//! Strided float arrays of any layout, read and written tile by tile.
//!
//! A [`View`] is what NumPy hands over: a pointer, a shape and strides in bytes, of float16, bfloat16, float32 or
//! float64, aligned or not, in either byte order. Kernels see float32 slices in logical C order: borrowed where the
//! array is plain contiguous float32, else gathered into the caller's small buffer, so that no layout costs a copy of
//! the array.

use std::marker::PhantomData;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The float types arrays may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64; rounded to binary32 when read.
    F64,
}

impl Element {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }
}

/// Most dimensions an array may have (NumPy's limit).
pub const MAX_DIMS: usize = 64;

/// A walk over a strided array in C order: `(length, stride in bytes)` per dimension, innermost first, merged where
/// two dimensions are one straight line.
#[derive(Clone, Debug)]
struct Walk(Vec<(usize, isize)>);

impl Walk {
    fn new(shape: &[usize], strides: &[isize]) -> Self {
        let mut dims: Vec<(usize, isize)> = Vec::with_capacity(shape.len());
        for (&length, &stride) in shape.iter().zip(strides).rev().filter(|(length, _)| **length != 1) {
            match dims.last_mut() {
                Some(inner) if stride == inner.1 * inner.0 as isize => inner.0 *= length,
                _ => dims.push((length, stride)),
            }
        }
        Walk(dims)
    }

    /// Whether the whole array is one line of elements `size` bytes apart.
    fn is_dense(&self, size: usize) -> bool {
        match self.0.as_slice() {
            [] => true,
            [(_, stride)] => *stride == size as isize,
            _ => false,
        }
    }

    /// Calls `visit(position, offset, stride, count)` for each straight run of the elements `range`: `count` elements
    /// from byte `offset` on, `stride` apart, the first of which is number `position` of the range.
    #[inline(always)]
    fn runs(&self, range: Range<usize>, mut visit: impl FnMut(usize, isize, isize, usize)) {
        let total = range.len();
        let Some((&(length, stride), outer)) = self.0.split_first() else {
            if total > 0 {
                visit(0, 0, 0, total);
            }
            return;
        };
        let mut index = [0_usize; MAX_DIMS];
        let (mut first, mut rest) = (range.start % length.max(1), range.start / length.max(1));
        let mut base = 0;
        for (slot, &(length, stride)) in index.iter_mut().zip(outer) {
            (*slot, rest) = (rest % length, rest / length);
            base += *slot as isize * stride;
        }
        let mut position = 0;
        while position < total {
            let count = (length - first).min(total - position);
            visit(position, base + first as isize * stride, stride, count);
            position += count;
            first = 0;
            for (slot, &(length, stride)) in index.iter_mut().zip(outer) {
                *slot += 1;
                base += stride;
                if *slot < length {
                    break;
                }
                base -= length as isize * stride;
                *slot = 0;
            }
        }
    }
}

/// A float array of any layout that can be read.
#[derive(Clone, Debug)]
pub struct View<'a> {
    data: *const u8,
    element: Element,
    swapped: bool,
    shape: Vec<usize>,
    strides: Vec<isize>,
    len: usize,
    walk: Walk,
    /// Dense, aligned float32 in native byte order.
    plain: bool,
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: a view only reads memory it borrows.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// A view of a contiguous slice.
    pub fn from_slice(x: &'a [f32]) -> Self {
        // SAFETY: a slice is readable for its length, with stride 4.
        unsafe { View::new(x.as_ptr().cast(), Element::F32, false, &[x.len()], &[4]) }
    }

    /// A view of memory described as NumPy does; `swapped` means the other byte order.
    ///
    /// # Safety
    /// Every element that `shape` and `strides` (in bytes) reach from `data` is readable for `'a`, and nobody writes it
    /// meanwhile but through a [`ViewMut`] of exactly the same layout.
    pub unsafe fn new(data: *const u8, element: Element, swapped: bool, shape: &[usize], strides: &[isize]) -> Self {
        let mut view = View {
            data,
            element,
            swapped,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            len: 0,
            walk: Walk(Vec::new()),
            plain: false,
            borrow: PhantomData,
        };
        view.lay_out();
        view
    }

    /// Derives the walk from shape and strides.
    fn lay_out(&mut self) {
        self.len = self.shape.iter().product();
        self.walk = Walk::new(&self.shape, &self.strides);
        self.plain = self.element == Element::F32
            && !self.swapped
            && self.walk.is_dense(4)
            && self.data.cast::<f32>().is_aligned();
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same elements with dimension `axis` moved to `place`, which changes only the order they are read in.
    #[must_use]
    pub fn with_axis_at(&self, axis: usize, place: usize) -> Self {
        let mut moved = self.clone();
        let (length, stride) = (moved.shape.remove(axis), moved.strides.remove(axis));
        moved.shape.insert(place, length);
        moved.strides.insert(place, stride);
        moved.lay_out();
        moved
    }

    /// The part of the array whose index along `axis` is in `range`.
    ///
    /// # Panics
    /// If the range is not within the axis.
    #[must_use]
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.shape[axis], "indices {range:?} of {}", self.shape[axis]);
        let mut part = self.clone();
        part.shape[axis] = range.len();
        part.data = self.data.wrapping_offset(range.start as isize * self.strides[axis]);
        part.lay_out();
        part
    }

    /// Elements `range` in C order: borrowed if they lie ready as float32, else gathered into `buffer`.
    ///
    /// # Panics
    /// If the range is not within the array, or the buffer is shorter.
    #[inline(always)]
    pub fn read<'b>(&self, range: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self.part(range.clone()) {
            Some(numbers) => numbers,
            None => self.copy(range, buffer),
        }
    }

    /// Elements `range` where they lie ready as float32.
    #[inline(always)]
    pub(crate) fn part(&self, range: Range<usize>) -> Option<&'a [f32]> {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        // SAFETY: the elements are in bounds, dense and aligned, and readable for 'a by the promise of `new`.
        self.plain.then(|| unsafe { std::slice::from_raw_parts(self.data.cast::<f32>().add(range.start), range.len()) })
    }

    /// Whether [`View::read`] borrows and needs no buffer.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Where the first element lies.
    pub fn start(&self) -> *const u8 {
        self.data
    }

    /// Elements `range` in C order, copied into `buffer`.
    ///
    /// # Panics
    /// If the range is not within the array, or the buffer is shorter.
    #[inline(always)]
    pub fn copy<'b>(&self, range: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        let buffer = &mut buffer[..range.len()];
        self.gather(range, buffer);
        buffer
    }

    #[inline(always)]
    fn gather(&self, range: Range<usize>, out: &mut [f32]) {
        let (data, swapped) = (self.data, self.swapped);
        self.walk.runs(
            range,
            #[inline(always)]
            |position, offset, stride, count| {
                let out = &mut out[position..position + count];
                // SAFETY: `runs` yields only elements of the array, readable by the promise of `new`; a dense, aligned run
                // of 16-bit floats is a slice of them.
                unsafe {
                    let start = data.offset(offset);
                    let dense = !swapped && stride == self.element.size() as isize;
                    match self.element {
                        Element::F16 if dense && start.cast::<f16>().is_aligned() => {
                            std::slice::from_raw_parts(start.cast::<f16>(), count).convert_to_f32_slice(out);
                        }
                        Element::F16 => {
                            read(start, stride, swapped, out, |bits| f16::from_bits(u16::from_le_bytes(bits)).to_f32());
                        }
                        Element::Bf16 => read(start, stride, swapped, out, |bits: [u8; 2]| {
                            f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
                        }),
                        Element::F32 => read(start, stride, swapped, out, f32::from_le_bytes),
                        Element::F64 => read(start, stride, swapped, out, |bits| f64::from_le_bytes(bits) as f32),
                    }
                }
            },
        );
    }
}

/// Reads one strided run. `convert` takes little-endian bytes.
///
/// # Safety
/// `out.len()` elements of N bytes, `stride` apart from `start` on, are readable.
#[inline(always)]
unsafe fn read<const N: usize>(
    start: *const u8,
    stride: isize,
    swapped: bool,
    out: &mut [f32],
    convert: impl Fn([u8; N]) -> f32,
) {
    // SAFETY: by the caller's promise; `[u8; N]` has no alignment.
    let at = |i: usize| unsafe { start.offset(i as isize * stride).cast::<[u8; N]>().read() };
    let reverse = swapped != cfg!(target_endian = "big");
    if reverse {
        for (i, out) in out.iter_mut().enumerate() {
            let mut bytes = at(i);
            bytes.reverse();
            *out = convert(bytes);
        }
    } else if stride == N as isize {
        // The constant stride lets the loop become vector loads.
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: as `at`.
            *out = convert(unsafe { start.add(i * N).cast::<[u8; N]>().read() });
        }
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            *out = convert(at(i));
        }
    }
}

/// A float array of any layout in native byte order that can be written, by disjoint ranges from several threads.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut u8,
    element: Element,
    shape: Vec<usize>,
    strides: Vec<isize>,
    walk: Walk,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: writing goes through `part` and `write`, whose callers promise disjoint ranges.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A view of a contiguous slice.
    pub fn from_slice(y: &'a mut [f32]) -> Self {
        // SAFETY: a slice is writable for its length, with stride 4.
        unsafe { ViewMut::new(y.as_mut_ptr().cast(), Element::F32, &[y.len()], &[4]) }
    }

    /// A view of a contiguous slice, seen as an array of this shape; the product of the shape is the slice's length.
    pub fn from_slice_shaped(y: &'a mut [f32], shape: &[usize]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), y.len(), "{shape:?}");
        let mut strides = vec![4; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        // SAFETY: C-contiguous strides reach the elements of the slice, each once.
        unsafe { ViewMut::new(y.as_mut_ptr().cast(), Element::F32, shape, &strides) }
    }

    /// A view of memory described as NumPy does, in native byte order.
    ///
    /// # Safety
    /// Every element that `shape` and `strides` (in bytes) reach from `data` is writable for `'a`, is reached once, and
    /// nobody else touches it meanwhile, except reads through a [`View`] of exactly the same layout.
    pub unsafe fn new(data: *mut u8, element: Element, shape: &[usize], strides: &[isize]) -> Self {
        let walk = Walk::new(shape, strides);
        ViewMut { data, element, shape: shape.to_vec(), strides: strides.to_vec(), walk, borrow: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of the array whose index along `axis` is in `range`; parts that live together must not overlap.
    #[must_use]
    pub(crate) fn slice(&self, axis: usize, range: Range<usize>) -> Self {
        let mut shape = self.shape.clone();
        shape[axis] = range.len();
        let data = self.data.wrapping_offset(range.start as isize * self.strides[axis]);
        let walk = Walk::new(&shape, &self.strides);
        ViewMut { data, element: self.element, shape, strides: self.strides.clone(), walk, borrow: PhantomData }
    }

    /// Whether [`ViewMut::part`] gives slices.
    pub fn is_plain(&self) -> bool {
        self.element == Element::F32 && self.walk.is_dense(4) && self.data.cast::<f32>().is_aligned()
    }

    /// The number of bytes the elements take.
    pub fn bytes(&self) -> usize {
        self.len() * self.element.size()
    }

    /// Where the first element lies.
    pub fn start(&self) -> *const u8 {
        self.data
    }

    /// Elements `range` as a slice.
    ///
    /// # Safety
    /// [`ViewMut::is_plain`], `range` is in bounds, and no other live part and no concurrent `write` overlaps it.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    #[inline(always)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        debug_assert!(self.is_plain() && range.end <= self.len(), "{range:?} of {}", self.len());
        // SAFETY: in bounds and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.cast::<f32>().add(range.start), range.len()) }
    }

    /// Writes elements `start..start + values.len()`, rounded to the element type (ties to even).
    ///
    /// # Safety
    /// The range is in bounds, and no other live part and no concurrent `write` overlaps it.
    #[inline(always)]
    pub unsafe fn write(&self, start: usize, values: &[f32]) {
        debug_assert!(start + values.len() <= self.len(), "{start} + {} of {}", values.len(), self.len());
        self.walk.runs(
            start..start + values.len(),
            #[inline(always)]
            |position, offset, stride, count| {
                let values = &values[position..position + count];
                // SAFETY: `runs` yields only elements of the array, writable by the promises of `new` and of the caller.
                unsafe {
                    let start = self.data.offset(offset);
                    let dense = stride == self.element.size() as isize;
                    match self.element {
                        Element::F16 if dense && start.cast::<f16>().is_aligned() => {
                            std::slice::from_raw_parts_mut(start.cast::<f16>(), count).convert_from_f32_slice(values);
                        }
                        Element::F16 => write(start, stride, values, |v| f16::from_f32(v).to_ne_bytes()),
                        Element::Bf16 => write(start, stride, values, |v| bf16::from_f32(v).to_ne_bytes()),
                        Element::F32 => write(start, stride, values, f32::to_ne_bytes),
                        Element::F64 => write(start, stride, values, |v| f64::from(v).to_ne_bytes()),
                    }
                }
            },
        );
    }
}

/// Writes one strided run.
///
/// # Safety
/// `values.len()` elements of N bytes, `stride` apart from `start` on, are writable.
#[inline(always)]
unsafe fn write<const N: usize>(start: *mut u8, stride: isize, values: &[f32], convert: impl Fn(f32) -> [u8; N]) {
    for (i, &value) in values.iter().enumerate() {
        // SAFETY: by the caller's promise; `[u8; N]` has no alignment.
        unsafe { start.offset(i as isize * stride).cast::<[u8; N]>().write(convert(value)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_any_layout_is_read_and_written_in_c_order() {
        let memory: Vec<f32> = (0..2 * 3 * 5 * 7_u16).map(f32::from).collect();
        let (shape, strides) = ([3, 7, 5], [4 * 70_isize, -8, 4 * 14]);
        let at = |i: usize| {
            let (a, b, c) = (i / 35, i / 5 % 7, i % 5);
            memory[12 + a * 70 - 2 * b + c * 14]
        };
        // SAFETY: offset 12 with these strides reaches elements 0 to 208 of 210.
        let view = unsafe { View::new(memory[12..].as_ptr().cast(), Element::F32, false, &shape, &strides) };
        for start in 0..105 {
            for len in [0, 1, 4, 36, 105] {
                let range = start..(start + len).min(105);
                let mut buffer = [0.0; 105];
                let want: Vec<f32> = range.clone().map(at).collect();
                assert_eq!(view.read(range, &mut buffer), want, "{start}+{len}");
            }
        }
        let mut copy = vec![0.0_f32; memory.len()];
        // SAFETY: the same layout over the copy.
        let target = unsafe { ViewMut::new(copy[12..].as_mut_ptr().cast(), Element::F32, &shape, &strides) };
        let values: Vec<f32> = (0..105).map(at).collect();
        // SAFETY: one thread, one range at a time.
        unsafe { target.write(0, &values[..50]) };
        // SAFETY: as above.
        unsafe { target.write(50, &values[50..]) };
        let touched = copy.iter().zip(&memory).filter(|(c, _)| **c != 0.0).all(|(c, m)| c == m);
        assert!(touched && copy.iter().filter(|c| **c != 0.0).count() >= 104, "written where it was read");
    }
}
