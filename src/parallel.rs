//! Fixed chunks on a private pool. The chunks never depend on the thread count, so neither do results.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// Below this many chunks a call stays on the calling thread.
const WORTH_SHARING: usize = 16;

/// The most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Zero until somebody asks for or sets the number.
static THREADS: AtomicUsize = AtomicUsize::new(0);

struct Pool {
    process: u32,
    helpers: usize,
    threads: ThreadPool,
}

/// The newest pool. Pools are never freed: another thread may be using one, and after a fork the threads of the
/// parent's pool do not exist. A new one is made only after a fork or when more threads are asked for.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// How many threads a call may use: what was set, else `LOWBIT_NUM_THREADS`, else the processors of this process.
pub fn num_threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => {
            let asked = std::env::var("LOWBIT_NUM_THREADS").ok().and_then(|text| text.parse().ok());
            let threads = asked.filter(|n| (1..=MAX_THREADS).contains(n));
            let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
            THREADS.store(threads, Ordering::Relaxed);
            threads
        }
        threads => threads,
    }
}

/// Sets how many threads a call may use.
pub fn set_num_threads(threads: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(Error::argument("n", format!("{threads} threads were asked for; give 1 to {MAX_THREADS}")));
    }
    THREADS.store(threads, Ordering::Relaxed);
    Ok(())
}

/// A pool of at least `helpers` threads that is alive in this process, or `None` if the system gives no threads.
fn pool(helpers: usize) -> Option<&'static Pool> {
    let process = std::process::id();
    let newest = POOL.load(Ordering::Acquire);
    // SAFETY: the pointer is null or came from `Box::leak` below; what it points to is never freed or changed.
    if let Some(pool) = unsafe { newest.as_ref() }
        && pool.process == process
        && pool.helpers >= helpers
    {
        return Some(pool);
    }
    let name = |i| format!("lowbit-{i}");
    let threads = ThreadPoolBuilder::new().num_threads(helpers).thread_name(name).build().ok()?;
    let pool: &'static Pool = Box::leak(Box::new(Pool { process, helpers, threads }));
    POOL.store(std::ptr::from_ref(pool).cast_mut(), Ordering::Release);
    Some(pool)
}

/// Calls `work(0)`, ..., `work(chunks - 1)`, each once, in any order, on up to [`num_threads`] threads.
pub fn for_each(chunks: usize, work: impl Fn(usize) + Sync) {
    let helpers = num_threads().min(chunks) - usize::from(chunks > 0);
    let shared = if helpers == 0 || chunks < WORTH_SHARING { None } else { pool(helpers) };
    let Some(shared) = shared else {
        return (0..chunks).for_each(work);
    };
    let next = AtomicUsize::new(0);
    let drain = || {
        while let Some(chunk) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|chunk| *chunk < chunks) {
            work(chunk);
        }
    };
    shared.threads.in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| drain());
        }
        drain();
    });
}

/// A slice whose disjoint parts several chunks write.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: access goes through `part`, whose callers promise disjointness.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// # Safety
    /// The slice given to `new` is still exclusively borrowed, and no two live parts overlap.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [T] {
        debug_assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes one element, or nothing if the slice does not reach there.
    ///
    /// # Safety
    /// As for [`Shared::part`].
    #[inline(always)]
    pub(crate) unsafe fn put(&self, index: usize, value: T)
    where
        T: Copy,
    {
        if index < self.len {
            // SAFETY: in bounds, and disjoint by the caller's promise.
            unsafe { self.start.add(index).write(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 7] {
            assert!(set_num_threads(threads).is_ok(), "{threads} threads");
            for chunks in [0, 1, 3, 16, 17, 100] {
                let seen: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                for_each(chunks, |chunk| {
                    seen[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {chunks} chunks");
            }
        }
        assert!(set_num_threads(0).is_err(), "zero threads is an error");
    }
}
