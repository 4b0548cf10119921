//! Operands: packed codes as whole numbers of steps, and how they become panels.

use std::ops::Range;

use super::block::Space;
use super::patches::{Maps, Patches};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::pack::{packed_len, unpack_tile};

/// A format whose values are whole numbers of its smallest one.
#[derive(Clone, Debug)]
pub struct Steps {
    bits: u32,
    /// By code.
    table: [i16; 256],
    /// The lowest number of a code, whether or not rounding gives it.
    pub(super) low: i32,
    /// The highest.
    pub(super) high: i32,
    /// What a step is worth: a power of two.
    pub(super) unit: f32,
}

/// The largest number that a low byte and a high byte, both signed, make.
const MOST: f32 = 32_639.0;

impl Steps {
    /// The steps of a format, where it has them.
    pub fn of(argument: &'static str, format: &Format) -> Result<Steps> {
        let unit = format.extremes().1;
        let whole = |value: &f32| {
            let steps = value / unit;
            steps.abs() <= MOST && steps as i32 as f32 == steps
        };
        let power_of_two = unit.is_normal() && unit.to_bits().trailing_zeros() >= 23;
        let values = if format.coded && format.bits <= 8 { format.decode_table() } else { vec![] };
        if values.is_empty() || !power_of_two || !values.iter().all(whole) {
            return Err(Error::argument(
                argument,
                format!(
                    "{} cannot be multiplied by its codes; formats of at most 8 bits whose values are whole multiples \
                     of a power of two can (int2 to int8, uint2 to uint8, ternary, sign, radix4, fp4_e2m1)",
                    format.name
                ),
            ));
        }
        let mut table = [0; 256];
        for (steps, value) in table.iter_mut().zip(&values) {
            *steps = (value / unit) as i16;
        }
        let used = table[..values.len()].iter().map(|steps| i32::from(*steps));
        let (low, high) = used.fold((0, 0), |(low, high), steps| (low.min(steps), high.max(steps)));
        Ok(Steps { bits: format.bits, table, low, high, unit })
    }

    /// Bits of a code.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    /// The largest magnitude.
    pub(super) fn most(&self) -> i32 {
        self.high.max(-self.low)
    }

    /// Whether every number is a signed byte.
    pub(super) fn in_bytes(&self) -> bool {
        self.low >= -128 && self.high <= 127
    }

    /// Bytes by code: numbers with a bias that makes them fit, low bytes, or high bytes.
    pub(super) fn bytes(&self, part: Part) -> Plane<u8> {
        Plane::new(self.bits, |code| {
            let steps = i32::from(self.table[code]);
            let low = steps as i8;
            match part {
                Part::Biased(bias) => (steps + bias) as u8,
                Part::Low => low as u8,
                Part::High => ((steps - i32::from(low)) >> 8) as u8,
            }
        })
    }
}

/// What of a number a byte holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Biased(i32),
    Low,
    High,
}

/// Packed codes of matrices, seen as rows of a or columns of b ("lines"), along which the product sums.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    packed: &'a [u8],
    /// How many there are.
    pub(super) matrices: usize,
    /// How many lines a matrix has.
    pub(super) lines: usize,
    /// How long they are.
    pub(super) inner: usize,
    /// Whether the codes of a line are neighbours, or else those at one place of all lines.
    along: bool,
    /// So many lines' results are neighbours: all, or those of one sample of a convolution.
    pub(super) run: usize,
    /// What lines are made of, where it is not one code after the other.
    patches: Option<Patches>,
}

impl<'a> Codes<'a> {
    /// Matrices of packed codes, one after the other.
    pub fn new(
        argument: &'static str,
        packed: &'a [u8],
        bits: u32,
        (matrices, lines, inner): (usize, usize, usize),
        along: bool,
    ) -> Result<Self> {
        let n = [matrices, lines, inner].iter().try_fold(1_usize, |n, &length| n.checked_mul(length));
        let want = n.map_or(usize::MAX, |n| packed_len(n, bits));
        if packed.len() != want {
            let of = format!("{matrices} x {lines} x {inner}");
            let reason = format!("{of} codes of {bits} bits take {want} bytes, but there are {}", packed.len());
            return Err(Error::argument(argument, reason));
        }
        Ok(Codes { packed, matrices, lines, inner, along, run: lines, patches: None })
    }

    /// What a convolution's kernel meets in maps of codes, one matrix for each group of channels: lines are the kernel's
    /// numbers, and the sum goes along places (`along`), or the other way round.
    pub(super) fn of_patches(
        argument: &'static str,
        packed: &'a [u8],
        bits: u32,
        samples: usize,
        patches: Patches,
        along: bool,
    ) -> Result<Self> {
        let codes = Codes::new(argument, packed, bits, patches.maps(samples), true)?;
        let (taps, places) = (patches.taps(), patches.places());
        let (lines, inner) = if along { (taps, samples * places) } else { (samples * places, taps) };
        let run = if along { taps } else { places };
        Ok(Codes { matrices: patches.groups, lines, inner, along, run, patches: Some(patches), ..codes })
    }

    /// Whether the codes of a line are one after the other.
    pub(super) fn is_along(&self) -> bool {
        self.along && !self.is_gathered()
    }

    /// Whether lines are copied together from many places.
    pub(super) fn is_gathered(&self) -> bool {
        self.patches.is_some()
    }

    /// All codes.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.packed
    }

    /// The numbers of a line of the matrix that starts with code `start`.
    pub(super) fn line(
        &self,
        level: Level,
        start: usize,
        line: usize,
        plane: &Plane<u8>,
        out: &mut [u8],
        rows: &mut Rows<u8>,
    ) {
        if self.along {
            return plane.decode(level, self.packed, start + line * self.inner, out, &mut rows.codes);
        }
        for (place, out) in out.iter_mut().enumerate() {
            let first = start + place * self.lines + line;
            plane.decode(level, self.packed, first, std::slice::from_mut(out), &mut rows.codes);
        }
    }
}

/// What the numbers of a plane are made of.
pub(super) trait Lane: Copy + Default + PartialEq {
    /// So many make 32 bits.
    const GROUP: usize;

    /// What of the numbers of a format these hold.
    fn plane(steps: &Steps, part: Part) -> Plane<Self>;

    /// A thread's memory for rows of them.
    fn rows(space: &mut Space) -> &mut Rows<Self>;

    /// 32 bits of so many lanes, the first lowest.
    fn join(lanes: [Self; 4]) -> u32;

    /// Numbers of 4-bit codes, two a byte, as far as a level has a fast way: gives how many bytes that are.
    fn nibbles(level: Level, packed: &[u8], table: &[Self; 256], out: &mut [Self]) -> usize;
}

impl Lane for u8 {
    const GROUP: usize = 4;

    fn plane(steps: &Steps, part: Part) -> Plane<u8> {
        steps.bytes(part)
    }

    fn rows(space: &mut Space) -> &mut Rows<u8> {
        &mut space.bytes
    }

    #[inline(always)]
    fn join(lanes: [u8; 4]) -> u32 {
        u32::from_le_bytes(lanes)
    }
    #[inline(always)]
    fn nibbles(level: Level, packed: &[u8], table: &[u8; 256], out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if level.has_avx2() {
            // SAFETY: the level says that AVX2 is there.
            return unsafe { super::avx2::nibbles(packed, table, out) };
        }
        let _ = (level, packed, table, out);
        0
    }
}

impl Lane for u16 {
    const GROUP: usize = 2;

    fn plane(steps: &Steps, _: Part) -> Plane<u16> {
        Plane::new(steps.bits, |code| steps.table[code] as u16)
    }

    fn rows(space: &mut Space) -> &mut Rows<u16> {
        &mut space.words
    }

    #[inline(always)]
    fn join(lanes: [u16; 4]) -> u32 {
        u32::from(lanes[0]) | u32::from(lanes[1]) << 16
    }
    #[inline(always)]
    fn nibbles(_: Level, _: &[u8], _: &[u16; 256], _: &mut [u16]) -> usize {
        0
    }
}

/// The numbers of codes.
pub(super) struct Plane<T> {
    bits: u32,
    table: [T; 256],
}

impl<T: Lane> Plane<T> {
    fn new(bits: u32, number: impl Fn(usize) -> T) -> Self {
        Plane { bits, table: std::array::from_fn(number) }
    }

    /// By code.
    pub(super) fn table(&self) -> &[T; 256] {
        &self.table
    }

    /// The numbers of codes `first`, `first + 1`, ...
    #[inline(always)]
    pub(super) fn decode(&self, level: Level, packed: &[u8], first: usize, out: &mut [T], codes: &mut Vec<u8>) {
        let bits = self.bits as usize;
        // Eights of codes begin with a byte; nibbles and bytes do more often.
        let skip = first % if bits == 8 { 1 } else { 8 >> bits.trailing_zeros().min(3) };
        let packed = &packed[(first - skip) * bits / 8..];
        let mut done = 0;
        if bits == 4 && skip == 0 {
            done = 2 * T::nibbles(level, packed, &self.table, out);
        }
        let rest = &mut out[done..];
        let n = skip + rest.len();
        codes.resize(n.max(codes.len()), 0);
        let codes = &mut codes[..n];
        unpack_tile(level, &packed[done * bits / 8..][..packed_len(n, self.bits)], self.bits, codes);
        for (number, code) in rest.iter_mut().zip(&codes[skip..]) {
            *number = self.table[usize::from(*code)];
        }
    }
}

/// Where group `g` of line `o` is in panels: `(o / width) * panel + (o % width) * line + g * group`.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// How many groups there are.
    pub groups: usize,
    pub width: usize,
    pub panel: usize,
    pub line: usize,
    pub group: usize,
}

/// Memory for rows of numbers on their way into panels.
#[derive(Default)]
pub(super) struct Rows<T> {
    codes: Vec<u8>,
    numbers: Vec<T>,
    groups: Vec<u32>,
    maps: Maps<T>,
}

/// Decodes a part of a matrix whose codes start at `start` into panels, zeros behind its end.
#[inline(always)]
pub(super) fn pack<T: Lane>(
    level: Level,
    (codes, start): (&Codes, usize),
    plane: &Plane<T>,
    (lines, inner): (Range<usize>, Range<usize>),
    layout: Layout,
    rows: &mut Rows<T>,
    panels: &mut [u32],
) {
    let (count, groups) = (lines.len(), layout.groups);
    if let Some(patches) = &codes.patches {
        let (taps, places) = if codes.along { (&lines, &inner) } else { (&inner, &lines) };
        let group = start / (codes.lines * codes.inner);
        let decode = |first, out: &mut [T]| plane.decode(level, codes.packed, first, out, &mut rows.codes);
        rows.maps.fill(patches, group, taps, places, decode);
    }
    if codes.along {
        rows.numbers.clear();
        rows.numbers.resize(groups * T::GROUP, T::default());
        for o in 0..count {
            let first = start + (lines.start + o) * codes.inner + inner.start;
            let numbers = &mut rows.numbers[..inner.len()];
            match &codes.patches {
                None => plane.decode(level, codes.packed, first, numbers, &mut rows.codes),
                Some(patches) => rows.maps.copy(patches, lines.start + o, inner.clone(), numbers),
            }
            let panel = &mut panels[o / layout.width * layout.panel + o % layout.width * layout.line..];
            let joined = rows.numbers.chunks_exact(T::GROUP).map(join_of);
            if layout.group == 1 {
                panel.iter_mut().zip(joined).for_each(|(to, group)| *to = group);
            } else {
                panel.iter_mut().step_by(layout.group).zip(joined).for_each(|(to, group)| *to = group);
            }
        }
        return;
    }
    rows.numbers.clear();
    rows.numbers.resize(4 * count, T::default());
    rows.groups.resize(count, 0);
    for g in 0..groups {
        for j in 0..T::GROUP {
            let row = &mut rows.numbers[j * count..(j + 1) * count];
            let k = inner.start + g * T::GROUP + j;
            if k < inner.end {
                let first = start + k * codes.lines + lines.start;
                match &codes.patches {
                    None => plane.decode(level, codes.packed, first, row, &mut rows.codes),
                    Some(patches) => rows.maps.copy(patches, k, lines.clone(), row),
                }
            } else {
                row.fill(T::default());
            }
        }
        let (first, rest) = rows.numbers.split_at(count);
        let (second, rest) = rest.split_at(count);
        let (third, fourth) = rest.split_at(count);
        for (o, to) in rows.groups.iter_mut().enumerate() {
            *to = T::join([first[o], second[o], third[o], fourth[o]]);
        }
        for (panel, groups) in rows.groups.chunks(layout.width).enumerate() {
            let panel = &mut panels[panel * layout.panel + g * layout.group..];
            if layout.line == 1 {
                panel[..groups.len()].copy_from_slice(groups);
            } else {
                panel.iter_mut().step_by(layout.line).zip(groups).for_each(|(to, group)| *to = *group);
            }
        }
    }
}

#[inline(always)]
fn join_of<T: Lane>(lanes: &[T]) -> u32 {
    let mut four = [T::default(); 4];
    four[..T::GROUP].copy_from_slice(&lanes[..T::GROUP]);
    T::join(four)
}
