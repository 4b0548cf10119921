//! `lowbit.matmul`: the border of [`crate::gemm`].

use numpy::{PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::prelude::*;

use super::array::{check_out, fill, new_array, output, plain, slice_of};
use super::error::Error;
use super::format::record;
use crate::gemm::{self, Codes, Convolution, Operand, Product, Scale, Scaling, Steps};
use crate::view::Element;

type Untyped<'py> = Bound<'py, PyUntypedArray>;

/// Rows and columns as they are stored, and whether the operand is the transpose of that.
#[derive(Clone, Copy)]
struct Stored {
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Stored {
    /// Rows and columns of the operand.
    fn shape(self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

/// The codes of a, whose lines are rows, or of b, whose lines are columns.
fn codes<'a>(
    argument: &'static str,
    packed: &'a [u8],
    bits: u32,
    matrices: usize,
    stored: Stored,
) -> crate::error::Result<Codes<'a>> {
    let (rows, columns) = stored.shape();
    let a = argument == "a";
    let (lines, inner) = if a { (rows, columns) } else { (columns, rows) };
    Codes::new(argument, packed, bits, (matrices, lines, inner), a != stored.transposed)
}

/// The product of two matrices of codes, in exact arithmetic, rounded once; then multiplied by `scale`. Shapes are those
/// that are stored; a transposed operand is the transpose of what is stored.
#[pyfunction]
#[pyo3(signature = (a_packed, a_format, a_rows, a_cols, a_transposed, b_packed, b_format, b_rows, b_cols, b_transposed, out, scale=None))]
pub(super) fn code_product<'py>(
    py: Python<'py>,
    a_packed: &Untyped<'py>,
    a_format: &Bound<'py, PyAny>,
    a_rows: usize,
    a_cols: usize,
    a_transposed: bool,
    b_packed: &Untyped<'py>,
    b_format: &Bound<'py, PyAny>,
    b_rows: usize,
    b_cols: usize,
    b_transposed: bool,
    out: &Untyped<'py>,
    scale: Option<f32>,
) -> PyResult<()> {
    let (a_format, b_format) = (record(a_format)?, record(b_format)?);
    let (a_steps, b_steps) = (Steps::of("a", &a_format)?, Steps::of("b", &b_format)?);
    let stored_a = Stored { rows: a_rows, columns: a_cols, transposed: a_transposed };
    let stored_b = Stored { rows: b_rows, columns: b_cols, transposed: b_transposed };
    let shape = [stored_a.shape().0, stored_b.shape().1];
    check_out(out, &shape, &dtype::<f32>(py), None, Some(("a", a_packed)))?;
    check_out(out, &shape, &dtype::<f32>(py), None, Some(("b", b_packed)))?;
    let Some(target) = plain::<f32>(out, &shape) else {
        return Err(Error::new_err("out: expected a contiguous array"));
    };
    let a = codes("a", slice_of("a_packed", a_packed)?, a_format.bits, 1, stored_a)?;
    let b = codes("b", slice_of("b_packed", b_packed)?, b_format.bits, 1, stored_b)?;
    let a = Operand { codes: a, steps: &a_steps, matrices: &[0] };
    let b = Operand { codes: b, steps: &b_steps, matrices: &[0] };
    Ok(py.detach(|| gemm::product(&a, &b, &Scaling::Factor(scale.unwrap_or(1.0)), target))?)
}

/// A product of a convolution's codes, in exact arithmetic, rounded once: "forward" (a: the input, b: the weight),
/// "grad_input" (a: dL/dy, b: the weight) or "grad_weight" (a: dL/dy, b: the input). Shapes have four lengths.
#[pyfunction]
pub(super) fn code_convolution<'py>(
    py: Python<'py>,
    which: &str,
    a_packed: &Untyped<'py>,
    a_format: &Bound<'py, PyAny>,
    a_shape: [usize; 4],
    b_packed: &Untyped<'py>,
    b_format: &Bound<'py, PyAny>,
    b_shape: [usize; 4],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    out: &Untyped<'py>,
) -> PyResult<()> {
    let which = match which {
        "forward" => Product::Forward,
        "grad_input" => Product::GradInput,
        "grad_weight" => Product::GradWeight,
        _ => return Err(Error::new_err(format!("which: '{which}' is none of forward, grad_input, grad_weight"))),
    };
    let (a_format, b_format) = (record(a_format)?, record(b_format)?);
    let (a_steps, b_steps) = (Steps::of("a", &a_format)?, Steps::of("b", &b_format)?);
    let &[n, channels, rows, columns] = out.shape() else {
        return Err(Error::new_err("out: expected four dimensions"));
    };
    let shape = [n, channels, rows, columns];
    check_out(out, &shape, &dtype::<f32>(py), None, Some(("a", a_packed)))?;
    check_out(out, &shape, &dtype::<f32>(py), None, Some(("b", b_packed)))?;
    let Some(target) = plain::<f32>(out, &shape) else {
        return Err(Error::new_err("out: expected a contiguous array"));
    };
    let a = (slice_of("a_packed", a_packed)?, &a_steps, a_shape);
    let b = (slice_of("b_packed", b_packed)?, &b_steps, b_shape);
    let convolution = Convolution { stride, padding, dilation, groups };
    Ok(py.detach(|| convolution.product(which, a, b, (shape, target)))?)
}

/// Packed codes, their format, rows and columns as they are stored and whether to take the transpose; which of the stored
/// matrices to multiply, for each of the result; scales (matrix, row of a or column of b, block).
type Matrices<'py> = (Untyped<'py>, Bound<'py, PyAny>, (usize, usize), bool, Vec<usize>, Untyped<'py>);

/// The codes and scales of matrices.
fn parts<'a>(argument: &'static str, matrices: &'a Matrices<'_>, bits: u32) -> PyResult<(Codes<'a>, Scale<'a>)> {
    let (packed, _, (rows, columns), transposed, _, scale) = matrices;
    let &[count, lines, blocks] = scale.shape() else {
        return Err(Error::new_err("scale: expected three dimensions"));
    };
    let stored = Stored { rows: *rows, columns: *columns, transposed: *transposed };
    let codes = codes(argument, slice_of(argument, packed)?, bits, count, stored)?;
    Ok((codes, Scale::new(slice_of("scale", scale)?, lines, blocks)))
}

/// The product of matrices of codes, with their scales.
#[pyfunction]
pub(super) fn matmul<'py>(
    py: Python<'py>,
    a: Matrices<'py>,
    b: Matrices<'py>,
    block_size: Option<usize>,
    shape: Vec<usize>,
    out: Option<Untyped<'py>>,
) -> PyResult<Untyped<'py>> {
    let (a_format, b_format) = (record(&a.1)?, record(&b.1)?);
    let (a_steps, b_steps) = (Steps::of("a", &a_format)?, Steps::of("b", &b_format)?);
    let (a_codes, a_scale) = parts("a", &a, a_format.bits)?;
    let (b_codes, b_scale) = parts("b", &b, b_format.bits)?;
    let scaling = match block_size {
        None => Scaling::Sides { a: a_scale, b: b_scale },
        Some(size) => Scaling::Blocks { size, a: a_scale, b: b_scale },
    };
    let a_operand = Operand { codes: a_codes, steps: &a_steps, matrices: &a.4 };
    let b_operand = Operand { codes: b_codes, steps: &b_steps, matrices: &b.4 };
    if let Some(out) = &out {
        check_out(out, &shape, &dtype::<f32>(py), None, Some(("a", &a.0)))?;
        check_out(out, &shape, &dtype::<f32>(py), None, Some(("b", &b.0)))?;
        if let Some(target) = plain::<f32>(out, &shape) {
            py.detach(|| gemm::product(&a_operand, &b_operand, &scaling, target))?;
            return Ok(out.clone());
        }
    }
    let fresh = new_array(py, &shape, dtype::<f32>(py))?;
    // SAFETY: the array is new: contiguous, writeable, and nobody else has it.
    let target: &mut [f32] = unsafe { fill(&fresh) };
    py.detach(|| gemm::product(&a_operand, &b_operand, &scaling, target))?;
    let Some(out) = out else { return Ok(fresh) };
    // SAFETY: as long as the output, which only this thread writes.
    unsafe { output(&out, Element::F32).write(0, target) };
    Ok(out)
}

/// The name of the kernel that products use.
#[pyfunction]
pub(super) fn matmul_kernel() -> &'static str {
    gemm::kernel_name()
}

/// The names of the kernels of this CPU, the best last.
#[pyfunction]
pub(super) fn matmul_kernels() -> Vec<&'static str> {
    gemm::kernel_names()
}

/// Whether this CPU has AMX, but the system does not let this process use it.
#[pyfunction]
pub(super) fn amx_is_refused() -> bool {
    gemm::amx_is_refused()
}
