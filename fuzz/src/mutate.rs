//! Mutations: of bytes anywhere, and of a container's parts with lengths, checksums and key made right again.

use lowbit::stream::{GOLDEN, mix};

use crate::wire::{Parts, reseal};

/// A random generator: SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Integers at which something may give way: sizes, counts, tables' totals, the ends of types.
const INTEGERS: [u64; 40] = [
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    15,
    16,
    17,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    256,
    1023,
    1024,
    1279,
    1280,
    4096,
    8191,
    8192,
    0x3fff,
    0x4000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x10_0000,
    0x10_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 60,
    1 << 63,
    u64::MAX,
];

/// Numbers that scales, steps and bounds may be.
const FLOATS: [f32; 22] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.05,
    0.5,
    3.1,
    8.0,
    8.000_001,
    64.0,
    0.001,
    1e-45,
    -1e-45,
    f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    8.507_059e37,
    1.0e20,
    1.0e-20,
];

/// Changes bytes in one place.
fn bytes(random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    if data.is_empty() {
        data.extend(random.next().to_le_bytes());
        return;
    }
    let place = random.below(data.len());
    let put = |data: &mut Vec<u8>, place: usize, word: &[u8]| {
        let end = (place + word.len()).min(data.len());
        data[place..end].copy_from_slice(&word[..end - place]);
    };
    match random.below(13) {
        0 | 1 => data[place] ^= 1 << random.below(8),
        2 => data[place] = random.next() as u8,
        3 => data[place] = data[place].wrapping_add(*random.pick(&[1, 255, 16, 240])),
        4 => {
            let (size, integer) = (*random.pick(&[1, 2, 4, 8]), random.pick(&INTEGERS).to_le_bytes());
            let place = if random.once_in(2) { place / size * size } else { place };
            put(data, place, &integer[..size]);
        }
        5 => {
            let place = if random.once_in(4) { place } else { place / 4 * 4 };
            let value = *random.pick(&FLOATS);
            if random.once_in(8) {
                put(data, place, &f64::from(value).to_le_bytes());
            } else {
                put(data, place, &value.to_le_bytes());
            }
        }
        6 => data.truncate(place),
        7 => {
            // A number in place, a little more or less.
            let size = *random.pick(&[2, 4, 8]);
            let mut word = [0; 8];
            let end = (place + size).min(data.len());
            word[..end - place].copy_from_slice(&data[place..end]);
            let more = random.pick(&[1, 2, 16, 128, u64::MAX, u64::MAX - 1, u64::MAX - 15]);
            let word = u64::from_le_bytes(word).wrapping_add(*more).to_le_bytes();
            put(data, place, &word[..size]);
        }
        8 => {
            let end = place + random.below(data.len() - place + 1).min(40);
            let part: Vec<u8> = data[place..end].to_vec();
            let to = random.below(data.len() + 1);
            data.splice(to..to, part);
        }
        9 => {
            let end = place + random.below(data.len() - place + 1).min(40);
            data.drain(place..end);
        }
        10 => {
            let end = place + random.below(data.len() - place + 1).min(40);
            let value = *random.pick(&[0, 0xff, 0x7f, 0x80]);
            data[place..end].fill(value);
        }
        _ => {
            // A part of another message: instead of as much, or all that follows.
            if !other.is_empty() {
                let from = random.below(other.len());
                let to = from + random.below(other.len() - from + 1);
                if random.once_in(2) {
                    put(data, place, &other[from..to]);
                } else {
                    data.truncate(place);
                    data.extend(&other[from..]);
                }
            }
        }
    }
}

/// Changes a shape.
fn shape(random: &mut Random, shape: &mut Vec<u64>) {
    let dimension = *random.pick(&INTEGERS);
    match random.below(5) {
        0 => {
            let place = random.below(shape.len() + 1);
            shape.insert(place, dimension);
        }
        1 => {
            shape.pop();
        }
        2 => shape.resize(*random.pick(&[0, 1, 2, 32, 63, 64, 65]), *random.pick(&[0, 1, 1, 2])),
        _ => match shape.len() {
            0 => shape.push(dimension),
            dims => {
                let place = random.below(dims);
                shape[place] = if random.once_in(2) { dimension } else { shape[place].wrapping_add(dimension) };
            }
        },
    }
}

/// A mutation of a message, into which parts of another may go.
pub fn mutate(random: &mut Random, data: &[u8], other: &[u8]) -> Vec<u8> {
    let (Some(mut parts), false) = (Parts::new(data), random.once_in(10)) else {
        let mut data = data.to_vec();
        for _ in 0..=random.below(3) {
            bytes(random, &mut data, other);
        }
        if !random.once_in(4) {
            reseal(&mut data);
        }
        return data;
    };
    let theirs = Parts::new(other);
    let mut fits = true;
    for _ in 0..=random.below(4) {
        let theirs = theirs.as_ref();
        match random.below(16) {
            0 => bytes(random, &mut parts.fixed, &[]),
            1 => {
                parts.fixed.resize(48, 0);
                parts.fixed[*random.pick(&[10, 11, 12])] = random.below(14) as u8;
            }
            2 | 3 => (shape(random, &mut parts.shape), fits = false).0,
            4..=7 => {
                bytes(random, &mut parts.parameters, theirs.map_or(&[], |parts| &parts.parameters));
                fits = false;
            }
            8 => {
                if let Some(theirs) = theirs {
                    parts.fixed.clone_from(&theirs.fixed);
                    parts.parameters.clone_from(&theirs.parameters);
                    fits = false;
                }
            }
            9 => {
                if let Some(theirs) = theirs {
                    parts.payload.clone_from(&theirs.payload);
                }
            }
            _ => bytes(random, &mut parts.payload, theirs.map_or(&[], |parts| &parts.payload)),
        }
    }
    if !random.once_in(10) {
        parts.agree();
    }
    if !fits && random.once_in(2) {
        parts.fit();
    }
    let mut data = parts.join();
    if random.once_in(50) {
        bytes(random, &mut data, other);
    }
    data
}
