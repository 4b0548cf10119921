//! The Python module `lowbit._core`: one function per operation, nothing decided here.

mod array;
mod container;
mod convex;
mod error;
mod format;
mod gemm;
mod hadamard;
mod message;
mod onebit;
mod optim;
mod qtorch;
mod quantize;
mod scaling;

use numpy::PyUntypedArray;
use pyo3::prelude::*;

use crate::cpu::Level;
use crate::error::Error;
use crate::stream::{Key, STREAM_VERSION};
use crate::{parallel, stream};

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::container::{quantized_check, quantized_from_bytes, quantized_to_bytes, read_only};
    #[pymodule_export]
    use super::convex::{convex_derivatives, convex_float, convex_integer};
    #[pymodule_export]
    use super::format::{
        Format, block_float, block_format, cfloat8, cfloat16_shp, cfloat16_uhp, fixed_point, float_format, formats,
        get_format, int_format, log_grid, radix_format, table_format,
    };
    #[pymodule_export]
    use super::gemm::{amx_is_refused, code_convolution, code_product, matmul, matmul_kernel, matmul_kernels};
    #[pymodule_export]
    use super::hadamard::{hadamard_transform, randomized_hadamard_transform};
    #[pymodule_export]
    use super::message::{
        MessageMean, codec_check, entropy_step, float32, message_decode, message_describe, message_encode,
        message_mean, summable_decode, summable_integers, summable_norms,
    };
    #[pymodule_export]
    use super::onebit::{onebit_decode, onebit_encode, onebit_noise, onebit_pairs};
    #[pymodule_export]
    use super::optim::{adam_step, sgd_step};
    #[pymodule_export]
    use super::qtorch::{qtorch_block, qtorch_fixed, qtorch_float};
    #[pymodule_export]
    use super::quantize::{
        clip_bits, dequantize, fake_quantize, keep_inside, pack, pack_three, quantize, round_with_words, scale_codes,
        scale_values, take_outside, unpack, unpack_three,
    };
    #[pymodule_export]
    use super::{cpu_level, cpu_levels, get_num_threads, random_bits, set_cpu_level, set_num_threads};

    use super::{Bound, Level, PyModule, PyModuleMethods, PyResult, STREAM_VERSION, error, parallel};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if let Some(level) = Level::from_env()? {
            level.set();
        }
        if let Some(threads) = parallel::threads_from_env()? {
            parallel::set_num_threads(threads)?;
        }
        module.add("Error", module.py().get_type::<error::Error>())?;
        module.add("DecodeError", module.py().get_type::<error::DecodeError>())?;
        module.add("STREAM_VERSION", STREAM_VERSION)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// The CPU levels of this machine, slowest first.
#[pyfunction]
fn cpu_levels() -> Vec<&'static str> {
    Level::supported().into_iter().map(Level::name).collect()
}

/// The CPU level in force.
#[pyfunction]
fn cpu_level() -> &'static str {
    Level::current().name()
}

/// Makes a CPU level the one in force.
#[pyfunction]
fn set_cpu_level(name: &str) -> PyResult<()> {
    Level::named("name", name)?.set();
    Ok(())
}

/// How many threads a call may use.
#[pyfunction]
fn get_num_threads() -> usize {
    parallel::num_threads()
}

/// Sets how many threads a call may use, 1 to 1024; results never depend on it.
#[pyfunction]
fn set_num_threads(n: usize) -> PyResult<()> {
    Ok(parallel::set_num_threads(n)?)
}

/// Words of the stream of a key.
#[pyfunction]
fn random_bits(py: Python<'_>, k0: u64, k1: u64, n: u64, start: u64) -> PyResult<Bound<'_, PyUntypedArray>> {
    const MOST: usize = isize::MAX as usize / size_of::<u32>();
    let Some(n) = usize::try_from(n).ok().filter(|n| *n <= MOST) else {
        let reason = format!("{n} words are more than an array can hold; give at most {MOST}");
        return Err(Error::argument("n", reason).into());
    };
    array::fill_new::<u32>(py, &[n], |words| Ok(py.detach(|| stream::random_bits(Key { k0, k1 }, start, words))?))
}
