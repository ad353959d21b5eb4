//! Swarm, with one node on loopback; one after the other, for all change the same services.

use corten_tests::eventually;
use rustix::process::Signal;

use crate::table::{Check, skip};
use corten_tests::engine::{BOX, Engine, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("init", init),
    ("a service with 3 replicas", replicas),
    ("scale", scale),
    ("rolling update", update),
    ("rollback", rollback),
    ("an update that fails is rolled back", failing_update),
    ("a task whose container dies is replaced", replaced),
    ("secrets and configs", secrets),
    ("limits, mounts, health of a service", options),
    ("global services and jobs", modes),
    ("an overlay network with names", overlay),
    ("virtual addresses and the ingress network", ingress),
    ("a port of the host", host_port),
    ("stack deploy and remove", stack),
    ("drain and activate", drain),
    ("services go on after dockerd was killed", restart),
    ("leave", leave),
];

/// Waits until a service has so many running tasks.
#[track_caller]
fn running(e: &Engine, service: &str, wanted: usize) {
    let line = format!("ps -q --filter label=com.docker.swarm.service.name={service}");
    eventually(&format!("{wanted} tasks of {service} run"), PATIENCE, || {
        (e.out(&line).lines().count() == wanted).then_some(())
    });
}

/// What a command says in each container of a service.
fn each(e: &Engine, service: &str, command: &str) -> Vec<String> {
    let ids = e.out(&format!("ps -q --filter label=com.docker.swarm.service.name={service}"));
    ids.lines().map(|id| e.docker(&format!("exec {id} {command}")).stdout.trim().to_owned()).collect()
}

/// Waits until a command says the same in each of so many containers.
#[track_caller]
fn each_says(e: &Engine, service: &str, command: &str, wanted: &str, count: usize) {
    eventually(&format!("{service}: {command} says {wanted:?}"), PATIENCE, || {
        let found = each(e, service, command);
        (found.len() == count && found.iter().all(|text| text == wanted)).then_some(())
    });
}

const CREATE: &str = "service create -d --no-resolve-image --stop-grace-period 0s --restart-delay 100ms";

fn init(e: &Engine) {
    e.docker("swarm init --advertise-addr 127.0.0.1 --listen-addr 127.0.0.1").ok();
    assert_eq!(
        e.out("node ls --format '{{.Status}} {{.Availability}} {{.ManagerStatus}}'"),
        "Ready Active Leader"
    );
    assert_eq!(e.out("info --format '{{.Swarm.LocalNodeState}}'"), "active");
}

fn replicas(e: &Engine) {
    let flags = "--update-monitor 500ms --update-delay 0s --rollback-monitor 500ms --env V=1 --replicas 3";
    e.out(&format!("{CREATE} --name web {flags} {BOX} sleep 1000"));
    running(e, "web", 3);
    each_says(e, "web", "sh -c 'echo $V'", "1", 3);
    assert_eq!(e.out("service ls --filter name=web --format '{{.Replicas}}'"), "3/3");
}

fn scale(e: &Engine) {
    e.docker("service scale -d web=5").ok();
    running(e, "web", 5);
    e.docker("service scale -d web=2").ok();
    running(e, "web", 2);
}

#[track_caller]
fn updated(e: &Engine, service: &str, wanted: &str) {
    eventually(&format!("{service} is {wanted}"), PATIENCE, || {
        let state = e.out(&format!("service inspect --format '{{{{.UpdateStatus.State}}}}' {service}"));
        (state == wanted).then_some(())
    });
}

fn update(e: &Engine) {
    e.docker("service update -d --no-resolve-image --env-add V=2 --update-parallelism 1 web").ok();
    updated(e, "web", "completed");
    each_says(e, "web", "sh -c 'echo $V'", "2", 2);
}

fn rollback(e: &Engine) {
    e.docker("service rollback -d web").ok();
    updated(e, "web", "rollback_completed");
    each_says(e, "web", "sh -c 'echo $V'", "1", 2);
}

fn failing_update(e: &Engine) {
    e.docker("service update -d --no-resolve-image --update-failure-action rollback --update-monitor 5s --args 'sh -c \"exit 1\"' web")
        .ok();
    updated(e, "web", "rollback_completed");
    each_says(e, "web", "sh -c 'echo $V'", "1", 2);
}

fn replaced(e: &Engine) {
    let ids = || e.out("ps -q --filter label=com.docker.swarm.service.name=web");
    let before = ids();
    let victim = before.lines().next().unwrap();
    e.docker(&format!("kill {victim}")).ok();
    eventually("another task runs", PATIENCE, || {
        let now = ids();
        (now.lines().count() == 2 && !now.contains(victim)).then_some(())
    });
    e.docker("service rm web").ok();
    running(e, "web", 0);
}

fn secrets(e: &Engine) {
    e.docker_with_input("secret create key -", b"secret text").ok();
    e.docker_with_input("config create settings -", b"config text").ok();
    let flags = "--secret key --config source=settings,target=/etc/settings,mode=0440";
    e.out(&format!("{CREATE} --name holder {flags} {BOX} sleep 1000"));
    running(e, "holder", 1);
    each_says(e, "holder", "cat /run/secrets/key /etc/settings", "secret textconfig text", 1);
    let mount = each(e, "holder", "grep /run/secrets/key /proc/mounts").concat();
    assert!(mount.starts_with("tmpfs "), "{mount}");
    e.docker("service rm holder").ok();
    running(e, "holder", 0);
    e.docker("secret rm key").ok();
    e.docker("config rm settings").ok();
}

fn options(e: &Engine) {
    let flags = "--limit-memory 64m --mount type=volume,src=swarm-volume,dst=/v --mount type=tmpfs,dst=/t \
                 --health-cmd 'test -e /v' --health-interval 200ms --user nobody --read-only --init --cap-drop ALL";
    e.out(&format!("{CREATE} --name options {flags} {BOX} sleep 1000"));
    running(e, "options", 1);
    each_says(e, "options", "id -u", "65534", 1);
    each_says(e, "options", "grep CapBnd /proc/1/status", "CapBnd:\t0000000000000000", 1);
    eventually("the log is told", PATIENCE, || {
        e.docker("service logs options").code.filter(|code| *code == 0)
    });
    assert!(e.out("service ps options").contains("Running"));
    e.docker("service rm options").ok();
    running(e, "options", 0);
    eventually("the volume is free", PATIENCE, || {
        e.docker("volume rm swarm-volume").code.filter(|code| *code == 0)
    });
}

fn modes(e: &Engine) {
    e.out(&format!("{CREATE} --name everywhere --mode global {BOX} sleep 1000"));
    running(e, "everywhere", 1);
    e.out(&format!("service create -d --no-resolve-image --name job --mode replicated-job --replicas 3 --max-concurrent 2 {BOX} true"));
    eventually("the job is done", PATIENCE, || {
        let told = e.out("service ls --filter name=job --format '{{.Replicas}}'");
        told.contains("3/3 completed").then_some(())
    });
    e.docker("service rm everywhere job").ok();
    running(e, "everywhere", 0);
}

fn overlay(e: &Engine) {
    e.docker("network create -d overlay --attachable over").ok();
    let script = "mkdir /tmp/www && echo word > /tmp/www/index.html && exec httpd -f -p 80 -h /tmp/www";
    e.out(&format!(
        "{CREATE} --name server --replicas 2 --network over --endpoint-mode dnsrr {BOX} sh -c '{script}'"
    ));
    running(e, "server", 2);
    let script = "for i in $(seq 100); do wget -q -O - http://server/ && exit 0; sleep 0.2; done; exit 1";
    assert_eq!(e.out(&format!("run --rm --network over {BOX} sh -c '{script}'")), "word");
    e.docker("service rm server").ok();
    running(e, "server", 0);
    eventually("the network is free", PATIENCE, || {
        e.docker("network rm over").code.filter(|code| *code == 0)
    });
}

fn ingress(e: &Engine) {
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        skip("the kernel has no IPVS");
    }
    e.out(&format!("{CREATE} --name open -p 18090:80 {BOX} sh -c 'echo word > /tmp/index.html; exec httpd -f -p 80 -h /tmp'"));
    running(e, "open", 1);
    eventually("the port answers", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", 18090)).ok());
    e.docker("service rm open").ok();
}

fn host_port(e: &Engine) {
    let script = "echo word > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    let flags = "--publish mode=host,published=18091,target=80 --network port";
    e.docker("network create -d bridge --scope swarm port").ok();
    e.out(&format!("{CREATE} --name open {flags} --endpoint-mode dnsrr {BOX} sh -c '{script}'"));
    running(e, "open", 1);
    eventually("the port answers", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", 18091)).ok());
    e.docker("service rm open").ok();
    running(e, "open", 0);
    eventually("the network is free", PATIENCE, || {
        e.docker("network rm port").code.filter(|code| *code == 0)
    });
}

fn stack(e: &Engine) {
    let folder = e.folder("stack");
    let text = format!(
        "version: '3.8'\nservices:\n  one:\n    image: {BOX}\n    command: sleep 1000\n    deploy: {{replicas: 2}}\n    \
         stop_grace_period: 0s\n    networks: [flat]\nnetworks:\n  flat: {{driver: bridge, name: flat, external: true}}\n"
    );
    e.docker("network create -d bridge --scope swarm flat").ok();
    std::fs::write(format!("{folder}/stack.yaml"), text.replace("driver: bridge, ", "")).unwrap();
    e.docker(&format!("stack deploy --resolve-image never -c {folder}/stack.yaml pile")).ok();
    running(e, "pile_one", 2);
    eventually("the stack is told as it is", PATIENCE, || {
        (e.out("stack services --format '{{.Name}} {{.Replicas}}' pile") == "pile_one 2/2").then_some(())
    });
    e.docker("stack rm pile").ok();
    running(e, "pile_one", 0);
    eventually("the network is free", PATIENCE, || {
        e.docker("network rm flat").code.filter(|code| *code == 0)
    });
}

fn drain(e: &Engine) {
    e.out(&format!("{CREATE} --name drained --replicas 2 {BOX} sleep 1000"));
    running(e, "drained", 2);
    let node = e.out("node ls -q");
    e.docker(&format!("node update --availability drain {node}")).ok();
    running(e, "drained", 0);
    e.docker(&format!("node update --availability active {node}")).ok();
    running(e, "drained", 2);
}

fn restart(e: &Engine) {
    e.end_dockerd(Signal::KILL);
    e.start_dockerd();
    eventually("the node is ready again", PATIENCE, || {
        (e.docker("node ls --format '{{.Status}}'").stdout.trim() == "Ready").then_some(())
    });
    running(e, "drained", 2);
    each_says(e, "drained", "echo here", "here", 2);
}

fn leave(e: &Engine) {
    e.docker("swarm leave").fails_with("--force");
    e.docker("swarm leave --force").ok();
    running(e, "drained", 0);
    assert_eq!(e.out("info --format '{{.Swarm.LocalNodeState}}'"), "inactive");
}
