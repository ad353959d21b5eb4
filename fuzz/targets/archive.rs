//! Archives of images: OCI layouts and what `docker save` writes.
#![no_main]

mod tar;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    corten_images::fuzz::archive(input);
    corten_images::fuzz::archive(&tar::with_checksums(input));
});
