//! From older versions to the newest, one step after the other (spec 00 §5.1).

use toml::{Table, Value};

use crate::{GRPC, TTRPC, VERSION, Warning, merge};

/// Turns a document of any version into one of the newest.
pub fn to_newest(mut table: Table, version: i64, warnings: &mut Vec<Warning>) -> Table {
    if version < VERSION {
        warnings.push(Warning {
            message: format!(
                "Configuration migrated from version {version}, use `containerd config migrate` to avoid migration"
            ),
            fields: Vec::new(),
        });
    }
    if version < 2 {
        full_names(&mut table, warnings);
    }
    if version < 3 {
        moved_plugins(&mut table);
    }
    if version < 4 {
        servers(&mut table);
    }
    table.remove("version");
    table
}

/// Version 1 names plugins without their type.
fn full_names(table: &mut Table, warnings: &mut Vec<Warning>) {
    for key in ["disabled_plugins", "required_plugins"] {
        for value in table.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::String(name) = value {
                *name = uri(name, warnings);
            }
        }
    }
    if let Some(Value::Table(plugins)) = table.get_mut("plugins") {
        let old = std::mem::take(plugins);
        for (name, options) in old {
            let uri = uri(&name, warnings);
            merge::plugins(plugins, Table::from_iter([(uri, options)]));
        }
    }
}

fn uri(name: &str, warnings: &mut Vec<Warning>) -> String {
    let kind = match name {
        _ if name.contains('.') => return name.to_owned(),
        "cgroups" => "io.containerd.monitor.v1",
        "linux" => "io.containerd.runtime.v1",
        "scheduler" => "io.containerd.gc.v1",
        "bolt" => "io.containerd.metadata.v1",
        "task" => "io.containerd.runtime.v2",
        "opt" | "restart" | "tracing" => "io.containerd.internal.v1",
        "otlp" => "io.containerd.tracing.processor.v1",
        "aufs" | "btrfs" | "devmapper" | "native" | "overlayfs" | "zfs" => "io.containerd.snapshotter.v1",
        _ if name.ends_with("-service") => "io.containerd.service.v1",
        _ if name.starts_with("windows") => "io.containerd.snapshotter.v1",
        "cri" => "io.containerd.grpc.v1",
        _ => {
            let message =
                format!("Ambiguous {name} plugin in v1 config, treating as io.containerd.grpc.v1.{name}");
            warnings.push(Warning { message, fields: Vec::new() });
            "io.containerd.grpc.v1"
        }
    };
    format!("{kind}.{name}")
}

/// Version 3 has some plugins under other names.
fn moved_plugins(table: &mut Table) {
    const MOVED: [(&str, &str); 2] = [
        ("io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups"),
        ("io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart"),
    ];
    let Some(Value::Table(plugins)) = table.get_mut("plugins") else { return };
    for (old, new) in MOVED {
        if let Some(options) = plugins.remove(old)
            && !plugins.contains_key(new)
        {
            plugins.insert(new.into(), options);
        }
    }
    if let Some(Value::Table(task)) = plugins.get_mut("io.containerd.runtime.v2.task")
        && task.remove("sched_core") == Some(Value::Boolean(true))
        && let Some(manager) = merge::table(plugins, &["io.containerd.shim.v1.manager"])
    {
        let env = manager.entry("env").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(env) = env {
            env.push("SCHED_CORE=1".into());
        }
    }
}

/// Version 4 has servers among the plugins.
fn servers(table: &mut Table) {
    let mut section = |name: &str| match table.get_mut(name) {
        // Its log settings stay.
        Some(Value::Table(debug)) if name == "debug" => {
            let server = ["address", "uid", "gid"].into_iter();
            server.filter_map(|key| Some((key.to_owned(), debug.remove(key)?))).collect()
        }
        _ => match table.remove(name) {
            Some(Value::Table(section)) => section,
            _ => Table::new(),
        },
    };
    let (mut grpc, mut ttrpc) = (section("grpc"), section("ttrpc"));
    let (debug, mut metrics) = (section("debug"), section("metrics"));
    let tcp = take(
        &mut grpc,
        &[
            ("tcp_address", "address"),
            ("tcp_tls_ca", "tls_ca"),
            ("tcp_tls_cert", "tls_cert"),
            ("tcp_tls_key", "tls_key"),
            ("tcp_tls_common_name", "tls_common_name"),
        ],
    );
    let histogram = take(&mut metrics, &[("grpc_histogram", "grpc_histogram")]);
    let address = grpc.get("address").and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(address) = address
        && ttrpc.get("address").and_then(Value::as_str).is_none_or(str::is_empty)
    {
        ttrpc.insert("address".into(), format!("{address}.ttrpc").into());
        for key in ["uid", "gid"] {
            if let Some(id) = grpc.get(key) {
                ttrpc.insert(key.into(), id.clone());
            }
        }
    }
    let moved = [
        (GRPC, grpc),
        ("io.containerd.server.v1.grpc-tcp", tcp),
        (TTRPC, ttrpc),
        ("io.containerd.server.v1.debug", debug),
        ("io.containerd.server.v1.metrics", metrics),
        ("io.containerd.metrics.v1.grpc-prometheus", histogram),
    ];
    for (uri, mut options) in moved {
        // Nothing in an old section said that nothing is wanted.
        options.retain(|_, value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Integer(number) => *number != 0,
            Value::Boolean(flag) => *flag,
            _ => true,
        });
        if options.is_empty() {
            continue;
        }
        let Some(plugins) = merge::table(table, &["plugins"]) else { return };
        // A new-style block beside it wins.
        plugins.entry(uri).or_insert(Value::Table(options));
    }
}

/// Takes keys out of a table, under new names.
fn take(from: &mut Table, keys: &[(&str, &str)]) -> Table {
    keys.iter().filter_map(|(old, new)| Some(((*new).to_owned(), from.remove(*old)?))).collect()
}
