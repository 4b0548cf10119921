//! Number formats as records: what a format can do ([`Grid`], [`Codes`]), what it is ([`Format`]), which there are.
//!
//! **To add a family**: one file with a type that implements [`Grid`] and [`Codes`] and its `formats`, and one word in
//! `registry!`; a `factory`, if it has one, is one more in `FACTORIES`. **To add a format of a family**: one row in its `formats`. **To add one that scales blocks**:
//! one row in `blocks::formats`.
//!
//! A format's name is how it is made: `Format::named` makes whatever a factory's name says, so that a container needs no
//! more than the name.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use crate::cpu::Level;
use crate::error::{Error, Result};
pub use crate::simd::table::Shown;
use crate::simd::table::{MOST, STEPS};

pub mod blocks;
pub mod coding;

/// A set of float32 values ("the grid") and how to round to it. Rounding is on `t`, the number in units of its scale.
pub trait Grid: Copy + Send + Sync {
    /// The value nearest to `t`; the format's source says where ties go. NaN gives any value.
    fn nearest(&self, t: f32) -> f32;

    /// The grid of equal steps that this is, where it is one: what affine scales, offsets and subtractive dither need.
    fn uniform(&self) -> Option<int::Int> {
        None
    }

    /// One of the two neighbours of `t`, the upper one iff `word < floor(p 2^32)` with `p` the fraction of the way up.
    /// Beyond the grid: its end. On the grid: `t`. NaN gives any value.
    fn stochastic(&self, t: f32, word: u32) -> f32;

    /// The lowest value, the smallest positive one and the highest.
    fn extremes(&self) -> (f32, f32, f32);

    /// Whether many numbers at a time are rounded better than one by one: by [`Grid::nearest_all`] and its like, which
    /// nobody calls otherwise.
    const TOGETHER: bool = false;

    /// Makes the float32 numbers in `lanes` what `nearest` gives.
    #[inline(always)]
    fn nearest_all(&self, _: Level, _lanes: &mut [u32], _: Shown) {}

    /// Makes the float32 numbers in `lanes` what `stochastic` gives.
    #[inline(always)]
    fn stochastic_all(&self, _: Level, _lanes: &mut [u32], _words: &[u32], _: Shown) {}
}

/// A grid whose values have codes of at most 16 bits, that is: can be stored.
pub trait Codes: Grid {
    /// The code of a value of the grid.
    fn encode(&self, value: f32) -> u32;

    /// The value of a code.
    fn decode(&self, code: u32) -> f32;

    /// The code of what `nearest` gives, where there is a shorter way.
    #[inline(always)]
    fn nearest_code(&self, t: f32) -> u32 {
        self.encode(self.nearest(t))
    }

    /// The code of what `stochastic` gives, where there is a shorter way.
    #[inline(always)]
    fn stochastic_code(&self, t: f32, word: u32) -> u32 {
        self.encode(self.stochastic(t, word))
    }
}

/// What turns codes into numbers: any grid, or a table of what its codes stand for.
pub(crate) trait Decoder: Copy + Send + Sync {
    /// The number of a code.
    fn number(&self, code: u32) -> f32;

    /// Whether [`Decoder::numbers`] takes the place of `number`.
    const TOGETHER: bool = false;

    /// Makes the codes in `lanes` float32 numbers.
    #[inline(always)]
    fn numbers(&self, _: Level, _lanes: &mut [u32]) {}
}

impl<G: Codes> Decoder for G {
    #[inline(always)]
    fn number(&self, code: u32) -> f32 {
        self.decode(code)
    }
}

/// A grid as a format keeps it: itself, or for one with memory of its own what a kernel borrows.
pub trait Family {
    /// What kernels get.
    type Kernel<'a>: Codes
    where
        Self: 'a;

    /// The grid for a kernel.
    fn kernel(&self) -> Self::Kernel<'_>;
}

impl<G: Codes> Family for G {
    type Kernel<'a>
        = G
    where
        G: 'a;

    #[inline(always)]
    fn kernel(&self) -> G {
        *self
    }
}

/// No name that a factory writes is longer.
const LONGEST_NAME: usize = 1 << 13;

/// A generic operation over a grid; see [`AnyGrid::visit`].
pub trait Visit {
    /// What the operation gives.
    type Out;

    /// Runs with the concrete grid.
    fn visit<G: Codes>(self, grid: G) -> Self::Out;
}

/// The constants of SAWB for one format: `alpha = rms_factor sqrt(E x^2) - mean_factor E|x|`, `scale = alpha / levels`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sawb {
    /// The paper's c1.
    pub rms_factor: f64,
    /// The paper's c2, positive.
    pub mean_factor: f64,
    /// The grid value that alpha stands for.
    pub levels: f64,
}

/// What a format is: facts that hold for all its numbers.
#[derive(Clone, Debug)]
pub struct Format {
    /// The name users give, and how it is made.
    pub name: Cow<'static, str>,
    /// Bits per code.
    pub bits: u32,
    /// Whether its numbers have codes: at most 16 bits, and bounds.
    pub coded: bool,
    /// The value that `amax` is scaled to.
    pub reference: f32,
    /// The scale rule that `scale=None` means.
    pub default_scale: &'static str,
    /// The block that `block_size=None` means; `None` is one scale for the array.
    pub default_block: Option<usize>,
    /// SAWB's constants, where somebody has fitted them.
    pub sawb: Option<Sawb>,
    /// The lowest and highest k of the scales `2^k` that change a format's bias, where one can be configured.
    pub powers: Option<(i32, i32)>,
    /// The format of the scales, where not any float32 will do.
    pub scaling: Option<blocks::Scaling>,
    /// Where the format is defined.
    pub source: &'static str,
    /// How to round and code.
    pub grid: AnyGrid,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Lists the families: a module and its type for each. This is the one place that names them.
macro_rules! registry {
    ($($module:ident : $($family:ident)+),* $(,)?) => {
        $(pub mod $module;)*

        /// A grid of any family.
        #[allow(clippy::large_enum_variant, reason = "there are few formats, and kernels want their grids at hand")]
        #[derive(Clone, Debug, PartialEq)]
        pub enum AnyGrid {
            $($(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $family($module::$family)
            ),+),*
        }

        impl AnyGrid {
            /// Runs a generic operation with the concrete grid.
            #[inline(always)]
            pub fn visit<V: Visit>(&self, operation: V) -> V::Out {
                match self {
                    $($(AnyGrid::$family(grid) => operation.visit(grid.kernel())),+),*
                }
            }
        }

        $($(
            impl From<$module::$family> for AnyGrid {
                fn from(grid: $module::$family) -> Self {
                    AnyGrid::$family(grid)
                }
            }
        )+)*

        /// Every format that one of the families has a name for.
        fn listed() -> Vec<Format> {
            [$($module::formats()),*, blocks::formats()].concat()
        }
    };
}

registry! {
    int: Int, radix4: Radix4, sign: Sign, radix: Radix, table: Table Lookup, minifloat: Minifloat, truncated: Truncated,
    fixed: Fixed,
}

/// Makes the format of a name that it has written itself; none of others.
type Factory = fn(&Call) -> Option<Result<Format>>;

/// Every factory.
const FACTORIES: &[Factory] =
    &[int::factory, radix::factory, table::factory, minifloat::factory, fixed::factory, blocks::factory];

impl AnyGrid {
    /// The lowest value, the smallest positive one and the highest.
    pub fn extremes(&self) -> (f32, f32, f32) {
        struct Extremes;
        impl Visit for Extremes {
            type Out = (f32, f32, f32);
            fn visit<G: Codes>(self, grid: G) -> (f32, f32, f32) {
                grid.extremes()
            }
        }
        self.visit(Extremes)
    }

    /// The values of all codes of `bits` bits, by code.
    pub fn decode_table(&self, bits: u32) -> Vec<f32> {
        struct Table(u32);
        impl Visit for Table {
            type Out = Vec<f32>;
            fn visit<G: Codes>(self, grid: G) -> Vec<f32> {
                (0..1 << self.0).map(|code| grid.decode(code)).collect()
            }
        }
        self.visit(Table(bits))
    }
}

/// Those of four bits, which this house is built for, come first.
static REGISTRY: LazyLock<Vec<Arc<Format>>> = LazyLock::new(|| {
    let mut formats = listed();
    formats.sort_by_key(|format| format.bits != 4);
    formats.into_iter().map(Arc::new).collect()
});

/// Every registered format, in order.
pub fn all() -> impl Iterator<Item = &'static Arc<Format>> {
    REGISTRY.iter()
}

/// A name of the form `family(argument,argument)`; without parentheses there are no arguments.
pub struct Call<'a> {
    /// What stands before the parenthesis.
    pub family: &'a str,
    /// What stands between commas.
    pub arguments: Vec<&'a str>,
}

impl<'a> Call<'a> {
    fn new(name: &'a str) -> Option<Self> {
        let Some((family, rest)) = name.split_once('(') else { return Some(Call { family: name, arguments: vec![] }) };
        // Only the outermost commas part arguments: an element may have arguments of its own.
        let (mut depth, mut arguments, mut first) = (0_usize, vec![], 0);
        let inner = rest.strip_suffix(')')?;
        for (at, byte) in inner.bytes().enumerate() {
            match byte {
                b'(' => depth += 1,
                b')' => depth = depth.checked_sub(1)?,
                b',' if depth == 0 => {
                    arguments.push(&inner[first..at]);
                    first = at + 1;
                }
                _ => {}
            }
        }
        arguments.push(&inner[first..]);
        (depth == 0).then_some(Call { family, arguments })
    }
}

impl Format {
    /// What most formats are: coded up to 16 bits, scaled to their highest value where they are, in no blocks of their own.
    fn new(
        name: impl Into<Cow<'static, str>>,
        bits: u32,
        grid: impl Into<AnyGrid>,
        default_scale: &'static str,
        source: &'static str,
    ) -> Self {
        let (name, grid) = (name.into(), grid.into());
        let (coded, reference) = (bits <= 16, grid.extremes().2);
        let (default_block, sawb, powers, scaling) = (None, None, None, None);
        Format { name, bits, coded, reference, default_scale, default_block, sawb, powers, scaling, source, grid }
    }

    /// The format of this name, a registered one or what a factory makes.
    pub fn named(name: &str) -> Result<Arc<Format>> {
        if let Some(format) = all().find(|format| format.name == name) {
            return Ok(format.clone());
        }
        let call = Call::new(name).filter(|_| name.len() <= LONGEST_NAME);
        let made = call.and_then(|call| FACTORIES.iter().find_map(|factory| factory(&call)));
        match made {
            Some(Ok(format)) if format.name != name => {
                Err(Error::argument("format", format!("{name:?} is spelled {:?}", format.name)))
            }
            Some(format) => Ok(format?.registered()),
            None => Err(Error::Unknown {
                argument: "format",
                name: name.chars().take(80).collect(),
                known: all().map(|format| &*format.name).collect::<Vec<_>>().join(", ")
                    + ", and the names that factories give, such as \"float(4,3,bias=11)\"",
            }),
        }
    }

    /// The registered format that this is, or this as one of its own.
    pub fn registered(self) -> Arc<Format> {
        let same = |other: &&Arc<Format>| {
            other.grid == self.grid
                && other.scaling == self.scaling
                && (other.default_scale, other.default_block, other.powers)
                    == (self.default_scale, self.default_block, self.powers)
        };
        all().find(same).cloned().unwrap_or_else(|| Arc::new(self))
    }

    /// Whether zero is one of its values.
    pub fn has_zero(&self) -> bool {
        struct OfZero;
        impl Visit for OfZero {
            type Out = bool;
            fn visit<G: Codes>(self, grid: G) -> bool {
                grid.nearest(0.0) == 0.0
            }
        }
        self.grid.visit(OfZero)
    }

    /// Refuses to store numbers that have no codes.
    pub fn check_coded(&self) -> Result<()> {
        if self.coded {
            return Ok(());
        }
        let why = if self.bits > 16 { format!("{} bits, codes at most 16", self.bits) } else { "no bounds".into() };
        Err(Error::argument("format", format!("{} has {why}; use fake_quantize, or a coded format", self.name)))
    }

    /// The grid of equal steps, where this format is one and its scales may be any.
    pub fn uniform(&self) -> Option<int::Int> {
        struct Uniform;
        impl Visit for Uniform {
            type Out = Option<int::Int>;
            fn visit<G: Codes>(self, grid: G) -> Option<int::Int> {
                grid.uniform()
            }
        }
        if self.scaling.is_some() { None } else { self.grid.visit(Uniform) }
    }

    /// The lowest value, the smallest positive one and the highest.
    pub fn extremes(&self) -> (f32, f32, f32) {
        self.grid.extremes()
    }

    /// The value of every code, by code, of a coded format.
    pub fn decode_table(&self) -> Vec<f32> {
        self.grid.decode_table(self.bits)
    }

    /// The distinct values that rounding gives, ascending; the two zeros are one.
    pub fn values(&self) -> Vec<f32> {
        struct Reachable(Vec<f32>);
        impl Visit for Reachable {
            type Out = Vec<f32>;
            fn visit<G: Codes>(mut self, grid: G) -> Vec<f32> {
                self.0.retain(|value| grid.nearest(*value) == *value);
                self.0
            }
        }
        let mut values = self.grid.visit(Reachable(self.decode_table()));
        values.sort_by(f32::total_cmp);
        values.dedup_by(|a, b| a == b);
        values.iter().map(|value| value + 0.0).collect()
    }
}

/// Whether a number whose fraction of the way away from zero is `q` (in [0, 1)) moves away from zero for this word: all ones
/// if it does, else zero.
///
/// The contract is "up iff `word < floor(p 2^32)`". For a positive number up is away and `p = q`, so it moves away iff
/// `word + 1 <= q 2^32`. For a negative one up is toward zero and `p = 1 - q`, so that it moves away iff
/// `word >= 2^32 - ceil(q 2^32)`, that is iff `!word < q 2^32`. `negative` is all ones or zero.
///
/// Both comparisons are exact in float32: with a word of halves `high` and `low`, `d = (q 2^16 - high) 2^16` has no rounding
/// error unless it is negative, which rounding cannot change, and `low`, `low + 1` are small integers.
#[inline(always)]
pub(crate) fn moves_away(q: f32, word: u32, negative: u32) -> u32 {
    let word = word ^ negative;
    let (high, low) = ((word >> 16) as i32 as f32, (word & 0xffff) as i32 as f32);
    let d = (q * 65_536.0 - high) * 65_536.0;
    let below = if low < d { negative } else { 0 };
    below | if low + 1.0 <= d { u32::MAX } else { 0 }
}

/// [`threshold`] of a fraction that is known to be below 1 after rounding, and no NaN.
#[inline(always)]
pub(crate) fn below_one(q: f32) -> i32 {
    debug_assert!((0.0..1.0).contains(&q), "{q} is no fraction");
    // SAFETY: 2^31 times a float32 below 1 is at most 2^31 - 2^7. (`as` would check again, lane by lane.)
    unsafe { (q * STEPS).to_int_unchecked() }
}

/// How far a fraction of the way reaches among the 2^31 words that [`goes`] tells apart: its floor.
#[inline(always)]
pub(crate) fn threshold(q: f32) -> i32 {
    let scaled = q * STEPS;
    // Also where rounding has brought a fraction to 1, and for NaN.
    let scaled = if scaled < MOST { scaled } else { MOST };
    let scaled = if scaled > 0.0 { scaled } else { 0.0 };
    // SAFETY: from 0 to MOST, never NaN: i32 holds it. (`as` would check again, lane by lane.)
    unsafe { scaled.to_int_unchecked() }
}

/// Whether a word is among the first `threshold` of 2^31 pairs: all ones if it is, else zero. The word of a number whose
/// magnitude is rounded is inverted below zero, so that "away" there is "not up".
#[inline(always)]
pub(crate) fn goes(word: u32, threshold: i32) -> u32 {
    if ((word >> 1) as i32) < threshold { u32::MAX } else { 0 }
}

/// Signed integers that order as floats do (NaN at both ends); its own inverse.
#[inline(always)]
pub(crate) fn order_key(bits: u32) -> i32 {
    (bits ^ ((bits as i32 >> 31) as u32 >> 1)) as i32
}

/// `yes` where the mask is all ones, `no` where it is zero.
#[inline(always)]
pub(crate) fn choose(mask: u32, yes: u32, no: u32) -> u32 {
    yes & mask | no & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_code_of_every_value_is_its_own() {
        struct RoundTrip(&'static Format);
        impl Visit for RoundTrip {
            type Out = ();
            fn visit<G: Codes>(self, grid: G) {
                for value in self.0.values() {
                    assert_eq!(grid.decode(grid.encode(value)), value, "{} {value}", self.0.name);
                    assert!(grid.encode(value) < 1 << self.0.bits, "{} {value}", self.0.name);
                    for word in [0, 1, u32::MAX / 2, u32::MAX] {
                        assert_eq!(grid.stochastic(value, word), value, "{} moved {value}", self.0.name);
                    }
                }
            }
        }
        for format in all() {
            assert_eq!(all().filter(|other| other.name == format.name).count(), 1, "{} is twice", format.name);
            format.grid.visit(RoundTrip(format));
        }
    }

    #[test]
    fn the_threshold_is_exact_for_every_kind_of_fraction() {
        let fractions = [0.0, 1e-45, 1e-12, 2.4e-10, 0.25, 0.3, 0.5, 0.75, 0.999_999_94, 1.0 / 3.0, 2.0_f32.powi(-32)];
        for q in fractions {
            let exact = f64::from(q) * 4_294_967_296.0;
            for negative in [0, u32::MAX] {
                // Words for which a negative number moves away are counted down from the top.
                let threshold = if negative == 0 { exact.floor() } else { exact.ceil() } as u64;
                for word in [threshold.wrapping_sub(1), threshold, 0, u64::from(u32::MAX)] {
                    let Ok(word) = u32::try_from(word) else { continue };
                    let away = moves_away(q, word ^ negative, negative);
                    let want = if u64::from(word) < threshold { u32::MAX } else { 0 };
                    assert_eq!(away, want, "q {q}, word {word}, negative {negative}");
                }
            }
        }
    }
}
