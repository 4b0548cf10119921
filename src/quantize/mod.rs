//! `quantize`, `dequantize` and `fake_quantize`: any format, any rounding, any sharing of scales, one pass over memory.
//!
//! An array is cut into fixed chunks (for threads) and those into tiles that stay in the first-level cache. A tile is
//! gathered if it does not lie ready, its scales are found (or, for small blocks, observed on the spot), its numbers
//! rounded, and the result stored, packed or streamed. Nothing here depends on the number of threads.

mod kernel;
mod layout;
mod observe;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::{AnyGrid, Codes, Format, Visit};
use crate::pack::{check_packed, pack_tile, packed_len, unpack_tile};
use crate::parallel::{self, Shared};
use crate::scale::Rule;
use crate::simd;
use crate::stream::Stream;
use crate::view::{View, ViewMut};
use kernel::{Decode, Dither, Each, Encode, Factor, Fake, Nearest, Round, Stochastic, Tile};
pub use layout::Grouping;
use layout::Map;

/// Elements per tile: its float32 input, output and random words together stay in a first-level cache.
const TILE: usize = 1024;

/// Elements per parallel chunk.
const CHUNK: usize = 16 * TILE;

/// How a number between two grid values is rounded.
#[derive(Clone, Copy, Debug)]
pub enum Rounding {
    /// To the nearest; ties as the format says.
    Nearest,
    /// To either neighbour, so that the mean is the number.
    Stochastic(Stream),
    /// To nearest after adding a uniform number that reconstruction subtracts.
    Dither(Stream),
}

impl Rounding {
    fn stream(self) -> Option<Stream> {
        match self {
            Rounding::Nearest => None,
            Rounding::Stochastic(stream) | Rounding::Dither(stream) => Some(stream),
        }
    }

    /// Refuses what a format cannot do.
    pub fn check(self, format: &Format) -> Result<()> {
        if matches!(self, Rounding::Dither(_)) && format.uniform().is_none() {
            let reason = format!("\"dither\" needs equal steps (int4, uint4, ...), which {} lacks; use \"stochastic\"", format.name);
            return Err(Error::argument("rounding", reason));
        }
        Ok(())
    }
}

/// Where scales come from.
pub enum Scaling<'a> {
    /// From the numbers, by a rule. The scales (and offsets of an affine rule) are written where there is room: slices of
    /// no length are not written.
    Rule(&'static Rule, &'a mut [f32], &'a mut [f32]),
    /// From the caller.
    Given(Given<'a>),
}

/// Scales from the caller; `strides` are those of both slices per dimension of the blocked shape, 0 where they broadcast.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The scales.
    pub scale: &'a [f32],
    /// The offsets, if the scale is affine.
    pub offset: Option<&'a [f32]>,
    /// In elements.
    pub strides: &'a [usize],
}

/// Scales ready to be looked up, or a rule to be applied block by block.
#[derive(Clone, Copy)]
enum Scales<'a> {
    Known { scale: &'a [f32], offset: Option<&'a [f32]> },
    OnTheSpot { rule: &'static Rule, format: &'a Format, scale: Shared<f32>, offset: Shared<f32> },
}

/// How an array is cut: tiles of `tile` elements from the start of each row of `row` elements.
#[derive(Clone, Copy)]
struct Cut {
    row: usize,
    tile: usize,
    tiles_per_row: usize,
    tiles: usize,
    tiles_per_chunk: usize,
}

impl Cut {
    fn plain(n: usize) -> Self {
        Cut::rows(n, n, TILE)
    }

    fn rows(n: usize, row: usize, tile: usize) -> Self {
        let tiles_per_row = row.div_ceil(tile).max(1);
        let tiles = if n == 0 { 0 } else { n / row * tiles_per_row };
        Cut { row, tile, tiles_per_row, tiles, tiles_per_chunk: (CHUNK / tile.min(row.max(1))).max(1) }
    }

    fn chunks(self) -> usize {
        self.tiles.div_ceil(self.tiles_per_chunk)
    }

    /// The tiles of a chunk, as element ranges.
    #[inline(always)]
    fn tiles(self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let first = chunk * self.tiles_per_chunk;
        (first..self.tiles.min(first + self.tiles_per_chunk)).map(move |tile| {
            let (row, place) = (tile / self.tiles_per_row, tile % self.tiles_per_row * self.tile);
            row * self.row + place..row * self.row + self.row.min(place + self.tile)
        })
    }
}

/// If every group is so short and compact that it can be observed, scaled and rounded within a tile: the cut that keeps it
/// there. `bits` are those of packed codes, every tile of which must start on a whole byte.
fn groups_in_tiles(shape: &[usize], grouping: Grouping, bits: u32) -> Option<Cut> {
    let n: usize = shape.iter().product();
    let after = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let (row, group) = match grouping {
        Grouping::Array => (n, n),
        Grouping::Axis(axis) if shape[..axis].iter().all(|length| *length == 1) => (n, after(axis)),
        Grouping::Blocks { axis, size } if after(axis) == 1 => match shape[axis] {
            length if length <= size => (n, length),
            length if length % size == 0 => (n, size),
            length => (length, size),
        },
        _ => return None,
    };
    if n == 0 || group == 1 || group > TILE {
        return None;
    }
    let whole_bytes = |elements: usize| (elements * bits as usize).is_multiple_of(8);
    let tile = TILE / group * group;
    let aligned = (tile >= row || whole_bytes(tile)) && (row == n || whole_bytes(row));
    aligned.then(|| Cut::rows(n, row, tile))
}

/// Finds the scales of a tile and runs its kernel on each run of one scale.
struct Scaler<'a> {
    map: Map,
    scales: Scales<'a>,
}

impl Scaler<'_> {
    #[inline(always)]
    fn drive(&self, range: Range<usize>, x: &[f32], tile: &mut impl Tile) {
        match self.scales {
            Scales::Known { scale, offset } if self.map.is_fine() => {
                let mut factors = [Factor::new(1.0, None); TILE];
                let factors = &mut factors[..range.len()];
                self.map.runs(range.clone(), #[inline(always)] |position, index, step, count| {
                    for (i, factor) in factors[position..position + count].iter_mut().enumerate() {
                        let index = index + i * step;
                        *factor = Factor::new(scale[index], offset.map(|offset| offset[index]));
                    }
                });
                tile.run(0..range.len(), Each(factors));
            }
            Scales::Known { scale, offset } => {
                self.map.runs(range, #[inline(always)] |position, index, _, count| {
                    let factor = Factor::new(scale[index], offset.map(|offset| offset[index]));
                    tile.run(position..position + count, factor);
                });
            }
            Scales::OnTheSpot { rule, format, scale, offset } => {
                self.map.runs(range, #[inline(always)] |position, index, _, count| {
                    let run = position..position + count;
                    let (this_scale, this_offset) = rule.finish(&rule.statistic.observe(&x[run.clone()]), format);
                    // SAFETY: a group lies in one tile, so nobody else writes its scale.
                    unsafe {
                        scale.put(index, this_scale);
                        offset.put(index, this_offset);
                    }
                    tile.run(run, Factor::new(this_scale, rule.affine.then_some(this_offset)));
                });
            }
        }
    }
}

/// Rounding of one array: everything but where the results go.
struct Plan<'a> {
    x: &'a View<'a>,
    grid: AnyGrid,
    rounding: Rounding,
    scaler: Scaler<'a>,
    cut: Cut,
}

/// Runs `work` with the plan of rounding `x`: scales are observed first, or on the spot where that is possible.
fn with_plan<R>(
    x: &View,
    format: &Format,
    grouping: Grouping,
    scaling: Scaling,
    rounding: Rounding,
    bits: u32,
    work: impl FnOnce(&Plan) -> R,
) -> R {
    let (n, shape) = (x.len(), x.shape());
    let affine_grid = || format.uniform().map_or(format.grid, |grid| grid.counted_from_lowest().into());
    let plan = |grid, map, scales, cut| Plan { x, grid, rounding, scaler: Scaler { map, scales }, cut };
    match scaling {
        Scaling::Given(Given { scale, offset, strides }) => {
            let grid = if offset.is_some() { affine_grid() } else { format.grid };
            work(&plan(grid, Map::new(shape, grouping, strides), Scales::Known { scale, offset }, Cut::plain(n)))
        }
        Scaling::Rule(rule, scale, offset) => {
            let grid = if rule.affine { affine_grid() } else { format.grid };
            let map = Map::of_rule(shape, grouping);
            if let Some(cut) = groups_in_tiles(shape, grouping, bits) {
                let (scale, offset) = (Shared::new(scale), Shared::new(offset));
                return work(&plan(grid, map, Scales::OnTheSpot { rule, format, scale, offset }, cut));
            }
            let groups: usize = grouping.scale_shape(shape).iter().product();
            let (mut own_scale, mut own_offset) = (Vec::new(), Vec::new());
            let scale = if scale.len() == groups { scale } else { own_scale.resize(groups, 0.0); &mut own_scale };
            let offset = match rule.affine {
                true if offset.len() == groups => offset,
                true => { own_offset.resize(groups, 0.0); &mut own_offset }
                false => &mut [],
            };
            observe::observe(x, grouping, rule, format, scale, offset);
            let scales = Scales::Known { scale, offset: rule.affine.then_some(offset) };
            work(&plan(grid, map, scales, Cut::plain(n)))
        }
    }
}

/// Calls `$body` with `$rounding` as one of the types of `kernel`.
macro_rules! with_rounding {
    ($value:expr, $R:ident => $body:expr) => {
        match $value {
            Rounding::Nearest => { type $R = Nearest; $body }
            Rounding::Stochastic(_) => { type $R = Stochastic; $body }
            Rounding::Dither(_) => { type $R = Dither; $body }
        }
    };
}

impl Plan<'_> {
    /// Elements `range`, copied if the results go to the same memory.
    #[inline(always)]
    fn read<'b>(&'b self, range: Range<usize>, copied: bool, buffer: &'b mut [f32; TILE]) -> &'b [f32] {
        if copied { self.x.copy(range, buffer) } else { self.x.read(range, buffer) }
    }
}

/// Reads the words of a tile, if the rounding uses any.
#[inline(always)]
fn draw<R: Round>(rounding: Rounding, range: &Range<usize>, words: &mut [u32; TILE]) {
    if R::RANDOM && let Some(stream) = rounding.stream() {
        stream.fill(range.start as u64, &mut words[..range.len()]);
    }
}

/// Where float results go: straight into place, or through a tile's buffer.
struct Sink<'a> {
    out: &'a ViewMut<'a>,
    direct: bool,
    stream: bool,
}

impl<'a> Sink<'a> {
    fn new(out: &'a ViewMut<'a>) -> Self {
        let stream = out.is_plain() && out.bytes() >= simd::STREAM_FROM;
        Sink { out, direct: out.is_plain() && !stream, stream }
    }

    /// Runs `fill` on the memory of elements `range`, or on `buffer`, whose content then goes there.
    ///
    /// # Safety
    /// The range is in bounds and nobody else touches it meanwhile.
    #[inline(always)]
    unsafe fn put(&self, range: Range<usize>, buffer: &mut [f32; TILE], fill: impl FnOnce(&mut [f32])) {
        if self.direct {
            // SAFETY: plain, in bounds and exclusive.
            return fill(unsafe { self.out.part(range) });
        }
        let buffer = &mut buffer[..range.len()];
        fill(buffer);
        if self.stream {
            // SAFETY: plain, in bounds and exclusive.
            simd::stream_copy(bytemuck::cast_slice(buffer), bytemuck::cast_slice_mut(unsafe { self.out.part(range) }));
        } else {
            // SAFETY: in bounds and exclusive.
            unsafe { self.out.write(range.start, buffer) };
        }
    }
}

/// Rounds `x` to a format and back: the numbers that `dequantize(quantize(x))` gives. `out` has x's shape; it may be the
/// very memory of `x`.
pub fn fake_quantize(x: &View, format: &Format, grouping: Grouping, scaling: Scaling, rounding: Rounding, out: &ViewMut) -> Result<()> {
    struct Work<'a>(&'a Plan<'a>, &'a Sink<'a>, bool, Level);
    impl Visit for Work<'_> {
        type Out = ();
        fn visit<G: Codes>(self, grid: G) {
            let Work(plan, sink, in_place, level) = self;
            with_rounding!(plan.rounding, R => parallel::for_each(plan.cut.chunks(), |chunk| level.run(#[inline(always)] || {
                let (mut input, mut output, mut words) = ([0.0; TILE], [0.0; TILE], [0; TILE]);
                for range in plan.cut.tiles(chunk) {
                    let x = plan.read(range.clone(), in_place, &mut input);
                    draw::<R>(plan.rounding, &range, &mut words);
                    // SAFETY: tiles are disjoint and in bounds, and what this one reads was copied if it is the same memory.
                    unsafe {
                        sink.put(range.clone(), &mut output, #[inline(always)] |y| {
                            plan.scaler.drive(range, x, &mut Fake::<_, R> { grid, x, words: &words, y, round: PhantomData });
                        });
                    }
                }
                simd::stream_done();
            })));
        }
    }
    rounding.check(format)?;
    let sink = Sink::new(out);
    let in_place = std::ptr::eq(out.start(), x.start());
    with_plan(x, format, grouping, scaling, rounding, 8, |plan| plan.grid.visit(Work(plan, &sink, in_place, Level::current())));
    Ok(())
}

/// Rounds `x` to codes, packed into `out`, which has [`packed_len`] bytes.
pub fn quantize(x: &View, format: &Format, grouping: Grouping, scaling: Scaling, rounding: Rounding, out: &mut [u8]) -> Result<()> {
    struct Work<'a>(&'a Plan<'a>, Shared<u8>, u32, Level);
    impl Visit for Work<'_> {
        type Out = bool;
        fn visit<G: Codes>(self, grid: G) -> bool {
            let Work(plan, out, bits, level) = self;
            let stream = out.len() >= simd::STREAM_FROM;
            let any_bad = AtomicBool::new(false);
            with_rounding!(plan.rounding, R => parallel::for_each(plan.cut.chunks(), |chunk| level.run(#[inline(always)] || {
                let (mut input, mut words, mut codes, mut packed) = ([0.0; TILE], [0; TILE], [0_u8; TILE], [0_u8; TILE]);
                let mut bad = false;
                for range in plan.cut.tiles(chunk) {
                    let x = plan.read(range.clone(), false, &mut input);
                    draw::<R>(plan.rounding, &range, &mut words);
                    let codes = &mut codes[..range.len()];
                    let mut tile = Encode::<_, R> { grid, x, words: &words, codes, bad: false, round: PhantomData };
                    plan.scaler.drive(range.clone(), x, &mut tile);
                    bad |= tile.bad;
                    // SAFETY: tiles start on whole bytes and are disjoint, so their bytes are.
                    let place = unsafe { out.part(packed_len(range.start, bits)..packed_len(range.end, bits)) };
                    if stream {
                        let packed = &mut packed[..place.len()];
                        pack_tile(level, codes, bits, packed);
                        simd::stream_copy(packed, place);
                    } else {
                        pack_tile(level, codes, bits, place);
                    }
                }
                if bad {
                    any_bad.store(true, Ordering::Relaxed);
                }
                simd::stream_done();
            })));
            any_bad.into_inner()
        }
    }
    rounding.check(format)?;
    debug_assert_eq!(out.len(), packed_len(x.len(), format.bits), "{} codes", x.len());
    let given = matches!(scaling, Scaling::Given(_));
    let out = Shared::new(out);
    let bad = with_plan(x, format, grouping, scaling, rounding, format.bits, |plan| {
        plan.grid.visit(Work(plan, out, format.bits, Level::current()))
    });
    if bad { Err(unrepresentable(x, given)) } else { Ok(()) }
}

/// The error that names the first number without a code.
fn unrepresentable(x: &View, given: bool) -> Error {
    let mut buffer = [0.0; TILE];
    for start in (0..x.len()).step_by(TILE) {
        let tile = x.read(start..x.len().min(start + TILE), &mut buffer);
        let bad = |value: &f32| if given { value.is_nan() } else { !value.is_finite() };
        if let Some(place) = tile.iter().position(bad) {
            let advice = if given {
                "NaN cannot be stored; replace it, or use fake_quantize, which lets it through"
            } else {
                "a scale from the data needs finite numbers; replace it, give scale=, or use fake_quantize"
            };
            return Error::Unrepresentable { index: start + place, value: tile[place], advice };
        }
    }
    Error::argument("x", "a number cannot be stored")
}

/// The numbers that packed codes stand for. `shape` is that of the array; `out` has it too.
pub fn dequantize(packed: &[u8], format: &Format, shape: &[usize], grouping: Grouping, given: Given, rounding: Rounding, out: &ViewMut) -> Result<()> {
    struct Work<'a> {
        packed: &'a [u8],
        bits: u32,
        scaler: Scaler<'a>,
        rounding: Rounding,
        cut: Cut,
        sink: Sink<'a>,
        level: Level,
    }
    impl Visit for Work<'_> {
        type Out = ();
        fn visit<G: Codes>(self, grid: G) {
            let Work { packed, bits, scaler, rounding, cut, sink, level } = &self;
            with_rounding!(*rounding, R => parallel::for_each(cut.chunks(), |chunk| level.run(#[inline(always)] || {
                let (mut output, mut words, mut codes) = ([0.0; TILE], [0; TILE], [0_u8; TILE]);
                for range in cut.tiles(chunk) {
                    let codes = &mut codes[..range.len()];
                    unpack_tile(*level, &packed[packed_len(range.start, *bits)..packed_len(range.end, *bits)], *bits, codes);
                    draw::<R>(*rounding, &range, &mut words);
                    // SAFETY: tiles are disjoint and in bounds.
                    unsafe {
                        sink.put(range.clone(), &mut output, #[inline(always)] |y| {
                            scaler.drive(range, &[], &mut Decode::<_, R> { grid, codes, words: &words, y, round: PhantomData });
                        });
                    }
                }
                simd::stream_done();
            })));
        }
    }
    rounding.check(format)?;
    let n = shape.iter().product();
    check_packed("packed", packed, n, format.bits)?;
    let grid = match (given.offset, format.uniform()) {
        (Some(_), Some(grid)) => grid.counted_from_lowest().into(),
        _ => format.grid,
    };
    let scaler = Scaler {
        map: Map::new(shape, grouping, given.strides),
        scales: Scales::Known { scale: given.scale, offset: given.offset },
    };
    let sink = Sink::new(out);
    grid.visit(Work { packed, bits: format.bits, scaler, rounding, cut: Cut::plain(n), sink, level: Level::current() });
    Ok(())
}
