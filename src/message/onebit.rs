//! `lowbit.onebit`'s schemes as a codec: the very bits that its `encode` gives.

use super::coder::{CHUNK, Coder, Noise, Opened, Pieces};
use super::cursor::Cursor;
use super::dither::{out_of_range, outside};
use super::rotated::NAN;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::onebit::{Interval, SCHEMES, Scheme};
use crate::view::View;

/// Stands for unlimited shared bits where they are one byte.
const UNLIMITED: u8 = 255;

/// One bit a number on a given interval.
#[derive(Clone, Debug)]
pub(super) struct OneBit {
    scheme: Scheme,
    interval: Interval,
    ends: (f32, f32),
}

impl OneBit {
    pub fn new(scheme: u8, shared_bits: u8, low: f32, high: f32) -> Result<Self> {
        let name = SCHEMES.get(usize::from(scheme));
        let name = name.ok_or_else(|| Error::argument("scheme", format!("there is no scheme number {scheme}")))?;
        let shared_bits = (shared_bits != UNLIMITED).then_some(u32::from(shared_bits));
        let interval = Interval::new(f64::from(low), f64::from(high))?;
        Ok(OneBit { scheme: Scheme::new(name, shared_bits)?, interval, ends: (low, high) })
    }
}

impl Coder for OneBit {
    fn encode(&self, x: &View, noise: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let (low, high) = self.ends;
        let place = out.len();
        out.push(1);
        let bits = super::coder::room(out, x.len().div_ceil(8));
        let Err(error) = self.scheme.encode(x, self.interval, noise.key, noise.sender, bits) else {
            return Ok(true);
        };
        match outside(x, low, high) {
            (_, Some(first)) => Err(out_of_range(first, low, high)),
            (true, None) => Err(error),
            (false, None) => {
                out[place..].fill(0);
                Ok(false)
            }
        }
    }

    fn open<'a>(&'a self, shape: &[usize], noise: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n: usize = shape.iter().product();
        let finite = match payload.byte()? {
            0 => false,
            1 => true,
            other => return Err(Error::decode(format!("{other} tells neither finite nor not"))),
        };
        let bits = payload.packed(n, 1)?;
        if self.needs_key() {
            noise.key()?;
        }
        Ok(Box::new(Sent { codec: self, noise, bits: finite.then_some(bits), n }))
    }

    fn needs_key(&self) -> bool {
        self.scheme.is_shared()
    }
}

struct Sent<'a> {
    codec: &'a OneBit,
    noise: Noise,
    bits: Option<&'a [u8]>,
    n: usize,
}

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Chunks(self.n)
    }

    fn decode(&self, _: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let Some(bits) = self.bits else {
            out.fill(NAN);
            return Ok(());
        };
        let OneBit { scheme, interval, .. } = self.codec;
        let start = piece * CHUNK;
        let bits = &bits[start / 8..(start + out.len()).div_ceil(8)];
        scheme.decode_part(bits, *interval, (self.noise.key, self.noise.sender), start, out)
    }
}
