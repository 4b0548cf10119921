//! `lowbit.convex`: the border of [`crate::convex`].

use numpy::{Element, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, dtype};
use pyo3::prelude::*;

use super::array::{fill_new, slice_of};
use super::error::Error;
use crate::convex::float::{self, Grid, Real};
use crate::convex::integer::{self, Code};
use crate::convex::{Loss, Rows, derivatives};
use crate::stream::{Key, Stream};

type Array<'py> = Bound<'py, PyUntypedArray>;
/// A loss's name; y, shift and anchor of every row.
type RowArrays<'py> = (String, Array<'py>, Array<'py>, Array<'py>);

fn stream((k0, k1): (u64, u64)) -> Stream {
    Key { k0, k1 }.stream()
}

fn rows<'a>((loss, y, shift, anchor): &'a RowArrays<'_>) -> PyResult<Rows<'a>> {
    let (y, shift, anchor) = (slice_of("y", y)?, slice_of("shift", shift)?, slice_of("anchor", anchor)?);
    Ok(Rows { loss: Loss::named(loss)?, y, shift, anchor })
}

/// Derivatives of a loss.
#[pyfunction]
pub(super) fn convex_derivatives<'py>(
    py: Python<'py>,
    loss: &str,
    t: &Array<'py>,
    y: &Array<'py>,
) -> PyResult<Array<'py>> {
    let (loss, t, y) = (Loss::named(loss)?, slice_of::<f64>("t", t)?, slice_of::<f64>("y", y)?);
    if t.len() != y.len() {
        return Err(Error::new_err(format!("t: has {} numbers, but y has {}", t.len(), y.len())));
    }
    fill_new::<f64>(py, &[t.len()], |out| {
        py.detach(|| derivatives(loss, t, y, out));
        Ok(())
    })
}

/// Steps of any method on floats: where they end.
#[pyfunction]
pub(super) fn convex_float<'py>(
    py: Python<'py>,
    x: &Array<'py>,
    z: &Array<'py>,
    g: &Array<'py>,
    rows: RowArrays<'py>,
    rates: (f64, f64),
    grid: Option<(f64, f64, f64, bool)>,
    draws: (u64, u64),
    rounding: (u64, u64),
    first: u64,
    steps: u64,
) -> PyResult<Array<'py>> {
    let grid = grid.map(|(scale, low, high, stochastic)| Grid { scale, low, high, stochastic });
    let (draws, rounding) = (stream(draws), stream(rounding));
    if x.dtype().is_equiv_to(&dtype::<f32>(py)) {
        float_steps::<f32>(py, (x, z, g), &rows, rates, grid, (draws, rounding), (first, steps))
    } else {
        float_steps::<f64>(py, (x, z, g), &rows, rates, grid, (draws, rounding), (first, steps))
    }
}

fn float_steps<'py, T: Real + Element + Sync>(
    py: Python<'py>,
    (x, z, g): (&Array<'py>, &Array<'py>, &Array<'py>),
    of_rows: &RowArrays<'py>,
    (lr, l2): (f64, f64),
    grid: Option<Grid>,
    (draws, rounding): (Stream, Stream),
    (first, steps): (u64, u64),
) -> PyResult<Array<'py>> {
    let run = float::Steps {
        rows: rows(of_rows)?,
        x: slice_of::<T>("x", x)?,
        g: slice_of::<T>("g", g)?,
        lr: T::from_f64(lr),
        l2: T::from_f64(l2),
        grid,
        draws,
        rounding,
    };
    let z = slice_of::<T>("z", z)?;
    fill_new::<T>(py, &[z.len()], |out| {
        out.copy_from_slice(z);
        Ok(py.detach(|| run.run(out, first, steps))?)
    })
}

/// Steps of HALP on integers: where they end.
#[pyfunction]
pub(super) fn convex_integer<'py>(
    py: Python<'py>,
    x: &Array<'py>,
    z: &Array<'py>,
    g: (Array<'py>, Array<'py>),
    rows: RowArrays<'py>,
    rates: (f64, f64),
    row_scales: &Array<'py>,
    grid: (f64, u32),
    draws: (u64, u64),
    rounding: (u64, u64),
    first: u64,
    steps: u64,
) -> PyResult<Array<'py>> {
    let streams = (stream(draws), stream(rounding));
    if x.dtype().is_equiv_to(&dtype::<i8>(py)) {
        integer_steps::<i8>(py, (x, z, &g), &rows, rates, row_scales, grid, streams, (first, steps))
    } else {
        integer_steps::<i16>(py, (x, z, &g), &rows, rates, row_scales, grid, streams, (first, steps))
    }
}

fn integer_steps<'py, T: Code + Element>(
    py: Python<'py>,
    (x, z, g): (&Array<'py>, &Array<'py>, &(Array<'py>, Array<'py>)),
    of_rows: &RowArrays<'py>,
    (lr, l2): (f64, f64),
    row_scales: &Array<'py>,
    (scale, bits): (f64, u32),
    (draws, rounding): (Stream, Stream),
    (first, steps): (u64, u64),
) -> PyResult<Array<'py>> {
    let run = integer::Steps {
        rows: rows(of_rows)?,
        x: slice_of::<T>("x", x)?,
        row_scales: slice_of("row_scales", row_scales)?,
        g_whole: slice_of("g", &g.0)?,
        g_fraction: slice_of("g", &g.1)?,
        scale,
        bits,
        lr,
        l2,
        draws,
        rounding,
    };
    let z = slice_of::<T>("z", z)?;
    fill_new::<T>(py, &[z.len()], |out| {
        out.copy_from_slice(z);
        Ok(py.detach(|| run.run(out, first, steps))?)
    })
}
