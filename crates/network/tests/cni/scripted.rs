//! A plugin that does what its configuration says and writes down what it was told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use corten_network::cni::{Cni, NetworkConfig, Networks, Options, Runner};
use corten_types::ErrorClass;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{attachment, capabilities, client, network};

/// Written down: one line for each call, and its input in a file of its own. What it does is in `$HERE/<name>.sh`.
const PLUGIN: &str = r#"#!/bin/sh
HERE=$(dirname "$0"); NAME=$(basename "$0")
echo "$NAME $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>"$HERE/calls"
cat >"$HERE/$NAME.$CNI_COMMAND.json"
. "$HERE/$NAME.sh"
"#;

const GOOD: &str = r#"case $CNI_COMMAND in
ADD) echo '{"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1"}]}';;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}';;
esac"#;

struct Script {
    folder: TempDir,
    cni: Cni,
}

impl Script {
    /// Plugins and what they do.
    fn new(plugins: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cni = client(folder.path(), folder.path());
        let made = Self { folder, cni };
        for (name, body) in plugins {
            std::fs::write(made.path(name), PLUGIN).unwrap();
            std::fs::set_permissions(made.path(name), PermissionsExt::from_mode(0o755)).unwrap();
            made.behave(name, body);
        }
        made
    }

    fn behave(&self, name: &str, body: &str) {
        std::fs::write(self.path(&format!("{name}.sh")), body).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        std::fs::remove_file(self.path("calls")).ok();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn told(&self, name: &str, command: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("{name}.{command}.json"))).unwrap()).unwrap()
    }

    fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("results")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn chain(version: &str) -> NetworkConfig {
    network(&json!({"name": "net", "cniVersion": version, "plugins": [
        {"type": "one", "capabilities": {"portMappings": true}, "mine": 7},
        {"type": "two"},
    ]}))
}

#[test]
fn plugins_hear_of_each_other_in_order_and_back() {
    let script = Script::new(&[
        ("one", GOOD),
        (
            "two",
            r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.6/16"}]}'; true"#,
        ),
    ]);
    let (net, given) =
        (chain("1.0.0"), capabilities(json!({"portMappings": [{"HostPort": 80}], "bandwidth": {}})));
    let mut to = attachment("c1", "/run/netns/x", &given);
    let args = [("IgnoreUnknown".to_owned(), "1".to_owned()), ("K8S_POD_NAME".to_owned(), "p".to_owned())];
    to.args = &args;
    let result = script.cni.add(&net, &to).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.6/16");
    let line = |name: &str, command: &str| {
        format!("{name} {command} c1 /run/netns/x eth0 IgnoreUnknown=1;K8S_POD_NAME=p")
    };
    assert_eq!(script.calls(), [line("one", "ADD"), line("two", "ADD")]);
    let one = script.told("one", "ADD");
    assert_eq!(
        one,
        json!({"type": "one", "name": "net", "cniVersion": "1.0.0", "mine": 7,
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [{"HostPort": 80}]}})
    );
    let two = script.told("two", "ADD");
    assert_eq!(two["prevResult"]["ips"][0]["address"], "10.1.0.5/16");
    assert_eq!((&two["prevResult"]["cniVersion"], &two["runtimeConfig"]), (&json!("1.0.0"), &Value::Null));

    let record = script.path("results/net-c1-eth0");
    assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(script.path("results")).unwrap().permissions().mode() & 0o777, 0o700);
    let kept: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert_eq!(
        (&kept["kind"], &kept["netns"], &kept["cniArgs"][1][0]),
        (&json!("cniCacheV1"), &json!("/run/netns/x"), &json!("K8S_POD_NAME"))
    );
    assert_eq!(
        (&kept["capabilityArgs"]["bandwidth"], &kept["result"]["ips"][0]["address"]),
        (&json!({}), &json!("10.1.0.6/16"))
    );

    script.cni.check(&net, &to).unwrap();
    assert_eq!(script.told("one", "CHECK")["prevResult"]["ips"][0]["address"], "10.1.0.6/16");
    script.calls();
    // Who detaches knows neither arguments nor capabilities.
    let nothing = Map::new();
    script.cni.delete(&net, &attachment("c1", "", &nothing)).unwrap();
    let line = |name: &str| format!("{name} DEL c1  eth0 IgnoreUnknown=1;K8S_POD_NAME=p");
    assert_eq!(script.calls(), [line("two"), line("one")]);
    let one = script.told("one", "DEL");
    assert_eq!(
        (&one["prevResult"]["ips"][0]["address"], &one["runtimeConfig"]["portMappings"][0]["HostPort"]),
        (&json!("10.1.0.6/16"), &json!(80))
    );
    assert!(script.records().is_empty());
    script.cni.delete(&net, &attachment("c1", "", &nothing)).unwrap();
    assert_eq!(script.told("one", "DEL").get("prevResult"), None);
}

#[test]
fn old_versions_have_neither_check_nor_a_previous_result_for_delete() {
    let script = Script::new(&[("one", GOOD), ("two", GOOD)]);
    let (net, none) = (chain("0.3.1"), Map::new());
    let to = attachment("c1", "/x", &none);
    script.cni.add(&net, &to).unwrap();
    let refused = script.cni.check(&net, &to).unwrap_err();
    assert_eq!(refused.message(), "configuration version \"0.3.1\" does not support the CHECK command");
    script.cni.delete(&net, &to).unwrap();
    assert_eq!(script.told("one", "DEL").get("prevResult"), None);
    script.calls();
    script.cni.status(&net).unwrap();
    script.cni.collect(&net, &[]).unwrap();
    assert!(script.calls().is_empty(), "and neither STATUS nor GC");
}

#[test]
fn every_way_to_fail_is_told_and_leaves_a_debt() {
    let script = Script::new(&[("one", GOOD), ("two", GOOD)]);
    let (net, none) = (chain("1.0.0"), Map::new());
    let begin = "plugin type=\"two\" failed (add): ";
    for (behaviour, why) in [
        (r#"echo '{"code":11,"msg":"try","details":"later"}'; echo noise >&2; exit 1"#, "try; later"),
        (r#"echo '{"code":7,"msg":"bad"}'; exit 3"#, "bad"),
        ("echo it broke >&2; exit 1", "netplugin failed: \"it broke\\n\""),
        ("exit 2", "netplugin failed with no error message: exit status 2"),
        ("kill -9 $$", "netplugin failed with no error message: signal: killed"),
        ("echo garbage; exit 1", "netplugin failed but error parsing its diagnostic message \"garbage\\n\""),
        ("echo garbage", "failed to unmarshal raw result: "),
        ("true", "failed to unmarshal raw result: unexpected end of JSON input"),
        ("echo 7", "failed to unmarshal raw result: not an object"),
        (r#"echo '{"cniVersion":"9.9.9"}'"#, "unsupported CNI result version \"9.9.9\""),
        (r#"echo '{"ips":[{"address":"nonsense"}]}'"#, "could not decode result: "),
        ("head -c 9000000 /dev/zero; sleep 1000", "plugin "),
    ] {
        script.behave("two", behaviour);
        let to = attachment("c1", "/x", &none);
        let failed = script.cni.add(&net, &to).unwrap_err();
        assert!(failed.message().starts_with(&format!("{begin}{why}")), "{behaviour}: {failed}");
        assert_eq!(failed.class() == ErrorClass::Unavailable, behaviour.contains("11"), "{behaviour}");
        assert_eq!(script.records(), ["net-c1-eth0"], "the attempt is known");
        assert_eq!(script.cni.attached("net").unwrap(), [("c1".into(), "eth0".into())]);
        script.behave("two", GOOD);
        script.cni.delete(&net, &to).unwrap();
        assert!(script.records().is_empty());
    }
    std::fs::remove_file(script.path("two")).unwrap();
    let failed = script.cni.add(&net, &attachment("c1", "/x", &none)).unwrap_err();
    let folder = script.folder.path().display();
    assert_eq!(failed.message(), format!("{begin}failed to find plugin \"two\" in path [{folder}]"));
}

#[test]
fn a_plugin_that_hangs_is_ended_with_all_that_it_started() {
    let mut script = Script::new(&[("one", "sleep 1000 & echo $! >$HERE/child; wait"), ("two", GOOD)]);
    let none = Map::new();
    // On a busy machine the plugin may need longer to begin.
    let child = [1, 5, 25].into_iter().find_map(|seconds| {
        script.cni.runner.timeout = Duration::from_secs(seconds);
        let failed = script.cni.add(&chain("1.0.0"), &attachment("c1", "/x", &none)).unwrap_err();
        assert_eq!(failed.class(), ErrorClass::DeadlineExceeded, "{failed}");
        std::fs::read_to_string(script.path("child")).ok().filter(|child| child.ends_with('\n'))
    });
    let child = child.unwrap();
    let gone = || !Path::new(&format!("/proc/{}/exe", child.trim())).exists();
    let end = Instant::now() + Duration::from_secs(30);
    while !gone() {
        assert!(Instant::now() < end, "what it started goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_plugin_may_leave_something_behind_that_holds_its_output_open() {
    let body = r#"sleep 30 & echo $! >$HERE/child; echo '{}'"#;
    let script = Script::new(&[("one", body), ("two", GOOD)]);
    let none = Map::new();
    let begun = Instant::now();
    script.cni.add(&chain("1.0.0"), &attachment("c1", "/x", &none)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(25), "it was waited for");
    let child = std::fs::read_to_string(script.path("child")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn large_configurations_are_passed_whole_and_may_be_ignored() {
    let script = Script::new(&[("one", GOOD)]);
    let large = "x".repeat(300_000);
    let net =
        network(&json!({"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "one", "large": large}]}));
    let none = Map::new();
    script.cni.add(&net, &attachment("c1", "/x", &none)).unwrap();
    assert_eq!(script.told("one", "ADD")["large"].as_str().unwrap().len(), large.len());
    std::fs::write(script.path("one"), "#!/bin/sh\nexec <&-; echo '{}'").unwrap();
    script.cni.add(&net, &attachment("c1", "/x", &none)).unwrap();
}

#[test]
fn status_and_collection_are_asked_of_every_plugin() {
    let script = Script::new(&[("one", GOOD), ("two", GOOD)]);
    let (net, none) = (chain("1.1.0"), Map::new());
    for id in ["a", "b", "c"] {
        script.cni.add(&net, &attachment(id, "/x", &none)).unwrap();
    }
    script.calls();
    script.cni.status(&net).unwrap();
    assert_eq!(script.calls(), ["one STATUS", "two STATUS"]);
    script.cni.collect(&net, &[("b", "eth0")]).unwrap();
    let mut calls = script.calls();
    assert_eq!(calls.split_off(4), ["one GC", "two GC"]);
    calls.sort();
    assert_eq!(calls, ["one DEL a  eth0", "one DEL c  eth0", "two DEL a  eth0", "two DEL c  eth0"]);
    assert_eq!(
        script.told("one", "GC")["cni.dev/valid-attachments"],
        json!([{"containerID": "b", "ifname": "eth0"}])
    );
    assert_eq!(script.records(), ["net-b-eth0"]);
    script.behave("two", r#"echo '{"code":50,"msg":"not now"}'; exit 1"#);
    assert_eq!(
        script.cni.status(&net).unwrap_err().message(),
        "plugin type=\"two\" failed (status): not now"
    );
    let failed = script.cni.collect(&net, &[]).unwrap_err();
    assert_eq!(failed.message().lines().count(), 2, "all are tried: {failed}");
    assert_eq!(script.cni.versions("one").unwrap(), ["0.4.0", "1.0.0", "1.1.0"]);
    script
        .cni
        .validate(&network(&json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "one"}]})))
        .unwrap();
    let old = network(&json!({"name": "n", "cniVersion": "0.3.0", "plugins": [{"type": "one"}]}));
    let refused = script.cni.validate(&old).unwrap_err();
    assert_eq!(refused.message(), "plugin one does not support config version \"0.3.0\"");
    script.behave("one", r#"echo '{"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#);
    assert_eq!(script.cni.versions("one").unwrap(), ["0.1.0"]);
}

#[test]
fn what_cannot_be_an_attachment_is_refused_before_a_plugin_runs() {
    let script = Script::new(&[("one", GOOD), ("two", GOOD)]);
    let (net, none) = (chain("1.0.0"), Map::new());
    for (id, why) in [
        ("", "missing containerID"),
        ("../x", "invalid characters in containerID; ../x"),
        ("a b", "invalid characters"),
    ] {
        let refused = script.cni.add(&net, &attachment(id, "/x", &none)).unwrap_err();
        assert!(refused.message().starts_with(why), "{refused}");
    }
    let mut to = attachment("c", "/x", &none);
    to.ifname = "a-name-that-is-too-long";
    assert!(script.cni.add(&net, &to).is_err());
    let args = [("A".to_owned(), "b;C=d".to_owned())];
    assert!(
        script.cni.add(&net, &corten_network::cni::Attachment { ifname: "eth0", args: &args, ..to }).is_err()
    );
    assert!(script.calls().is_empty() && script.records().is_empty());
}

#[test]
fn several_networks_are_attached_at_once_and_told_in_order() {
    let slow = r#"[ $CNI_COMMAND = ADD ] && { sleep 0.3; echo '{"interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.1.0.5/16"}]}'; }; true"#;
    let fast = r#"[ $CNI_COMMAND = ADD ] && echo '{"interfaces":[{"name":"eth1"}],"ips":[{"interface":0,"address":"10.2.0.5/16"}]}'; true"#;
    let script = Script::new(&[
        ("slow", slow),
        ("fast", fast),
        ("loopback", r#"[ $CNI_COMMAND = ADD ] && echo '{"interfaces":[{"name":"lo"}]}'; true"#),
    ]);
    let folder = script.path("net.d");
    let options = Options {
        runner: Runner::new(vec![script.folder.path().to_owned()]),
        config_folder: folder.clone(),
        cache_folder: script.path("results"),
        most: 0,
        loopback: true,
        ..Options::default()
    };
    let networks = Networks::new(options);
    let refused = networks.status().unwrap_err();
    assert_eq!(refused.message(), "cni plugin not initialized");
    assert!(refused.hint().unwrap().contains("no network config found in "), "{refused:?}");
    std::fs::create_dir(&folder).unwrap();
    for (file, kind) in [("10.conflist", "slow"), ("20.conflist", "fast")] {
        let list = json!({"name": kind, "cniVersion": "1.0.0", "plugins": [{"type": kind}]});
        std::fs::write(folder.join(file), list.to_string()).unwrap();
    }
    networks.reload().unwrap();
    networks.status().unwrap();
    let none = Map::new();
    let attached = networks.attach("c", "/x", &[], &none).unwrap();
    let names: Vec<_> = attached.interfaces.keys().map(String::as_str).collect();
    assert_eq!((names, attached.dns.len()), (vec!["eth0", "eth1", "lo"], 3));
    assert!(script.calls().iter().any(|call| call == "fast ADD c /x eth1"));
    script.behave("fast", r#"echo '{"msg":"bridge not found"}'; exit 1"#);
    networks.detach("c", "", &[], &none).unwrap();
    script.behave("slow", r#"echo '{"msg":"broken"}'; exit 1"#);
    assert!(
        networks.attach("c", "/x", &[], &none).unwrap_err().message().ends_with("broken"),
        "the first in order"
    );
    std::fs::write(folder.join("05.conf"), "{").unwrap();
    assert!(networks.reload().is_err());
    assert!(networks.status().is_err(), "a failed load leaves none");
    std::fs::remove_file(folder.join("05.conf")).unwrap();
    networks.reload().unwrap();
}
