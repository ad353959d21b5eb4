//! `version`.

use corten_types::Result;

use crate::client::{Client, error};

pub async fn show(client: &Client) -> Result<i32> {
    // The client's part is told before anything can fail.
    println!("Client:\n  Version:  {}\n  Revision: \n  Go version: none (Rust)\n", super::VERSION);
    let daemon = client.connect().await?;
    let server = daemon.version().version(()).await.map_err(error)?.into_inner();
    let about = daemon.introspection().server(()).await.map_err(error)?.into_inner();
    println!(
        "Server:\n  Version:  {}\n  Revision: {}\n  UUID: {}",
        server.version, server.revision, about.uuid
    );
    if server.version != super::VERSION {
        eprintln!("WARNING: version mismatch");
    }
    Ok(0)
}
