//! `plugins`.

use clap::{Args, Subcommand};
use corten_api::services::introspection::{Plugin, PluginInfoRequest, PluginsRequest};
use corten_api::types::{RuntimeInfo, RuntimeRequest};
use corten_api::{keys, runc};
use corten_types::{Any, Platform, Result};
use serde_json::{Value, json};

use crate::client::{Daemon, error};
use crate::commands::Listing;
use crate::container::RuntimeFlags;
use crate::json::{object, print};
use crate::output::{Table, elastic};

/// Parts of the daemon.
#[derive(Debug, Subcommand)]
pub enum Plugins {
    /// List them.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        listing: Listing,
        /// All about each.
        #[arg(short, long)]
        detailed: bool,
    },
    /// What a runtime can do, as JSON.
    InspectRuntime(InspectRuntime),
}

#[derive(Debug, Args)]
pub struct InspectRuntime {
    #[command(flatten)]
    runtime: RuntimeFlags,
}

impl Plugins {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        match self {
            Self::List { listing, detailed } => list(daemon, listing, detailed).await,
            Self::InspectRuntime(inspect) => inspect.run(daemon).await,
        }
    }
}

async fn list(daemon: &Daemon, listing: Listing, detailed: bool) -> Result<()> {
    let request = PluginsRequest { filters: listing.filters };
    let plugins = daemon.introspection().plugins(request).await.map_err(error)?.into_inner().plugins;
    if listing.shown.quiet {
        plugins.iter().for_each(|plugin| println!("{}", plugin.id));
        return Ok(());
    }
    if detailed {
        details(&plugins);
        return Ok(());
    }
    let mut table = Table::wide(&["TYPE", "ID", "PLATFORMS", "STATUS"]);
    for plugin in plugins {
        let status = match &plugin.init_err {
            None => "ok",
            Some(failure) if failure.message.contains("skip plugin") => "skip",
            Some(_) => "error",
        };
        let platforms = platforms(&plugin).unwrap_or_else(|| "-".into());
        table.row([plugin.r#type, plugin.id, platforms, status.into()]);
    }
    table.show(listing.shown.format)
}

fn platforms(plugin: &Plugin) -> Option<String> {
    let platforms = plugin.platforms.iter().cloned().map(|one| Platform::from(one).to_string());
    let mut platforms: Vec<String> = platforms.collect();
    platforms.sort();
    platforms.dedup();
    Some(platforms.join(",")).filter(|list| !list.is_empty())
}

/// A block of lines for each plugin, cells with tabs behind them.
fn details(plugins: &[Plugin]) {
    let mut lines: Vec<String> = Vec::new();
    for (at, plugin) in plugins.iter().enumerate() {
        if at > 0 {
            lines.push("\t\t\t".into());
        }
        lines.push(format!("Type:\t {}", plugin.r#type));
        lines.push(format!("ID:\t {}", plugin.id));
        if !plugin.requires.is_empty() {
            lines.push("Requires:\t".into());
            lines.extend(plugin.requires.iter().map(|one| format!("\t {one}")));
        }
        if let Some(platforms) = platforms(plugin) {
            lines.push(format!("Platforms:\t {platforms}"));
        }
        if !plugin.exports.is_empty() {
            lines.push("Exports:\t".into());
            lines.extend(plugin.exports.iter().map(|(key, value)| format!("\t {key} \t {value}")));
        }
        if !plugin.capabilities.is_empty() {
            lines.push(format!("Capabilities:\t {}", plugin.capabilities.join(",")));
        }
        if let Some(failure) = &plugin.init_err {
            let code = format!("{:?}", tonic::Code::from(failure.code));
            lines.push("Error:\t".into());
            lines.push(format!("\t Code:\t {code}"));
            lines.push(format!("\t Message:\t {}", failure.message));
        }
    }
    print!("{}", elastic(&lines));
}

impl InspectRuntime {
    async fn run(self, daemon: &Daemon) -> Result<()> {
        let wanted = RuntimeRequest {
            runtime_path: self.runtime.runtime.clone(),
            options: self.runtime.options(false, (0, 0))?,
        };
        let request = PluginInfoRequest {
            r#type: "io.containerd.runtime.v2".into(),
            id: "task".into(),
            options: Some(corten_api::pack(&wanted)),
        };
        let answer = daemon.introspection().plugin_info(request).await.map_err(error)?.into_inner();
        let info: RuntimeInfo = corten_api::unpack(&answer.extra.unwrap_or_default())?;
        let version = info.version.unwrap_or_default();
        let annotations = if info.annotations.is_empty() { Value::Null } else { json!(info.annotations) };
        print(&object([
            ("Name", info.name.into()),
            ("Version", object([("Version", version.version.into()), ("Revision", version.revision.into())])),
            ("Options", decoded(info.options.as_ref()).into()),
            ("Features", decoded(info.features.as_ref()).into()),
            ("Annotations", annotations.into()),
        ]));
        Ok(())
    }
}

/// What an Any holds, where its type is known.
fn decoded(any: Option<&Any>) -> Value {
    let Some(any) = any else { return Value::Null };
    if any.type_url == keys::FEATURES {
        return serde_json::from_slice(&any.value).unwrap_or_default();
    }
    let Ok(options) = corten_api::unpack::<runc::Options>(any) else {
        return json!({"type_url": any.type_url});
    };
    let mut known = serde_json::Map::new();
    let mut set = |name: &str, value: Value, is_empty: bool| {
        if !is_empty {
            known.insert(name.to_owned(), value);
        }
    };
    set("no_pivot_root", json!(true), !options.no_pivot_root);
    set("binary_name", json!(options.binary_name), options.binary_name.is_empty());
    set("root", json!(options.root), options.root.is_empty());
    set("systemd_cgroup", json!(true), !options.systemd_cgroup);
    Value::Object(known)
}
