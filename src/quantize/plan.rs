//! How one call goes about its work: cuts and tiles, where a tile's scales come from, where its results go.

use std::ops::Range;

use super::kernel::{Factor, Plain, Round, Tile};
use super::layout::{FINE, Grouping, Map};
use super::runs::{Runs, each};
use super::slab::{Slab, Words};
use super::{Given, Rounding, Scaling, Spec, observe};
use crate::cpu::Level;
use crate::formats::{AnyGrid, Format};
use crate::parallel::Shared;
use crate::scale::{Finisher, Second};
use crate::simd;
use crate::view::{View, ViewMut};

/// Most elements of a tile: its float32 input, output and random words together stay in a first-level cache.
pub(super) const TILE: usize = 1024;

/// Elements of a tile where there is a choice. Small tiles let reads, arithmetic and streamed stores overlap: measured
/// 1.3 times as fast as tiles of 1024 for outputs beyond the caches.
const STEP: usize = 256;

/// Elements of a cache line.
const LINE: usize = 16;

/// How far ahead input is asked for, in elements.
const AHEAD: usize = 2048;

/// Elements per parallel chunk.
const CHUNK: usize = 1 << 14;

/// What one chunk works in, on cache lines of its own.
#[repr(align(64))]
pub(super) struct Buffers {
    pub input: [f32; TILE],
    pub output: [f32; TILE],
    pub words: [u32; TILE],
    pub runs: Runs,
}

impl Buffers {
    #[inline(always)]
    pub fn new() -> Self {
        Buffers { input: [0.0; TILE], output: [0.0; TILE], words: [0; TILE], runs: Runs::new() }
    }
}

/// Scales ready to be looked up, or a rule to be applied group by group.
#[derive(Clone, Copy)]
enum Scales<'a> {
    Known { scale: &'a [f32], second: &'a [f32], kind: Second },
    OnTheSpot { finisher: Finisher<'a>, scale: Shared<f32>, offset: Shared<f32> },
}

/// How an array is cut: tiles of `tile` elements from the start of each row of `row` elements, each of whole groups.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    row: usize,
    tile: usize,
    group: usize,
    tiles_per_row: usize,
    tiles: usize,
    tiles_per_chunk: usize,
}

/// A tile: its elements, and the number of its first group.
pub(super) struct Place {
    pub range: Range<usize>,
    pub group: usize,
}

impl Cut {
    fn plain(n: usize) -> Self {
        Cut::rows(n, n, STEP, STEP)
    }

    fn rows(n: usize, row: usize, tile: usize, group: usize) -> Self {
        let tiles_per_row = row.div_ceil(tile).max(1);
        let tiles = if n == 0 { 0 } else { n / row * tiles_per_row };
        let tiles_per_chunk = (CHUNK / tile.min(row.max(1))).max(1);
        Cut { row, tile, group, tiles_per_row, tiles, tiles_per_chunk }
    }

    pub fn chunks(self) -> usize {
        self.tiles.div_ceil(self.tiles_per_chunk)
    }

    /// The tiles of a chunk. Division is slow beside a tile, so places are counted up.
    #[inline(always)]
    pub fn tiles(self, chunk: usize) -> impl Iterator<Item = Place> {
        let first = chunk * self.tiles_per_chunk;
        let count = self.tiles_per_chunk.min(self.tiles - first);
        let groups_per_tile = self.tile / self.group;
        let (mut row_start, mut at) = (first / self.tiles_per_row * self.row, first % self.tiles_per_row * self.tile);
        let mut group = first / self.tiles_per_row * self.row.div_ceil(self.group) + at / self.group;
        (0..count).map(move |_| {
            let end = self.row.min(at + self.tile);
            let place = Place { range: row_start + at..row_start + end, group };
            if end == self.row {
                group += (end - at).div_ceil(self.group);
                (row_start, at) = (row_start + self.row, 0);
            } else {
                group += groups_per_tile;
                at = end;
            }
            place
        })
    }
}

/// If every group is so short and compact that it can be observed, scaled and rounded within a tile: the cut that keeps it
/// there. `bits` are those of packed codes, every tile of which must start on a whole byte.
pub(super) fn groups_in_tiles(shape: &[usize], grouping: Grouping, bits: u32) -> Option<Cut> {
    let n: usize = shape.iter().product();
    let after = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let (row, group) = match grouping {
        Grouping::Array => (n, n),
        Grouping::Axis(axis) if shape[..axis].iter().all(|length| *length == 1) => (n, after(axis)),
        Grouping::Blocks { axis, size } if size == 1 || shape[axis] == 1 => (n, 1),
        Grouping::Blocks { axis, size } if after(axis) == 1 => match shape[axis] {
            length if length <= size => (n, length),
            length if length % size == 0 => (n, size),
            length => (length, size),
        },
        _ => return None,
    };
    if n == 0 || group > TILE {
        return None;
    }
    // So many groups end on a whole byte.
    let whole = if group == row { 1 } else { 8 >> (group * bits as usize).trailing_zeros().min(3) };
    let tile = (STEP / group / whole).max(1) * whole * group;
    let aligned = row == n || (row * bits as usize).is_multiple_of(8);
    (aligned && tile <= TILE).then(|| Cut::rows(n, row, tile, group))
}

/// Finds the scales of a tile and runs its kernel on each run of one scale.
pub(super) struct Scaler<'a> {
    map: Map,
    /// Elements per group, where groups are observed on the spot.
    group: usize,
    scales: Scales<'a>,
    /// The scale of the whole tensor, 1 where there is none.
    tensor: f32,
    /// Whether there are numbers to be scaled, and not only codes.
    divides: bool,
    level: Level,
}

impl Scaler<'_> {
    /// Runs the kernel of a tile: `x` are its numbers, needed where scales are observed.
    #[inline(always)]
    pub fn drive(&self, place: Place, x: &[f32], runs: &mut Runs, tile: &mut impl Tile) {
        let (n, fine) = (place.range.len(), self.is_fine());
        let kind = self.find(place, x, runs);
        if fine {
            return each(n, kind, runs, tile);
        }
        for j in 0..runs.count {
            let end = if j + 1 < runs.count { runs.start[j + 1] as usize } else { n };
            let (range, scale) = (runs.start[j] as usize..end, runs.scale[j]);
            match kind {
                Second::Nothing => tile.run(range, Plain(scale)),
                _ => tile.run(range, Factor::with(scale, kind, runs.second[j])),
            }
        }
    }

    /// Whether a scale for each element is cheaper than runs of one scale.
    #[inline(always)]
    fn is_fine(&self) -> bool {
        match self.scales {
            Scales::Known { .. } => self.map.is_fine(),
            Scales::OnTheSpot { .. } => self.group < FINE,
        }
    }

    /// Finds the runs of a tile and their scales; where [`Scaler::is_fine`], those of its elements.
    #[inline(never)]
    fn find(&self, place: Place, x: &[f32], runs: &mut Runs) -> Second {
        self.level.part(
            #[inline(always)]
            || {
                let n = place.range.len();
                let kind = self.found(place, x, runs);
                runs.complete(kind, self.tensor, self.divides);
                if matches!(self.scales, Scales::OnTheSpot { .. }) && (2..FINE).contains(&self.group) {
                    runs.widen(self.group, n, kind);
                }
                kind
            },
        )
    }

    #[inline(always)]
    fn found(&self, place: Place, x: &[f32], runs: &mut Runs) -> Second {
        let Place { range, group: first } = place;
        match self.scales {
            Scales::Known { scale, second, kind } if self.map.is_fine() => {
                runs.count = range.len();
                self.map.spread(range.clone(), scale, &mut runs.scale);
                if kind != Second::Nothing {
                    self.map.spread(range, second, &mut runs.second);
                }
                kind
            }
            Scales::Known { scale, second, kind } => {
                let mut count = 0;
                self.map.runs(
                    range,
                    #[inline(always)]
                    |position, index, _, _| {
                        runs.start[count] = position as u32;
                        runs.scale[count] = scale[index];
                        runs.second[count] = if kind == Second::Nothing { 0.0 } else { second[index] };
                        count += 1;
                    },
                );
                runs.count = count;
                kind
            }
            Scales::OnTheSpot { finisher, scale, offset } => {
                runs.count = x.len().div_ceil(self.group);
                if let Some(scaling) = &finisher.format.scaling {
                    runs.observe_amax(x, self.group);
                    finisher.of_few_bits(&mut runs.scale[..runs.count], &mut runs.second[..runs.count], scaling);
                } else {
                    // Observing all groups first lets the divisions of one overlap the reading of the next.
                    for (j, run) in x.chunks(self.group).enumerate() {
                        runs.start[j] = (j * self.group) as u32;
                        (runs.scale[j], runs.second[j]) = finisher.finish(&finisher.rule.statistic.observe(run));
                    }
                }
                if finisher.rule.looks_again() {
                    for (j, run) in x.chunks(self.group).enumerate() {
                        let found = (runs.scale[j], runs.second[j]);
                        (runs.scale[j], runs.second[j]) =
                            finisher.finish_again(&finisher.look_again(run, found), found);
                    }
                }
                for j in 0..runs.count {
                    // SAFETY: a group lies in one tile, so nobody else writes its scale.
                    unsafe {
                        scale.put(first + j, runs.scale[j]);
                        offset.put(first + j, runs.second[j]);
                    }
                }
                finisher.rule.second()
            }
        }
    }
}

/// Rounding of one array or slab: everything but where the results go.
pub(super) struct Plan<'a> {
    x: Option<&'a View<'a>>,
    words: Words,
    pub grid: AnyGrid,
    pub rounding: Rounding,
    pub scaler: Scaler<'a>,
    pub cut: Cut,
}

/// The grid that codes index: that of the format, or for affine scales the same counted from its lowest value.
fn grid_of(format: &Format, affine: bool) -> AnyGrid {
    match format.uniform() {
        Some(grid) if affine => grid.counted_from_lowest().into(),
        _ => format.grid.clone(),
    }
}

impl<'a> Plan<'a> {
    /// Elements `range`, copied if the results go to the same memory.
    #[inline(always)]
    pub fn read<'b>(&'b self, range: Range<usize>, copied: bool, buffer: &'b mut [f32; TILE]) -> &'b [f32] {
        let Some(x) = self.x else { return &[] };
        let n = range.len();
        let numbers = match x.part(range.clone()) {
            Some(numbers) if !copied => numbers,
            _ => self.gather(x, range, buffer),
        };
        if !copied {
            simd::prefetch(numbers.as_ptr().wrapping_add(AHEAD), n);
        }
        numbers
    }

    #[inline(never)]
    fn gather<'b>(&self, x: &'b View, range: Range<usize>, buffer: &'b mut [f32; TILE]) -> &'b [f32] {
        self.scaler.level.part(
            #[inline(always)]
            || x.copy(range, buffer),
        )
    }

    /// Reads the random words of elements `range`, if the rounding uses any.
    #[inline(always)]
    pub fn draw<R: Round>(&self, range: Range<usize>, words: &mut [u32; TILE]) {
        if R::RANDOM {
            self.draw_words(range, words);
        }
    }

    #[inline(never)]
    fn draw_words(&self, range: Range<usize>, words: &mut [u32; TILE]) {
        let (Some(stream), Words { first, row, step }) = (self.rounding.stream(), self.words) else { return };
        self.scaler.level.part(
            #[inline(always)]
            || {
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min((at / row + 1).saturating_mul(row));
                    let words = &mut words[at - range.start..end - range.start];
                    stream.fill((first + at / row * step + at % row) as u64, words);
                    at = end;
                }
            },
        );
    }

    /// The plan for scales from the caller.
    pub fn of_given(x: Option<&'a View<'a>>, spec: Spec, shape: &[usize], given: Given<'a>) -> Self {
        let Given { scale, offset, strides } = given;
        Plan {
            x,
            words: Words::WHOLE,
            grid: grid_of(spec.format, offset.is_some()),
            rounding: spec.rounding,
            scaler: Scaler {
                map: Map::new(shape, spec.grouping, strides),
                group: STEP,
                scales: match offset {
                    None => Scales::Known { scale, second: &[], kind: Second::Nothing },
                    Some(second) => Scales::Known { scale, second, kind: Second::Offset },
                },
                tensor: spec.tensor,
                divides: x.is_some(),
                level: Level::current(),
            },
            cut: Cut::plain(shape.iter().product()),
        }
    }
}

/// Runs `work` with the plan of rounding `x`: scales are observed first, or on the spot where that is possible.
pub(super) fn with_plan<R>(
    x: &View,
    spec: Spec,
    slab: Option<&Slab>,
    scaling: Scaling,
    bits: u32,
    work: impl FnOnce(&Plan) -> R,
) -> R {
    let Spec { format, grouping, rounding, tensor } = spec;
    let (rule, scale, offset) = match scaling {
        Scaling::Given(given) => return work(&Plan::of_given(Some(x), spec, x.shape(), given)),
        Scaling::Rule(rule, scale, offset) => (rule, scale, offset),
    };
    let finisher = Finisher::new(rule, format, tensor);
    let map = Map::of_rule(x.shape(), grouping);
    let plan = |scales, cut: Cut| Plan {
        x: Some(x),
        words: slab.map_or(Words::WHOLE, |slab| slab.words),
        grid: grid_of(format, rule.affine()),
        rounding,
        scaler: Scaler { map, group: cut.group, scales, tensor, divides: true, level: Level::current() },
        cut,
    };
    if let Some(cut) = groups_in_tiles(x.shape(), grouping, bits) {
        let (scale, offset) = (Shared::new(scale), Shared::new(offset));
        return work(&plan(Scales::OnTheSpot { finisher, scale, offset }, cut));
    }
    let groups: usize = grouping.scale_shape(x.shape()).iter().product();
    let (mut own_scale, mut own_second) = (Vec::new(), Vec::new());
    let scale = room(scale, &mut own_scale, groups);
    let two = rule.second() != Second::Nothing || rule.looks_again();
    let second = room(offset, &mut own_second, if two { groups } else { 0 });
    observe::observe(x, grouping, finisher, scale, second);
    work(&plan(Scales::Known { scale, second, kind: rule.second() }, Cut::plain(x.len())))
}

/// The caller's slice if it has the length wanted, else one of our own.
fn room<'a>(slice: &'a mut [f32], own: &'a mut Vec<f32>, length: usize) -> &'a mut [f32] {
    if slice.len() == length {
        return slice;
    }
    own.resize(length, 0.0);
    own
}

/// Where float results go: straight into place, or through a tile's buffer.
pub(crate) struct Sink<'a> {
    out: &'a ViewMut<'a>,
    direct: bool,
    stream: bool,
    level: Level,
}

impl<'a> Sink<'a> {
    pub fn new(out: &'a ViewMut<'a>, level: Level) -> Self {
        let stream = out.is_plain() && out.bytes() >= simd::STREAM_FROM;
        Sink { out, direct: out.is_plain() && !stream, stream, level }
    }

    /// Where the first element goes.
    pub fn start(&self) -> *const u8 {
        self.out.start()
    }

    /// Runs `fill` on the memory of elements `range`, or on `buffer`, whose content then goes there.
    ///
    /// # Safety
    /// The range is in bounds and nobody else touches it meanwhile.
    #[inline(always)]
    pub unsafe fn put(&self, range: Range<usize>, buffer: &mut [f32], fill: impl FnOnce(&mut [f32])) {
        // A line that is streamed in parts costs more than one that is read first.
        let whole_lines = (range.start | range.len()).is_multiple_of(LINE);
        if self.direct || self.stream && !whole_lines {
            // SAFETY: plain, in bounds and exclusive.
            return fill(unsafe { self.out.part(range) });
        }
        let buffer = &mut buffer[..range.len()];
        fill(buffer);
        if self.stream {
            // SAFETY: plain, in bounds and exclusive.
            simd::stream_copy(
                self.level,
                bytemuck::cast_slice(buffer),
                bytemuck::cast_slice_mut(unsafe { self.out.part(range) }),
            );
        } else {
            // SAFETY: in bounds and exclusive.
            unsafe { self.scatter(range.start, buffer) };
        }
    }

    /// Writes elements from `start` on to where they belong.
    ///
    /// # Safety
    /// As for `put`.
    #[inline(never)]
    unsafe fn scatter(&self, start: usize, numbers: &[f32]) {
        self.level.part(
            #[inline(always)]
            || {
                // SAFETY: the caller's promise.
                unsafe { self.out.write(start, numbers) };
            },
        );
    }
}
