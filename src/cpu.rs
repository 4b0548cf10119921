//! Run one kernel at the best level the CPU has, in a clean floating-point state.
//!
//! A kernel is ordinary Rust marked `#[inline(always)]`; [`Level::run`] inlines it into a function compiled for
//! the level's instructions, so the same source is vectorized once per level. Around every kernel the float
//! state is set to round-to-nearest with subnormals kept and put back afterwards: results never depend on a
//! caller that flushes denormals.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// A set of instructions this CPU is known to have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Kind);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Kind {
    Portable = 0,
    #[cfg(target_arch = "x86_64")]
    V3 = 1,
    #[cfg(target_arch = "x86_64")]
    V4 = 2,
}

/// `u8::MAX` until somebody asks for or sets the level.
static CURRENT: AtomicU8 = AtomicU8::new(u8::MAX);

impl Level {
    /// Whatever the target always has: SSE2 on x86-64, NEON on aarch64.
    pub const PORTABLE: Level = Level(Kind::Portable);

    /// The levels of this CPU, slowest first.
    pub fn supported() -> Vec<Level> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "only x86-64 has further levels"))]
        let mut levels = vec![Level::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("popcnt") {
                levels.push(Level(Kind::V3));
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") && has!("avx512cd") {
                    levels.push(Level(Kind::V4));
                }
            }
        }
        levels
    }

    /// The level in force: `LOWBIT_CPU` where set (and valid), else the best one.
    pub fn current() -> Level {
        match CURRENT.load(Ordering::Relaxed) {
            0 => Level::PORTABLE,
            #[cfg(target_arch = "x86_64")]
            1 => Level(Kind::V3),
            #[cfg(target_arch = "x86_64")]
            2 => Level(Kind::V4),
            _ => {
                let best = || Level::supported().pop().unwrap_or(Level::PORTABLE);
                let level = Level::from_env().ok().flatten().unwrap_or_else(best);
                level.set();
                level
            }
        }
    }

    /// The level named by the environment variable `LOWBIT_CPU`, if it is set and not empty.
    pub fn from_env() -> Result<Option<Level>> {
        match std::env::var_os("LOWBIT_CPU") {
            Some(name) if !name.is_empty() => Level::named("LOWBIT_CPU", &name.to_string_lossy()).map(Some),
            _ => Ok(None),
        }
    }

    /// Looks a level of this CPU up by name: `portable`, `v3` (AVX2) or `v4` (AVX-512).
    pub fn named(argument: &'static str, name: &str) -> Result<Level> {
        let supported = Level::supported();
        supported.iter().copied().find(|level| level.name() == name).ok_or_else(|| Error::Unknown {
            argument,
            name: name.into(),
            known: format!("{} (what this CPU has)", supported.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ")),
        })
    }

    /// Makes this level the one in force, for every thread. (A `Level` is proof that this CPU has it.)
    pub fn set(self) {
        CURRENT.store(self.0 as u8, Ordering::Relaxed);
    }

    /// `portable`, `v3` or `v4`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::V3 => "v3",
            #[cfg(target_arch = "x86_64")]
            Kind::V4 => "v4",
        }
    }

    /// Whether AVX2 instructions may be used.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn has_avx2(self) -> bool {
        self >= Level(Kind::V3)
    }

    /// Whether the AVX-512 instructions of x86-64-v4 may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512(self) -> bool {
        self >= Level(Kind::V4)
    }

    /// Runs `kernel` compiled for this level. Mark the closure and all it calls `#[inline(always)]`.
    #[inline(always)]
    pub fn run<R>(self, kernel: impl FnOnce() -> R) -> R {
        let _clean = FloatState::enter();
        self.part(kernel)
    }

    /// Runs a part of a kernel, compiled for this level, from a function that is not inlined: so it is compiled once a level,
    /// and not into every kernel that has it. The float state is as the kernel's.
    #[inline(always)]
    pub(crate) fn part<R>(self, kernel: impl FnOnce() -> R) -> R {
        #[inline(never)]
        fn portable<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        fn v3<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512cd")]
        fn v4<R>(kernel: impl FnOnce() -> R) -> R {
            kernel()
        }
        match self.0 {
            Kind::Portable => portable(kernel),
            // SAFETY: `Level::supported` is the only maker of V3, and it asks the CPU first.
            #[cfg(target_arch = "x86_64")]
            Kind::V3 => unsafe { v3(kernel) },
            // SAFETY: `Level::supported` is the only maker of V4, and it asks the CPU first.
            #[cfg(target_arch = "x86_64")]
            Kind::V4 => unsafe { v4(kernel) },
        }
    }
}

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The caller's float control word, put back when dropped.
struct FloatState(
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code, reason = "no control word here")
    )]
    u64,
);

#[cfg(target_arch = "x86_64")]
impl FloatState {
    /// Round to nearest, all exceptions masked, neither flush-to-zero nor denormals-are-zero.
    const CLEAN: u32 = 0x1f80;

    #[inline(always)]
    fn enter() -> Self {
        let mut old = 0_u32;
        // SAFETY: stores the 32-bit MXCSR to a live local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut old, options(nostack, preserves_flags)) };
        Self::load(Self::CLEAN);
        FloatState(u64::from(old))
    }

    #[inline(always)]
    fn load(word: u32) {
        // SAFETY: every value loaded here is `CLEAN` or was read from MXCSR, so no reserved bit is set.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatState {
    #[inline(always)]
    fn drop(&mut self) {
        Self::load(self.0 as u32);
    }
}

#[cfg(target_arch = "aarch64")]
impl FloatState {
    #[inline(always)]
    fn enter() -> Self {
        let old: u64;
        // SAFETY: FPCR is readable and writable in user mode; zero is its architectural default.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", out(reg) old, options(nostack));
            std::arch::asm!("msr fpcr, {}", in(reg) 0_u64, options(nostack));
        }
        FloatState(old)
    }
}

#[cfg(target_arch = "aarch64")]
impl Drop for FloatState {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: puts back what was read from FPCR.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) self.0, options(nostack)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl FloatState {
    fn enter() -> Self {
        FloatState(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_float_state_is_put_back_and_never_seen() {
        for level in Level::supported() {
            let tiny = std::hint::black_box(f32::from_bits(1));
            let inside = level.run(|| std::hint::black_box(tiny) * 1.0);
            assert_eq!(inside.to_bits(), 1, "{level:?} flushed a subnormal");
        }
        #[cfg(target_arch = "x86_64")]
        {
            let flushing = FloatState::CLEAN | 0x8040;
            let before = FloatState::enter();
            FloatState::load(flushing);
            let inside = Level::current().run(|| std::hint::black_box(f32::from_bits(3)) * std::hint::black_box(1.0));
            let mut after = 0_u32;
            // SAFETY: stores the 32-bit MXCSR to a live local.
            unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut after, options(nostack, preserves_flags)) };
            drop(before);
            assert_eq!(inside.to_bits(), 3, "the caller's flush-to-zero reached a kernel");
            assert_eq!(after & !0x3f, flushing, "the caller's float state was not put back");
        }
    }

    #[test]
    fn an_unknown_level_names_those_there_are() {
        let error = Level::named("LOWBIT_CPU", "v9").map(Level::name).map_err(|e| e.to_string());
        assert!(error.is_err_and(|message| message.contains("portable")), "the message lists the levels");
    }
}
