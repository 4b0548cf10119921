//! Arrays as bytes: the container (`docs/wire.md`), quantized arrays in it, and messages.
//!
//! A *codec* ([`codec`]) turns an array into a payload; the *envelope* frames one or many; *mean* decodes and adds. Every
//! codec is one file with a `Coder` (its parameters) and an `Opened` (one array's payload, decoded piece by piece).

pub mod codec;
mod coder;
mod cursor;
mod dither;
pub mod envelope;
pub mod header;
mod levels;
mod mean;
mod onebit;
mod packed;
pub mod quantized;
mod raw;
mod rotated;
mod sign;
pub mod sum;
mod tables;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;

pub use coder::Noise;
pub use rotated::summable::Summable;
pub use tables::entropy_step;
