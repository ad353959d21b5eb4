//! What is nobody's is found and removed, whatever was lost.

use corten_network::unpin;
use serde_json::json;

use super::Machine;

#[test]
fn an_attachment_whose_namespace_is_gone_is_swept() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/29"]);
    let live = machine.container("live").publishing(json!([{"hostPort": 81, "containerPort": 80}]));
    machine.attach("lab", &live).unwrap();
    let before = machine.state();
    let dead = machine.container("dead").publishing(json!([{"hostPort": 80, "containerPort": 80}]));
    machine.attach("lab", &dead).unwrap();
    unpin(&dead.path).unwrap();
    drop(dead);
    // The kernel takes the cable away a moment after the namespace.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while machine.on(|| machine.networks.sweep()).unwrap() == 0 {
        assert!(std::time::Instant::now() < end, "nothing is swept: {:?}", machine.state());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(machine.state(), before);
    assert_eq!(machine.on(|| machine.networks.sweep()).unwrap(), 0);
    // And one that is detached after all is no failure.
    machine.detach("dead");
    // Its writer was killed in the middle.
    let half = ["results/.lab-half-eth0", "leases/lab/.10.90.0.6"].map(|it| machine.networks.root().join(it));
    half.iter().for_each(|path| std::fs::write(path, "{").unwrap());
    machine.on(|| machine.networks.sweep()).unwrap();
    assert!(half.iter().all(|path| !path.exists()));
    assert_eq!(machine.state(), before);
}

/// The machine's state, whichever addresses were given.
fn shape(machine: &Machine) -> Vec<String> {
    let shape = |it: String| match it
        .strip_prefix("file ")
        .is_some_and(|it| it.parse::<std::net::IpAddr>().is_ok())
    {
        true => "lease".to_owned(),
        false => it,
    };
    machine.state().into_iter().map(shape).collect()
}

#[test]
fn a_crash_at_any_point_leaves_nothing_for_long() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/29"]);
    let (container, _) = machine.attached("lab", "c");
    let results = machine.networks.root().join("results/lab-c-eth0");
    let before = shape(&machine);
    // Killed when addresses and cable were there, and no result.
    let record = std::fs::read_to_string(&results).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&record).unwrap();
    value.as_object_mut().unwrap().remove("result");
    std::fs::write(&results, value.to_string()).unwrap();
    assert!(machine.on(|| machine.networks.sweep()).unwrap() > 0);
    assert_eq!(shape(&machine), ["file lab.conflist", "link br-lab", "link lo"]);
    machine.attach("lab", &container).unwrap();
    // All records lost, then attached again.
    std::fs::remove_file(&results).unwrap();
    machine.attach("lab", &container).unwrap();
    assert_eq!(shape(&machine), before);
    // A lease of somebody who never came further.
    std::fs::write(machine.networks.root().join("leases/lab/10.90.0.6"), "x\r\neth0").unwrap();
    assert!(machine.on(|| machine.networks.sweep()).unwrap() > 0);
    assert_eq!(shape(&machine), before);
}

#[test]
fn leases_and_ports_of_the_dead_do_not_stand_in_the_way() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/29"]);
    let dead: Vec<_> = (0..5u16)
        .map(|n| {
            machine
                .container(&format!("dead{n}"))
                .publishing(json!([{"hostPort": 80 + n, "containerPort": 80}]))
        })
        .collect();
    for container in &dead {
        machine.attach("lab", container).unwrap();
    }
    let full = machine.container("late").publishing(json!([{"hostPort": 80, "containerPort": 80}]));
    let failed = machine.attach("lab", &full).unwrap_err();
    assert!(
        failed.message().contains("no IP addresses available in range set: 10.90.0.1-10.90.0.6"),
        "{failed}"
    );
    drop(dead);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while let Err(failed) = machine.attach("lab", &full) {
        assert!(std::time::Instant::now() < end, "{failed}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    machine.detach("late");
}

#[test]
fn after_a_boot_nothing_is_attached() {
    let machine = Machine::new();
    machine.create("lab", &["10.90.0.0/24"]);
    let before = machine.state();
    let containers: Vec<_> = (0..10).map(|n| machine.attached("lab", &format!("c{n}")).0).collect();
    drop(containers);
    // The same folder on a machine that has just started.
    let reborn = Machine { host: corten_network::NetworkNamespace::new().unwrap(), ..machine };
    std::fs::write(reborn.networks.root().join("boot"), "another").unwrap();
    let (_container, address) = reborn.attached("lab", "new");
    assert!(address.to_string().starts_with("10.90.0."));
    let left = reborn.state();
    assert!(!left.iter().any(|it| it.starts_with("file lab-c")), "{left:?}");
    reborn.detach("new");
    let gone: Vec<_> = reborn.state().into_iter().filter(|it| !it.starts_with("link")).collect();
    assert_eq!(gone, before.into_iter().filter(|it| !it.starts_with("link")).collect::<Vec<_>>());
}
