//! AMX: tiles of 16 x 16 sums, to which 64 products of signed bytes each are added by one instruction.
//!
//! Written in assembly, since stable Rust has no intrinsics for it. A process must ask Linux once before it may use the
//! tiles; where that is refused, other kernels do the work.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::kernel::{Kernel, Lanes, ROOM};
use super::operand::Steps;
use crate::cpu::Level;

pub(super) struct Amx(Level);

/// Rows and columns of a tile of the driver: two by two of the machine's.
const SIDE: usize = 32;
/// Groups of 32 bits in a row of the machine's tiles.
const GROUPS: usize = 16;

/// Eight tiles of 16 rows of 64 bytes ("palette 1").
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    zeros: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start: 0,
    zeros: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether this CPU has AMX's tiles and products of bytes.
fn is_there() -> bool {
    // Leaf 7: bit 24 of EDX is AMX-TILE, bit 25 AMX-INT8.
    const BOTH: u32 = 1 << 24 | 1 << 25;
    #[allow(unused_unsafe, reason = "newer compilers know that every x86-64 has the instruction")]
    // SAFETY: every x86-64 has the instruction; leaf 0 says how many there are.
    unsafe {
        __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
    }
}

/// Asks for the tiles, for the whole process.
fn is_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call changes what this process may use, and nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether this CPU has AMX, but the system does not let this process use it.
pub(super) fn is_refused() -> bool {
    is_there() && !is_permitted()
}

impl Kernel for Amx {
    fn new() -> Option<Self> {
        let level = Level::supported().pop().filter(|level| level.has_avx512())?;
        (is_there() && is_permitted()).then_some(Amx(level))
    }

    fn name(&self) -> &'static str {
        "amx"
    }

    fn level(&self) -> Level {
        self.0
    }

    fn tile_shape(&self) -> (usize, usize) {
        (SIDE, SIDE)
    }

    fn groups(&self) -> usize {
        GROUPS
    }

    fn lanes(&self, _: &Steps, _: &Steps) -> Lanes {
        Lanes::Bytes { bias: None, every: usize::MAX }
    }

    unsafe fn tile(&self, _: Lanes, a: *const u32, b: *const u32, groups: usize, sums: *mut i32, stride: usize) {
        // SAFETY: `new` has seen the instructions and been permitted them. Both panels have `groups` groups, a multiple of
        // 16; the sums have 32 rows of 32 columns. Tile registers are nobody else's, and released at the end.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm0, [{c0} + {stride}*1]",
                "tileloadd tmm1, [{c0} + {stride}*1 + 64]",
                "tileloadd tmm2, [{c1} + {stride}*1]",
                "tileloadd tmm3, [{c1} + {stride}*1 + 64]",
                "2:",
                "tileloadd tmm4, [{a0} + {a_stride}*1]",
                "tileloadd tmm5, [{a1} + {a_stride}*1]",
                "tileloadd tmm6, [{b} + {b_stride}*1]",
                "tileloadd tmm7, [{b} + {b_stride}*1 + 64]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {a0}, 64",
                "add {a1}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c0} + {stride}*1 + 64], tmm1",
                "tilestored [{c1} + {stride}*1], tmm2",
                "tilestored [{c1} + {stride}*1 + 64], tmm3",
                "tilerelease",
                config = in(reg) &raw const CONFIG,
                c0 = in(reg) sums,
                c1 = in(reg) sums.add(16 * stride),
                stride = in(reg) 4 * stride,
                a0 = inout(reg) a => _,
                a1 = inout(reg) a.add(16 * ROOM) => _,
                a_stride = in(reg) 4 * ROOM,
                b = inout(reg) b => _,
                b_stride = in(reg) 4 * SIDE,
                steps = inout(reg) groups / GROUPS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
