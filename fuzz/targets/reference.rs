//! Image references: what is accepted says the same when it is written out again.
#![no_main]

use corten_types::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(reference) = input.parse::<Reference>() {
        let written = reference.to_string();
        let again: Reference =
            written.parse().unwrap_or_else(|error| panic!("{input:?}: {written:?}: {error}"));
        assert_eq!(again, reference, "{input:?}");
        drop((reference.host(), reference.path(), reference.tag(), reference.digest()));
    }
    if let Ok(reference) = Reference::familiar(input) {
        drop((reference.host(), reference.path(), reference.tag(), reference.digest()));
    }
});
