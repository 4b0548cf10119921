//! Steps of optimizers in one pass over memory: weights in bfloat16, arithmetic in float32, rounded as they are written.
//!
//! New numbers are a function of old ones, constants and random words, in plain additions, multiplications, divisions and
//! square roots in the order written here (`docs/torch-optim.md` states it, a NumPy twin in the tests repeats it).

use std::ops::Range;

use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::parallel::{self, Shared};
use crate::stream::{Key, Purpose, Stream};

/// Numbers of one parallel piece of work; even, so that pieces begin with a pair of words.
const CHUNK: usize = 1 << 14;
/// Numbers whose random words are drawn at a time.
const TILE: usize = 256;

/// What a rule keeps of every number: as many arrays as the rule has states.
pub enum States<'a> {
    /// float32.
    Float(Vec<&'a mut [f32]>),
    /// bfloat16.
    Brain(Vec<&'a mut [u16]>),
}

/// The numbers of a gradient.
pub enum Gradient<'a> {
    /// float32.
    Float(&'a [f32]),
    /// bfloat16: the upper halves of float32 numbers.
    Brain(&'a [u16]),
}

/// What happens to a tensor.
pub struct Tensor<'a> {
    /// bfloat16.
    pub weight: &'a mut [u16],
    /// dL/dw.
    pub gradient: Gradient<'a>,
    /// What is kept from step to step.
    pub states: States<'a>,
    /// Which words the weight's numbers are rounded with, then each state's.
    pub keys: Vec<Key>,
}

/// Stochastic gradient descent. `g = sign g + weight_decay w`; with momentum `b = momentum b + share g`, and `b` or (Nesterov)
/// `g + momentum b` in place of g; `w = w - lr g`.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// The learning rate.
    pub lr: f32,
    /// -1 to go up, else 1.
    pub sign: f32,
    /// Times the weight, added to the gradient.
    pub weight_decay: f32,
    /// What is kept of the buffer.
    pub momentum: f32,
    /// What is added of the gradient: 1 - dampening, or 1 at first.
    pub share: f32,
    /// Whether to look ahead.
    pub nesterov: bool,
}

/// Adam and AdamW. `g = sign g + weight_decay w`; `m = m + share1 (g - m)`; `v = beta2 v + share2 (g g)`;
/// `w = keep w - size (m / (sqrt(v) root + eps))`.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// -1 to go up, else 1.
    pub sign: f32,
    /// Times the weight, added to the gradient (AdamW: 0).
    pub weight_decay: f32,
    /// Times the weight (AdamW: 1 - lr weight_decay; Adam: 1).
    pub keep: f32,
    /// 1 - beta1.
    pub share1: f32,
    /// What is kept of the second moment.
    pub beta2: f32,
    /// 1 - beta2.
    pub share2: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub root: f32,
    /// lr / (1 - beta1^t).
    pub size: f32,
    /// Added to the root.
    pub eps: f32,
}

/// What a step computes.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// With a state (the buffer) or without.
    Sgd(Sgd),
    /// With two states.
    Adam(Adam),
}

/// A number as it is stored.
trait Stored: Copy {
    /// Whether it is rounded when written.
    const ROUNDED: bool;
    fn wide(self) -> f32;
    fn narrow<const NEAREST: bool>(x: f32, word: u32) -> Self;
}

impl Stored for f32 {
    const ROUNDED: bool = false;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow<const NEAREST: bool>(x: f32, _: u32) -> Self {
        x
    }
}

impl Stored for u16 {
    const ROUNDED: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    /// What the format `bfloat16` rounds to with this word.
    #[inline(always)]
    fn narrow<const NEAREST: bool>(x: f32, word: u32) -> Self {
        const LARGEST: f32 = f32::from_bits(0x7f7f_0000);
        const NAN: u32 = 0x7fc0_0000;
        // NaN passes both comparisons.
        let x = if LARGEST < x { LARGEST } else { x };
        let x = if -LARGEST > x { -LARGEST } else { x };
        let bits = x.to_bits();
        // Up iff word < dropped bits, over 2^16 both; so "away from zero" reads the word inverted above zero, and the
        // sum carries into the kept bits exactly then.
        let added = if NEAREST { 0x7fff + (bits >> 16 & 1) } else { (word ^ !((bits as i32 >> 31) as u32)) >> 16 };
        let is_nan = u32::from(x.is_nan()).wrapping_neg();
        ((bits.wrapping_add(added) & !is_nan | NAN & is_nan) >> 16) as u16
    }
}

/// Random words of a tile, for each of the arrays that a rule writes.
struct Words<const ARRAYS: usize> {
    streams: [Stream; ARRAYS],
    words: [[u32; TILE]; ARRAYS],
}

impl<const ARRAYS: usize> Words<ARRAYS> {
    fn new(streams: [Stream; ARRAYS]) -> Self {
        Words { streams, words: [[0; TILE]; ARRAYS] }
    }

    /// Those of elements `first..first + n`: the weight's, and the states' where these are rounded.
    #[inline(always)]
    fn draw<S: Stored, const NEAREST: bool>(&mut self, first: usize, n: usize) {
        let arrays = if NEAREST {
            0
        } else if S::ROUNDED {
            ARRAYS
        } else {
            1
        };
        for (stream, words) in self.streams.iter().zip(&mut self.words).take(arrays) {
            stream.fill(first as u64, &mut words[..n]);
        }
    }
}

/// A rule with so many states.
trait Update<const STATES: usize>: Copy + Sync {
    /// Steps one run of elements, the first of which is number `first` of its tensor.
    fn pass<G: Stored, S: Stored, const NEAREST: bool>(
        self,
        first: usize,
        weight: &mut [u16],
        gradient: &[G],
        states: [&mut [S]; STATES],
        streams: &[Stream],
    );
}

impl Update<0> for Sgd {
    #[inline(always)]
    fn pass<G: Stored, S: Stored, const NEAREST: bool>(
        self,
        first: usize,
        weight: &mut [u16],
        gradient: &[G],
        _: [&mut [S]; 0],
        streams: &[Stream],
    ) {
        let mut drawn = Words::new([streams[0]]);
        for (tile, (w, g)) in weight.chunks_mut(TILE).zip(gradient.chunks(TILE)).enumerate() {
            drawn.draw::<S, NEAREST>(first + tile * TILE, w.len());
            for ((w, g), word) in w.iter_mut().zip(g).zip(&drawn.words[0]) {
                let x = w.wide();
                let g = self.sign * g.wide() + self.weight_decay * x;
                *w = u16::narrow::<NEAREST>(x - self.lr * g, *word);
            }
        }
    }
}

impl Update<1> for Sgd {
    #[inline(always)]
    fn pass<G: Stored, S: Stored, const NEAREST: bool>(
        self,
        first: usize,
        weight: &mut [u16],
        gradient: &[G],
        [buffer]: [&mut [S]; 1],
        streams: &[Stream],
    ) {
        let mut drawn = Words::new([streams[0], streams[1]]);
        let tiles = weight.chunks_mut(TILE).zip(gradient.chunks(TILE)).zip(buffer.chunks_mut(TILE));
        for (tile, ((w, g), b)) in tiles.enumerate() {
            drawn.draw::<S, NEAREST>(first + tile * TILE, w.len());
            let words = drawn.words[0].iter().zip(&drawn.words[1]);
            for (((w, g), b), (word, word_b)) in w.iter_mut().zip(g).zip(b).zip(words) {
                let x = w.wide();
                let g = self.sign * g.wide() + self.weight_decay * x;
                let new = self.momentum * b.wide() + self.share * g;
                let ahead = g + self.momentum * new;
                *w = u16::narrow::<NEAREST>(x - self.lr * if self.nesterov { ahead } else { new }, *word);
                *b = S::narrow::<NEAREST>(new, *word_b);
            }
        }
    }
}

impl Update<2> for Adam {
    #[inline(always)]
    fn pass<G: Stored, S: Stored, const NEAREST: bool>(
        self,
        first: usize,
        weight: &mut [u16],
        gradient: &[G],
        [mean, square]: [&mut [S]; 2],
        streams: &[Stream],
    ) {
        let mut drawn = Words::new([streams[0], streams[1], streams[2]]);
        let tiles = weight.chunks_mut(TILE).zip(gradient.chunks(TILE));
        let moments = mean.chunks_mut(TILE).zip(square.chunks_mut(TILE));
        for (tile, ((w, g), (m, v))) in tiles.zip(moments).enumerate() {
            drawn.draw::<S, NEAREST>(first + tile * TILE, w.len());
            let [words, words_m, words_v] = &drawn.words;
            let words = words.iter().zip(words_m.iter().zip(words_v));
            for (((w, g), (m, v)), (word, (word_m, word_v))) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)).zip(words)
            {
                let (x, old, square) = (w.wide(), m.wide(), v.wide());
                let g = self.sign * g.wide() + self.weight_decay * x;
                let mean = old + self.share1 * (g - old);
                let square = self.beta2 * square + self.share2 * (g * g);
                let new = self.keep * x - self.size * (mean / (square.sqrt() * self.root + self.eps));
                *w = u16::narrow::<NEAREST>(new, *word);
                (*m, *v) = (S::narrow::<NEAREST>(mean, *word_m), S::narrow::<NEAREST>(square, *word_v));
            }
        }
    }
}

/// One tensor's memory, of which threads step different pieces.
struct Job<'a> {
    weight: Shared<u16>,
    gradient: Gradient<'a>,
    states: Memory,
    streams: Vec<Stream>,
    /// The number of its first piece.
    first: usize,
}

enum Memory {
    Float(Vec<Shared<f32>>),
    Brain(Vec<Shared<u16>>),
}

impl<'a> Job<'a> {
    fn new(tensor: Tensor<'a>, states: usize, first: usize) -> Result<Self> {
        let n = tensor.weight.len();
        let (lengths, memory): (Vec<usize>, Memory) = match tensor.states {
            States::Float(s) => {
                (s.iter().map(|s| s.len()).collect(), Memory::Float(s.into_iter().map(Shared::new).collect()))
            }
            States::Brain(s) => {
                (s.iter().map(|s| s.len()).collect(), Memory::Brain(s.into_iter().map(Shared::new).collect()))
            }
        };
        let gradient = match &tensor.gradient {
            Gradient::Float(g) => g.len(),
            Gradient::Brain(g) => g.len(),
        };
        if lengths.len() != states || tensor.keys.len() != states + 1 {
            let (found, keys) = (lengths.len(), tensor.keys.len());
            return Err(Error::argument(
                "tensors",
                format!("{found} states and {keys} keys where the rule has {states} states"),
            ));
        }
        if gradient != n || lengths.iter().any(|length| *length != n) {
            return Err(Error::argument(
                "tensors",
                format!("a gradient of {gradient} and states of {lengths:?} numbers beside {n}"),
            ));
        }
        let streams = tensor.keys.iter().map(|key| key.purpose(Purpose::Rounding).stream()).collect();
        Ok(Job { weight: Shared::new(tensor.weight), gradient: tensor.gradient, states: memory, streams, first })
    }

    /// Steps the elements `range`.
    ///
    /// # Safety
    /// No two live calls have overlapping ranges.
    unsafe fn step<U: Update<N>, const N: usize>(&self, rule: U, nearest: bool, range: Range<usize>) {
        match &self.gradient {
            // SAFETY: by the caller's promise.
            Gradient::Float(g) => unsafe { self.step_by(rule, nearest, &g[range.clone()], range) },
            // SAFETY: by the caller's promise.
            Gradient::Brain(g) => unsafe { self.step_by(rule, nearest, &g[range.clone()], range) },
        }
    }

    /// # Safety
    /// As for [`Job::step`].
    unsafe fn step_by<U: Update<N>, G: Stored, const N: usize>(
        &self,
        rule: U,
        nearest: bool,
        gradient: &[G],
        range: Range<usize>,
    ) {
        // SAFETY: by the caller's promise.
        let weight = unsafe { self.weight.part(range.clone()) };
        match &self.states {
            Memory::Float(states) => {
                // SAFETY: by the caller's promise.
                let states = std::array::from_fn(|k| unsafe { states[k].part(range.clone()) });
                run(rule, nearest, range.start, weight, gradient, states, &self.streams);
            }
            Memory::Brain(states) => {
                // SAFETY: by the caller's promise.
                let states = std::array::from_fn(|k| unsafe { states[k].part(range.clone()) });
                run(rule, nearest, range.start, weight, gradient, states, &self.streams);
            }
        }
    }
}

/// [`pass`] at the level in force.
fn run<U: Update<N>, G: Stored, S: Stored, const N: usize>(
    rule: U,
    nearest: bool,
    first: usize,
    weight: &mut [u16],
    gradient: &[G],
    states: [&mut [S]; N],
    streams: &[Stream],
) {
    let level = Level::current();
    if nearest {
        level.run(
            #[inline(always)]
            || rule.pass::<G, S, true>(first, weight, gradient, states, streams),
        );
    } else {
        level.run(
            #[inline(always)]
            || rule.pass::<G, S, false>(first, weight, gradient, states, streams),
        );
    }
}

fn step_all<U: Update<N>, const N: usize>(rule: U, tensors: Vec<Tensor<'_>>, nearest: bool) -> Result<()> {
    let mut pieces = 0;
    let mut jobs = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let n = tensor.weight.len();
        jobs.push(Job::new(tensor, N, pieces)?);
        pieces += n.div_ceil(CHUNK);
    }
    parallel::for_each(pieces, |piece| {
        let job = &jobs[jobs.partition_point(|job| job.first <= piece) - 1];
        let start = (piece - job.first) * CHUNK;
        let range = start..job.weight.len().min(start + CHUNK);
        // SAFETY: every piece is another part of one tensor, and the tensors are borrowed until `for_each` returns.
        unsafe { job.step(rule, nearest, range) };
    });
    Ok(())
}

/// Steps all tensors, writing what the rule keeps; weights, and states in bfloat16, are rounded to nearest or with random
/// words of their keys.
pub fn step(rule: Rule, tensors: Vec<Tensor<'_>>, nearest: bool) -> Result<()> {
    let buffers = tensors.iter().map(|tensor| match &tensor.states {
        States::Float(s) => s.len(),
        States::Brain(s) => s.len(),
    });
    let without = buffers.max() == Some(0);
    match rule {
        Rule::Sgd(sgd) if without => step_all::<_, 0>(sgd, tensors, nearest),
        Rule::Sgd(sgd) => step_all::<_, 1>(sgd, tensors, nearest),
        Rule::Adam(adam) => step_all::<_, 2>(adam, tensors, nearest),
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::formats::{Codes, Format, Visit};

    /// bfloat16 as the formats have it.
    struct Rounded(f32, Option<u32>);

    impl Visit for Rounded {
        type Out = f32;
        fn visit<G: Codes>(self, grid: G) -> f32 {
            self.1.map_or_else(|| grid.nearest(self.0), |word| grid.stochastic(self.0, word))
        }
    }

    #[test]
    fn bfloat16_is_the_format() {
        let Ok(format) = Format::named("bfloat16") else { panic!("it is registered") };
        let stream = Key::from_seed(3).stream();
        for i in 0..200_000_u64 {
            // All exponents; dropped bits of every size; words near and far from them.
            let bits = stream.word(2 * i) & if i % 3 == 0 { 0xffff_00ff } else { u32::MAX };
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert_eq!(u16::narrow::<false>(x, 7), 0x7fc0, "NaN {bits:#x}");
                continue;
            }
            let word =
                if i % 2 == 0 { stream.word(2 * i + 1) } else { (bits << 16).wrapping_add(i as u32 % 7) ^ bits >> 31 };
            let want = format.grid.visit(Rounded(x, Some(word)));
            assert_eq!(u16::narrow::<false>(x, word).wide().to_bits(), want.to_bits(), "{bits:#x} with {word:#x}");
            let want = format.grid.visit(Rounded(x, None));
            assert_eq!(u16::narrow::<true>(x, word).wide().to_bits(), want.to_bits(), "{bits:#x} to nearest");
        }
    }

    const ADAM: Adam = Adam {
        sign: 1.0,
        weight_decay: 0.0,
        keep: 0.999,
        share1: 0.1,
        beta2: 0.999,
        share2: 0.001,
        root: 1.5,
        size: 0.01,
        eps: 1e-8,
    };

    fn stepped(level: Level, threads: usize, n: usize) -> (Vec<u16>, Vec<f32>, Vec<f32>) {
        level.set();
        assert!(parallel::set_num_threads(threads).is_ok(), "{threads} threads");
        let stream = Key::from_seed(5).stream();
        let number = |i: usize| f32::from_bits(0x3f00_0000 | stream.word(i as u64) >> 9) - 0.6;
        let mut w: Vec<u16> = (0..n).map(|i| (number(i).to_bits() >> 16) as u16).collect();
        let g: Vec<f32> = (0..n).map(|i| number(n + i)).collect();
        let (mut m, mut v) = (vec![0.0_f32; n], vec![0.0_f32; n]);
        for step in 0..3 {
            let tensor = Tensor {
                weight: &mut w,
                gradient: Gradient::Float(&g),
                states: States::Float(vec![&mut m, &mut v]),
                keys: (0..3).map(|i| Key::from_seed(step).fold(i)).collect(),
            };
            assert_eq!(super::step(Rule::Adam(ADAM), vec![tensor], false), Ok(()), "{n} numbers");
        }
        (w, m, v)
    }

    #[test]
    fn levels_and_threads_agree_bit_for_bit() {
        for n in [0, 1, 255, 257, 20 * CHUNK + 3] {
            let want = stepped(Level::PORTABLE, 1, n);
            for level in Level::supported() {
                for threads in [1, 2] {
                    assert!(stepped(level, threads, n) == want, "{n} numbers at {level:?} on {threads} threads");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (mut w, g, mut b) = (vec![0_u16; 3], vec![0.0; 3], vec![0.0_f32; 2]);
        let tensor = Tensor {
            weight: &mut w,
            gradient: Gradient::Float(&g),
            states: States::Float(vec![&mut b]),
            keys: vec![Key::from_seed(0); 2],
        };
        let sgd = Sgd { lr: 0.1, sign: 1.0, weight_decay: 0.0, momentum: 0.9, share: 1.0, nesterov: false };
        assert!(step(Rule::Sgd(sgd), vec![tensor], false).is_err(), "a short buffer");
    }
}
