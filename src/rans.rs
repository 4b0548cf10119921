//! An entropy coder whose bytes can be promised for ever: range asymmetric numeral systems, four interleaved states.
//!
//! J. Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of
//! arithmetic coding" (arXiv 1311.2540), the range variant, in 32-bit integers: frequencies are integers that sum to
//! 2^14, a state is at least 2^16 and moves 16 bits at a time. Symbol `i` belongs to state `i % 4`, so four chains of
//! dependent arithmetic run side by side.
//!
//! A block is the four states as little-endian `u32`, then little-endian `u16` words in the order in which the decoder
//! reads them. Every state begins (for the encoder, which goes backwards) and so ends (for the decoder) at 2^16: that
//! and the number of words are checked. A block that passes may still be damaged; checksums are the container's part.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::{Error, Result};

/// Frequencies sum to 2 to this.
const BITS: u32 = 14;

/// What frequencies sum to.
pub const TOTAL: u32 = 1 << BITS;

/// The least state, with which every block begins and ends.
const LEAST: u32 = 1 << 16;

/// Symbol `i` belongs to state `i % STATES`.
const STATES: usize = 4;

/// To decode fewer symbols, searching is faster than to make [`Table::with_slots`]; and a message of many small arrays,
/// each with a table of its own, does not take memory that it never paid for.
pub const MANY: usize = TOTAL as usize / 2;

/// Bytes of a block of no symbols: the states.
pub const STATES_LEN: usize = 4 * STATES;

/// Frequencies for symbols that occur `counts` times: at least 1 where a symbol occurs, 0 where it does not, in sum
/// [`TOTAL`]. `None` if nothing occurs or more than [`TOTAL`] different symbols do.
///
/// Rounded down; what is missing goes to the most frequent symbol (the first of equals). If rare symbols took too much,
/// the most frequent one gives one unit at a time, chosen anew each time.
pub fn normalize(counts: &[u64]) -> Option<Vec<u16>> {
    let all: u128 = counts.iter().map(|&count| u128::from(count)).sum();
    let distinct = counts.iter().filter(|&&count| count > 0).count();
    if all == 0 || distinct > TOTAL as usize {
        return None;
    }
    let share = |count| (((u128::from(count) << BITS) / all) as u16).max(u16::from(count > 0));
    let mut frequencies: Vec<u16> = counts.iter().map(|&count| share(count)).collect();
    let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
    let mut order: BinaryHeap<_> = frequencies.iter().enumerate().map(|(i, &f)| (f, Reverse(i))).collect();
    if let Some(&(_, Reverse(most))) = order.peek() {
        frequencies[most] += TOTAL.saturating_sub(sum) as u16;
    }
    for _ in TOTAL..sum {
        if let Some(mut most) = order.peek_mut() {
            most.0 -= 1;
            frequencies[most.1.0] -= 1;
        }
    }
    Some(frequencies)
}

/// What the encoder knows of a symbol; all zeros for one that does not occur.
#[derive(Clone, Copy, Debug, Default)]
struct Symbol {
    /// 2^63 / frequency, rounded up: the quotient of any `u32` by multiplication.
    reciprocal: u64,
    frequency: u32,
    /// The frequencies of the symbols before it, in sum: the first of its slots.
    first: u32,
}

/// Checked frequencies, prepared for coding either way.
#[derive(Clone, Debug)]
pub struct Table {
    symbols: Vec<Symbol>,
    /// The symbol whose slot it is, and of it what the decoder needs: symbol << 32 | frequency << 16 | slot - first.
    /// Empty if it was not asked for.
    slots: Vec<u64>,
}

impl Table {
    /// The table of these frequencies, one for each symbol; they must sum to [`TOTAL`].
    pub fn new(frequencies: &[u16]) -> Result<Table> {
        let sum: u64 = frequencies.iter().map(|&f| u64::from(f)).sum();
        if sum != u64::from(TOTAL) {
            return Err(Error::decode(format!("frequencies sum to {sum}, not to {TOTAL}")));
        }
        if frequencies.len() > 1 << 16 {
            return Err(Error::decode(format!("{} symbols are more than 65536", frequencies.len())));
        }
        let mut symbols = Vec::with_capacity(frequencies.len());
        let mut first = 0;
        for &f in frequencies {
            let reciprocal = if f == 0 { 0 } else { (1_u64 << 63).div_ceil(u64::from(f)) };
            symbols.push(Symbol { reciprocal, frequency: u32::from(f), first });
            first += u32::from(f);
        }
        Ok(Table { symbols, slots: Vec::new() })
    }

    /// The same table, of which a decoder finds a symbol with one look: 128 KiB, worth their making from [`MANY`] symbols on.
    #[must_use]
    pub fn with_slots(mut self) -> Table {
        self.slots.reserve_exact(TOTAL as usize);
        for (symbol, &Symbol { frequency, .. }) in (0..).zip(&self.symbols) {
            let slot = |offset: u32| symbol << 32 | u64::from(frequency << 16 | offset);
            self.slots.extend((0..frequency).map(slot));
        }
        self
    }

    /// What [`Table::with_slots`] would look up, searched for.
    #[inline(always)]
    fn search(&self, slot: u32) -> u64 {
        // A symbol of frequency 0 begins where the next one does, so the last to begin at or before the slot has it.
        let symbol = self.symbols.partition_point(|symbol| symbol.first <= slot).saturating_sub(1);
        let Symbol { frequency, first, .. } = self.symbols.get(symbol).copied().unwrap_or_default();
        (symbol as u64) << 32 | u64::from(frequency << 16 | (slot - first))
    }
}

/// Appends the block of `symbols` to `out`. A symbol of frequency 0 is an error, and leaves `out` as it was.
pub fn encode(symbols: &[u16], table: &Table, out: &mut Vec<u8>) -> Result<()> {
    // A symbol makes at most one word. They are made from the last to the first, so they are put down from the end.
    let start = out.len();
    out.resize(start + STATES_LEN + 2 * symbols.len(), 0);
    let (states, words) = out[start..].split_at_mut(STATES_LEN);
    let (words, _) = words.as_chunks_mut::<2>();
    let mut left = words.len();
    let mut x = [LEAST; STATES];
    let mut coded = true;
    let mut put = |x: &mut u32, symbol: u16| {
        let Symbol { reciprocal, frequency, first } =
            table.symbols.get(usize::from(symbol)).copied().unwrap_or_default();
        coded &= frequency > 0;
        // The state must stay below 2^32 = 2^18 << 14 after the step: if it would not, its low 16 bits go out.
        let full = *x >> (32 - BITS) >= frequency;
        // Written in any case, and kept if `left` moves: a jump here could not be predicted.
        if let Some(word) = words.get_mut(left - 1) {
            *word = (*x as u16).to_le_bytes();
        }
        left -= usize::from(full);
        *x = if full { *x >> 16 } else { *x };
        // The reciprocal is too large by less than 2^-49 of it, x / f therefore by less than 1 / f: no quotient changes.
        let quotient = ((u128::from(u64::from(*x) << 1) * u128::from(reciprocal)) >> 64) as u32;
        // (x / f << 14) + x % f + first
        *x = x.wrapping_add(quotient.wrapping_mul(TOTAL - frequency)).wrapping_add(first);
    };
    let (fours, rest) = symbols.as_chunks::<STATES>();
    for (x, &symbol) in x.iter_mut().zip(rest).rev() {
        put(x, symbol);
    }
    for symbols in fours.iter().rev() {
        for (x, &symbol) in x.iter_mut().zip(symbols).rev() {
            put(x, symbol);
        }
    }
    for (place, x) in states.as_chunks_mut::<4>().0.iter_mut().zip(x) {
        *place = x.to_le_bytes();
    }
    if !coded {
        out.truncate(start);
        return Err(Error::argument("symbols", "one has the frequency 0; give frequencies that count all"));
    }
    out.drain(start + STATES_LEN..start + STATES_LEN + 2 * left);
    Ok(())
}

/// Decodes a block of `symbols.len()` symbols, which must be all of `bytes`.
pub fn decode(bytes: &[u8], table: &Table, symbols: &mut [u16]) -> Result<()> {
    match <&[u64; TOTAL as usize]>::try_from(table.slots.as_slice()) {
        Ok(slots) => decode_by(bytes, symbols, |slot| slots[slot as usize]),
        Err(_) => decode_by(bytes, symbols, |slot| table.search(slot)),
    }
}

/// Decodes with what finds a slot's symbol.
#[inline(always)]
fn decode_by(bytes: &[u8], symbols: &mut [u16], find: impl Fn(u32) -> u64) -> Result<()> {
    let damaged = || Error::decode("an entropy-coded block is damaged");
    let (states, words) = bytes.split_first_chunk::<STATES_LEN>().ok_or_else(damaged)?;
    let (words, odd) = words.as_chunks::<2>();
    let mut x = [0_u32; STATES];
    for (x, state) in x.iter_mut().zip(states.as_chunks::<4>().0) {
        *x = u32::from_le_bytes(*state);
    }
    if !odd.is_empty() || words.len() > symbols.len() || x.iter().any(|&x| x < LEAST) {
        return Err(damaged());
    }
    let mut next = 0;
    let mut take = |x: &mut u32| {
        let slot = find(*x % TOTAL);
        let (symbol, frequency, offset) = ((slot >> 32) as u16, (slot as u32) >> 16, slot as u32 & 0xffff);
        // From a state of 2^16 or more at least 4, and after one word again 2^16 or more; never 2^32 or more.
        let lower = frequency * (*x >> BITS) + offset;
        // Read in any case, as the encoder writes; past the end `next` shows it.
        let word = u32::from(u16::from_le_bytes(words.get(next).copied().unwrap_or_default()));
        let refill = lower < LEAST;
        *x = if refill { lower << 16 | word } else { lower };
        next += usize::from(refill);
        symbol
    };
    let (fours, rest) = symbols.as_chunks_mut::<STATES>();
    for symbols in fours {
        for (x, symbol) in x.iter_mut().zip(symbols) {
            *symbol = take(x);
        }
    }
    for (x, symbol) in x.iter_mut().zip(rest) {
        *symbol = take(x);
    }
    if next == words.len() && x == [LEAST; STATES] { Ok(()) } else { Err(damaged()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;
    use crate::stream::{Key, random_bits};

    /// The words of a key.
    fn words(seed: u64, n: usize) -> Vec<u32> {
        let mut words = vec![0; n];
        random_bits(Key::from_seed(seed), 0, &mut words).unwrap();
        words
    }

    /// Symbols drawn with these frequencies.
    fn drawn(frequencies: &[u16], seed: u64, n: usize) -> Vec<u16> {
        let slots: Vec<u16> =
            (0..).zip(frequencies).flat_map(|(symbol, &f)| std::iter::repeat_n(symbol, usize::from(f))).collect();
        words(seed, n).iter().map(|word| slots[(word % TOTAL) as usize]).collect()
    }

    fn counted(symbols: &[u16]) -> Vec<u16> {
        let mut counts = vec![0_u64; symbols.iter().max().map_or(0, |&most| usize::from(most) + 1)];
        for &symbol in symbols {
            counts[usize::from(symbol)] += 1;
        }
        normalize(&counts).unwrap()
    }

    fn encoded(symbols: &[u16], table: &Table) -> Vec<u8> {
        let mut out = vec![77];
        encode(symbols, table, &mut out).unwrap();
        assert_eq!(out.remove(0), 77, "what was there stays");
        out
    }

    fn decoded(bytes: &[u8], table: &Table, n: usize) -> Result<Vec<u16>> {
        let (mut symbols, mut again) = (vec![0; n], vec![0; n]);
        let result = decode(bytes, table, &mut symbols);
        assert_eq!(decode(bytes, &table.clone().with_slots(), &mut again), result, "searched and looked up");
        assert_eq!(symbols, again, "searched and looked up");
        result.map(|()| symbols)
    }

    /// The definition, with a division.
    fn plain(symbols: &[u16], frequencies: &[u16]) -> Vec<u8> {
        let mut states = [1_u64 << 16; 4];
        let mut words = Vec::new();
        for (i, &symbol) in symbols.iter().enumerate().rev() {
            let f = u64::from(frequencies[usize::from(symbol)]);
            let first: u64 = frequencies[..usize::from(symbol)].iter().map(|&f| u64::from(f)).sum();
            let x = &mut states[i % 4];
            if *x >= f << 18 {
                words.push(*x as u16);
                *x >>= 16;
            }
            *x = ((*x / f) << 14) + *x % f + first;
        }
        let states = states.iter().flat_map(|&x| (x as u32).to_le_bytes());
        states.chain(words.iter().rev().flat_map(|word| word.to_le_bytes())).collect()
    }

    /// Frequencies of every kind: even, steep, one symbol, almost one symbol, as many symbols as fit, with holes.
    fn distributions() -> Vec<Vec<u16>> {
        let steep: Vec<u64> = (0..40).map(|i| 1 << i).collect();
        vec![
            vec![TOTAL as u16],
            vec![0, 0, TOTAL as u16, 0],
            vec![1, TOTAL as u16 - 1],
            vec![TOTAL as u16 - 1, 1],
            vec![TOTAL as u16 / 2; 2],
            vec![5461, 0, 5461, 5462],
            vec![1; TOTAL as usize],
            [[0, 3], [1, 0]].concat().into_iter().cycle().take(4 * 4096).collect(),
            normalize(&steep).unwrap(),
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_bytes_are_the_definitions() {
        for frequencies in distributions() {
            let table = Table::new(&frequencies).unwrap();
            for n in [0, 1, 2, 3, 4, 5, 7, 8, 63, 1000, 4097] {
                let symbols = drawn(&frequencies, n as u64, n);
                let bytes = encoded(&symbols, &table);
                assert_eq!(bytes, plain(&symbols, &frequencies), "{} symbols, n = {n}", frequencies.len());
                assert_eq!(decoded(&bytes, &table, n).unwrap(), symbols, "{} symbols, n = {n}", frequencies.len());
            }
        }
    }

    #[test]
    fn the_rarest_symbol_again_and_again() {
        for frequencies in [vec![1, TOTAL as u16 - 1], vec![1; TOTAL as usize], vec![TOTAL as u16 - 1, 1]] {
            let table = Table::new(&frequencies).unwrap();
            for symbol in [0, frequencies.len() as u16 - 1] {
                let symbols = vec![symbol; 10_001];
                let bytes = encoded(&symbols, &table);
                assert_eq!(bytes, plain(&symbols, &frequencies), "symbol {symbol} of {}", frequencies.len());
                assert_eq!(decoded(&bytes, &table, symbols.len()).unwrap(), symbols);
            }
        }
    }

    #[test]
    fn these_bytes_for_ever() {
        let symbols = [1, 0, 0, 2, 1, 1, 0, 4, 0, 0, 1].repeat(5);
        assert_eq!(normalize(&[5, 4, 1, 0, 1]), Some(vec![7449, 5957, 1489, 0, 1489]));
        let table = Table::new(&[7449, 5957, 1489, 0, 1489]).unwrap();
        // Four states, four words.
        let (states, words) = ([0x0057_aca6, 0x0048_d6c4, 0x004b_d19c, 0x02cb_3628], [0xbbbf, 0xdc85, 0x8a56, 0x7870]);
        let mut want: Vec<u8> = states.iter().flat_map(|x: &u32| x.to_le_bytes()).collect();
        want.extend(words.iter().flat_map(|word: &u16| word.to_le_bytes()));
        assert_eq!(encoded(&symbols, &table), want);
    }

    #[test]
    fn the_length_is_the_entropy() {
        let frequencies = [1, 3, 700, 12_000, 3_000, 680];
        let (n, table) = (1 << 16, Table::new(&frequencies).unwrap());
        let symbols = drawn(&frequencies, 1, n);
        let cost = |&symbol: &u16| 14.0 - f64::from(frequencies[usize::from(symbol)]).log2();
        let ideal = symbols.iter().map(cost).sum::<f64>() / 8.0;
        let length = encoded(&symbols, &table).len() as f64;
        assert!((length - ideal).abs() < 16.0 + 1e-4 * ideal, "{length} bytes for {ideal:.1}");
    }

    #[test]
    fn every_truncation_and_every_extension_is_an_error() {
        let frequencies = [1, 3, 700, 12_000, 3_000, 680];
        let table = Table::new(&frequencies).unwrap();
        for n in [0, 1, 5, 300] {
            let bytes = encoded(&drawn(&frequencies, 2, n), &table);
            for length in 0..bytes.len() {
                assert!(decoded(&bytes[..length], &table, n).is_err(), "{length} of {} bytes passed", bytes.len());
            }
            for extra in [&[0][..], &[0, 0], &[1, 2, 3, 4]] {
                assert!(decoded(&[&bytes, extra].concat(), &table, n).is_err(), "{} more bytes passed", extra.len());
            }
            assert!(decoded(&bytes, &table, n + 1).is_err(), "more symbols than there are");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for frequencies in distributions() {
            let table = Table::new(&frequencies).unwrap();
            for seed in 0..50 {
                let bytes: Vec<u8> = words(seed, 100).iter().flat_map(|word| word.to_le_bytes()).collect();
                for (length, n) in [(16, 0), (16, 9), (17, 9), (100, 42), (400, 200), (400, 10_000)] {
                    assert!(decoded(&bytes[..length], &table, n).is_err(), "{length} random bytes are {n} symbols");
                }
            }
            for byte in [0, 1, 255] {
                assert!(decoded(&[byte; 400], &table, 200).is_err(), "bytes {byte} are 200 symbols");
            }
        }
    }

    #[test]
    fn symbols_without_a_frequency_are_refused() {
        let table = Table::new(&[TOTAL as u16 - 1, 0, 1]).unwrap();
        for symbol in [1, 3, u16::MAX] {
            for n in [1, 2, 40] {
                let mut out = vec![1, 2, 3];
                assert!(encode(&vec![symbol; n], &table, &mut out).is_err(), "symbol {symbol} passed");
                assert_eq!(out, [1, 2, 3], "an error leaves the output as it was");
            }
        }
    }

    #[test]
    fn frequencies_must_sum_to_the_total() {
        for frequencies in [&[][..], &[0], &[1], &[16383], &[16385], &[16384, 1], &[u16::MAX; 4096]] {
            assert!(Table::new(frequencies).is_err(), "{} frequencies passed", frequencies.len());
        }
        let mut many = vec![0; 1 << 16];
        many[65_535] = TOTAL as u16;
        assert!(Table::new(&many).is_ok(), "as many symbols as there are");
        many.push(0);
        assert!(Table::new(&many).is_err(), "one symbol too many");
    }

    #[test]
    fn counts_are_normalized_as_written() {
        assert_eq!(normalize(&[]), None);
        assert_eq!(normalize(&[0, 0]), None);
        assert_eq!(normalize(&vec![1; TOTAL as usize + 1]), None, "more symbols than slots");
        assert_eq!(normalize(&[0, 7, 0]), Some(vec![0, 16384, 0]));
        assert_eq!(normalize(&[1, 1, 1]), Some(vec![5462, 5461, 5461]), "what is missing goes to the first of equals");
        assert_eq!(normalize(&[u64::MAX, 1, u64::MAX]), Some(vec![8192, 1, 8191]));
        assert_eq!(normalize(&[1 << 40, 1, 1, 0, 1]), Some(vec![16381, 1, 1, 0, 1]));
        // 10000 ones and four that need 10000 - rounding: the four give in turn, down to equal heights.
        let mut counts = vec![1_u64; 10_000];
        counts.extend([1 << 50, 1 << 50, 1 << 51, 1 << 49]);
        assert_eq!(normalize(&counts).unwrap()[9_998..], [1, 1, 1596, 1596, 1596, 1596]);
    }

    #[test]
    fn normalized_counts_make_a_table() {
        for seed in 0..100 {
            let counts: Vec<u64> =
                words(seed, 1 + 3 * seed as usize).iter().map(|&word| u64::from(word) >> (word % 33)).collect();
            let Some(frequencies) = normalize(&counts) else { continue };
            assert!(Table::new(&frequencies).is_ok(), "seed {seed}");
            let fits = |(&count, &f): (&u64, &u16)| (count > 0) == (f > 0);
            assert!(counts.iter().zip(&frequencies).all(fits), "a symbol has a frequency iff it occurs, seed {seed}");
            let symbols = drawn(&frequencies, seed, 100);
            assert_eq!(counted(&symbols).len(), usize::from(*symbols.iter().max().unwrap()) + 1);
        }
    }
}
