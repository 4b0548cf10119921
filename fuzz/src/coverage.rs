//! Which code an input reached, as the compiler's coverage counters tell (LLVM's `inline-8bit-counters`, switched on by
//! flags that stable Rust has; `make fuzz` gives them). Without the flags there are no counters, and mutation is blind.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// The instrumented modules call this before `main`, all with the same two ends.
// SAFETY: the name is the one that LLVM's instrumentation calls, and no one else defines it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    START.store(start, Relaxed);
    LENGTH.store(stop as usize - start as usize, Relaxed);
}

fn counters() -> &'static mut [u8] {
    match START.load(Relaxed) {
        start if start.is_null() => &mut [],
        // SAFETY: the linker's section of counters lives as long as the process; decoding runs on this thread alone, and
        // no counted code runs while the slice is looked at but the loops of this module, whose miscounts do no harm.
        start => unsafe { std::slice::from_raw_parts_mut(start, LENGTH.load(Relaxed)) },
    }
}

/// What was reached so far: of each counter, which orders of magnitude.
pub struct Coverage(Vec<u8>);

impl Coverage {
    pub fn new() -> Self {
        Coverage(vec![0; counters().len()])
    }

    /// Whether `work` reached code, or reached it so often, as nothing did before.
    pub fn is_new(&mut self, work: impl FnOnce()) -> bool {
        counters().fill(0);
        work();
        let mut new = 0;
        for (counters, seen) in counters().chunks(64).zip(self.0.chunks_mut(64)) {
            // Nearly all are zero, and 64 of them are one or two vectors.
            if counters.iter().fold(0, |any, count| any | count) == 0 {
                continue;
            }
            for (count, seen) in counters.iter().zip(seen) {
                let magnitude =
                    1_u8.checked_shl(8 - count.leading_zeros()).unwrap_or(0x80) & u8::from(*count > 0).wrapping_neg();
                new |= magnitude & !*seen;
                *seen |= magnitude;
            }
        }
        new != 0
    }

    /// How many places were reached, and how many there are.
    pub fn reached(&self) -> (usize, usize) {
        (self.0.iter().filter(|seen| **seen != 0).count(), self.0.len())
    }
}
