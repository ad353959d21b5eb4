//! `WWW-Authenticate` lines.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let lines: Vec<String> = input.lines().map(str::to_owned).collect();
    // Each takes a letter at least.
    assert!(corten_registry::fuzz::challenges(&lines) <= input.len());
});
