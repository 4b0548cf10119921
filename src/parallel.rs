//! Fixed chunks on a private pool. The chunks never depend on the thread count, so neither do results.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::cpu::Level;
use crate::error::{Error, Result};

/// Below this many chunks a call stays on the calling thread.
const WORTH_SHARING: usize = 16;

/// The most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Zero until somebody asks for or sets the number.
static THREADS: AtomicUsize = AtomicUsize::new(0);

struct Pool {
    forks: usize,
    helpers: usize,
    threads: ThreadPool,
}

/// The newest pool, which is the largest. Pools are never freed: another thread may be using one, and after a fork the
/// threads of the parent's pool do not exist. A new one is made only after a fork or when more threads are asked for;
/// sizes are one less than powers of two, so a process that goes through all of them makes ten.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// Whether some thread is making a pool. Not a mutex: the child of a fork must be able to open it.
static MAKING: AtomicBool = AtomicBool::new(false);

/// How many forks lie between this process and the one that loaded the library. (A child may have its parent's number:
/// in a PID namespace of its own.)
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// Runs in the child of every fork: its parent's helpers, and whoever was making a pool, exist no more.
#[cfg(any(unix, test))]
extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    MAKING.store(false, Ordering::Release);
}

/// Arranges for [`forked`]; says whether it will be called. Only the thread that is [`MAKING`] a pool calls this.
fn watch_forks() -> bool {
    #[cfg(unix)]
    {
        static WATCHED: AtomicBool = AtomicBool::new(false);
        // SAFETY: the handler touches only atomics, and this library is never unloaded.
        if !WATCHED.load(Ordering::Relaxed) && unsafe { libc::pthread_atfork(None, None, Some(forked)) } == 0 {
            WATCHED.store(true, Ordering::Relaxed);
        }
        WATCHED.load(Ordering::Relaxed)
    }
    #[cfg(not(unix))]
    true
}

/// How many threads a call may use: what was set, else `LOWBIT_NUM_THREADS` where set (and valid), else the processors
/// of this process.
pub fn num_threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => {
            let processors = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            let threads = threads_from_env().ok().flatten().unwrap_or_else(processors);
            THREADS.store(threads, Ordering::Relaxed);
            threads
        }
        threads => threads,
    }
}

/// The number of threads in the environment variable `LOWBIT_NUM_THREADS`, if it is set and not empty.
pub fn threads_from_env() -> Result<Option<usize>> {
    const NAME: &str = "LOWBIT_NUM_THREADS";
    let Some(text) = std::env::var_os(NAME).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let threads = text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    let reason = || format!("{text:?} is not a number of threads; give 1 to {MAX_THREADS}");
    threads.map(Some).ok_or_else(|| Error::argument(NAME, reason()))
}

/// Sets how many threads a call may use.
pub fn set_num_threads(threads: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(Error::argument("n", format!("{threads} threads were asked for; give 1 to {MAX_THREADS}")));
    }
    THREADS.store(threads, Ordering::Relaxed);
    Ok(())
}

/// The newest pool, if its threads are alive in this process.
fn newest() -> Option<&'static Pool> {
    // SAFETY: the pointer is null or came from `Box::leak` in `make`; what it points to is never freed or changed.
    let pool = unsafe { POOL.load(Ordering::Acquire).as_ref() };
    pool.filter(|pool| pool.forks == FORKS.load(Ordering::Relaxed))
}

/// A pool of at least `helpers` threads that is alive in this process, or fewer if the system gives no more.
fn pool(helpers: usize) -> Option<&'static Pool> {
    loop {
        if let Some(pool) = newest().filter(|pool| pool.helpers >= helpers) {
            return Some(pool);
        }
        if !MAKING.swap(true, Ordering::Acquire) {
            // Whoever was making one until now may have made it large enough.
            let pool = newest().filter(|pool| pool.helpers >= helpers).or_else(|| make(helpers));
            MAKING.store(false, Ordering::Release);
            return pool.or_else(newest);
        }
        std::thread::yield_now();
    }
}

/// Makes a pool of at least `helpers` threads the newest one. Only the thread that is [`MAKING`] a pool calls this.
fn make(helpers: usize) -> Option<&'static Pool> {
    if !watch_forks() {
        return None;
    }
    let (forks, helpers) = (FORKS.load(Ordering::Relaxed), (helpers + 1).next_power_of_two() - 1);
    let name = |i| format!("lowbit-{i}");
    let threads = ThreadPoolBuilder::new().num_threads(helpers).thread_name(name).build().ok()?;
    let pool: &'static Pool = Box::leak(Box::new(Pool { forks, helpers, threads }));
    POOL.store(std::ptr::from_ref(pool).cast_mut(), Ordering::Release);
    Some(pool)
}

/// Calls `work(0)`, ..., `work(chunks - 1)`, each once, in any order, on up to [`num_threads`] threads, all of them in a clean
/// float state.
pub fn for_each(chunks: usize, work: impl Fn(usize) + Sync) {
    let helpers = num_threads().min(chunks) - usize::from(chunks > 0);
    let shared = if helpers == 0 || chunks < WORTH_SHARING { None } else { pool(helpers) };
    let Some(shared) = shared else {
        return Level::PORTABLE.run(|| (0..chunks).for_each(work));
    };
    let next = AtomicUsize::new(0);
    let drain = || {
        Level::PORTABLE.run(|| {
            while let Some(chunk) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|chunk| *chunk < chunks) {
                work(chunk);
            }
        });
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
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds, and disjoint by the caller's promise.
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

    #[test]
    fn a_fork_makes_the_old_pool_useless_and_opens_the_door() {
        let parents = pool(1).map(std::ptr::from_ref);
        assert!(parents.is_some(), "the system gives threads");
        MAKING.store(true, Ordering::Relaxed); // as if another thread were making a pool at the fork
        forked();
        let childs = pool(1).map(std::ptr::from_ref);
        assert!(childs.is_some(), "the child makes one");
        assert_ne!(parents, childs, "the parent's threads do not exist in the child");
    }
}
