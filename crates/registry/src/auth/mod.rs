//! Who we are, to whom (spec 03 §6.1): challenges, tokens and where secrets come from.

mod authorizer;
mod challenge;
mod credentials;
mod docker_config;
mod token;

pub(crate) use authorizer::{Authorizer, Challenged};
pub use credentials::{Credential, CredentialRequest, Credentials};
pub use docker_config::DockerConfig;

/// How many demands are in `WWW-Authenticate` lines.
#[cfg(fuzzing)]
pub(crate) fn challenges(lines: &[String]) -> usize {
    challenge::parse(lines).len()
}

/// The scope for reading a repository.
pub(crate) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The permission to write to a repository.
pub(crate) fn push_scope(repository: &str) -> String {
    format!("repository:{repository}:pull,push")
}
