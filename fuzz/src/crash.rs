//! What happens when something goes wrong: the input is saved and the process ends.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The input that is being decoded.
static INPUT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// How many inputs there were.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// No input takes so long by far.
const HANG: Duration = Duration::from_secs(20);

/// Remembers the input that comes next.
pub fn remember(input: &[u8]) {
    NUMBER.fetch_add(1, Relaxed);
    let mut place = INPUT.lock().expect("nobody panics with the lock");
    place.clear();
    place.extend(input);
}

/// How many inputs there were.
pub fn executions() -> u64 {
    NUMBER.load(Relaxed)
}

/// Writes the input to `fuzz/crashes` and ends the process.
pub fn save(reason: &str) -> ! {
    let input = INPUT.try_lock().map(|input| input.clone()).unwrap_or_default();
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crashes");
    let file = place.join(format!("{:08x}", crc32c::crc32c(&input)));
    let saved = std::fs::create_dir_all(&place).and_then(|()| std::fs::write(&file, &input));
    eprintln!("\ninput {}: {reason}", executions());
    match saved {
        Ok(()) => {
            eprintln!("{} bytes saved as {}; give that name as an argument to try again", input.len(), file.display())
        }
        Err(error) => eprintln!("the input could not be saved: {error}: {input:02x?}"),
    }
    std::process::exit(1)
}

/// From now on a panic, and an input that takes for ever, are saved.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| save(&panic.to_string())));
    std::thread::spawn(|| {
        loop {
            let before = executions();
            std::thread::sleep(HANG);
            if executions() == before {
                save("it takes for ever");
            }
        }
    });
}
