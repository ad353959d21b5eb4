//! What attaching a container to a network costs, beside the plugins that most people install.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use corten_network::NetworkNamespace;
use corten_network::builtin::{Attachments, Member, NewNetwork, Plan};
use corten_network::cni::{Attachment, Cni, NetworkConfig, Runner};
use corten_tests::{Peers, Scratch};
use serde_json::{Value, json};

use crate::{median, row};

/// Attach and detach, one after the other, the sides taking turns; on a machine that is only a network namespace.
pub fn attach(programs: &Path, runs: usize) {
    let host = NetworkNamespace::new().unwrap();
    host.run(|| measure(programs, runs)).unwrap();
}

fn measure(programs: &Path, runs: usize) {
    let scratch = Scratch::new();
    let netns = scratch.join("netns");
    NetworkNamespace::new().unwrap().pin(&netns).unwrap();
    let netns = netns.display().to_string();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]);

    let networks = Attachments::new(&scratch.join("network"));
    networks.create(&NewNetwork { name: "ours".into(), ..NewNetwork::default() }).unwrap();
    let member =
        Member { id: "bench".into(), netns: netns.clone(), ports: ports.clone(), ..Member::default() };
    let within = || {
        networks.attach("ours", &member).unwrap();
        networks.detach("bench", None).unwrap();
    };
    let plan = Plan {
        root: networks.root().to_owned(),
        id: "bench".into(),
        networks: vec!["ours".into()],
        ports: ports.clone(),
        ..Plan::default()
    };
    // A process whose namespace it is, as of a container.
    let mut sleeper = host_process(&netns);
    let state =
        json!({"pid": sleeper.id(), "annotations": {Plan::ANNOTATION: plan.text().unwrap()}}).to_string();
    let hooks =
        || ["attach", "detach"].iter().for_each(|what| hook(&programs.join("corten-cni"), what, &state));

    let (config, cni) = debian(&scratch);
    let capabilities = json!({ "portMappings": ports });
    let capabilities = capabilities.as_object().unwrap();
    let theirs = || {
        let to = Attachment { container_id: "bench", netns: &netns, ifname: "eth9", args: &[], capabilities };
        cni.add(&config, &to).unwrap();
        cni.delete(&config, &to).unwrap();
    };
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=runs {
        let sides: [&dyn Fn(); 3] = [&within, &hooks, &theirs];
        for (side, figures) in sides.iter().zip(&mut figures) {
            let begun = Instant::now();
            side();
            // The first makes bridges and rules.
            if round > 0 {
                figures.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
        }
    }
    sleeper.kill().ok();
    sleeper.wait().ok();
    corten_network::unpin(Path::new(&netns)).ok();
    let [within, hooks, theirs] = figures.map(median);
    row(&format!("network: attach, detach (median of {runs})"), "ms", within, theirs, Some(0.25));
    row("network: the same by the OCI runtime's hooks", "ms", hooks, theirs, Some(0.25));
}

fn host_process(netns: &str) -> std::process::Child {
    let namespace = NetworkNamespace::open(Path::new(netns)).unwrap();
    namespace.run(|| Command::new("sleep").arg("1000").spawn().unwrap()).unwrap()
}

fn hook(program: &Path, what: &str, state: &str) {
    use std::io::Write;
    let mut child = Command::new(program).arg(what).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(state.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Debian's bridge, host-local and portmap, as a list of most machines has them.
fn debian(scratch: &Scratch) -> (NetworkConfig, Cni) {
    let list: Value = json!({"cniVersion": "1.0.0", "name": "theirs", "plugins": [
        {"type": "bridge", "bridge": "br-theirs", "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "dataDir": scratch.join("leases"),
                "ranges": [[{"subnet": "10.250.0.0/24"}]], "routes": [{"dst": "10.99.0.0/16"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    let config = NetworkConfig::from_list(list.to_string().as_bytes(), None).unwrap();
    let runner = Runner { timeout: Duration::from_secs(60), ..Runner::new(vec![Peers::find().cni()]) };
    (config, Cni { runner, cache: scratch.join("results"), durable: false })
}
