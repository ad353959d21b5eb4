//! `version`.

use clap::Args;
use corten_types::{Error, Result};

use crate::client::{Client, error};

/// Versions of client and server.
#[derive(Debug, Args)]
pub struct Version {
    #[arg(hide = true)]
    extra: Vec<String>,
}

impl Version {
    pub async fn run(self, client: &Client) -> Result<i32> {
        if !self.extra.is_empty() {
            return Err(Error::unknown(format!("extra arguments: &[{}]", self.extra.join(" "))));
        }
        // The client's part is told before anything can fail.
        println!("Client:\n  Version:  {}\n  Revision: \n  Go version: none (Rust)\n", super::VERSION);
        let daemon = client.dial().await?;
        let (mut version, mut introspection) = (daemon.version(), daemon.introspection());
        let (server, about) = tokio::join!(version.version(()), introspection.server(()));
        let server = server.map_err(error)?.into_inner();
        // A daemon that does not know the call is old, not wrong.
        let about = about.map(tonic::Response::into_inner).unwrap_or_default();
        crate::client::warn_of(&about);
        let uuid = about.uuid;
        println!("Server:\n  Version:  {}\n  Revision: {}\n  UUID: {uuid}", server.version, server.revision);
        if server.version != super::VERSION {
            eprintln!("WARNING: version mismatch");
        }
        if !server.revision.is_empty() {
            eprintln!("WARNING: revision mismatch");
        }
        Ok(0)
    }
}
