//! The one error type of the crate. Every variant is one sentence that names the argument and says what would work.

use thiserror::Error;

/// What can go wrong, in the words a user reads.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// An argument has a value that cannot be used.
    #[error("{argument}: {reason}")]
    Argument {
        /// The argument's name as the caller wrote it.
        argument: &'static str,
        /// What is wrong and what would work.
        reason: String,
    },
    /// A name that no registry entry bears.
    #[error("{argument}: {name:?} is not known; known are: {known}")]
    Unknown {
        /// The argument's name as the caller wrote it.
        argument: &'static str,
        /// The name that was asked for.
        name: String,
        /// The names that exist, in order, joined by commas.
        known: String,
    },
    /// A number that cannot be stored, at a flat index in C order.
    #[error("x: element {index} (C order) is {value}, which has no code; {advice}")]
    Unrepresentable {
        /// Index of the first such element in C order.
        index: usize,
        /// The element.
        value: f32,
        /// What would work.
        advice: &'static str,
    },
    /// A message or file that cannot be decoded.
    #[error("cannot decode: {0}")]
    Decode(String),
}

impl Error {
    /// An argument error; `reason` says what is wrong and what would work.
    pub fn argument(argument: &'static str, reason: impl Into<String>) -> Self {
        Error::Argument { argument, reason: reason.into() }
    }

    /// A decoding error.
    pub fn decode(reason: impl Into<String>) -> Self {
        Error::Decode(reason.into())
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
