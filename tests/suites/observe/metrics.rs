//! The metrics endpoint (spec 00 §8).

use std::collections::BTreeMap;

use corten_tests::{Node, NodeBuilder, Peers, eventually};

use crate::{IMAGE, PATIENCE, free_port, get_tcp, import, remove};

/// Starts a node with the endpoint at a free port, which somebody else may take before: then it is tried again.
fn start(builder: impl Fn() -> NodeBuilder, more: &str) -> (Node, u16) {
    let port = free_port();
    let config = format!(
        "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n[metrics]\naddress = '127.0.0.1:{port}'\n{more}"
    );
    (builder().config(&config).start(), port)
}

fn page(port: u16) -> String {
    let answer = get_tcp(port, "/v1/metrics");
    assert_eq!(answer.status(), 200);
    assert!(
        answer.head.to_lowercase().contains("content-type: text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    answer.text()
}

/// Families with type and help.
fn families(page: &str) -> BTreeMap<String, (String, String)> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                found.entry(name.into()).or_default().1 = help.into()
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                found.entry(name.into()).or_default().0 = kind.into()
            }
            _ => {}
        }
    }
    found
}

/// The value of a line that begins so.
fn value(page: &str, begin: &str) -> f64 {
    let line =
        page.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("no {begin} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn call(what: &str, service: &str, method: &str, code: &str) -> String {
    let code = if code.is_empty() { String::new() } else { format!("grpc_code=\"{code}\",") };
    format!(
        "grpc_server_{what}_total{{{code}grpc_method=\"{method}\",grpc_service=\"containerd.services.{service}\""
    )
}

#[test]
fn metrics_have_the_names_that_debians_containerd_gives_them() {
    let (ours, port) = start(Node::builder, "grpc_histogram = true\n");
    import(&ours);
    ours.ctr(["run", "-d", IMAGE, "here", "sleep", "1000"]).ok();
    let (theirs, their_port) =
        start(|| Node::peer(&Peers::find().containerd_2_1()), "grpc_histogram = true\n");
    import(&theirs);
    theirs.ctr(["run", "-d", IMAGE, "here", "sleep", "1000"]).ok();
    let (mine, yours) = (page(port), page(their_port));
    let (mine_named, yours_named) = (families(&mine), families(&yours));
    // What means nothing here, or not yet.
    let foreign = ["go_", "containerd_cri_", "containerd_nri_", "otel_", "promhttp_metric_handler_errors"];
    for (name, described) in &yours_named {
        if !foreign.iter().any(|prefix| name.starts_with(prefix)) {
            assert_eq!(mine_named.get(name), Some(described), "{name}");
        }
    }
    // Figures of block devices are there once there was any traffic.
    for name in mine_named.keys().filter(|name| !name.starts_with("container_blkio")) {
        assert!(yours_named.contains_key(name), "{name} is unknown to the original");
    }
    let labels = |page: &str, name: &str, node: &Node| {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.rsplit_once(' ').unwrap().0.replace(node.namespace(), "NS")
    };
    for name in
        ["container_memory_usage_usage_bytes{", "container_pids_current{", "container_per_cpu_nanoseconds{"]
    {
        if yours.contains(name) {
            assert_eq!(labels(&mine, name, &ours), labels(&yours, name, &theirs));
        }
    }
    for node in [ours, theirs] {
        remove(&node, "here");
        node.finish();
    }
}

#[test]
fn calls_are_counted_from_zero_by_method_and_code() {
    let (node, port) = start(Node::builder, "");
    let first = page(port);
    assert_eq!(value(&first, &call("started", "images.v1.Images", "Delete", "")), 0.0);
    assert_eq!(value(&first, &call("handled", "images.v1.Images", "Delete", "DataLoss")), 0.0);
    assert!(!first.contains("grpc_server_handling_seconds"), "it is not asked for");
    assert!(value(&first, "containerd_build_info_total{") == 1.0);
    assert!(value(&first, "process_resident_memory_bytes") > 1e6);

    node.ctr(["containers", "info", "missing"]).fails(1);
    node.ctr(["namespaces", "ls"]).ok();
    import(&node);
    let events = node.ctr_running(["events"]);
    let after = eventually("the stream has begun", PATIENCE, || {
        let page = page(port);
        (value(&page, &call("started", "events.v1.Events", "Subscribe", "")) >= 1.0).then_some(page)
    });
    assert_eq!(value(&after, &call("handled", "containers.v1.Containers", "Get", "NotFound")), 1.0);
    assert_eq!(value(&after, &call("msg_sent", "containers.v1.Containers", "Get", "")), 0.0);
    assert_eq!(value(&after, &call("handled", "namespaces.v1.Namespaces", "List", "OK")), 1.0);
    assert_eq!(value(&after, &call("msg_sent", "namespaces.v1.Namespaces", "List", "")), 1.0);
    assert_eq!(value(&after, &call("msg_received", "namespaces.v1.Namespaces", "List", "")), 1.0);
    let kind =
        after.lines().find(|line| line.starts_with(&call("started", "events.v1.Events", "Subscribe", "")));
    assert!(kind.unwrap().contains("grpc_type=\"server_stream\""));
    drop(events);
    eventually("the end of the stream is counted", PATIENCE, || {
        (value(&page(port), &call("handled", "events.v1.Events", "Subscribe", "Canceled")) >= 1.0)
            .then_some(())
    });
    eventually("a collection is counted", PATIENCE, || {
        let page = page(port);
        let line = "containerd_gc_collections_total{status=\"success\"}";
        let count = page.contains(line).then(|| value(&page, line))?;
        assert_eq!(value(&page, "containerd_gc_gc_seconds_count"), count);
        Some(())
    });
    node.finish();
}

#[test]
fn only_the_one_path_is_served_and_figures_of_containers_can_be_left_out() {
    let more = "[plugins.'io.containerd.monitor.v1.cgroups']\nno_prometheus = true\n";
    let (node, port) = start(Node::builder, more);
    for path in ["/", "/metrics", "/v1/metrics/", "/debug/pprof/"] {
        let answer = get_tcp(port, path);
        assert_eq!((answer.status(), answer.text().as_str()), (404, "404 page not found\n"), "{path}");
    }
    import(&node);
    node.ctr(["run", "-d", IMAGE, "here", "sleep", "1000"]).ok();
    assert!(!page(port).contains("container_"), "not asked for");
    remove(&node, "here");
    node.finish();
}
