//! The networks of a node: loaded from a folder, and attached to all at once, as go-cni does (spec 06 §2.6).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use corten_types::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Attachment, CACHE_FOLDER, CONFIG_FOLDER, Cni, Dns, NetworkConfig, NetworkResult, PLUGIN_FOLDER,
    ResultRoute, Runner, load,
};

/// Where things are and what counts.
#[derive(Clone, Debug)]
pub struct Options {
    /// How plugins are executed.
    pub runner: Runner,
    /// Where configuration is.
    pub config_folder: PathBuf,
    /// Where results are kept.
    pub cache_folder: PathBuf,
    /// How many files count, by name; 0 for all.
    pub most: usize,
    /// File n makes the interface `<prefix>n`.
    pub prefix: String,
    /// Whether `lo` is a network too, the first one.
    pub loopback: bool,
    /// One after the other; else all at once.
    pub serial: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runner: Runner::new(vec![PLUGIN_FOLDER.into()]),
            config_folder: CONFIG_FOLDER.into(),
            cache_folder: CACHE_FOLDER.into(),
            most: 1,
            prefix: "eth".into(),
            loopback: false,
            serial: false,
        }
    }
}

/// The configuration of `lo`.
const LOOPBACK: &str = r#"{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#;

/// A network and its interface.
type Known = (NetworkConfig, String);

/// The networks of a node.
#[derive(Debug)]
pub struct Networks {
    options: Options,
    cni: Cni,
    loaded: Mutex<Result<Arc<Vec<Known>>>>,
}

/// All attachments of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attached {
    /// By name; the first network's is always there.
    pub interfaces: BTreeMap<String, Interface>,
    /// One for each network.
    #[serde(rename = "DNS")]
    pub dns: Vec<Dns>,
    /// Those of all networks.
    pub routes: Vec<ResultRoute>,
}

/// An interface, inside or outside of the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// Its addresses.
    #[serde(rename = "IPConfigs")]
    pub ip_configs: Option<Vec<IpConfig>>,
    /// Address of the hardware.
    pub mac: String,
    /// Path of its namespace; empty outside.
    pub sandbox: String,
    /// Device on the bus.
    #[serde(rename = "PciID")]
    pub pci_id: String,
    /// Socket of a device in user space.
    pub socket_path: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IpConfig {
    /// The address.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
    /// Who leads out.
    #[serde(rename = "Gateway", serialize_with = "gateway")]
    pub gateway: Option<IpAddr>,
}

#[expect(clippy::ref_option, reason = "serde asks for it")]
fn gateway<S: serde::Serializer>(address: &Option<IpAddr>, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&address.map(|it| it.to_string()).unwrap_or_default())
}

impl Networks {
    /// Loads them; a failure is kept and told by [`Networks::status`] until a [`Networks::reload`] that succeeds.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let cni = Cni { runner: options.runner.clone(), cache: options.cache_folder.clone(), durable: true };
        let loaded = Mutex::new(read(&options));
        Self { options, cni, loaded }
    }

    /// Reads the folder again; networks that were known before are forgotten, whatever comes of it.
    ///
    /// # Errors
    /// As [`load`], told as `cni config load failed: …: failed to load cni config`.
    pub fn reload(&self) -> Result<()> {
        let read = read(&self.options);
        let answer = read.as_ref().map(drop).map_err(Clone::clone);
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = read;
        answer
    }

    /// The folder of configuration, for [`super::Watch`].
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.options.config_folder
    }

    /// Whether a container can be attached. Plugins of version 1.1 and above are asked.
    ///
    /// # Errors
    /// `cni plugin not initialized`; those of plugins.
    pub fn status(&self) -> Result<()> {
        self.known()?.iter().try_for_each(|(network, _)| self.cni.status(network))
    }

    /// The configurations and their interfaces, in order.
    ///
    /// # Errors
    /// `cni plugin not initialized`
    pub fn known(&self) -> Result<Arc<Vec<Known>>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loaded.map_err(|failed| Error::unknown("cni plugin not initialized").with_hint(failed.message()))
    }

    /// Attaches to all. When one fails the others are finished nevertheless, and [`Networks::detach`] must follow.
    ///
    /// # Errors
    /// That of the first network, in their order.
    pub fn attach(
        &self,
        id: &str,
        netns: &str,
        args: &[(String, String)],
        capabilities: &Map<String, Value>,
    ) -> Result<Attached> {
        let known = self.known()?;
        let add = |(network, ifname): &Known| {
            let attachment = Attachment { container_id: id, netns, ifname, args, capabilities };
            self.cni.add(network, &attachment)
        };
        let results: Vec<Result<NetworkResult>> = match known.as_slice() {
            [] | [_] => known.iter().map(add).collect(),
            several if self.options.serial => {
                let mut results = Vec::new();
                for one in several {
                    results.push(add(one));
                    if results.last().is_some_and(Result::is_err) {
                        break;
                    }
                }
                results
            }
            several => std::thread::scope(|scope| {
                let threads: Vec<_> = several.iter().map(|one| scope.spawn(|| add(one))).collect();
                let panicked = |_| Err(Error::internal("attaching a network panicked"));
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
            }),
        };
        merge(&results.into_iter().collect::<Result<Vec<_>>>()?, &self.options.prefix)
    }

    /// Detaches from all; networks that do not know the container are no failure.
    ///
    /// # Errors
    /// The first other, which ends it.
    pub fn detach(
        &self,
        id: &str,
        netns: &str,
        args: &[(String, String)],
        capabilities: &Map<String, Value>,
    ) -> Result<()> {
        for (network, ifname) in self.known()?.iter() {
            let attachment = Attachment { container_id: id, netns, ifname, args, capabilities };
            match self.cni.delete(network, &attachment) {
                Err(gone) if gone.message().contains("not found") => {}
                Err(gone) if netns.is_empty() && gone.message().contains("no such file or directory") => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Asks whether the attachments are as they were made.
    ///
    /// # Errors
    /// The first plugin's.
    pub fn check(
        &self,
        id: &str,
        netns: &str,
        args: &[(String, String)],
        capabilities: &Map<String, Value>,
    ) -> Result<()> {
        for (network, ifname) in self.known()?.iter() {
            self.cni.check(network, &Attachment { container_id: id, netns, ifname, args, capabilities })?;
        }
        Ok(())
    }

    /// As JSON, for those who look at the daemon.
    #[must_use]
    pub fn describe(&self) -> Value {
        let known = self.known().map(|known| {
            let one = |(network, ifname): &Known| {
                let plugins: Vec<Value> = network.plugins.iter().map(|it| it.value.clone().into()).collect();
                json!({"Config": {"Name": network.name, "CNIVersion": network.version, "Plugins": plugins}, "IFName": ifname})
            };
            known.iter().map(one).collect::<Vec<_>>()
        });
        json!({
            "PluginDirs": self.options.runner.folders,
            "PluginConfDir": self.options.config_folder,
            "PluginMaxConfNum": self.options.most,
            "Prefix": self.options.prefix,
            "Networks": known.unwrap_or_default(),
        })
    }
}

fn read(options: &Options) -> Result<Arc<Vec<Known>>> {
    let mut known = Vec::new();
    if options.loopback {
        known.push((NetworkConfig::from_list(LOOPBACK.as_bytes(), None)?, "lo".to_owned()));
    }
    let wrap = |failed: Error| {
        Error::unknown(format!("cni config load failed: {}: failed to load cni config", failed.message()))
    };
    let loaded = load(&options.config_folder, options.most).map_err(wrap)?;
    known.extend(
        loaded.into_iter().enumerate().map(|(number, it)| (it, format!("{}{number}", options.prefix))),
    );
    Ok(Arc::new(known))
}

/// One view of the results of several networks.
fn merge(results: &[NetworkResult], prefix: &str) -> Result<Attached> {
    let default = format!("{prefix}0");
    let mut all = Attached::default();
    all.interfaces.insert(default.clone(), Interface::default());
    for result in results {
        for interface in &result.interfaces {
            let made = Interface {
                ip_configs: None,
                mac: interface.mac.clone(),
                sandbox: interface.sandbox.clone(),
                pci_id: interface.pci_id.clone(),
                socket_path: interface.socket_path.clone(),
            };
            all.interfaces.insert(interface.name.clone(), made);
        }
        for ip in &result.ips {
            let name = match ip.interface {
                None => &default,
                Some(number) => match result.interfaces.get(number) {
                    Some(interface) => &interface.name,
                    None => {
                        let (count, text) = (
                            result.interfaces.len(),
                            "invalid IP configuration with invalid interface number",
                        );
                        return Err(Error::unknown(format!(
                            "invalid interface config: {text} {number} of {count}: invalid result"
                        )));
                    }
                },
            };
            let configs = all.interfaces.entry(name.clone()).or_default().ip_configs.get_or_insert_default();
            configs.push(IpConfig { ip: ip.address.address, gateway: ip.gateway });
        }
        all.dns.push(result.dns.clone());
        all.routes.extend(result.routes.iter().cloned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_one_view_in_gos_words() {
        let lo = json!({"cniVersion": "0.3.1", "interfaces": [{"name": "lo", "sandbox": "/x"}], "ips": [{"version": "4", "interface": 0, "address": "127.0.0.1/8"}]});
        let eth = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}], "dns": {"nameservers": ["1.1.1.1"]}});
        let results = [NetworkResult::read(&lo).unwrap(), NetworkResult::read(&eth).unwrap()];
        let merged = serde_json::to_value(merge(&results, "eth").unwrap()).unwrap();
        assert_eq!(
            merged["Interfaces"]["eth0"]["IPConfigs"],
            json!([{"IP": "10.1.0.5", "Gateway": "10.1.0.1"}])
        );
        assert_eq!(merged["Interfaces"]["lo"]["IPConfigs"][0]["Gateway"], "");
        assert_eq!(
            (&merged["Interfaces"]["lo"]["PciID"], &merged["DNS"][1]["nameservers"][0]),
            (&json!(""), &json!("1.1.1.1"))
        );
        let wrong = json!({"cniVersion": "1.0.0", "ips": [{"interface": 3, "address": "10.1.0.5/16"}]});
        assert!(merge(&[NetworkResult::read(&wrong).unwrap()], "eth").is_err());
        let empty = merge(&[], "eth").unwrap();
        assert!(empty.interfaces.contains_key("eth0"));
    }
}
