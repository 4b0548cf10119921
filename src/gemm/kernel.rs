//! What one instruction set can do, and which one is used.

use std::sync::LazyLock;

use super::operand::Steps;
use crate::cpu::Level;

/// How numbers lie in the 32 bits that a kernel multiplies at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lanes {
    /// Four bytes: signed, or in a unsigned, where `bias` has been added to its numbers. After `every` groups 16-bit sums
    /// of products could overflow.
    Bytes { bias: Option<i32>, every: usize },
    /// Two 16-bit numbers.
    Words,
}

/// 32-bit groups that a row of a panel has room for: [`Kernel::tile`] gets at most so many.
pub(super) const ROOM: usize = 128;

/// The products of one instruction set.
pub(super) trait Kernel: Sync {
    /// The kernel, if this CPU has what it needs.
    fn new() -> Option<Self>
    where
        Self: Sized;

    /// What users read.
    fn name(&self) -> &'static str;

    /// The least level at which it may be used.
    fn level(&self) -> Level;

    /// Rows and columns of a tile.
    fn tile_shape(&self) -> (usize, usize);

    /// Groups come in multiples of this.
    fn groups(&self) -> usize {
        1
    }

    /// How operands of these ranges are multiplied. Where the answer is signed bytes and numbers do not fit them, the
    /// driver multiplies low and high bytes apart.
    fn lanes(&self, a: &Steps, b: &Steps) -> Lanes;

    /// Adds the product of a panel of a and one of b to a tile of sums, modulo 2^32.
    ///
    /// # Safety
    /// The CPU has what [`Kernel::new`] asked for. `a` is rows of the tile, [`ROOM`] apart, of `groups` groups; `b` is
    /// `groups` rows of as many groups as the tile has columns; `sums` is the tile, rows `stride` apart.
    unsafe fn tile(&self, lanes: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize);
}

/// Any kernel.
type Any = Box<dyn Kernel + Send>;

/// The kernels of this CPU, the best last.
pub(super) fn supported() -> &'static [Any] {
    fn add<K: Kernel + Send + 'static>(kernels: &mut Vec<Any>) {
        if let Some(kernel) = K::new() {
            kernels.push(Box::new(kernel));
        }
    }
    static KERNELS: LazyLock<Vec<Any>> = LazyLock::new(|| {
        let mut kernels = vec![];
        add::<super::portable::Portable>(&mut kernels);
        #[cfg(target_arch = "x86_64")]
        {
            add::<super::avx2::Avx2>(&mut kernels);
            add::<super::vnni::Avx>(&mut kernels);
            add::<super::vnni::Avx512>(&mut kernels);
            add::<super::amx::Amx>(&mut kernels);
        }
        #[cfg(target_arch = "aarch64")]
        add::<super::neon::Neon>(&mut kernels);
        kernels
    });
    &KERNELS
}

/// The best kernel that the level in force allows.
pub(super) fn current(level: Level) -> &'static dyn Kernel {
    let allowed = supported().iter().rev().find(|kernel| kernel.level() <= level);
    allowed.map_or(&super::portable::Portable, |kernel| &**kernel)
}
