//! A quantized array in the container: kind 1.

use std::sync::Arc;

use super::cursor::Cursor;
pub use super::cursor::floats;
use super::header::{Header, count};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::pack::{check_packed, packed_len};
use crate::quantize::Grouping;
use crate::scale::{SCALE_RANGE, TENSOR_RANGE};

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
    pub format: Arc<Format>,
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
    /// The scale of the whole tensor, little-endian float32; empty if the format has none.
    pub tensor_scale: &'a [u8],
    /// Scales, little-endian float32; a byte each where the format says what they are.
    pub scale: &'a [u8],
    /// Offsets, little-endian float32; empty if there are none.
    pub offset: &'a [u8],
    /// Packed codes.
    pub packed: &'a [u8],
}

impl<'a> Parts<'a> {
    /// In the order in which they are written.
    fn pieces(&self) -> [&'a [u8]; 4] {
        [self.tensor_scale, self.scale, self.offset, self.packed]
    }
}

/// Whether a number can be the scale of a whole tensor.
pub(super) fn tensor_scale_fits(scale: f32) -> bool {
    (TENSOR_RANGE.0..=TENSOR_RANGE.1).contains(&scale)
}

/// Refuses scales whose reciprocals are not exact enough.
pub(super) fn check_scales(argument: &'static str, mut scales: impl Iterator<Item = f32>) -> Result<()> {
    let (least, most) = SCALE_RANGE;
    match scales.find(|scale| !(least..=most).contains(scale)) {
        Some(scale) => Err(Error::argument(argument, format!("{scale} is out of range; give 2^-126 to 2^126"))),
        None => Ok(()),
    }
}

/// A format's name after its length: one byte, or zero and two bytes.
fn write_name(name: &str, bytes: &mut Vec<u8>) {
    if let Ok(length) = u8::try_from(name.len()) {
        bytes.push(length);
    } else {
        bytes.push(0);
        bytes.extend((name.len() as u16).to_le_bytes());
    }
    bytes.extend(name.bytes());
}

/// The inverse of [`write_name`].
fn read_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str> {
    let length = match cursor.byte()? {
        0 => {
            let length = u16::from_le_bytes([cursor.byte()?, cursor.byte()?]);
            if length <= 255 {
                return Err(Error::decode("a short name with a long length"));
            }
            usize::from(length)
        }
        length => usize::from(length),
    };
    str::from_utf8(cursor.take(length)?).map_err(|_| Error::decode("the format's name is not text"))
}

impl Quantized {
    /// The container's header for these parts, and the length of the whole.
    pub fn head(&self, parts: Parts) -> Result<(Vec<u8>, usize)> {
        let mut parameters = Vec::new();
        parameters.extend((self.block_size.unwrap_or(0) as u64).to_le_bytes());
        self.scale_shape.iter().for_each(|length| parameters.extend((*length as u64).to_le_bytes()));
        parameters.push(self.axis.map_or(NO_AXIS, |axis| axis as u8));
        write_name(&self.format.name, &mut parameters);
        let flags = if self.has_offset { HAS_OFFSET } else { 0 } | if self.key_id.is_some() { DITHERED } else { 0 };
        let key_id = self.key_id.unwrap_or(0);
        let header = Header { kind: KIND, codec: 0, flags, key_id, sender: 0, shape: self.shape.clone(), parameters };
        let payload = parts.pieces().into_iter().map(<[u8]>::len).sum();
        let (head, framed) = header.to_bytes(payload)?;
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
        let name = read_name(&mut parameters)?;
        parameters.end("parameters")?;
        let format = Format::named(name).map_err(|error| Error::decode(error.to_string()))?;
        if format.name != name {
            return Err(Error::decode(format!("the format {name:?} is called {}", format.name)));
        }
        let this = Quantized {
            format: format.clone(),
            axis: (axis != NO_AXIS).then_some(axis as usize),
            block_size: (block_size > 0).then_some(block_size),
            key_id: (header.flags & DITHERED != 0).then_some(header.key_id),
            scale_shape,
            has_offset: header.flags & HAS_OFFSET != 0,
            shape: header.shape.clone(),
        };
        let decode = |error: Error| Error::decode(error.to_string());
        let (codes, scales) = this.layout().map_err(decode)?;
        let scales = scales.checked_mul(this.scale_bytes()).ok_or_else(|| Error::decode("too many scales"))?;
        if this.key_id.is_none() && header.key_id != 0 {
            return Err(Error::decode("a key id without dither"));
        }
        let mut payload = Cursor(payload);
        let tensor_scale = payload.take(if this.has_tensor_scale() { 4 } else { 0 })?;
        let scale = payload.take(scales)?;
        let offset = payload.take(if this.has_offset { scales } else { 0 })?;
        let packed = payload.take(packed_len(codes, format.bits))?;
        if payload.0.len() >= 16 || payload.0.iter().any(|byte| *byte != 0) {
            return Err(Error::decode("the payload's padding is not zero"));
        }
        let parts = Parts { tensor_scale, scale, offset, packed };
        this.check(parts).map_err(decode)?;
        Ok((this, parts))
    }

    /// Whether there is a scale for the whole tensor.
    pub fn has_tensor_scale(&self) -> bool {
        self.format.scaling.is_some_and(|scaling| scaling.format.has_tensor_scale())
    }

    /// How many bytes a scale takes.
    fn scale_bytes(&self) -> usize {
        if self.format.scaling.is_some() { 1 } else { 4 }
    }

    /// Checks everything that a reader will, so that what passes can be written, read and dequantized.
    pub fn check(&self, parts: Parts) -> Result<()> {
        let (codes, _) = self.layout()?;
        if let Some(scale) = floats(parts.tensor_scale).find(|scale| !tensor_scale_fits(*scale)) {
            return Err(Error::argument("tensor_scale", format!("{scale} is out of range; give 2^-117 to 2^117")));
        }
        match self.format.scaling {
            None => check_scales("scale", floats(parts.scale))?,
            Some(scaling) => {
                if let Some(code) = parts.scale.iter().find(|code| scaling.format.decode(**code).is_nan()) {
                    let reason = format!("code {code} is no positive number in {}", scaling.format.name());
                    return Err(Error::argument("scale", reason));
                }
            }
        }
        if let Some(offset) = floats(parts.offset).find(|offset| !offset.is_finite()) {
            return Err(Error::argument("offset", format!("{offset} is not finite")));
        }
        check_packed("packed", parts.packed, codes, self.format.bits)
    }

    /// Checks that the layout makes sense; gives the numbers of codes and of scales.
    fn layout(&self) -> Result<(usize, usize)> {
        let format = &self.format;
        format.check_coded()?;
        let codes = count(&self.shape)?;
        let grouping = Grouping::new(self.shape.len(), self.axis.map(|axis| axis as isize), self.block_size)?;
        if self.block_size.is_some() && self.axis.is_none() {
            return Err(Error::argument("axis", "blocks lie along one; give it"));
        }
        if format.scaling.is_some() && format.default_block.is_some() && self.block_size != format.default_block {
            let size = format.default_block.unwrap_or(0);
            if !(self.block_size.is_none() && self.shape.is_empty()) {
                return Err(Error::argument("block_size", format!("{} has blocks of {size}", format.name)));
            }
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
    for piece in parts.pieces() {
        let (place, after) = rest.split_at_mut(piece.len());
        place.copy_from_slice(piece);
        rest = after;
    }
    rest.fill(0);
    if let Some((body, crc)) = payload.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c(body).to_le_bytes();
    }
}
