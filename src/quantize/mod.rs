//! `quantize`, `dequantize` and `fake_quantize`: any format, any rounding, any sharing of scales, one pass over memory.
//!
//! An array is cut into fixed chunks (for threads) and those into tiles that stay in the first-level cache. A tile is
//! gathered if it does not lie ready, its scales are found (or, for small blocks, observed on the spot), its numbers
//! rounded, and the result stored, packed or streamed. Nothing here depends on the number of threads.

mod kernel;
mod layout;
mod observe;
mod plan;
mod runs;
mod slab;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::formats::table::Nibbles;
use crate::formats::{AnyGrid, Codes, Decoder, Format, Visit};
use crate::pack::{check_packed, pack_tile, packed_len, unpack_tile};
use crate::parallel::{self, Shared};
use crate::scale::{Rule, Statistic};
use crate::simd::{self, Eights};
use crate::stream::Stream;
use crate::view::{MAX_DIMS, View, ViewMut};
use kernel::{Decode, Dither, Encode, Fake, Nearest, Round, Stochastic};
pub use layout::Grouping;
pub(crate) use layout::Map;
pub use observe::observe_all;
pub(crate) use observe::observe_groups;
pub(crate) use plan::Sink;
use plan::{Buffers, Plan, TILE, with_plan};
use slab::Slab;

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
            let reason = format!(
                "\"dither\" needs equal steps (int4, uint4, ...), which {} lacks; use \"stochastic\"",
                format.name
            );
            return Err(Error::argument("rounding", reason));
        }
        Ok(())
    }
}

/// What to round to, which numbers share a scale, and how to round.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The number format.
    pub format: &'a Format,
    /// Which numbers share a scale.
    pub grouping: Grouping,
    /// How to round.
    pub rounding: Rounding,
    /// The scale of the whole tensor, which multiplies every other: 1 where the format has none.
    pub tensor: f32,
}

/// The scale of the whole tensor that a rule finds, 1 for formats that have none.
pub fn tensor_scale(x: &View, format: &Format, rule: &Rule) -> f32 {
    match format.scaling {
        Some(scaling) if scaling.format.has_tensor_scale() => {
            rule.tensor_scale(&observe_all(x, Statistic::Amax), format)
        }
        _ => 1.0,
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

impl Scaling<'_> {
    /// A rule that looks at nothing, as the scale that it gives.
    fn known(self) -> Self {
        match self {
            Scaling::Rule(rule, scale, _) if rule.is_one() => {
                scale.fill(1.0);
                Scaling::Given(Given { scale: &[1.0], offset: None, strides: &[0; MAX_DIMS] })
            }
            scaling => scaling,
        }
    }
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

/// A loop over tiles, for any grid and rounding.
trait Work {
    type Out;
    fn run<G: Codes, R: Round>(self, grid: G) -> Self::Out;
}

/// Runs the loop for the grid and the rounding of a plan. Only integers are dithered, so that no other kernel is made for it.
fn run<W: Work>(plan: &Plan, work: W) -> W::Out {
    struct Rounded<W>(bool, W);
    impl<W: Work> Visit for Rounded<W> {
        type Out = W::Out;
        fn visit<G: Codes>(self, grid: G) -> W::Out {
            if self.0 { self.1.run::<G, Stochastic>(grid) } else { self.1.run::<G, Nearest>(grid) }
        }
    }
    match (plan.rounding, &plan.grid) {
        (Rounding::Dither(_), AnyGrid::Int(grid)) => work.run::<_, Dither>(*grid),
        (rounding, grid) => grid.visit(Rounded(matches!(rounding, Rounding::Stochastic(_)), work)),
    }
}

/// Rounds `x` to a format and back: the numbers that `dequantize(quantize(x))` gives. `out` has x's shape; it may be the
/// very memory of `x`.
pub fn fake_quantize(x: &View, spec: Spec, scaling: Scaling, out: &mut ViewMut) -> Result<()> {
    struct Tiles<'a>(&'a Plan<'a>, &'a Sink<'a>, bool, Level);
    impl Work for Tiles<'_> {
        type Out = ();
        fn run<G: Codes, R: Round>(self, grid: G) {
            let Tiles(plan, sink, in_place, level) = self;
            parallel::for_each(plan.cut.chunks(), |chunk| {
                level.run(
                    #[inline(always)]
                    || {
                        let Buffers { input, output, words, runs } = &mut Buffers::new();
                        for place in plan.cut.tiles(chunk) {
                            let x = plan.read(place.range.clone(), in_place, input);
                            plan.draw::<R>(place.range.clone(), words);
                            // SAFETY: tiles are disjoint and in bounds, and what this one reads was copied if it is the same memory.
                            unsafe {
                                sink.put(
                                    place.range.clone(),
                                    output,
                                    #[inline(always)]
                                    |y| {
                                        let mut tile = Fake::<_, R> { grid, x, words, y, level, round: PhantomData };
                                        plan.scaler.drive(place, x, runs, &mut tile);
                                    },
                                );
                            }
                        }
                        simd::stream_done();
                    },
                );
            });
        }
    }
    spec.rounding.check(spec.format)?;
    check_room("out", out.len(), x.len())?;
    check_scaling(x.shape(), spec, &scaling)?;
    let scaling = scaling.known();
    let out = &*out;
    slab::by_slabs(x, spec, scaling, None, |slab, x, scaling| {
        let part = slab.map(|slab| out.slice(slab.axis, slab.range.clone()));
        let level = Level::current();
        let sink = Sink::new(part.as_ref().unwrap_or(out), level);
        let in_place = std::ptr::eq(sink.start(), x.start());
        with_plan(x, spec, slab, scaling, 8, |plan| run(plan, Tiles(plan, &sink, in_place, level)));
    });
    Ok(())
}

#[inline(never)]
fn pack(level: Level, codes: &[u32], bits: u32, out: &mut [u8]) {
    level.part(
        #[inline(always)]
        || pack_tile(level, codes, bits, out),
    );
}

/// Unpacks the first codes of `packed`, which may go on.
#[inline(never)]
fn unpack(level: Level, packed: &[u8], eights: &Eights, bits: u32, codes: &mut [u32]) {
    level.part(
        #[inline(always)]
        || {
            let (done, n) = (eights.unpack(level, packed, codes), codes.len());
            let rest = packed_len(done, bits)..packed_len(n, bits);
            unpack_tile(level, &packed[rest], bits, &mut codes[done..]);
        },
    );
}

/// Rounds `x` to codes, packed into `out`, which has [`packed_len`] bytes.
pub fn quantize(x: &View, spec: Spec, scaling: Scaling, out: &mut [u8]) -> Result<()> {
    struct Tiles<'a>(&'a Plan<'a>, Shared<u8>, u32, Level);
    impl Work for Tiles<'_> {
        type Out = bool;
        fn run<G: Codes, R: Round>(self, grid: G) -> bool {
            let Tiles(plan, out, bits, level) = self;
            let stream = out.len() >= simd::STREAM_FROM;
            let any_bad = AtomicBool::new(false);
            parallel::for_each(plan.cut.chunks(), |chunk| {
                level.run(
                    #[inline(always)]
                    || {
                        let Buffers { input, words, runs, .. } = &mut Buffers::new();
                        let (mut codes, mut packed) = ([0_u32; TILE], [0_u8; 2 * TILE]);
                        let mut bad = false;
                        for place in plan.cut.tiles(chunk) {
                            let range = place.range.clone();
                            let x = plan.read(range.clone(), false, input);
                            plan.draw::<R>(range.clone(), words);
                            let codes = &mut codes[..range.len()];
                            let mut tile =
                                Encode::<_, R> { grid, x, words, codes, bad: false, level, round: PhantomData };
                            plan.scaler.drive(place, x, runs, &mut tile);
                            bad |= tile.bad;
                            // SAFETY: tiles start on whole bytes and are disjoint, so their bytes are.
                            let place = unsafe { out.part(packed_len(range.start, bits)..packed_len(range.end, bits)) };
                            if stream {
                                let packed = &mut packed[..place.len()];
                                pack(level, codes, bits, packed);
                                simd::stream_copy(level, packed, place);
                            } else {
                                pack(level, codes, bits, place);
                            }
                        }
                        if bad {
                            any_bad.store(true, Ordering::Relaxed);
                        }
                        simd::stream_done();
                    },
                );
            });
            any_bad.into_inner()
        }
    }
    spec.rounding.check(spec.format)?;
    spec.format.check_coded()?;
    let bits = spec.format.bits;
    check_room("out", out.len(), packed_len(x.len(), bits))?;
    check_scaling(x.shape(), spec, &scaling)?;
    let scaling = scaling.known();
    let given = matches!(scaling, Scaling::Given(_));
    let mut bad = false;
    slab::by_slabs(x, spec, scaling, Some(bits), |slab, x, scaling| {
        let bytes = slab.map_or(0..out.len(), |Slab { words, .. }| {
            packed_len(words.first, bits)..packed_len(words.first + x.len(), bits)
        });
        let out = Shared::new(&mut out[bytes]);
        bad |= with_plan(x, spec, slab, scaling, bits, |plan| run(plan, Tiles(plan, out, bits, Level::current())));
    });
    if bad { Err(unrepresentable(x, given)) } else { Ok(()) }
}

/// Whether a slice or view has the length it must have.
fn check_room(argument: &'static str, have: usize, want: usize) -> Result<()> {
    if have == want {
        return Ok(());
    }
    Err(Error::argument(argument, format!("has room for {have}, but {want} are needed")))
}

/// Whether given scales reach as far as their strides will be followed.
fn check_scaling(shape: &[usize], spec: Spec, scaling: &Scaling) -> Result<()> {
    let Scaling::Given(Given { scale, offset, strides }) = scaling else { return Ok(()) };
    let blocked = spec.grouping.blocked_shape(shape);
    check_room("scale", strides.len(), blocked.len())?;
    let last: usize = blocked.iter().zip(*strides).map(|(length, stride)| length.saturating_sub(1) * stride).sum();
    let short = !blocked.contains(&0) && scale.len().min(offset.map_or(usize::MAX, <[f32]>::len)) <= last;
    if short {
        Err(Error::argument("scale", format!("has {} numbers, but {} are needed", scale.len(), last + 1)))
    } else {
        Ok(())
    }
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
    Error::argument("x", "a group spans more than float32 holds: scale it down, or give scale and offset")
}

/// The numbers that packed codes stand for. `shape` is that of the array; `out` has it too.
pub fn dequantize(packed: &[u8], spec: Spec, shape: &[usize], given: Given, out: &mut ViewMut) -> Result<()> {
    struct Tiles<'a> {
        packed: &'a [u8],
        bits: u32,
        plan: &'a Plan<'a>,
        sink: Sink<'a>,
        level: Level,
    }
    impl Tiles<'_> {
        fn run<D: Decoder, R: Round>(&self, decoder: D) {
            let Tiles { packed, bits, plan, sink, level } = self;
            let eights = Eights::new(*bits);
            parallel::for_each(plan.cut.chunks(), |chunk| {
                level.run(
                    #[inline(always)]
                    || {
                        let Buffers { output, words, runs, .. } = &mut Buffers::new();
                        let mut codes = [0_u32; TILE];
                        for place in plan.cut.tiles(chunk) {
                            let range = place.range.clone();
                            let codes = &mut codes[..range.len()];
                            let packed = &packed[packed_len(range.start, *bits)..];
                            unpack(*level, packed, &eights, *bits, codes);
                            plan.draw::<R>(range.clone(), words);
                            // SAFETY: tiles are disjoint and in bounds.
                            unsafe {
                                sink.put(
                                    range,
                                    output,
                                    #[inline(always)]
                                    |y| {
                                        let mut tile = Decode::<_, R> {
                                            decoder,
                                            codes,
                                            words,
                                            y,
                                            level: *level,
                                            round: PhantomData,
                                        };
                                        plan.scaler.drive(place, &[], runs, &mut tile);
                                    },
                                );
                            }
                        }
                        simd::stream_done();
                    },
                );
            });
        }
    }
    impl Visit for Tiles<'_> {
        type Out = ();
        fn visit<G: Codes>(self, grid: G) {
            self.run::<G, Nearest>(grid);
        }
    }
    spec.format.check_coded()?;
    spec.rounding.check(spec.format)?;
    let (n, bits) = (shape.iter().product(), spec.format.bits);
    check_packed("packed", packed, n, bits)?;
    check_room("out", out.len(), n)?;
    check_scaling(shape, spec, &Scaling::Given(given))?;
    let plan = Plan::of_given(None, spec, shape, given);
    let level = Level::current();
    let tiles = Tiles { packed, bits, plan: &plan, sink: Sink::new(out, level), level };
    match (plan.rounding, &plan.grid) {
        (Rounding::Dither(_), AnyGrid::Int(grid)) => tiles.run::<_, Dither>(*grid),
        (_, AnyGrid::Int(grid)) => tiles.run::<_, Nearest>(*grid),
        // Codes of few bits are looked up in registers, whatever else their format does.
        (_, grid) if bits <= 4 => tiles.run::<_, Nearest>(Nibbles::new(&grid.decode_table(bits))),
        (_, grid) => grid.visit(tiles),
    }
    Ok(())
}
