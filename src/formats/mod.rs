//! Number formats as records: what a format can do ([`Grid`], [`Codes`]), what it is ([`Format`]), which there are.
//!
//! **To add a family**: one file with a type that implements [`Grid`] and [`Codes`] and a `FORMATS` table, and one word
//! in `registry!`. **To add a format of a family**: one row in its `FORMATS`.

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
}

/// A grid whose values have codes of at most 16 bits, that is: can be stored.
pub trait Codes: Grid {
    /// The code of a value of the grid.
    fn encode(&self, value: f32) -> u32;

    /// The value of a code.
    fn decode(&self, code: u32) -> f32;
}

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
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The name users give.
    pub name: &'static str,
    /// Bits per code.
    pub bits: u32,
    /// The value that `amax` is scaled to.
    pub reference: f32,
    /// The scale rule that `scale=None` means.
    pub default_scale: &'static str,
    /// The block that `block_size=None` means; `None` is one scale for the array.
    pub default_block: Option<usize>,
    /// SAWB's constants, where somebody has fitted them.
    pub sawb: Option<Sawb>,
    /// Where the format is defined.
    pub source: &'static str,
    /// How to round and code.
    pub grid: AnyGrid,
}

/// Lists the families: a module and its type for each. This is the one place that names them.
macro_rules! registry {
    ($($module:ident :: $family:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// A grid of any family.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum AnyGrid {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $family($module::$family)
            ),*
        }

        impl AnyGrid {
            /// Runs a generic operation with the concrete grid.
            #[inline(always)]
            pub fn visit<V: Visit>(self, operation: V) -> V::Out {
                match self {
                    $(AnyGrid::$family(grid) => operation.visit(grid)),*
                }
            }
        }

        $(
            impl From<$module::$family> for AnyGrid {
                fn from(grid: $module::$family) -> Self {
                    AnyGrid::$family(grid)
                }
            }
        )*

        /// Every registered format, in order.
        pub fn all() -> impl Iterator<Item = &'static Format> {
            [$($module::FORMATS),*].into_iter().flatten()
        }
    };
}

registry! { int::Int, radix4::Radix4 }

impl Format {
    /// The registered format of this name.
    pub fn named(name: &str) -> crate::error::Result<&'static Format> {
        all().find(|format| format.name == name).ok_or_else(|| crate::error::Error::Unknown {
            argument: "format",
            name: name.into(),
            known: all().map(|format| format.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The grid of equal steps, where this format is one.
    pub fn uniform(&self) -> Option<int::Int> {
        struct Uniform;
        impl Visit for Uniform {
            type Out = Option<int::Int>;
            fn visit<G: Codes>(self, grid: G) -> Option<int::Int> {
                grid.uniform()
            }
        }
        self.grid.visit(Uniform)
    }

    /// The value of every code, by code.
    pub fn decode_table(&self) -> Vec<f32> {
        struct Table(u32);
        impl Visit for Table {
            type Out = Vec<f32>;
            fn visit<G: Codes>(self, grid: G) -> Vec<f32> {
                (0..1 << self.0).map(|code| grid.decode(code)).collect()
            }
        }
        self.grid.visit(Table(self.bits))
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
