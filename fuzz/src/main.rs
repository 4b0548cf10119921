//! Hostile messages for lowbit's decoders, on stable Rust: `fuzz/README.md` says how it works.

mod coverage;
mod crash;
mod memory;
mod mutate;
mod seeds;
mod target;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coverage::Coverage;
use mutate::{Random, mutate};
use target::{Target, is_sound};
use wire::Parts;

const USAGE: &str = "\
usage: lowbit-fuzz TARGET [SECONDS [SEED]]   mutate the corpus of a target, header or payload, for so long
       lowbit-fuzz TARGET FILE...            try these inputs
       lowbit-fuzz write                     write the corpus anew";

/// The most inputs that are kept because they reached something new.
const MOST: usize = 20_000;

/// Longer inputs are not kept: time is better spent on short ones.
const LONGEST: usize = 1 << 15;

fn place_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The committed corpus, in the order of its names.
fn corpus(target: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let files = std::fs::read_dir(place_of(target))?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    files.into_iter().map(|path| Ok((path.clone(), std::fs::read(path)?))).collect()
}

/// The same message from another sender, sound if it was.
fn peer(data: &[u8]) -> Vec<u8> {
    Parts::new(data).map_or_else(Vec::new, |mut parts| {
        parts.fixed[40] ^= 0x80;
        parts.join()
    })
}

fn fuzz(name: &str, mut target: Target, time: Duration, seed: u64) -> std::io::Result<()> {
    let mut inputs = Vec::new();
    for (path, data) in corpus(name)? {
        // Whoever changes the format writes the corpus anew; `bad-` were crashes once.
        let bad = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bad-"));
        assert!(bad || is_sound(&data), "{} cannot be decoded; write the corpus anew", path.display());
        inputs.push((peer(&data), data));
    }
    assert!(!inputs.is_empty(), "the corpus is empty");
    let (start, mut random, mut coverage) = (Instant::now(), Random(seed), Coverage::new());
    for (peer, data) in &inputs {
        crash::remember(data);
        coverage.is_new(|| target.run(data, peer));
    }
    let (seeds, at_first) = (inputs.len(), coverage.reached().0);
    while start.elapsed() < time {
        let (one, other) = (random.below(inputs.len()), random.below(inputs.len()));
        let peer = inputs[one].0.clone();
        let data = mutate(&mut random, &inputs[one].1, &inputs[other].1);
        crash::remember(&data);
        if coverage.is_new(|| target.run(&data, &peer)) && inputs.len() < MOST && data.len() < LONGEST {
            inputs.push((peer, data));
        }
    }
    let (executions, (reached, places)) = (crash::executions(), coverage.reached());
    let speed = executions as f64 / start.elapsed().as_secs_f64();
    let target::Worst { used, allowed, length } = target.worst;
    println!(
        "{name}: {executions} inputs, {speed:.0} a second, {} sound, from {seeds} files, {} kept; code reached {at_first} -> {reached} \
         of {places} places; most memory {used} of {allowed} bytes allowed, for a message of {length}",
        target.sound,
        inputs.len() - seeds,
    );
    Ok(())
}

fn main() -> std::io::Result<()> {
    // Memory and coverage are counted for one thread.
    lowbit::parallel::set_num_threads(1).expect("one thread");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if arguments == ["write"] {
        for target in ["header", "payload"] {
            println!("{target}: {} files", seeds::write(target, &place_of(target))?);
        }
        return Ok(());
    }
    let (Some(name), Some(mut target)) = (arguments.first(), arguments.first().and_then(|name| Target::new(name)))
    else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    crash::watch();
    let numbers: Option<Vec<u64>> = arguments[1..].iter().map(|text| text.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[]) => fuzz(name, target, Duration::from_secs(30), 1),
        Some(&[seconds]) => fuzz(name, target, Duration::from_secs(seconds), 1),
        Some(&[seconds, seed]) => fuzz(name, target, Duration::from_secs(seconds), seed),
        _ => {
            for path in &arguments[1..] {
                let data = std::fs::read(path)?;
                crash::remember(&data);
                target.run(&data, &peer(&data));
                println!("{path}: nothing happens");
            }
            Ok(())
        }
    }
}
