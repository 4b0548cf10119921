//! One real number in one bit, with shared randomness: the schemes of Ben Basat, Mitzenmacher and Vargaftik, "How to
//! send a real number using a single bit (and some shared randomness)" (ICALP 2021), and the closed forms that
//! `docs/onebit.md` derives.
//!
//! A number is mapped to `y` in `[0, 1]`. Sender and receiver read the same word for element `i`, which picks a
//! threshold and two values; the sender sends whether `y` reaches the threshold, the receiver reads one of the values.
//! Some schemes blur the threshold with a coin of the sender's own. The arithmetic is float32, in `kernels`.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use crate::simd::mask;
use crate::stream::{Key, Purpose, Stream};
use crate::view::View;

mod kernels;
mod schemes;
mod tables;

pub use schemes::{MAX_SHARED_BITS, SCHEMES};

use kernels::{Dither, FULL, Protocol};
use schemes::Kernel;

/// Elements handled at once: their words and margins stay in the first-level cache.
const TILE: usize = 1 << 10;

/// Elements per parallel chunk, a multiple of the tile.
const CHUNK: usize = 1 << 14;

/// A scheme with its number of shared bits, ready to run.
#[derive(Clone, Debug)]
pub struct Scheme {
    name: &'static str,
    kernel: Kernel,
}

/// The interval that is mapped to `[0, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    low: f32,
    high: f32,
    width: f32,
    reciprocal: f32,
}

impl Interval {
    /// The interval from `low` to `high`, both rounded to float32.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        Level::PORTABLE.run(|| Interval::rounded(low, high))
    }

    /// Any level would do: the run is for the clean float state.
    fn rounded(low: f64, high: f64) -> Result<Self> {
        let (low, high) = (low as f32, high as f32);
        if !(low.is_finite() && high.is_finite() && low < high) {
            let reason = format!("must be finite and less than high as float32, got low = {low} and high = {high}");
            return Err(Error::argument("low", reason));
        }
        let width = high - low;
        if !(f32::MIN_POSITIVE..=1.0 / f32::MIN_POSITIVE).contains(&width) {
            return Err(Error::argument(
                "high",
                format!("high - low is {width:e}, but must lie between 2^-126 and 2^126"),
            ));
        }
        Ok(Interval { low, high, width, reciprocal: 1.0 / width })
    }

    /// `x` on `[0, 1]`; the sum makes -0 a +0, whose sign bit the masks would read.
    #[inline(always)]
    fn unit(self, x: f32) -> f32 {
        ((x - self.low) * self.reciprocal).min(1.0) + 0.0
    }

    #[inline(always)]
    fn place(self, y: f32) -> f32 {
        y * self.width + self.low
    }
}

/// The words of one sender: those everybody can read, and the sender's own; streams that a scheme has no use for are
/// zeros.
#[derive(Clone, Copy)]
struct Noise {
    shared: Option<Stream>,
    coin: Option<Stream>,
}

#[inline(always)]
fn fill(stream: Option<Stream>, first: usize, words: &mut [u32]) {
    if let Some(stream) = stream {
        stream.fill(first as u64, words);
    }
}

/// Calls `$work` with the kernel's protocol; each protocol is compiled on its own.
macro_rules! with_protocol {
    ($kernel:expr, $protocol:ident => $work:expr) => {
        match $kernel {
            Kernel::Dither($protocol) => $work,
            Kernel::Table($protocol, _) => $work,
            Kernel::Curve($protocol) => $work,
            Kernel::Stairs($protocol) => $work,
        }
    };
}

impl Scheme {
    /// Whether sender and receiver must share a key.
    pub fn is_shared(&self) -> bool {
        match &self.kernel {
            Kernel::Dither(Dither { bits, .. }) => *bits > 0,
            Kernel::Table(table, _) => table.bits > 0,
            Kernel::Curve(_) | Kernel::Stairs(_) => true,
        }
    }

    /// Whether the sender throws a coin of its own.
    pub fn is_private(&self) -> bool {
        match &self.kernel {
            Kernel::Dither(Dither { bits, .. }) => *bits < FULL,
            Kernel::Table(table, _) => table.steps[0] > 0.0,
            Kernel::Curve(_) => false,
            Kernel::Stairs(_) => true,
        }
    }

    fn noise(&self, key: Option<Key>, sender: u64, coin: bool) -> Result<Noise> {
        let (shared, coin) = (self.is_shared(), self.is_private() && coin);
        let Some(key) = key else {
            return if shared || coin {
                let whose = if shared { "the same for sender and receiver" } else { "any that was not used before" };
                let reason = format!(
                    "{:?} draws random words and needs a key, {whose}; make one by lowbit.Key(seed)",
                    self.name
                );
                Err(Error::argument("key", reason))
            } else {
                Ok(Noise { shared: None, coin: None })
            };
        };
        let stream = |purpose| key.purpose(purpose).fold(sender).stream();
        Ok(Noise { shared: shared.then(|| stream(Purpose::Dither)), coin: coin.then(|| stream(Purpose::Coin)) })
    }

    /// Writes one bit per element of `x`, eight a byte, least significant first, the last byte padded with zeros.
    ///
    /// `bits` holds `x.len().div_ceil(8)` bytes; what it holds after an error means nothing.
    pub fn encode(
        &self,
        x: &View<'_>,
        interval: Interval,
        key: Option<Key>,
        sender: u64,
        bits: &mut [u8],
    ) -> Result<()> {
        let noise = self.noise(key, sender, true)?;
        let (n, level) = (x.len(), Level::current());
        check_bytes(n, bits.len())?;
        let first_bad = AtomicUsize::new(usize::MAX);
        let bits = Shared::new(bits);
        parallel::for_each(n.div_ceil(CHUNK), |chunk| {
            let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
            // SAFETY: chunks are disjoint and start at whole bytes, and `bits` is borrowed until `for_each` returns.
            let bits = unsafe { bits.part(range.start / 8..range.end.div_ceil(8)) };
            let valid = with_protocol!(&self.kernel, protocol => {
                encode_chunk(*protocol, level, noise, interval, x, range.clone(), bits)
            });
            if !valid && let Some(index) = level.run(|| first_outside(x, interval, range)) {
                first_bad.fetch_min(index, Ordering::Relaxed);
            }
        });
        match first_bad.into_inner() {
            usize::MAX => Ok(()),
            index => {
                let Interval { low, high, .. } = interval;
                let value = level.run(|| x.read(index..index + 1, &mut [0.0])[0]);
                let reason = format!(
                    "element {index} (C order) is {value}, outside [low, high] = [{low}, {high}]; clip x or widen the interval"
                );
                Err(Error::argument("x", reason))
            }
        }
    }

    /// Writes the estimate of every element, from the bits that [`Scheme::encode`] wrote with the same key and sender.
    pub fn decode(
        &self,
        bits: &[u8],
        interval: Interval,
        key: Option<Key>,
        sender: u64,
        out: &mut [f32],
    ) -> Result<()> {
        let noise = self.noise(key, sender, false)?;
        let (n, level) = (out.len(), Level::current());
        check_bytes(n, bits.len())?;
        if let Some(last) = bits.last().filter(|last| n % 8 > 0 && **last >> (n % 8) != 0) {
            return Err(Error::decode(format!(
                "the last byte of bits is {last:#04x}, but only its low {} bits are used; the rest must be zero",
                n % 8
            )));
        }
        let out = Shared::new(out);
        parallel::for_each(n.div_ceil(CHUNK), |chunk| {
            let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
            // SAFETY: chunks are disjoint, and `out` is borrowed until `for_each` returns.
            let out = unsafe { out.part(range.clone()) };
            let bits = &bits[range.start / 8..range.end.div_ceil(8)];
            with_protocol!(&self.kernel, protocol => {
                decode_chunk(*protocol, level, noise, interval, bits, range.start, out);
            });
        });
        Ok(())
    }

    /// The same for elements `start..start + out.len()` alone, from their `bits`; `start` is a multiple of 8.
    pub(crate) fn decode_part(
        &self,
        bits: &[u8],
        interval: Interval,
        (key, sender): (Option<Key>, u64),
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let (noise, level) = (self.noise(key, sender, false)?, Level::current());
        with_protocol!(&self.kernel, protocol => decode_chunk(*protocol, level, noise, interval, bits, start, out));
        Ok(())
    }
}

/// Checks that so many bytes hold the bits of `n` numbers.
pub(crate) fn check_bytes(n: usize, bytes: usize) -> Result<()> {
    if bytes == n.div_ceil(8) {
        return Ok(());
    }
    Err(Error::decode(format!("bits holds {bytes} bytes, but {n} numbers take {}", n.div_ceil(8))))
}

/// The first element outside the interval; NaN is outside.
#[cold]
fn first_outside(x: &View<'_>, interval: Interval, range: Range<usize>) -> Option<usize> {
    let mut value = [0.0];
    range.into_iter().find(|&i| {
        let x = x.read(i..i + 1, &mut value)[0];
        !(x >= interval.low && x <= interval.high)
    })
}

/// Encodes one chunk; says whether all of its elements lie in the interval.
fn encode_chunk<P: Protocol>(
    protocol: P,
    level: Level,
    noise: Noise,
    interval: Interval,
    x: &View<'_>,
    range: Range<usize>,
    bits: &mut [u8],
) -> bool {
    level.run(
        #[inline(always)]
        || {
            // Copies on the stack of the loop's own function: behind a reference their fields would be loaded anew each time.
            let (protocol, interval) = (protocol, interval);
            let (mut gathered, mut margins) = ([0.0_f32; TILE], [0.0_f32; TILE]);
            let (mut shared, mut coin) = ([0_u32; TILE], [0_u32; TILE]);
            let mut inside = 0_u32;
            for (start, bits) in range.clone().step_by(TILE).zip(bits.chunks_mut(TILE / 8)) {
                let n = TILE.min(range.end - start);
                let x = x.read(start..start + n, &mut gathered);
                fill(noise.shared, start, &mut shared[..n]);
                fill(noise.coin, start, &mut coin[..n]);
                for (((margin, &x), &shared), &coin) in margins.iter_mut().zip(x).zip(&shared).zip(&coin) {
                    inside += u32::from(x >= interval.low) & u32::from(x <= interval.high);
                    *margin = protocol.margin(interval.unit(x), shared, coin);
                }
                mask::nonnegative(level, &margins[..n], bits);
            }
            inside as usize == range.len()
        },
    )
}

fn decode_chunk<P: Protocol>(
    protocol: P,
    level: Level,
    noise: Noise,
    interval: Interval,
    bits: &[u8],
    start: usize,
    out: &mut [f32],
) {
    level.run(
        #[inline(always)]
        || {
            let (protocol, interval) = (protocol, interval);
            let (mut shared, mut lanes) = ([0_u32; TILE], [0_u32; TILE]);
            for (tile, (out, bits)) in out.chunks_mut(TILE).zip(bits.chunks(TILE / 8)).enumerate() {
                fill(noise.shared, start + tile * TILE, &mut shared[..out.len()]);
                mask::spread(bits, &mut lanes);
                for ((y, &word), &bit) in out.iter_mut().zip(&shared).zip(&lanes) {
                    *y = interval.place(protocol.estimate(word, bit));
                }
            }
        },
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;
