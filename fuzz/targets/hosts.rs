//! hosts.toml: what is wrong in it costs no more than the entry, and the registry itself is always asked last.
#![no_main]

use corten_registry::hosts::{HostOptions, lookup};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let root = std::env::temp_dir().join("certs.d");
    let folder = root.join("reg.example");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("hosts.toml"), input).expect("a file");
    let hosts = lookup("reg.example", &HostOptions { dirs: vec![root], ..HostOptions::default() });
    assert!(!hosts.is_empty());
    for host in &hosts {
        assert!(!host.authority.contains(['/', '@']), "{host:?}");
        drop(host.url("lab/img", "manifests/1", ""));
        let _ = host.is_origin("reg.example");
    }
});
