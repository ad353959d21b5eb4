//! Configurations: what is accepted can be written out and read again, to the same effect.
#![no_main]

use std::path::Path;

use corten_config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let path = Path::new("config.toml");
    if let Ok(config) = Config::parse(input, path) {
        let written = config.to_toml();
        let again = Config::parse(&written, path).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(again.to_toml(), written);
    }
});
