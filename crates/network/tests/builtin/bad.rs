//! What cannot be is refused in words, and leaves nothing.

use corten_network::builtin::NewNetwork;
use corten_types::ErrorClass;
use serde_json::json;

use super::Machine;

#[test]
fn networks_that_cannot_be_are_refused() {
    let machine = Machine::new();
    let _outside = machine.outside();
    machine.create("lab", &["10.90.0.0/16"]);
    let before = machine.state();
    let create = |name: &str, subnet: &str| {
        let new =
            NewNetwork { name: name.into(), subnets: vec![subnet.parse().unwrap()], ..NewNetwork::default() };
        machine.on(|| machine.networks.create(&new)).unwrap_err()
    };
    let taken = create("lab2", "10.90.5.0/24");
    assert!(taken.message().contains("overlaps with 10.90.0.0/16 of network \"lab\""), "{taken}");
    assert!(create("lab2", "192.0.2.0/25").message().contains("overlaps with 192.0.2.0/24 of the host"));
    assert!(create("lab", "10.91.0.0/16").is_already_exists());
    assert_eq!(create("../x", "10.91.0.0/16").class(), ErrorClass::InvalidArgument);
    assert_eq!(create(&"n".repeat(65), "10.91.0.0/16").class(), ErrorClass::InvalidArgument);
    assert_eq!(machine.state(), before);
    let missing = machine.attach("nothing", &machine.container("c")).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert!(machine.on(|| machine.networks.remove("nothing")).unwrap_err().is_not_found());
    assert!(machine.attach("../lab", &machine.container("c")).unwrap_err().is_not_found());
    let (_container, _) = machine.attached("lab", "c");
    let busy = machine.on(|| machine.networks.remove("lab")).unwrap_err();
    assert_eq!(busy.message(), "network \"lab\" has 1 attached, as c: failed precondition");
}

#[test]
fn attachments_that_cannot_be_leave_nothing() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/24"]);
    let (_web, _) = {
        let web = machine.container("web").publishing(json!([{"hostPort": 80, "containerPort": 80}]));
        let address = machine.attach("lab", &web).unwrap().ips[0].address.address;
        (web, address)
    };
    let before = machine.state();
    let mut container = machine.container("c");
    let netns = container.member.netns.clone();
    for (netns, ports, why) in [
        (
            netns.as_str(),
            json!([{"hostPort": 80, "containerPort": 8}]),
            "a port is published already: 80/tcp by lab/web/eth0",
        ),
        (
            netns.as_str(),
            json!([{"hostPort": 90, "containerPort": 8}, {"hostPort": 80, "containerPort": 8}]),
            "published already",
        ),
        (
            netns.as_str(),
            json!([{"hostPort": 90, "containerPort": 8, "protocol": "icmp"}]),
            "unknown protocol \"icmp\"",
        ),
        (netns.as_str(), json!([{"hostPort": 99999, "containerPort": 8}]), "invalid host port number: 99999"),
        ("/nonexistent", json!([]), "open /nonexistent"),
        ("/dev/null", json!([]), "not a network namespace"),
    ] {
        (container.member.netns, container.member.ports) = (netns.to_owned(), ports);
        let failed = machine.attach("lab", &container).unwrap_err();
        assert!(failed.message().contains(why), "{failed}");
        assert_eq!(machine.state(), before, "{why}");
    }
    (container.member.netns, container.member.ports) = (netns, json!([]));
    container.member.addresses = vec!["10.90.0.1".parse().unwrap()];
    assert!(machine.attach("lab", &container).unwrap_err().message().contains("gateway"));
    container.member.addresses = vec!["10.90.0.77".parse().unwrap()];
    assert_eq!(machine.attach("lab", &container).unwrap().ips[0].address.to_string(), "10.90.0.77/24");
    assert!(machine.attach("lab", &container).unwrap_err().is_already_exists());
    machine.detach("c");
    machine.detach("c");
    assert_eq!(machine.state(), before);
}
