//! `ctr run --network`.

use std::time::Duration;

use corten_tests::eventually;

use crate::{IMAGE, Lab};

#[test]
fn containers_reach_each_other_by_name_and_are_reached_by_published_ports() {
    let lab = Lab::start();
    lab.ctr(["network", "create", "--subnet", "10.90.0.0/24", "--subnet", "fd90::/64", "lab"]).ok();
    lab.serve(
        "web",
        &[
            "--network",
            "lab",
            "--publish",
            "8080:80",
            "--publish",
            "127.0.0.1:8081:80/tcp",
            "--network-alias",
            "www",
        ],
    );
    for name in ["web", "www"] {
        assert_eq!(lab.ask("client", &["--network", "lab"], &format!("http://{name}/name")).ok(), "web\n");
    }
    for to in ["127.0.0.1:8080", "127.0.0.1:8081", "10.90.0.2:80", "[fd90::2]:80"] {
        assert_eq!(lab.get(to).as_deref(), Some("web\n"), "{to}");
    }
    let show = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "web",
        "sh",
        "-c",
        "cat /etc/hosts /etc/hostname; busybox ip addr show eth0",
    ];
    let shown = lab.ctr(show).ok();
    assert!(
        shown.contains("10.90.0.2\tweb www\n") && shown.contains("\nweb\n") && shown.contains("mtu 1500"),
        "{shown}"
    );
    // Another network does not lead here, but for what is published.
    lab.ctr(["network", "create", "lab2"]).ok();
    // The first process of a container is not ended by signals.
    let briefly = "busybox timeout 1 busybox wget -q -O- http://10.90.0.2/name; exit $?";
    let refused = lab.ctr(["run", "--rm", "--network", "lab2", IMAGE, "stranger", "sh", "-c", briefly]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(lab.ask("stranger", &["--network", "lab2"], "http://10.90.0.1:8080/name").ok(), "web\n");
    // Both networks at once, the second one later.
    lab.ctr(["run", "-d", "--network", "lab2", IMAGE, "both", "sleep", "1000"]).ok();
    let address = lab.ctr(["network", "connect", "lab", "both"]).ok();
    assert!(address.starts_with("10.90.0."), "{address}");
    let ask = ["tasks", "exec", "--exec-id", "e", "both", "busybox", "wget", "-q", "-O-", "http://web/name"];
    assert_eq!(lab.ctr(ask).ok(), "web\n");
    let inspected: serde_json::Value =
        serde_json::from_str(&lab.ctr(["network", "inspect", "lab"]).ok()).unwrap();
    assert_eq!(inspected[0]["containers"].as_array().unwrap().len(), 2);
    lab.ctr(["network", "disconnect", "lab", "both"]).ok();
    assert_ne!(lab.ctr(ask).code, Some(0));
    let busy = lab.ctr(["network", "rm", "lab"]).fails(1);
    assert!(busy.contains("network \"lab\" has 1 attached"), "{busy}");

    for id in ["web", "both"] {
        lab.ctr(["stop", "--rm", "-t", "0s", id]).ok();
    }
    lab.ctr(["network", "rm", "lab2"]).ok();
    lab.ctr(["network", "rm", "lab"]).ok();
    assert_eq!(lab.state(), ["link lo"]);
    assert_eq!(lab.rules(), "");
    lab.finish();
}

#[test]
fn a_container_that_is_started_again_is_attached_again() {
    let lab = Lab::start();
    lab.ctr(["network", "create", "--subnet", "10.90.0.0/24", "lab"]).ok();
    lab.ctr([
        "run",
        "-d",
        "--network",
        "lab",
        "--publish",
        "8080:80",
        "--ip",
        "10.90.0.50",
        IMAGE,
        "c",
        "sleep",
        "1000",
    ])
    .ok();
    lab.ctr(["tasks", "kill", "-s", "9", "c"]).ok();
    eventually("the task ends", Duration::from_secs(60), || {
        Some(()).filter(|()| lab.ctr(["tasks", "rm", "c"]).code == Some(0) || lab.node().task("c").is_none())
    });
    assert!(
        !lab.state().iter().any(|it| it.starts_with("port") || it.starts_with("leases")),
        "{:?}",
        lab.state()
    );
    lab.ctr(["tasks", "start", "-d", "c"]).ok();
    let state = lab.state();
    assert!(state.contains(&"leases/lab/10.90.0.50".to_owned()), "{state:?}");
    assert!(state.iter().any(|it| it.starts_with("port 8080")), "{state:?}");
    lab.ctr(["stop", "--rm", "-t", "0s", "c"]).ok();
    lab.ctr(["network", "rm", "lab"]).ok();
    assert_eq!(lab.state(), ["link lo"]);
    lab.finish();
}

#[test]
fn the_default_network_is_made_and_others_are_joined() {
    let lab = Lab::start();
    lab.serve("web", &["--network", "bridge"]);
    let links = ["busybox", "ip", "-o", "link"];
    let count = |flags: &[&str]| {
        let text = lab.ctr([&["run", "--rm"][..], flags, &[IMAGE, "look"], &links].concat()).ok();
        text.lines().count()
    };
    assert_eq!((count(&[]), count(&["--network", "none"]), count(&["--network", "bridge"])), (1, 1, 2));
    // The machine: its loopback, the bridge, the cable of the server.
    assert_eq!(count(&["--network", "host"]), 3);
    assert_eq!(lab.ask("mate", &["--network", "container:web"], "http://127.0.0.1/name").ok(), "web\n");
    let pid = lab.node().task("web").unwrap().0;
    let path = format!("ns:/proc/{pid}/ns/net");
    assert_eq!(lab.ask("mate", &["--network", &path], "http://127.0.0.1/name").ok(), "web\n");
    let path = format!("network:/proc/{pid}/ns/net");
    assert_eq!(lab.ask("mate", &["--with-ns", &path], "http://127.0.0.1/name").ok(), "web\n");
    for (flags, why) in [
        (vec!["--network", "nothing"], "network \"nothing\": not found"),
        (vec!["--network", "host", "--publish", "1:1"], "need a network, host is none"),
        (vec!["--network", "host", "--network", "bridge"], "stand alone"),
        (vec!["--publish", "nonsense"], "invalid port \"nonsense\""),
        (vec!["--network", "container:nobody"], "no running task found"),
        (vec!["--network", "ns:/nonexistent"], "open /nonexistent: no such file or directory"),
        (vec!["--network", "bridge", "--ip", "10.1.2.3"], "requested IP address 10.1.2.3 is in no range"),
    ] {
        let failed =
            lab.ctr([&["run", "--rm"][..], flags.as_slice(), &[IMAGE, "bad", "true"]].concat()).fails(1);
        assert!(failed.contains(why), "{flags:?}: {failed}");
    }
    lab.ctr(["stop", "--rm", "-t", "0s", "web"]).ok();
    lab.ctr(["containers", "rm", "bad"]);
    lab.ctr(["network", "rm", "bridge"]).ok();
    assert_eq!(lab.state(), ["link lo"]);
    lab.finish();
}
