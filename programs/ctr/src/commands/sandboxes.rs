//! `sandboxes`.

use clap::Subcommand;
use corten_api::keys;
use corten_api::services::sandbox as api;
use corten_api::types::{Sandbox, sandbox};
use corten_types::{Any, Error, Result, ResultExt, timestamp};
use serde_json::json;

use crate::client::{Daemon, error};
use crate::commands::Shown;
use crate::commands::containers::any;
use crate::json::{Document, object, print};
use crate::output::{Table, go_time};

/// Who looks after sandboxes that are made here: their shim.
const SANDBOXER: &str = "shim";

/// Sandboxes: groups of containers.
#[derive(Debug, Subcommand)]
pub enum Sandboxes {
    /// Make and start one.
    #[command(visible_aliases = ["create", "c", "r"])]
    Run {
        /// The runtime.
        #[arg(long, default_value = "io.containerd.runc.v2")]
        runtime: String,
        #[arg(value_name = "SPEC.json")]
        spec: std::path::PathBuf,
        id: String,
    },
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        /// Only those that match.
        #[arg(long)]
        filters: Vec<String>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Stop and remove them.
    #[command(visible_alias = "rm")]
    Remove {
        /// Remove them although they cannot be shut down.
        #[arg(short, long)]
        force: bool,
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
    /// All about one, as JSON.
    #[command(visible_alias = "i")]
    Info { id: String },
}

impl Sandboxes {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::Run { runtime, spec, id } => run(daemon, runtime, &spec, id).await,
            Self::List { filters, shown } => list(daemon, filters, &shown).await,
            Self::Remove { force, ids } => {
                for id in ids {
                    remove(daemon, &id, force).await?;
                }
                Ok(())
            }
            Self::Info { id } => info(daemon, &id).await,
        }
    }
}

async fn run(daemon: &Daemon, runtime: String, file: &std::path::Path, id: String) -> Result<()> {
    let data = std::fs::read(file)
        .with_context(|| format!("failed to read sandbox config: open {}", file.display()))?;
    if let Err(bad) = serde_json::from_slice::<serde_json::Value>(&data) {
        return Err(Error::unknown(format!("failed to parse sandbox config: {bad}")));
    }
    let sandbox = Sandbox {
        sandbox_id: id.clone(),
        runtime: Some(sandbox::Runtime { name: runtime, options: None }),
        spec: Some(Any { type_url: keys::SPEC.into(), value: data }),
        sandboxer: SANDBOXER.into(),
        ..Default::default()
    };
    let request = api::StoreCreateRequest { sandbox: Some(sandbox.clone()) };
    daemon.sandboxes().create(request).await.map_err(error).context("failed to create new sandbox")?;
    let started = async {
        let request = api::ControllerCreateRequest {
            sandbox_id: id.clone(),
            sandbox: Some(sandbox),
            sandboxer: SANDBOXER.into(),
            ..Default::default()
        };
        daemon.controller().create(request).await.map_err(error)?;
        let request = api::ControllerStartRequest { sandbox_id: id.clone(), sandboxer: SANDBOXER.into() };
        daemon.controller().start(request).await.map_err(error)
    };
    if let Err(failed) = started.await {
        // A record without a sandbox is of no use.
        let request = api::StoreDeleteRequest { sandbox_id: id };
        daemon.sandboxes().delete(request).await.ok();
        return Err(failed.context("failed to start"));
    }
    println!("{id}");
    Ok(())
}

async fn list(daemon: &Daemon, filters: Vec<String>, shown: &Shown) -> Result<()> {
    let request = api::StoreListRequest { filters };
    let found = daemon.sandboxes().list(request).await.map_err(error).context("failed to list sandboxes")?;
    let mut table = Table::tight(&["ID", "CREATED", "RUNTIME"]);
    for sandbox in found.into_inner().list {
        let at = timestamp::to_system(&sandbox.created_at.unwrap_or_default());
        table.row([sandbox.sandbox_id, go_time(at), sandbox.runtime.unwrap_or_default().name]);
    }
    table.show_as(shown)
}

async fn get(daemon: &Daemon, id: &str) -> Result<Sandbox> {
    let request = api::StoreGetRequest { sandbox_id: id.into() };
    let found = daemon.sandboxes().get(request).await.map_err(error)?.into_inner();
    found.sandbox.ok_or_else(|| Error::not_found(format!("sandbox {id:?}")))
}

/// Stops, shuts down and forgets a sandbox; what fails on the way is told, and is no error with `force`.
async fn remove(daemon: &Daemon, id: &str, force: bool) -> Result<()> {
    let sandbox = match get(daemon, id).await {
        Ok(sandbox) => sandbox,
        Err(failed) => {
            crate::log::error(&format!("failed to load sandbox {id}"), &failed);
            return Ok(());
        }
    };
    let sandboxer = if sandbox.sandboxer.is_empty() { SANDBOXER.into() } else { sandbox.sandboxer };
    let request = api::ControllerStopRequest {
        sandbox_id: id.into(),
        sandboxer: sandboxer.clone(),
        ..Default::default()
    };
    if let Err(failed) = daemon.controller().stop(request).await.map_err(error)
        && !failed.is_not_found()
    {
        crate::log::error(&format!("failed to stop sandbox {id}"), &failed);
        if !force {
            return Ok(());
        }
    }
    let request = api::ControllerShutdownRequest { sandbox_id: id.into(), sandboxer };
    if let Err(failed) = daemon.controller().shutdown(request).await.map_err(error)
        && !failed.is_not_found()
    {
        crate::log::error(&format!("failed to shutdown sandbox {id}"), &failed);
        if !force {
            return Ok(());
        }
    }
    let request = api::StoreDeleteRequest { sandbox_id: id.into() };
    daemon.sandboxes().delete(request).await.map_err(error)?;
    crate::log::info(&format!("deleted: {id}"));
    Ok(())
}

async fn info(daemon: &Daemon, id: &str) -> Result<()> {
    let sandbox = get(daemon, id).await?;
    let time = |at: Option<prost_types::Timestamp>| {
        Document::from(timestamp::rfc3339(timestamp::to_system(&at.unwrap_or_default())))
    };
    let spec = sandbox.spec.unwrap_or_default();
    let runtime = sandbox.runtime.unwrap_or_default();
    let extensions: std::collections::BTreeMap<_, _> = sandbox.extensions.iter().collect();
    print(&object([
        ("ID", sandbox.sandbox_id.into()),
        ("Labels", json!(sandbox.labels).into()),
        (
            "Runtime",
            object([
                ("Name", runtime.name.into()),
                ("Options", runtime.options.as_ref().map_or(serde_json::Value::Null.into(), any)),
            ]),
        ),
        ("Spec", any(&spec)),
        ("Sandboxer", sandbox.sandboxer.into()),
        ("CreatedAt", time(sandbox.created_at)),
        ("UpdatedAt", time(sandbox.updated_at)),
        (
            "Extensions",
            Document::Object(extensions.into_iter().map(|(key, value)| (key.clone(), any(value))).collect()),
        ),
    ]));
    Ok(())
}
