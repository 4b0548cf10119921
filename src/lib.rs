#![doc = "Numbers below a byte: to compute with (4-bit and lower training) and to send (one bit per number, with shared randomness)."]
//!
//! The crate is the core of the Python package of the same name. Everything is built from five parts: a *format*
//! ([`formats`]), a *scale* rule ([`scale`]), a *rounding* ([`quantize`]), a *key* ([`stream`]) and a *pack* ([`pack`]).

pub mod cpu;
pub mod error;
pub mod formats;
pub mod message;
pub mod pack;
pub mod parallel;
pub mod quantize;
pub mod scale;
mod simd;
pub mod stream;
pub mod view;

#[cfg(feature = "python")]
mod py;
