//! The codecs by their number on the wire; each reads its own parameters.

use super::coder::Coder;
use super::cursor::Cursor;
use super::dither::Dither;
use super::levels::Levels;
use super::onebit::OneBit;
use super::packed::Packed;
use super::raw::Float32;
use super::rotated::eden::{Aim, Eden};
use super::rotated::entropy::EntropyCoded;
use super::rotated::plus::DrivePlus;
use super::rotated::quicfl::QuicFl;
use super::rotated::summable::Summable;
use super::sign::Sign;
use crate::error::{Error, Result};

/// A codec with its parameters.
pub struct Codec {
    /// Its number on the wire.
    pub id: u8,
    /// Its parameters as they are on the wire.
    pub parameters: Vec<u8>,
    pub(super) coder: Box<dyn Coder + Send>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").field("id", &self.id).field("parameters", &self.parameters).finish_non_exhaustive()
    }
}

impl Codec {
    /// Reads a codec's parameters, little-endian without gaps (`docs/wire.md`).
    pub fn new(id: u8, parameters: &[u8]) -> Result<Self> {
        let mut rest = Cursor(parameters);
        let coder = coder(id, &mut rest)?;
        rest.end("the codec's parameters")?;
        Ok(Codec { id, parameters: parameters.to_vec(), coder })
    }

    /// What Python calls it.
    pub fn name(&self) -> &'static str {
        NAMES.get(usize::from(self.id).wrapping_sub(1)).copied().unwrap_or("unknown")
    }

    /// Whether a receiver needs the key.
    pub fn needs_key(&self) -> bool {
        self.coder.needs_key()
    }
}

/// The codecs' names, in the order of their numbers, which begin at 1.
const NAMES: [&str; 11] =
    ["Float32", "Packed", "Dither", "OneBit", "Sign", "TernGrad", "Qsgd", "Eden", "DrivePlus", "QuicFl", "Summable"];

fn coder(id: u8, rest: &mut Cursor<'_>) -> Result<Box<dyn Coder + Send>> {
    Ok(match id {
        1 => Box::new(Float32),
        2 => {
            let rounding = rest.byte()?;
            let block_size = u32::from_le_bytes(rest.array()?) as usize;
            let name = str::from_utf8(rest.take(rest.0.len())?);
            let name = name.map_err(|_| Error::argument("format", "the format's name is not text"))?;
            Box::new(Packed::new(name, block_size, rounding)?)
        }
        3 => {
            let (bits, given) = (u32::from(rest.byte()?), rest.byte()?);
            let ends = (rest.float()?, rest.float()?);
            match given {
                0 if ends.0.to_bits() == 0 && ends.1.to_bits() == 0 => Box::new(Dither::new(bits, None)?),
                1 => Box::new(Dither::new(bits, Some(ends))?),
                _ => return Err(Error::decode("whether low and high are given is not clear")),
            }
        }
        4 => Box::new(OneBit::new(rest.byte()?, rest.byte()?, rest.float()?, rest.float()?)?),
        5 => Box::new(Sign::new(rest.byte()?)?),
        6 => Box::new(Levels::terngrad()),
        7 => Box::new(Levels::qsgd(u32::from(u16::from_le_bytes(rest.array()?)))?),
        8 => {
            let bits = f64::from_le_bytes(rest.array()?);
            let (aim, rounds) = (Aim::new(rest.byte()?)?, u32::from(rest.byte()?));
            match (rest.byte()?, rest.float()?) {
                (0, step) if step.to_bits() == 0 => Box::new(Eden::new(bits, aim, rounds)?),
                (1, step) => Box::new(EntropyCoded::new(bits, aim, rounds, step)?),
                _ => return Err(Error::decode("whether the codes are entropy coded is not clear")),
            }
        }
        9 => Box::new(DrivePlus::new(u32::from(rest.byte()?))?),
        10 => Box::new(QuicFl::new(u32::from(rest.byte()?), u32::from(rest.byte()?))?),
        11 => Box::new(Summable::new(u32::from(rest.byte()?), u32::from(rest.byte()?))?),
        _ => return Err(Error::decode(format!("codec {id} is not one this lowbit knows"))),
    })
}
