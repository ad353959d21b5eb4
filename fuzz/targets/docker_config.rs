//! Docker's config.json: who asks for a host gets its secret or none. The last line is the host. scripts/fuzz sees to
//! it that no helper is found.
#![no_main]

use corten_registry::{Credential, CredentialRequest, Credentials, DockerConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (config, host) = input.rsplit_once('\n').unwrap_or((input, "reg.example"));
    let file = std::env::temp_dir().join("config.json");
    std::fs::write(&file, config).expect("a file");
    let request = CredentialRequest { host: host.into(), reference: String::new(), challenges: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let found = runtime.block_on(DockerConfig::new(file).get(request));
    if let Ok(Some(Credential::Basic { username, .. })) = found {
        assert!(!username.is_empty());
    }
});
