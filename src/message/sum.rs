//! The mean of messages: of a list of them, or of one after the other as they come.

use std::collections::BTreeSet;

use super::envelope::{Array, Entry, Message, Sum, Target, verify};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::stream::Key;

/// Weights and their sum lie here, so that float32 holds both them and the sum's reciprocal.
const RANGE: std::ops::RangeInclusive<f64> = 1.175_494_350_822_287_5e-38..=8.507_059_173_023_462e37;

/// Checks the weight of a message.
fn check_weight(argument: &'static str, weight: f64) -> Result<()> {
    if weight == 0.0 || RANGE.contains(&weight) {
        return Ok(());
    }
    Err(Error::argument(argument, format!("{weight:e} is no weight; give 0 or numbers from 2^-126 to 2^126")))
}

fn check_total(argument: &'static str, total: f64) -> Result<()> {
    if RANGE.contains(&total) {
        return Ok(());
    }
    let advice = if total == 0.0 { "give some that are positive" } else { "divide all by the same number" };
    Err(Error::argument(argument, format!("they add up to {total:e}, which is not within 2^-126 to 2^126; {advice}")))
}

/// Says which message of a list an error is about.
fn of_message(index: usize, error: &Error) -> Error {
    match error {
        Error::Decode(reason) => Error::decode(format!("message {index} of the list: {reason}")),
        other => other.clone(),
    }
}

fn sent_twice(sender: u64) -> Error {
    Error::decode(format!("two messages are from sender {sender}; each sender counts once and needs its own number"))
}

/// Messages of one round that go together, in the order of their senders.
#[derive(Debug)]
pub struct Round<'a> {
    messages: Vec<(Message<'a>, f64)>,
}

impl<'a> Round<'a> {
    /// Reads and compares messages; `weights` of `None` counts all alike.
    pub fn read(data: &[&'a [u8]], weights: Option<&[f64]>, max_elements: usize) -> Result<Self> {
        if let Some(weights) = weights {
            if weights.len() != data.len() {
                let reason = format!("{} weights for {} messages; give one for each", weights.len(), data.len());
                return Err(Error::argument("weights", reason));
            }
            weights.iter().try_for_each(|weight| check_weight("weights", *weight))?;
            check_total("weights", weights.iter().sum())?;
        }
        let mut messages = Vec::with_capacity(data.len());
        for (index, data) in data.iter().enumerate() {
            let message = Message::read(data, max_elements).map_err(|error| of_message(index, &error))?;
            messages.push((message, weights.map_or(1.0, |weights| weights[index])));
        }
        messages.sort_by_key(|(message, _)| message.header.sender);
        let Some((first, _)) = messages.first() else {
            return Err(Error::argument("messages", "there is none, and so no mean; give at least one"));
        };
        messages.iter().try_for_each(|(message, _)| message.check_like(first))?;
        match messages.windows(2).find(|pair| pair[0].0.header.sender == pair[1].0.header.sender) {
            Some(pair) => Err(sent_twice(pair[0].0.header.sender)),
            None => Ok(Round { messages }),
        }
    }

    /// Whether the arrays have names.
    pub fn mapping(&self) -> bool {
        self.messages.first().is_some_and(|(message, _)| message.mapping)
    }

    /// The arrays that every message has.
    pub fn entries(&self) -> &[Entry] {
        self.messages.first().map_or(&[], |(message, _)| &message.entries)
    }

    /// Checks the key and the payloads; each with its weight, for [`super::envelope::mean_of`].
    pub fn open(&self, key: Option<Key>) -> Result<Vec<(Vec<Array<'_>>, f64)>> {
        self.messages.iter().map(|(message, weight)| Ok((message.open(key)?, *weight))).collect()
    }
}

/// A mean that messages are added to as they come; only sums are kept.
#[derive(Debug)]
pub struct Mean {
    key: Option<Key>,
    max_elements: usize,
    /// The first message: what the others must be like, and how sums are turned into numbers.
    first: Option<Vec<u8>>,
    sums: Vec<Sum>,
    /// Of all weights.
    total: f64,
    senders: BTreeSet<u64>,
}

impl Mean {
    /// The mean of nothing yet.
    pub fn new(key: Option<Key>, max_elements: usize) -> Self {
        Mean { key, max_elements, first: None, sums: Vec::new(), total: 0.0, senders: BTreeSet::new() }
    }

    /// How many messages were added.
    pub fn count(&self) -> usize {
        self.senders.len()
    }

    /// Adds a message. After an error the mean is what it was before.
    pub fn add(&mut self, data: &[u8], weight: f64) -> Result<()> {
        check_weight("weight", weight)?;
        let message = Message::read(data, self.max_elements)?;
        if let Some(first) = &self.first {
            message.check_like(&Message::read(first, self.max_elements)?)?;
        }
        let sender = message.header.sender;
        if self.senders.contains(&sender) {
            return Err(sent_twice(sender));
        }
        let arrays = message.open(self.key)?;
        verify(&arrays)?;
        if self.first.is_none() {
            self.sums = arrays.iter().map(Array::no_sum).collect();
            self.first = Some(data.to_vec());
        }
        // Of no weight is not even what is not finite.
        for (array, sum) in arrays.iter().zip(&mut self.sums).filter(|_| weight > 0.0) {
            array.add_to(sum, weight)?;
        }
        self.senders.insert(sender);
        self.total += weight;
        Ok(())
    }

    /// Calls `write` with whether arrays have names, the arrays' entries and a function that writes the mean of one of them.
    pub fn result<R>(
        &self,
        write: impl FnOnce(bool, &[Entry], &(dyn Fn(usize, Target<'_>) -> Result<()> + Sync)) -> R,
    ) -> Result<R> {
        let Some(first) = &self.first else {
            return Err(Error::argument(
                "messages",
                "none was added to this Mean, so there is nothing to give; add at least one",
            ));
        };
        check_total("weights", self.total)?;
        let message = Message::read(first, self.max_elements)?;
        // The caller's float state may flush what is small.
        let arrays = Level::PORTABLE.run(|| message.open(self.key))?;
        Ok(write(message.mapping, &message.entries, &|index, target| match (arrays.get(index), self.sums.get(index)) {
            (Some(array), Some(sum)) => array.finish(sum, self.total, target),
            _ => Ok(()),
        }))
    }
}
