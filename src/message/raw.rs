//! Float32 as it is: the identity among the codecs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::coder::{CHUNK, Coder, Noise, Opened, Pieces, encode_tiles, room};
use super::cursor::Cursor;
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::view::View;

/// Sends every number exactly.
#[derive(Clone, Debug)]
pub(super) struct Float32;

impl Coder for Float32 {
    fn encode(&self, x: &View, _: Noise, out: &mut Vec<u8>) -> Result<bool> {
        let finite = AtomicBool::new(true);
        encode_tiles(
            x,
            room(out, 4 * x.len()),
            |n| 4 * n,
            #[inline(always)]
            |_, _, x, _, out| {
                let mut magnitude = 0;
                for (place, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *place = x.to_le_bytes();
                    magnitude = magnitude.max(x.to_bits() & 0x7fff_ffff);
                }
                if magnitude >= f32::INFINITY.to_bits() {
                    finite.store(false, Ordering::Relaxed);
                }
            },
        );
        Ok(finite.into_inner())
    }

    fn open<'a>(&'a self, shape: &[usize], _: Noise, payload: &mut Cursor<'a>) -> Result<Box<dyn Opened + 'a>> {
        let n: usize = shape.iter().product();
        let bytes = payload.take(n.checked_mul(4).ok_or_else(|| Error::decode("more numbers than can be"))?)?;
        Ok(Box::new(Sent(bytes)))
    }

    fn needs_key(&self) -> bool {
        false
    }
}

struct Sent<'a>(&'a [u8]);

impl Opened for Sent<'_> {
    fn pieces(&self) -> Pieces {
        Pieces::Chunks(self.0.len() / 4)
    }

    fn decode(&self, _: Level, piece: usize, out: &mut [f32]) -> Result<()> {
        let bytes = &self.0[4 * piece * CHUNK..];
        for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}
