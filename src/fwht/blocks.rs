//! How a vector of any length is cut into power-of-two blocks that are rotated one by one.

use std::ops::Range;

use super::BLOCK_MAX;

/// The shortest block that a codec rotates: in smaller ones even two rounds leave a bias (of up to all of the error at
/// length 2, .7 % at 8), here below 4e-6 of the squared norm.
pub const BLOCK_MIN: usize = 128;

/// A length cut into blocks of [`BLOCK_MAX`], then one for each power of two of what remains, descending. The length is
/// rounded up to a multiple of the shortest block allowed, so the last block may hold padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    total: usize,
}

impl Blocks {
    /// The blocks for `n` numbers, none shorter than `least`, a power of two up to [`BLOCK_MAX`].
    pub fn new(n: usize, least: usize) -> Self {
        debug_assert!(least.is_power_of_two() && least <= BLOCK_MAX, "blocks of {least}");
        Blocks { total: n.next_multiple_of(least) }
    }

    /// The sum of all blocks' lengths.
    pub const fn total(self) -> usize {
        self.total
    }

    /// The number of blocks of [`BLOCK_MAX`].
    pub const fn full(self) -> usize {
        self.total / BLOCK_MAX
    }

    /// The number of blocks.
    pub const fn len(self) -> usize {
        self.full() + (self.total % BLOCK_MAX).count_ones() as usize
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.total == 0
    }

    /// The places of block `index`.
    pub fn range(self, index: usize) -> Range<usize> {
        if index < self.full() {
            return index * BLOCK_MAX..(index + 1) * BLOCK_MAX;
        }
        let (mut start, mut rest) = (self.full() * BLOCK_MAX, self.total % BLOCK_MAX);
        for _ in self.full()..index {
            let length = 1 << rest.ilog2();
            (start, rest) = (start + length, rest - length);
        }
        start..start + (1 << rest.ilog2())
    }

    /// The places of all blocks, in order.
    pub fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.len()).map(move |index| self.range(index))
    }

    /// The lengths of the blocks that are shorter than [`BLOCK_MAX`], descending.
    pub fn short(self) -> impl Iterator<Item = usize> {
        let rest = self.total % BLOCK_MAX;
        (0..BLOCK_MAX.ilog2()).rev().map(|k| 1 << k).filter(move |length| rest & length != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_powers_of_two_that_cover_the_vector_in_order() {
        for least in [1, 128, 4096, BLOCK_MAX] {
            for n in [0, 1, 127, 128, 129, 4095, 4097, BLOCK_MAX - 1, BLOCK_MAX, BLOCK_MAX + 1, 5 * BLOCK_MAX + 777] {
                let blocks = Blocks::new(n, least);
                let ranges: Vec<_> = blocks.ranges().collect();
                let mut end = 0;
                for range in &ranges {
                    assert_eq!(range.start, end, "no gap, {n} of {least}");
                    assert!(range.len().is_power_of_two() && range.len() >= least, "{range:?}, {n} of {least}");
                    end = range.end;
                }
                assert_eq!(end, blocks.total(), "all of it, {n} of {least}");
                assert!(end >= n && end - n < least, "padding below {least}, {n}");
                assert!(ranges.is_sorted_by_key(|range| usize::MAX - range.len()), "descending, {n} of {least}");
                let short: Vec<_> = ranges[blocks.full()..].iter().map(Range::len).collect();
                assert_eq!(short, blocks.short().collect::<Vec<_>>(), "the short ones, {n} of {least}");
            }
        }
    }
}
