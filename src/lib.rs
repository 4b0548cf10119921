#![doc = "Numbers below a byte: to compute with (4-bit and lower training) and to send (one bit per number, with shared randomness)."]
//!
//! The crate is the core of the Python package of the same name. Everything is built from five parts: a *format*
//! ([`formats`]), a *scale* rule ([`scale`]), a *rounding* ([`quantize`]), a *key* ([`stream`]) and a *pack* ([`pack`]).

pub mod clip;
pub mod convex;
pub mod cpu;
pub mod error;
pub mod formats;
pub mod fwht;
pub mod gemm;
pub mod message;
pub mod onebit;
pub mod optim;
pub mod pack;
pub mod parallel;
pub mod qtorch;
pub mod quantize;
pub mod rans;
pub mod scale;
mod simd;
pub mod stream;
pub mod view;

#[cfg(feature = "python")]
#[allow(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    clippy::trivially_copy_pass_by_ref,
    reason = "PyO3 decides how arguments arrive, and the Python signatures have many options"
)]
mod py;
