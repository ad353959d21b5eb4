//! `ctr network`, `ctr netns`, `ctr link`.

use corten_network::random_name;
use serde_json::Value;

use crate::Lab;

#[test]
fn networks_are_made_listed_and_removed() {
    let lab = Lab::start();
    assert_eq!(lab.ctr(["network", "ls", "-q"]).ok(), "");
    assert_eq!(
        lab.ctr(["network", "create", "--subnet", "10.90.0.0/24", "--mtu", "1400", "lab"]).ok(),
        "lab\n"
    );
    assert_eq!(lab.ctr(["net", "create", "--internal", "lab2"]).ok(), "lab2\n");
    let listed: Value = serde_json::from_str(&lab.ctr(["network", "ls", "--format", "json"]).ok()).unwrap();
    assert_eq!(
        (&listed[0]["bridge"], &listed[0]["subnets"], &listed[1]["name"]),
        (&"br-lab".into(), &"10.90.0.0/24".into(), &"lab2".into())
    );
    let shown: Value = serde_json::from_str(&lab.ctr(["network", "inspect", "lab"]).ok()).unwrap();
    assert_eq!(
        (&shown[0]["cni"]["plugins"][0]["mtu"], &shown[0]["cni"]["cniVersion"]),
        (&1400.into(), &"1.1.0".into())
    );
    lab.ctr(["network", "create", "lab"]).fails_with("network \"lab\": already exists");
    lab.ctr(["network", "create", "--subnet", "10.90.0.0/25", "lab3"])
        .fails_with("overlaps with 10.90.0.0/24");
    lab.ctr(["network", "create", "lab3", "--internal"]).fails_with("flags stand before it");
    lab.ctr(["network", "inspect", "nothing"]).fails_with("network \"nothing\": not found");
    assert_eq!(lab.ctr(["network", "rm", "lab", "nothing", "lab2"]).fails(1).matches("nothing").count(), 3);
    assert_eq!(lab.ctr(["network", "ls", "-q"]).ok(), "");
    lab.finish();
}

#[test]
fn links_live_in_namespaces() {
    let lab = Lab::start();
    let name = random_name().unwrap();
    assert_eq!(lab.ctr(["netns", "create", &name]).ok(), format!("{name}\n"));
    lab.ctr(["netns", "create", &name]).fails_with("file exists");
    assert!(lab.ctr(["netns", "ls", "-q"]).ok().lines().any(|line| line == name));
    lab.ctr(["link", "add", "--type", "bridge", "--up", "--address", "10.7.0.1/24", "br7"]).ok();
    let cable = [
        "link",
        "add",
        "--type",
        "veth",
        "--peer",
        "eth0",
        "--peer-netns",
        &name,
        "--master",
        "br7",
        "--mtu",
        "1300",
        "--up",
        "v7",
    ];
    lab.ctr(cable).ok();
    let inside = [
        "link",
        "--netns",
        &name,
        "set",
        "--up",
        "--address",
        "10.7.0.2/24",
        "--mac",
        "02:00:00:00:00:07",
        "eth0",
    ];
    lab.ctr(inside).ok();
    lab.ctr(["link", "--netns", &name, "set", "--route", "0.0.0.0/0=10.7.0.1", "eth0"]).ok();
    let list = |args: &[&str]| -> Value { serde_json::from_str(&lab.ctr(args).ok()).unwrap() };
    let links = list(&["link", "ls", "--format", "json"]);
    assert_eq!(
        (&links[2]["name"], &links[2]["master"], &links[2]["mtu"]),
        (&"v7".into(), &"br7".into(), &1300.into())
    );
    let links = list(&["link", "--netns", &name, "ls", "--format", "json"]);
    assert_eq!(
        (&links[1]["mac"], &links[1]["addresses"][0]),
        (&"02:00:00:00:00:07".into(), &"10.7.0.2/24".into())
    );
    let ping = lab.ctr(["netns", "exec", &name, "sh", "-c", "ip route get 1.2.3.4; exit 7"]);
    assert_eq!(ping.code, Some(7));
    assert!(ping.stdout.contains("via 10.7.0.1 dev eth0"), "{ping:?}");
    lab.ctr(["link", "--netns", &name, "set", "--down", "--rename", "eth9", "eth0"]).ok();
    lab.ctr(["link", "set", "--no-master", "--to-netns", &name, "v7"]).ok();
    let names = lab.ctr(["link", "--netns", &name, "ls", "--format", "plain"]).ok();
    let words = |line: &str| line.split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = names.lines().map(words).collect();
    assert!(lines.iter().any(|line| line[..2] == ["v7", "veth"]), "{names}");
    assert!(lines.iter().any(|line| *line == ["eth9", "veth", "down"]), "{names}");
    lab.ctr(["link", "--netns", &name, "del", "v7"]).ok();
    lab.ctr(["link", "del", "v7"]).fails_with("link v7: not found");
    lab.ctr(["link", "add", "--type", "vlan", "x"]).fails_with("--parent must be given");
    lab.ctr(["link", "add", "--type", "dummy", "a-name-that-is-too-long"]).fails_with("too long");
    lab.ctr(["link", "del", "br7"]).ok();
    lab.ctr(["netns", "rm", &name]).ok();
    lab.ctr(["netns", "rm", &name]).fails_with("not found");
    lab.ctr(["netns", "rm", "../../etc"]).fails(1);
    assert_eq!(lab.state(), ["link lo"]);
    lab.finish();
}
