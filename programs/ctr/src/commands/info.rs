//! `info`.

use corten_types::Result;
use serde_json::json;

use crate::client::{Daemon, error};
use crate::output;

pub async fn show(daemon: &Daemon) -> Result<()> {
    let about = daemon.introspection().server(()).await.map_err(error)?.into_inner();
    let deprecations: Vec<_> =
        about.deprecations.iter().map(|one| json!({"id": one.id, "message": one.message})).collect();
    output::json(&json!({"server": {
        "uuid": about.uuid, "pid": about.pid, "pidns": about.pidns, "deprecations": deprecations,
    }}))
}
