//! Fixed chunks on a private pool. The chunks never depend on the thread count, so neither do results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
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

/// The chunks of one call, which helpers may join while it is open and never touch afterwards.
///
/// A helper that the system has not yet run is not waited for: where another library's threads hold the processors (an
/// OpenMP team spins for milliseconds after each of its loops), the caller would else stand still with no work left.
struct Task {
    /// What to do with a chunk: borrowed from a caller that does not return before [`Task::close`] has.
    work: *const (dyn Fn(usize) + Sync),
    chunks: usize,
    next: AtomicUsize,
    /// How many helpers are inside, and whether it is [`CLOSED`] to more.
    state: AtomicUsize,
    panicked: AtomicBool,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

// SAFETY: `work` is `Sync`, and alive whenever it is called (see `Task::join`).
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

impl Task {
    /// Takes chunks until there are none.
    ///
    /// # Safety
    /// `work` is alive.
    unsafe fn drain(&self) {
        // SAFETY: by the caller's promise.
        let work = unsafe { &*self.work };
        Level::PORTABLE.run(|| {
            while let Some(chunk) = Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < self.chunks) {
                work(chunk);
            }
        });
    }

    /// Helps, unless it is too late.
    fn join(&self) {
        if self.state.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
            // SAFETY: this helper was counted before the task was closed, so `close` waits for it, and the caller for `close`.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { self.drain() }));
            self.panicked.fetch_or(done.is_err(), Ordering::Relaxed);
        }
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Lets no more helpers in, and waits for those inside, who are at their last chunk.
    fn close(&self) {
        let mut state = self.state.fetch_or(CLOSED, Ordering::Acquire);
        let mut spins = 0;
        while state & !CLOSED != 0 {
            if spins < 64 {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }
}

/// Calls `work(0)`, ..., `work(chunks - 1)`, each once, in any order, on up to [`num_threads`] threads, all of them in a clean
/// float state.
///
/// # Panics
/// If `work` does, when all threads have stopped.
pub fn for_each(chunks: usize, work: impl Fn(usize) + Sync) {
    struct Close<'a>(&'a Task);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }

    let helpers = num_threads().min(chunks) - usize::from(chunks > 0);
    let shared = if helpers == 0 || chunks < WORTH_SHARING { None } else { pool(helpers) };
    let Some(shared) = shared else {
        return Level::PORTABLE.run(|| (0..chunks).for_each(work));
    };
    let work: &(dyn Fn(usize) + Sync) = &work;
    // SAFETY: only the lifetime is lost; `Close` ends all use of the reference before this function returns or unwinds.
    let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
    let (next, state, panicked) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let task = Arc::new(Task { work, chunks, next, state, panicked });
    for _ in 0..helpers {
        let task = Arc::clone(&task);
        shared.threads.spawn(move || task.join());
    }
    {
        let _close = Close(&task);
        // SAFETY: `work` lives until this function returns.
        unsafe { task.drain() };
    }
    assert!(!task.panicked.load(Ordering::Relaxed), "a helper panicked");
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
    fn a_helper_that_comes_late_touches_nothing() {
        let calls = AtomicUsize::new(0);
        let work = |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        };
        let work: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: `calls` outlives the task.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let (next, state, panicked) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let task = Task { work, chunks: 5, next, state, panicked };
        task.close();
        task.join();
        assert_eq!(calls.load(Ordering::Relaxed), 0, "the caller has gone");
        assert_eq!(task.state.load(Ordering::Relaxed), CLOSED, "and left nobody inside");
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_when_all_have_stopped() {
        assert!(set_num_threads(4).is_ok(), "4 threads");
        for culprit in 0..32 {
            let inside = AtomicUsize::new(0);
            let call = AssertUnwindSafe(|| {
                for_each(32, |chunk| {
                    inside.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::Relaxed);
                    assert_ne!(chunk, culprit, "as a kernel never does");
                });
            });
            assert!(catch_unwind(call).is_err(), "chunk {culprit}");
            assert_eq!(inside.load(Ordering::Relaxed), 0, "chunk {culprit}");
        }
        for_each(32, |_| {});
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
