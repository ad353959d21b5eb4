//! `delete` and `-info`: what is done without a server.

use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use corten_api::runc::Options;
use corten_api::task_v3::DeleteResponse;
use corten_api::types::{RuntimeInfo, RuntimeVersion};
use corten_types::{Any, Result, timestamp};
use prost::Message;

use crate::Flags;
use crate::runtime::Runtime;

const KILLED: u32 = 137;
/// How often the runtime is asked to remove a container.
const TRIES: usize = 3;
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Removes everything of a container whose server is gone. Works whatever is there or not.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let here = std::env::current_dir()?;
    let bundle = here.parent().unwrap_or(Path::new("/")).join(&flags.id);
    let pid = std::fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
    let pid = pid.trim().parse::<u32>().unwrap_or(0);
    let options = saved_options(&bundle);
    let runtime = Runtime::new(&flags.id, &flags.namespace, &bundle, &options);
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deleted = executor.block_on(async {
        let reaper = std::sync::Arc::new(crate::helper::Reaper::default());
        let mut children = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
        let reaping = std::sync::Arc::clone(&reaper);
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reaping.reap();
            }
        });
        let _starting = reaper.starting();
        let mut deleted = runtime.delete(&reaper, true).await;
        // What ends a server may end its runtime too.
        for _ in 1..TRIES {
            if deleted.is_ok() {
                break;
            }
            deleted = runtime.delete(&reaper, true).await;
        }
        deleted
    });
    if let Err(error) = deleted {
        eprintln!("failed to remove the container from its runtime: {error}");
    }
    if let Err(error) = corten_mounts::unmount_all(&bundle.join("rootfs")) {
        eprintln!("failed to unmount the root file system: {error}");
    }
    let response = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: Some(timestamp::from_system(SystemTime::now())),
    };
    std::io::stdout().write_all(&response.encode_to_vec())?;
    Ok(())
}

/// The options that `create` left, in Go's JSON.
pub(crate) fn saved_options(bundle: &Path) -> Options {
    let text = std::fs::read(bundle.join("options.json")).unwrap_or_default();
    let saved: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let text = |key: &str| saved[key].as_str().unwrap_or_default().to_owned();
    let binary = std::fs::read_to_string(bundle.join("runtime")).unwrap_or_default();
    Options {
        root: text("root"),
        binary_name: binary.trim().to_owned(),
        systemd_cgroup: saved["systemd_cgroup"].as_bool().unwrap_or(false),
        ..Default::default()
    }
}

/// Leaves the options for [`saved_options`].
pub(crate) fn save_options(bundle: &Path, options: &Options) -> Result<()> {
    let json = serde_json::json!({
        "root": options.root, "binary_name": options.binary_name, "systemd_cgroup": options.systemd_cgroup,
        "no_pivot_root": options.no_pivot_root, "no_new_keyring": options.no_new_keyring,
    });
    std::fs::write(bundle.join("options.json"), json.to_string())?;
    Ok(std::fs::write(bundle.join("runtime"), &options.binary_name)?)
}

/// Tells what this shim is.
pub(crate) fn info() -> Result<()> {
    let mut input = Vec::new();
    std::io::stdin().lock().take(4 << 20).read_to_end(&mut input)?;
    let options = Any::decode(input.as_slice()).ok().filter(|any| !any.type_url.is_empty());
    let runc = options.as_ref().and_then(|any| corten_api::unpack::<Options>(any).ok()).unwrap_or_default();
    let features = crate::runtime::features(&runc.binary_name);
    let info = RuntimeInfo {
        name: "io.containerd.runc.v2".into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: String::new() }),
        options,
        features: features.map(|value| Any { type_url: FEATURES.into(), value }),
        ..Default::default()
    };
    std::io::stdout().write_all(&info.encode_to_vec())?;
    Ok(())
}
