//! `network`: the networks of this machine, which need no plugin installed.

use std::collections::HashSet;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use corten_api::services::{containers, namespaces};
use corten_network::Cidr;
use corten_network::builtin::{Attachments, Network, NewNetwork};
use corten_types::{Error, Result};
use serde_json::{Value, json};

use crate::client::{Client, Daemon, error};
use crate::commands::Shown;
use crate::container::network as attached;
use crate::output::Table;

/// Networks of this machine.
#[derive(Debug, Subcommand)]
pub enum Networks {
    /// Make one.
    Create(Create),
    /// List them.
    #[command(visible_alias = "ls")]
    List(Shown),
    /// All about some, as JSON.
    Inspect {
        #[arg(required = true, value_name = "NETWORK")]
        names: Vec<String>,
    },
    /// Remove them with their bridges.
    #[command(visible_alias = "rm")]
    Remove {
        #[arg(required = true, value_name = "NETWORK")]
        names: Vec<String>,
    },
    /// Attach a running container to another network.
    Connect {
        /// More names by which others of the network reach it.
        #[arg(long)]
        alias: Vec<String>,
        /// Its address.
        #[arg(long)]
        ip: Vec<IpAddr>,
        network: String,
        container: String,
    },
    /// Detach a container from a network.
    Disconnect { network: String, container: String },
    /// Remove what is nobody's: attachments and files of containers that are gone.
    Prune,
}

/// Make a network.
#[derive(Debug, Args)]
pub struct Create {
    /// Its addresses, as 10.5.0.0/24 or fd05::/64: one of each family; else one that is free.
    #[arg(long)]
    subnet: Vec<Cidr>,
    /// The bridge's addresses; else the first of each subnet.
    #[arg(long)]
    gateway: Vec<IpAddr>,
    /// Nothing leaves it and nothing enters it.
    #[arg(long)]
    internal: bool,
    /// Other networks that are open, too, reach it.
    #[arg(long)]
    open: bool,
    /// What leaves keeps its address.
    #[arg(long)]
    no_masquerade: bool,
    /// Largest packet.
    #[arg(long)]
    mtu: Option<u32>,
    /// The bridge's name.
    #[arg(long)]
    bridge: Option<String>,
    name: String,
    #[arg(hide = true)]
    rest: Vec<String>,
}

impl Networks {
    pub async fn run(self, client: &Client) -> Result<()> {
        let networks = Attachments::new(&attached::root());
        match self {
            Self::Create(create) => {
                let Create { subnet, gateway, internal, open, no_masquerade, mtu, bridge, name, rest } =
                    create;
                if !rest.is_empty() {
                    let text = format!("{} behind the network's name: flags stand before it", rest.join(" "));
                    return Err(Error::invalid_argument(text));
                }
                let new = NewNetwork {
                    name,
                    subnets: subnet,
                    gateways: gateway,
                    internal,
                    open,
                    no_masquerade,
                    mtu,
                    bridge,
                };
                println!("{}", networks.create(&new)?.name);
                Ok(())
            }
            Self::List(shown) => list(&networks, &shown),
            Self::Inspect { names } => {
                let found = names
                    .iter()
                    .map(|name| networks.get(name).map(|it| describe(&it)))
                    .collect::<Result<Vec<_>>>()?;
                crate::json::print(&Value::Array(found).into());
                Ok(())
            }
            Self::Remove { names } => remove(&networks, &names),
            Self::Connect { alias, ip, network, container } => {
                let daemon = client.connect().await?;
                println!("{}", attached::connect(&daemon, &network, &container, &alias, &ip).await?);
                Ok(())
            }
            Self::Disconnect { network, container } => {
                networks.definition(&network)?;
                networks.detach(&attached::full_id(&client.namespace, &container), Some(&network))
            }
            Self::Prune => prune(&networks, &client.connect().await?).await,
        }
    }
}

/// The names of all networks, and their subnets.
pub fn names() -> Result<Vec<(String, String)>> {
    let networks = Attachments::new(&attached::root()).list()?;
    let subnets = |list: &[Cidr]| list.iter().map(Cidr::to_string).collect::<Vec<_>>().join(",");
    Ok(networks.into_iter().map(|one| (one.definition.name, subnets(&one.definition.subnets))).collect())
}

fn list(networks: &Attachments, shown: &Shown) -> Result<()> {
    let mut table = Table::wide(&["NAME", "BRIDGE", "SUBNETS", "CONTAINERS"]);
    for network in networks.list()? {
        let subnets: Vec<String> = network.definition.subnets.iter().map(Cidr::to_string).collect();
        let members = network.members.len().to_string();
        table.row([network.definition.name, network.definition.bridge, subnets.join(","), members]);
    }
    table.show_as(shown)
}

fn describe(network: &Network) -> Value {
    let definition = &network.definition;
    let members = network
        .members
        .iter()
        .map(|(owner, addresses)| json!({"id": owner.id, "interface": owner.ifname, "addresses": addresses}));
    json!({
        "name": definition.name,
        "bridge": definition.bridge,
        "subnets": definition.subnets,
        "internal": definition.internal,
        "containers": members.collect::<Vec<_>>(),
        "cni": serde_json::from_slice::<Value>(&definition.config.bytes).unwrap_or_default(),
    })
}

fn remove(networks: &Attachments, names: &[String]) -> Result<()> {
    let mut first = Ok(());
    for name in names {
        match networks.remove(name) {
            Ok(()) => println!("{name}"),
            Err(failed) => {
                crate::log::error(&format!("unable to remove {name}"), &failed);
                first = first.and(Err(failed));
            }
        }
    }
    first
}

async fn prune(networks: &Attachments, daemon: &Daemon) -> Result<()> {
    let mut known = HashSet::new();
    let request = namespaces::ListNamespacesRequest::default();
    for namespace in daemon.namespaces().list(request).await.map_err(error)?.into_inner().namespaces {
        let request = containers::ListContainersRequest::default();
        let other = daemon.of(&namespace.name)?;
        let found = other.containers().list(request).await.map_err(error)?.into_inner().containers;
        known.extend(found.into_iter().map(|container| attached::full_id(&namespace.name, &container.id)));
    }
    let swept = networks.sweep()?;
    let mut forgotten = 0;
    for id in networks.known_containers()?.into_iter().filter(|id| !known.contains(id)) {
        networks.forget(&id)?;
        forgotten += 1;
    }
    match swept + forgotten {
        0 => eprintln!("nothing to remove"),
        _ => println!("{swept} attachments, {forgotten} containers' files"),
    }
    Ok(())
}
