//! What a convolution's kernels meet: gathered from decoded codes into panels, and nowhere else.
//!
//! For a block of the result and a run of the inner dimension, the codes of those channels and rows that it needs are
//! decoded once, and copied as often as kernels overlap.

use std::ops::Range;

use super::operand::Lane;

/// Along one axis, tap t of the kernel at place p meets number u / spread, where u = p stride + t dilation + offset is a
/// multiple of the spread and the number is one of `size`; else zero. Stride or spread is 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub size: usize,
    pub taps: usize,
    pub places: usize,
    pub stride: isize,
    pub dilation: isize,
    pub offset: isize,
    pub spread: isize,
}

impl Axis {
    /// Every place meets its own number.
    pub(super) fn alone(size: usize) -> Self {
        Axis { size, taps: 1, places: size, stride: 1, dilation: 1, offset: 0, spread: 1 }
    }

    /// The numbers that some places' kernels meet.
    fn met(&self, first: usize, last: usize) -> Range<usize> {
        let reach = (self.taps as isize - 1) * self.dilation;
        let low = first as isize * self.stride + self.offset + reach.min(0);
        let high = last as isize * self.stride + self.offset + reach.max(0);
        let start = (low + self.spread - 1).div_euclid(self.spread).max(0) as usize;
        let end = (high.div_euclid(self.spread) + 1).max(0) as usize;
        start.min(self.size)..end.min(self.size).max(start.min(self.size))
    }

    /// The number that a tap meets.
    fn number(&self, place: usize, tap: usize) -> Option<usize> {
        let at = place as isize * self.stride + tap as isize * self.dilation + self.offset;
        // Divisions take longer than copying a row.
        let (number, rest) =
            if self.spread == 1 { (at, 0) } else { (at.div_euclid(self.spread), at.rem_euclid(self.spread)) };
        (rest == 0 && (0..self.size as isize).contains(&number)).then_some(number as usize)
    }

    /// The places where a tap meets numbers: the first, what is behind the last, and from one to the next.
    fn places_of(&self, tap: usize) -> (usize, usize, usize) {
        let base = tap as isize * self.dilation + self.offset;
        let ceil = |n: isize| (n + self.stride - 1).div_euclid(self.stride);
        let first = if base >= 0 { (-base).rem_euclid(self.spread) } else { ceil(-base) };
        let end = ceil((self.size as isize - 1) * self.spread + 1 - base).clamp(0, self.places as isize);
        (first as usize, end as usize, self.spread as usize)
    }
}

/// What the kernels of one group of channels meet. The numbers of a kernel ("taps") are in the order channel, row, column;
/// places in the order sample, row, column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patches {
    pub groups: usize,
    /// Of a group.
    pub channels: usize,
    /// Rows and columns.
    pub axes: [Axis; 2],
}

impl Patches {
    /// Samples, channels and numbers of each.
    pub(super) fn maps(&self, samples: usize) -> (usize, usize, usize) {
        let [rows, columns] = self.axes;
        (samples, self.groups * self.channels, rows.size.saturating_mul(columns.size))
    }

    /// Numbers of a kernel.
    pub(super) fn taps(&self) -> usize {
        self.channels * self.axes[0].taps * self.axes[1].taps
    }

    /// Places of a sample.
    pub(super) fn places(&self) -> usize {
        self.axes[0].places * self.axes[1].places
    }
}

/// Where a sample's decoded part starts, and which rows and columns of every channel it is.
struct Part {
    start: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Decoded parts of maps.
#[derive(Default)]
pub(super) struct Maps<T> {
    numbers: Vec<T>,
    samples: Vec<Part>,
    first_sample: usize,
    first_channel: usize,
}

impl<T: Lane> Maps<T> {
    /// Decodes what some taps meet at some places.
    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        patches: &Patches,
        group: usize,
        taps: &Range<usize>,
        places: &Range<usize>,
        mut decode: impl FnMut(usize, &mut [T]),
    ) {
        let [down, across] = patches.axes;
        let (kernel, map) = (down.taps * across.taps, patches.places());
        let channels = taps.start / kernel..(taps.end - 1) / kernel + 1;
        (self.first_channel, self.first_sample) = (channels.start, places.start / map);
        self.samples.clear();
        let mut used = 0;
        for sample in self.first_sample..=(places.end - 1) / map {
            let first = places.start.max(sample * map) - sample * map;
            let last = places.end.min((sample + 1) * map) - sample * map - 1;
            let rows = down.met(first / across.places, last / across.places);
            let one = first / across.places == last / across.places;
            let columns = if one { across.met(first % across.places, last % across.places) } else { 0..across.size };
            let n = rows.len() * columns.len();
            let end = used + channels.len() * n;
            self.numbers.resize(end.max(self.numbers.len()), T::default());
            // Whole rows are decoded together.
            let run = if columns.len() == across.size { n } else { columns.len() };
            if n > 0 {
                for (channel, numbers) in channels.clone().zip(self.numbers[used..end].chunks_exact_mut(n)) {
                    let map = (sample * patches.groups + group) * patches.channels + channel;
                    let first = (map * down.size + rows.start) * across.size + columns.start;
                    for (row, numbers) in numbers.chunks_exact_mut(run).enumerate() {
                        decode(first + row * across.size, numbers);
                    }
                }
            }
            self.samples.push(Part { start: used, rows, columns });
            used = end;
        }
    }

    /// Gives what one of these taps meets at some of these places.
    #[inline(always)]
    pub(super) fn copy(&self, patches: &Patches, tap: usize, places: Range<usize>, out: &mut [T]) {
        let [down, across] = &patches.axes;
        let (kernel, map) = (down.taps * across.taps, patches.places());
        let (channel, tap_row, tap_column) =
            (tap / kernel - self.first_channel, tap % kernel / across.taps, tap % across.taps);
        let (first, end, step) = across.places_of(tap_column);
        let stride = across.stride as usize;
        out.fill(T::default());
        let (mut sample, mut row) = (places.start / map, places.start % map / across.places);
        let (mut column, mut rest) = (places.start % across.places, out);
        while !rest.is_empty() {
            let (line, more) = rest.split_at_mut(rest.len().min(across.places - column));
            let part = &self.samples[sample - self.first_sample];
            // The first place of the line that meets a number.
            let skip = if step == 1 { 0 } else { (first + step - column % step) % step };
            let place = first.max(column + skip);
            let to = end.min(column + line.len());
            if let Some(number) = down.number(row, tap_row)
                && place < to
                && let Some(from) = across.number(place, tap_column)
            {
                let start = part.start + (channel * part.rows.len() + number - part.rows.start) * part.columns.len();
                let numbers = &self.numbers[start + from - part.columns.start..start + part.columns.len()];
                let line = &mut line[place - column..to - column];
                if step == 1 && stride == 1 {
                    line.copy_from_slice(&numbers[..line.len()]);
                } else {
                    line.iter_mut().step_by(step).zip(numbers.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
                }
            }
            (rest, column, row) = (more, 0, row + 1);
            if row == down.places {
                (row, sample) = (0, sample + 1);
            }
        }
    }
}
