//! A quantized array in the container: kind 1.

use super::cursor::Cursor;
pub use super::cursor::floats;
use super::header::{Header, count};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::pack::{check_packed, packed_len};
use crate::quantize::Grouping;
use crate::scale::SCALE_RANGE;

/// The kind of a quantized array.
pub const KIND: u8 = 1;

const HAS_OFFSET: u32 = 1;
const DITHERED: u32 = 2;

/// Stands for "no axis" where axes are one byte.
const NO_AXIS: u8 = 0xff;

/// Everything about a quantized array but its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The number format.
    pub format: &'static str,
    /// The array's shape.
    pub shape: Vec<usize>,
    /// How scales are shared.
    pub axis: Option<usize>,
    /// How scales are shared.
    pub block_size: Option<usize>,
    /// The id of the key it was dithered with.
    pub key_id: Option<u64>,
    /// The shape of scales and offsets, as many dimensions as `shape`.
    pub scale_shape: Vec<usize>,
    /// Whether there are offsets.
    pub has_offset: bool,
}

/// The parts of a payload, borrowed from the container's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts<'a> {
    /// Scales, little-endian float32.
    pub scale: &'a [u8],
    /// Offsets, little-endian float32; empty if there are none.
    pub offset: &'a [u8],
    /// Packed codes.
    pub packed: &'a [u8],
}

impl Quantized {
    /// The container's header for these parts, and the length of the whole.
    pub fn head(&self, parts: Parts) -> Result<(Vec<u8>, usize)> {
        let mut parameters = Vec::new();
        parameters.extend((self.block_size.unwrap_or(0) as u64).to_le_bytes());
        self.scale_shape.iter().for_each(|length| parameters.extend((*length as u64).to_le_bytes()));
        parameters.push(self.axis.map_or(NO_AXIS, |axis| axis as u8));
        parameters.push(self.format.len() as u8);
        parameters.extend(self.format.bytes());
        let flags = if self.has_offset { HAS_OFFSET } else { 0 } | if self.key_id.is_some() { DITHERED } else { 0 };
        let key_id = self.key_id.unwrap_or(0);
        let header = Header { kind: KIND, codec: 0, flags, key_id, sender: 0, shape: self.shape.clone(), parameters };
        let (head, framed) = header.to_bytes(parts.scale.len() + parts.offset.len() + parts.packed.len())?;
        let length = head.len() + framed;
        Ok((head, length))
    }

    /// Reads a container and checks everything in it, so that what it gives can be dequantized.
    pub fn read(data: &[u8]) -> Result<(Quantized, Parts<'_>)> {
        let (header, payload) = Header::read(data)?;
        if header.kind != KIND || header.codec != 0 {
            let reason =
                format!("this container holds kind {} codec {}, not a quantized array", header.kind, header.codec);
            return Err(Error::decode(reason));
        }
        if header.flags & !(HAS_OFFSET | DITHERED) != 0 || header.sender != 0 {
            return Err(Error::decode("unknown flags: written by a newer lowbit?"));
        }
        let mut parameters = Cursor(&header.parameters);
        let block_size = parameters.size()?;
        let scale_shape = header.shape.iter().map(|_| parameters.size()).collect::<Result<Vec<usize>>>()?;
        let axis = parameters.byte()?;
        let length = usize::from(parameters.byte()?);
        let name = parameters.take(length)?;
        parameters.end("parameters")?;
        let name = str::from_utf8(name).map_err(|_| Error::decode("the format's name is not text"))?;
        let format = Format::named(name).map_err(|error| Error::decode(error.to_string()))?;
        let this = Quantized {
            format: format.name,
            axis: (axis != NO_AXIS).then_some(axis as usize),
            block_size: (block_size > 0).then_some(block_size),
            key_id: (header.flags & DITHERED != 0).then_some(header.key_id),
            scale_shape,
            has_offset: header.flags & HAS_OFFSET != 0,
            shape: header.shape.clone(),
        };
        let decode = |error: Error| Error::decode(error.to_string());
        let (codes, scales) = this.layout(format).map_err(decode)?;
        let scales = scales.checked_mul(4).ok_or_else(|| Error::decode("too many scales"))?;
        if this.key_id.is_none() && header.key_id != 0 {
            return Err(Error::decode("a key id without dither"));
        }
        let mut payload = Cursor(payload);
        let scale = payload.take(scales)?;
        let offset = payload.take(if this.has_offset { scales } else { 0 })?;
        let packed = payload.take(packed_len(codes, format.bits))?;
        if payload.0.len() >= 16 || payload.0.iter().any(|byte| *byte != 0) {
            return Err(Error::decode("the payload's padding is not zero"));
        }
        this.check(floats(scale), floats(offset), packed).map_err(decode)?;
        Ok((this, Parts { scale, offset, packed }))
    }

    /// Checks everything that a reader will, so that what passes can be written, read and dequantized.
    pub fn check(
        &self,
        mut scale: impl Iterator<Item = f32>,
        mut offset: impl Iterator<Item = f32>,
        packed: &[u8],
    ) -> Result<()> {
        let format = Format::named(self.format)?;
        let (codes, _) = self.layout(format)?;
        let (least, most) = SCALE_RANGE;
        if let Some(scale) = scale.find(|scale| !(least..=most).contains(scale)) {
            return Err(Error::argument("scale", format!("{scale} is out of range; give 2^-126 to 2^126")));
        }
        if let Some(offset) = offset.find(|offset| !offset.is_finite()) {
            return Err(Error::argument("offset", format!("{offset} is not finite")));
        }
        check_packed("packed", packed, codes, format.bits)
    }

    /// Checks that the layout makes sense; gives the numbers of codes and of scales.
    fn layout(&self, format: &Format) -> Result<(usize, usize)> {
        let codes = count(&self.shape)?;
        let grouping = Grouping::new(self.shape.len(), self.axis.map(|axis| axis as isize), self.block_size)?;
        if self.block_size.is_some() && self.axis.is_none() {
            return Err(Error::argument("axis", "blocks lie along one; give it"));
        }
        for (argument, given) in [("offset", self.has_offset), ("key_id", self.key_id.is_some())] {
            if given && format.uniform().is_none() {
                return Err(Error::argument(argument, format!("{} has no equal steps; leave it out", format.name)));
            }
        }
        let (shape, target) = (&self.scale_shape, grouping.blocked_shape(&self.shape));
        let fits = shape.iter().zip(&target).all(|(length, target)| length == target || *length == 1);
        if !fits || shape.len() != target.len() {
            return Err(Error::argument("scale", format!("shape {shape:?} does not broadcast to {target:?}")));
        }
        // No longer than the array's along any dimension, so their number does not overflow unless the array is empty.
        Ok((codes, count(shape)?))
    }
}

/// Writes a container into `memory`, which has the length that [`Quantized::head`] told.
pub fn fill(head: &[u8], parts: Parts, memory: &mut [u8]) {
    let (place, payload) = memory.split_at_mut(head.len());
    place.copy_from_slice(head);
    let mut rest = &mut *payload;
    for piece in [parts.scale, parts.offset, parts.packed] {
        let (place, after) = rest.split_at_mut(piece.len());
        place.copy_from_slice(piece);
        rest = after;
    }
    rest.fill(0);
    if let Some((body, crc)) = payload.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c(body).to_le_bytes();
    }
}
