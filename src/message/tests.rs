//! Damage of every kind to small messages of every codec: an error or numbers, never a panic. `fuzz/` does the same at random.

use super::codec::Codec;
use super::envelope::{DTYPES, Data, Dtype, Entry, Message, Sum, Target, encode, mean_of};
use super::sum::{Mean, Round};
use super::*;
use crate::error::{Error, Result};
use crate::stream::{Key, random_bits};
use crate::view::View;

const MAX_ELEMENTS: usize = 1 << 12;

const KEY: Key = Key { k0: 1, k1: 2 };

/// A codec of every kind, by number and parameters.
fn codecs() -> Vec<Codec> {
    let eden = |bits: f64, coded: bool| {
        let step = if coded { entropy_step(bits) } else { 0.0 };
        [&bits.to_le_bytes()[..], &[0, 2, u8::from(coded)], &step.to_le_bytes()].concat()
    };
    let interval = |front: [u8; 2]| [&front[..], &(-1.0_f32).to_le_bytes(), &1.0_f32.to_le_bytes()].concat();
    let packed = |name: &str| [&[0, 5, 0, 0, 0][..], name.as_bytes()].concat();
    let parameters = [
        (1, vec![]),
        (2, packed("int4")),
        (3, [&[3, 0][..], &[0; 8]].concat()),
        (3, interval([3, 1])),
        (4, interval([2, 255])),
        (5, vec![0]),
        (6, vec![]),
        (7, vec![9, 0]),
        (8, eden(1.0, false)),
        (8, eden(1.5, false)),
        (8, eden(1.0, true)),
        (9, vec![2]),
        (10, vec![1, 1]),
        (11, vec![2, 1]),
    ];
    parameters.into_iter().map(|(id, parameters)| Codec::new(id, &parameters).unwrap()).collect()
}

fn numbers(n: usize) -> Vec<f32> {
    let mut words = vec![0; n];
    random_bits(KEY, 0, &mut words).unwrap();
    words.iter().map(|word| *word as i32 as f32 / 2_147_483_648.0).collect()
}

fn noise(sender: u64) -> Noise {
    Noise { key: Some(KEY), sender }
}

fn single(codec: &Codec, n: usize) -> Vec<u8> {
    single_from(codec, n, 5)
}

fn single_from(codec: &Codec, n: usize, sender: u64) -> Vec<u8> {
    let entry = Entry { name: String::new(), shape: vec![n], dtype: DTYPES[2], exact: false };
    encode(codec, &[(entry, Data::Coded(View::from_slice(&numbers(n))))], false, noise(sender)).unwrap()
}

fn mapping(codec: &Codec, n: usize, dtype: &str, exact: &[u8]) -> Vec<u8> {
    let dtype = Dtype::named(dtype).unwrap();
    let entry = |name: &str, shape, dtype, exact| Entry { name: name.into(), shape, dtype, exact };
    let x = numbers(n);
    let arrays = [
        (entry("x", vec![n], DTYPES[0], false), Data::Coded(View::from_slice(&x))),
        (entry("y", vec![exact.len() / dtype.size], dtype, true), Data::Exact(exact)),
    ];
    encode(codec, &arrays, true, noise(5)).unwrap()
}

fn messages() -> Vec<Vec<u8>> {
    codecs().iter().flat_map(|codec| [single(codec, 3), mapping(codec, 2, "int16", &[1, 2, 3, 4])]).collect()
}

/// The numbers of a message's coded arrays.
fn decode(data: &[u8]) -> Result<Vec<Vec<f32>>> {
    let message = Message::read(data, MAX_ELEMENTS)?;
    let arrays = message.open(Some(KEY))?;
    let coded = message.entries.iter().zip(&arrays).filter(|(entry, _)| !entry.exact);
    coded
        .map(|(entry, array)| {
            let mut out = vec![0.0; entry.shape.iter().product()];
            array.decode(&mut out).map(|()| out)
        })
        .collect()
}

fn header_length(data: &[u8]) -> usize {
    u32::from_le_bytes([data[56], data[57], data[58], data[59]]) as usize
}

/// Makes both checksums right.
fn seal(data: &mut [u8]) {
    if let Some((header, payload)) = data.split_at_mut_checked(header_length(data)) {
        for part in [header, payload] {
            if let Some((body, crc)) = part.split_last_chunk_mut::<4>() {
                *crc = crc32c::crc32c(body).to_le_bytes();
            }
        }
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    for data in messages() {
        assert!(decode(&data).is_ok(), "the message itself is sound");
        for length in 0..data.len() {
            assert!(
                matches!(decode(&data[..length]), Err(Error::Decode(_))),
                "{length} of {} bytes passed",
                data.len()
            );
        }
        for bit in 0..8 * data.len() {
            let mut damaged = data.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&damaged), Err(Error::Decode(_))), "flipped bit {bit} passed");
        }
    }
}

#[test]
fn every_changed_byte_of_a_forger_gives_numbers_or_a_decode_error() {
    for data in messages() {
        let sound = decode(&data).unwrap();
        let header = header_length(&data);
        let (mut passed, mut refused) = (0, 0);
        for place in 0..data.len() {
            for change in 1..=255 {
                // All values of kind, codec, flags, lengths, shape and parameters; elsewhere those one bit, or all, away.
                let all = (8..16).contains(&place) || (48..header).contains(&place);
                if !all && change != 255 && !u8::is_power_of_two(change) {
                    continue;
                }
                let mut forged = data.clone();
                forged[place] ^= change;
                seal(&mut forged);
                let result = decode(&forged);
                if Message::read(&forged, MAX_ELEMENTS).is_ok() {
                    // A sum refuses what decoding refuses, before it adds.
                    let added = Mean::new(Some(KEY), MAX_ELEMENTS).add(&forged, 1.0);
                    assert_eq!(added.is_ok(), result.is_ok(), "byte {place} changed by {change}");
                }
                match result {
                    Ok(_) => passed += 1,
                    Err(Error::Decode(_)) => refused += 1,
                    Err(other) => panic!("byte {place} changed by {change}: {other}"),
                }
            }
        }
        assert!(
            passed > 0 && refused > 0,
            "{passed} passed, {refused} refused: the checks behind the checksums are reached"
        );
        assert_eq!(decode(&data).unwrap(), sound, "nothing stays behind");
    }
}

#[test]
fn absurd_shapes_are_refused_before_anything_is_allocated() {
    let shapes: [&[u64]; 9] = [
        &[1 << 60],
        &[1 << 32, 1 << 32],
        &[u64::MAX],
        &[1 << 63, 2],
        &[0, 1 << 62, 4],
        &[1 << 31; 64],
        &[2; 64],
        &[MAX_ELEMENTS as u64 + 1],
        &[1; 65],
    ];
    for codec in codecs() {
        let data = single(&codec, 3);
        for shape in shapes {
            let mut forged = data[..48].to_vec();
            let product = shape.iter().fold(1_u64, |product, length| product.wrapping_mul(*length));
            forged[16..24].copy_from_slice(&product.to_le_bytes());
            let parameters = data[72..72 + data[52] as usize].to_vec();
            let used = 64 + 8 * shape.len() + parameters.len();
            let length = (used + 4).next_multiple_of(16);
            for word in [shape.len(), parameters.len(), length, 0] {
                forged.extend((word as u32).to_le_bytes());
            }
            forged.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
            forged.extend(parameters);
            forged.resize(length, 0);
            forged.extend(&data[header_length(&data)..]);
            seal(&mut forged);
            assert!(matches!(decode(&forged), Err(Error::Decode(_))), "{shape:?} passed, codec {}", codec.id);
        }
    }
}

#[test]
fn a_bool_is_zero_or_one() {
    let data = mapping(&codecs()[0], 2, "bool", &[0, 1, 1]);
    assert!(decode(&data).is_ok());
    let mut forged = data.clone();
    let place = forged.len() - 16;
    assert_eq!(forged[place..place + 3], [0, 1, 1], "where the bools are");
    forged[place + 1] = 2;
    seal(&mut forged);
    assert!(matches!(decode(&forged), Err(Error::Decode(_))), "a bool of 2 passed");
}

#[test]
fn a_sum_holds_no_padding_that_only_decoding_needs() {
    for codec in codecs() {
        let data = single(&codec, 3);
        let message = Message::read(&data, MAX_ELEMENTS).unwrap();
        for array in message.open(Some(KEY)).unwrap() {
            let Sum::Coded(sum) = array.no_sum() else { panic!("the array is coded") };
            // QUIC-FL and Summable undo one rotation of 128 numbers for all senders.
            assert_eq!(sum.numbers(), if matches!(codec.id, 10 | 11) { 128 } else { 3 }, "codec {}", codec.id);
        }
    }
}

#[test]
fn the_mean_of_one_message_is_that_message() {
    for codec in codecs() {
        for n in [1, 3, 128, 200, 1000] {
            let data = single(&codec, n);
            let mut mean = Mean::new(Some(KEY), MAX_ELEMENTS);
            mean.add(&data, 1.0).unwrap();
            let mut out = vec![0.0; n];
            mean.result(|_, _, write| write(0, Target::Coded(&mut out))).unwrap().unwrap();
            assert_eq!(vec![out], decode(&data).unwrap(), "codec {}, {n} numbers", codec.id);
        }
    }
}

#[test]
fn a_mean_is_the_same_at_once_and_one_by_one() {
    let weights = [1.0, 0.5, 3.0];
    for codec in codecs() {
        for n in [1, 3, 200, 1000] {
            let messages: Vec<Vec<u8>> = (0..3).map(|sender| single_from(&codec, n, sender)).collect();
            let mut mean = Mean::new(Some(KEY), MAX_ELEMENTS);
            for (message, weight) in messages.iter().zip(weights) {
                mean.add(message, weight).unwrap();
            }
            let (mut one_by_one, mut at_once) = (vec![0.0; n], vec![1.0; n]);
            mean.result(|_, _, write| write(0, Target::Coded(&mut one_by_one))).unwrap().unwrap();
            let data: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let round = Round::read(&data, Some(&weights), MAX_ELEMENTS).unwrap();
            mean_of(&round.open(Some(KEY)).unwrap(), 0, Target::Coded(&mut at_once)).unwrap();
            assert_eq!(one_by_one, at_once, "codec {}, {n} numbers", codec.id);
        }
    }
}

#[test]
fn codes_that_no_encoder_writes_are_refused() {
    // A codec's place among the above, how many numbers, the byte of the payload, the bits kept and those added.
    let cases = [
        (2, 5, 9, 0x7f, 0x80), // dither, 15 bits
        (3, 5, 2, 0x7f, 0x80), // the same with given ends
        (4, 3, 1, 0x07, 0x08), // three bits
        (5, 3, 4, 0x07, 0x08),
        (6, 3, 4, 0x00, 27),   // a fourth trit
        (6, 5, 4, 0x00, 243),  // no five trits
        (6, 9, 5, 0x00, 81),   // a tenth trit
        (7, 3, 4, 0xe0, 19),   // 19 of 0 to 18
        (7, 3, 5, 0x7f, 0x80), // a bit beyond 15
        (8, 3, 4, 0x00, 0xff), // any code of one bit is fine
    ];
    for (codec, n, place, keep, put) in cases {
        let mut data = single(&codecs()[codec], n);
        assert!(decode(&data).is_ok());
        let place = header_length(&data) + place;
        data[place] = data[place] & keep | put;
        seal(&mut data);
        assert_eq!(decode(&data).is_err(), codec != 8, "codec {codec}, {n} numbers, {put:#x}");
    }
    let eden = [&1.1_f64.to_le_bytes()[..], &[0, 2, 0], &[0; 4]].concat();
    for (place, put) in [(7, 0x04), (22, 0x08)] {
        // 13 numbers of 2 bits, then 115 of 1.
        let mut data = single(&Codec::new(8, &eden).unwrap(), 100);
        let place = header_length(&data) + place;
        data[place] |= put;
        seal(&mut data);
        assert!(decode(&data).is_err(), "unused bits of a block's codes passed");
    }
}
