//! Arrays as bytes: the container (`docs/wire.md`) and what is put in it.

pub mod header;
pub mod quantized;
pub mod tables;
