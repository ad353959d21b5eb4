//! The plugins that are built in, beside Debian's of the same names (`PEERS`).

use std::path::PathBuf;
use std::time::Duration;

use corten_network::cni::{Attachment, Cni, NetworkConfig, Runner};
use corten_network::plugins::{self, host_link};
use corten_network::{Netlink, plugins::Owner};
use serde_json::{Map, Value, json};

use super::Machine;

fn debian() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("PEERS")?).join("cni/usr/lib/cni");
    folder.is_dir().then_some(folder)
}

/// A client of the built-in plugins, or of those in a folder.
fn client(machine: &Machine, programs: Option<PathBuf>) -> Cni {
    let builtin: Option<corten_network::cni::Builtin> =
        if programs.is_none() { Some(plugins::run) } else { None };
    let runner =
        Runner { builtin, timeout: Duration::from_secs(60), ..Runner::new(programs.into_iter().collect()) };
    Cni { runner, cache: machine.folder.path().join("results"), durable: false }
}

fn config(machine: &Machine, version: &str, masquerade: bool) -> NetworkConfig {
    let list = json!({"name": "net", "cniVersion": version, "plugins": [
        {"type": "bridge", "bridge": "br-net", "isDefaultGateway": true, "ipMasq": masquerade, "hairpinMode": true, "mtu": 1400,
            "ipam": {"type": "host-local", "dataDir": machine.folder.path().join("leases"),
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]], "routes": [{"dst": "10.5.0.0/16"}]},
            "dns": {"nameservers": ["10.77.0.1"]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    NetworkConfig::from_list(list.to_string().as_bytes(), None).unwrap()
}

/// A result without what is by chance: names of cables and addresses of hardware.
fn normal(value: &Value) -> Value {
    let mut value = value.clone();
    for interface in value["interfaces"].as_array_mut().into_iter().flatten() {
        let object = interface.as_object_mut().unwrap();
        assert!(object.remove("mac").is_some());
        if object["name"].as_str().unwrap().starts_with("veth") {
            object["name"] = json!("veth");
        }
    }
    for list in ["ips", "routes"] {
        value[list].as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    value
}

#[test]
fn results_are_those_of_debians_plugins() {
    let Some(programs) = debian() else { return eprintln!("skipped: no plugins (PEERS)") };
    let machine = Machine::new();
    let container = machine.container("c");
    let given = json!({"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}]});
    let given = given.as_object().unwrap().clone();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let config = config(&machine, version, true);
        let to = Attachment {
            container_id: "c",
            netns: &container.member.netns,
            ifname: "eth0",
            args: &[],
            capabilities: &given,
        };
        let mut seen = Vec::new();
        // Each detaches what the other attached in the last round: files of leases are shared.
        for programs in [None, Some(programs.clone())] {
            let cni = client(&machine, programs);
            let result = machine.on(|| cni.add(&config, &to)).unwrap();
            let inside = Netlink::open_in(&container.namespace).unwrap().addresses().unwrap();
            let mut addresses: Vec<_> = inside.iter().filter(|one| one.global).map(|one| one.cidr).collect();
            addresses.sort();
            let routes = Netlink::open_in(&container.namespace).unwrap().routes().unwrap();
            let mut routes: Vec<_> = routes
                .iter()
                .filter(|it| it.gateway.is_some())
                .map(|it| (it.destination, it.gateway))
                .collect();
            routes.sort();
            if version >= "0.4.0" {
                machine.on(|| cni.check(&config, &to)).unwrap();
            }
            machine.on(|| cni.delete(&config, &to)).unwrap();
            machine.on(|| cni.delete(&config, &to)).unwrap();
            std::fs::remove_dir_all(machine.folder.path().join("leases")).unwrap();
            let raw = result.to_version(version).unwrap();
            seen.push((normal(&raw), addresses, routes));
        }
        assert_eq!(seen[0], seen[1], "{version}");
    }
}

#[test]
fn leases_and_cables_are_understood_by_the_other_side() {
    let Some(programs) = debian() else { return eprintln!("skipped: no plugins (PEERS)") };
    let machine = Machine::new();
    // Debian's plugin insists on finding the rules that it made.
    let config = config(&machine, "1.0.0", false);
    let none = Map::new();
    let (ours, theirs) = (client(&machine, None), client(&machine, Some(programs)));
    for (number, (first, second)) in [(&ours, &theirs), (&theirs, &ours)].into_iter().enumerate() {
        let (a, b) = (machine.container(&format!("a{number}")), machine.container(&format!("b{number}")));
        let to = |id: &'static str, netns| Attachment {
            container_id: id,
            netns,
            ifname: "eth0",
            args: &[],
            capabilities: &none,
        };
        let (to_a, to_b) = (to("a", &a.member.netns), to("b", &b.member.netns));
        let one = machine.on(|| first.add(&config, &to_a)).unwrap();
        let other = machine.on(|| second.add(&config, &to_b)).unwrap();
        assert_ne!(one.ips[0].address, other.ips[0].address);
        machine.on(|| second.delete(&config, &to_a)).unwrap();
        machine.on(|| first.delete(&config, &to_b)).unwrap();
        let leases = std::fs::read_dir(machine.folder.path().join("leases/net")).unwrap().flatten();
        let held: Vec<_> = leases
            .filter(|it| it.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok())
            .collect();
        assert!(held.is_empty(), "{held:?}");
        let links = Netlink::open_in(&machine.host).unwrap().links().unwrap();
        assert_eq!(links.len(), 2, "{links:?}");
    }
}

#[test]
fn the_cable_of_an_owner_has_always_the_same_name() {
    let owner = Owner { id: "default-c1".into(), ifname: "eth0".into() };
    assert_eq!(host_link(&owner), "veth2ef756a5c37");
    assert_eq!(host_link(&Owner { ifname: "eth1".into(), ..owner }).len(), 15);
}

#[test]
fn a_plugin_answers_as_a_program() {
    let run = |name: &str, command: &str, input: &str| {
        let variable = |asked: &str| match asked {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some("c".to_owned()),
            "CNI_NETNS" => Some("/nonexistent".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        };
        let (text, code) = plugins::main(name, variable, input.as_bytes());
        (serde_json::from_str::<Value>(&text).unwrap_or_default(), code)
    };
    let (version, code) = run("bridge", "VERSION", r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(
        (code, &version["cniVersion"], version["supportedVersions"].as_array().unwrap().len()),
        (0, &json!("1.0.0"), 7)
    );
    for (name, command, input, number, why) in [
        ("bridge", "NONSENSE", "{}", 4, "unknown CNI_COMMAND"),
        ("bridge", "ADD", "garbage", 6, "error unmarshall network config"),
        ("bridge", "ADD", "[]", 6, "not an object"),
        ("bridge", "ADD", r#"{"cniVersion":"9.0.0"}"#, 1, "incompatible CNI versions"),
        ("bridge", "ADD", r#"{"cniVersion":"1.0.0","mtu":"x"}"#, 7, "failed to load netconf"),
        ("bridge", "ADD", r#"{"cniVersion":"1.0.0","bridge":"a-name-that-is-too-long"}"#, 7, "too long"),
        ("bridge", "ADD", r#"{"cniVersion":"1.0.0","vlan":5}"#, 7, "no VLANs"),
        ("bridge", "ADD", r#"{"cniVersion":"1.0.0"}"#, 999, "open /nonexistent"),
        ("host-local", "ADD", r#"{"cniVersion":"1.0.0","name":"n","ipam":{}}"#, 7, "no IP ranges specified"),
        ("portmap", "ADD", r#"{"cniVersion":"1.0.0"}"#, 7, "must be called as chained plugin"),
        ("loopback", "ADD", r#"{"cniVersion":"1.0.0"}"#, 999, "open /nonexistent"),
        ("other", "ADD", r#"{"cniVersion":"1.0.0"}"#, 999, "no plugin other"),
    ] {
        let (failure, code) = run(name, command, input);
        assert_eq!((code, &failure["code"]), (1, &json!(number)), "{name} {input}: {failure}");
        assert!(failure["msg"].as_str().unwrap().contains(why), "{failure}");
    }
    assert_eq!(run("loopback", "DEL", r#"{"cniVersion":"1.0.0"}"#), (Value::Null, 0));
}
