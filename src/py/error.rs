//! `Error` to a Python exception: `lowbit.Error` (a `ValueError`) or its subclass `lowbit.DecodeError`.

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::Error as Reason;

create_exception!(lowbit, Error, PyValueError, "A bad argument; the message names it and says what would work.");
create_exception!(lowbit, DecodeError, Error, "Bytes that are not what they claim to be.");

impl From<Reason> for PyErr {
    fn from(error: Reason) -> Self {
        let message = error.to_string();
        match error {
            Reason::Decode(_) => DecodeError::new_err(message),
            _ => Error::new_err(message),
        }
    }
}
