//! Digests: what is accepted is safe as a path component and stays as it was.
#![no_main]

use corten_types::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(digest) = input.parse::<Digest>() {
        assert_eq!(digest.as_str(), input);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
        assert_eq!(format!("{}:{}", digest.algorithm().as_str(), digest.hex()), input);
    }
});
