use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

const OVERLAYFS: &str = "io.containerd.snapshotter.v1.overlayfs";
const GC: &str = "io.containerd.gc.v1.scheduler";

fn read(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("test.toml"))
}

/// What was said, without the advice to migrate.
fn warnings(config: &Config) -> Vec<String> {
    let told = config.warnings.iter().filter(|warning| !warning.message.contains("migrated"));
    told.map(|warning| {
        let fields: Vec<String> = warning
            .fields
            .iter()
            .filter(|(name, _)| *name != "error")
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        format!("{} {}", warning.message, fields.join(" ")).trim().to_owned()
    })
    .collect()
}

#[test]
fn the_file_of_dockers_packages_is_read() {
    let docker = read("disabled_plugins = [\"cri\"]\n#root = \"/var/lib/containerd\"\n").unwrap();
    assert_eq!(docker.disabled_plugins, ["io.containerd.grpc.v1.cri"]);
    assert_eq!(docker.root, Path::new("/var/lib/containerd"));
    assert_eq!(
        docker.warnings[0].message,
        "Configuration migrated from version 1, use `containerd config migrate` to avoid migration"
    );
}

#[test]
fn version_1_names_plugins_without_their_type() {
    let one = read(
        "version = 0\nrequired_plugins = ['diff-service', 'x.y']
        [plugins.scheduler]\nstartup_delay = '9s'
        [plugins.cgroups]\nno_prometheus = true
        [plugins.overlayfs]\nroot_path = '/o'
        [plugins.restart]\ninterval = '3s'
        [plugins.linux]\nshim = 'x'
        [plugins.otlp]
        [plugins.foo]\na = 1",
    )
    .unwrap();
    assert_eq!(one.required_plugins, ["io.containerd.service.v1.diff-service", "x.y"]);
    assert_eq!(one.text(GC, "startup_delay"), "9s");
    assert!(one.flag("io.containerd.monitor.task.v1.cgroups", "no_prometheus"));
    assert_eq!(one.text(OVERLAYFS, "root_path"), "/o");
    assert_eq!(one.text("io.containerd.monitor.container.v1.restart", "interval"), "3s");
    assert_eq!(one.text("io.containerd.runtime.v1.linux", "shim"), "x");
    assert_eq!(one.number::<u32>("io.containerd.grpc.v1.foo", "a"), 1);
    assert_eq!(warnings(&one), ["Ambiguous foo plugin in v1 config, treating as io.containerd.grpc.v1.foo"]);
}

#[test]
fn version_2_has_plugins_that_moved_since() {
    let two = read(
        "version = 2
        [plugins.'io.containerd.runtime.v2.task']\nsched_core = true
        [plugins.'io.containerd.internal.v1.restart']\ninterval = '3s'
        [plugins.'io.containerd.monitor.v1.cgroups']\nno_prometheus = true",
    )
    .unwrap();
    assert_eq!(two.texts("io.containerd.shim.v1.manager", "env"), ["SCHED_CORE=1"]);
    assert_eq!(two.text("io.containerd.monitor.container.v1.restart", "interval"), "3s");
    assert!(two.flag("io.containerd.monitor.task.v1.cgroups", "no_prometheus"));
    assert_eq!(warnings(&two), [""; 0]);
}

#[test]
fn servers_of_version_3_become_plugins() {
    let three = read(
        "version = 3
        [grpc]\naddress = '/g'\ngid = 7\ntcp_address = '1:2'\ntcp_tls_cert = '/c'\nmax_recv_message_size = 5
        [debug]\naddress = '/d'\nuid = 8\nlevel = 'debug'
        [metrics]\naddress = '3:4'\ngrpc_histogram = true",
    )
    .unwrap();
    assert_eq!((three.grpc_address(), three.ttrpc_address()), ("/g".into(), "/g.ttrpc".into()));
    assert_eq!((three.number::<u32>(GRPC, "gid"), three.number::<u32>(TTRPC, "gid")), (7, 7));
    assert_eq!(three.number::<usize>(GRPC, "max_recv_message_size"), 5);
    assert_eq!(three.number::<usize>(GRPC, "max_send_message_size"), 16 << 20);
    assert_eq!(three.text("io.containerd.server.v1.grpc-tcp", "address"), "1:2");
    assert_eq!(three.text("io.containerd.server.v1.grpc-tcp", "tls_cert"), "/c");
    assert_eq!(three.text("io.containerd.server.v1.debug", "address"), "/d");
    assert_eq!(three.number::<u32>("io.containerd.server.v1.debug", "uid"), 8);
    assert_eq!(three.debug.level, "debug");
    assert_eq!(three.text("io.containerd.server.v1.metrics", "address"), "3:4");
    assert!(three.flag("io.containerd.metrics.v1.grpc-prometheus", "grpc_histogram"));
    assert_eq!(warnings(&three), [""; 0]);

    let own = read("version = 2\n[grpc]\naddress = '/g'\n[ttrpc]\naddress = '/t'\nuid = 3").unwrap();
    assert_eq!(own.ttrpc_address(), Path::new("/t"));
    let newer =
        "version = 3\n[grpc]\naddress = '/g'\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/n'";
    assert_eq!(read(newer).unwrap().grpc_address(), Path::new("/n"), "the newer form counts");
}

#[test]
fn in_version_4_the_ttrpc_socket_does_not_follow() {
    let four =
        read("version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = 'unix:///a'\n").unwrap();
    assert_eq!(four.grpc_address(), Path::new("/a"));
    assert_eq!(four.ttrpc_address(), Path::new("/run/containerd/containerd.sock.ttrpc"));
    assert_eq!(four.warnings, []);
    // There are no sections of servers any more.
    let four = read("version = 4\n[grpc]\naddress = '/a'\n[debug]\naddress = '/d'").unwrap();
    assert_eq!(
        warnings(&four),
        [
            "Ignoring unknown key in TOML column=2 file=test.toml key=grpc row=2",
            "Ignoring unknown key in TOML column=1 file=test.toml key=debug address row=5",
        ]
    );
}

#[test]
fn the_flag_of_the_address_moves_both_sockets() {
    let mut config = Config::default();
    config.apply_flags(None, Some(Path::new("/a")), None, None);
    assert_eq!((config.grpc_address(), config.ttrpc_address()), ("/a".into(), "/a.ttrpc".into()));

    let mut config = read("version = 3\n[grpc]\naddress = '/g'\ngid = 5\n").unwrap();
    config.apply_flags(Some("warn".into()), Some(Path::new("/a")), Some("/r".into()), Some("/s".into()));
    assert_eq!((config.grpc_address(), config.ttrpc_address()), ("/a".into(), "/a.ttrpc".into()));
    assert_eq!(config.number::<u32>(TTRPC, "gid"), 5);
    assert_eq!((config.debug.level.as_str(), config.root, config.state), ("warn", "/r".into(), "/s".into()));

    let mut config = read("version = 3\n[ttrpc]\naddress = '/t'").unwrap();
    config.apply_flags(None, Some(Path::new("/a")), None, None);
    assert_eq!((config.grpc_address(), config.ttrpc_address()), ("/a".into(), "/t".into()));
}

#[test]
fn unknown_keys_are_told_and_left_out() {
    let config = read(
        "version = 3
foo = 1
[bar]
x = 2
[debug]
  zz = 1
[plugins.'io.containerd.gc.v1.scheduler']
nope = 1
[plugins.'io.containerd.unknown.v1.x']
a = {b = 1, c = [1, 'x']}
[proxy_plugins.p]
address = '/p'
  odd = true
",
    )
    .unwrap();
    assert_eq!(
        warnings(&config),
        [
            "Ignoring unknown key in TOML column=1 file=test.toml key=foo row=2",
            "Ignoring unknown key in TOML column=2 file=test.toml key=bar row=3",
            "Ignoring unknown key in TOML column=3 file=test.toml key=debug zz row=6",
            "Ignoring unknown key in TOML column=3 file=test.toml key=proxy_plugins p odd row=13",
            "Ignoring unknown key in TOML for plugin key=nope plugin=io.containerd.gc.v1.scheduler",
        ]
    );
    assert!(!config.plugin(GC).contains_key("nope"));
    assert!(config.to_toml().contains("  [plugins.'io.containerd.unknown.v1.x']\n    [plugins.'io.containerd.unknown.v1.x'.a]\n      b = 1\n      c = [1, 'x']\n"));
}

#[test]
fn what_cannot_be_is_refused() {
    for (text, message) in [
        (
            "version = 5",
            "failed to load TOML from test.toml: expected containerd config version equal to or less than `4`, got `5`",
        ),
        (
            "version = 2\ndisabled_plugins = ['cri']",
            "failed to load TOML from test.toml: invalid disabled plugin URI \"cri\" expect io.containerd.x.vx",
        ),
        (
            "version = 2\nrequired_plugins = ['cri']",
            "failed to load TOML from test.toml: invalid required plugin URI \"cri\" expect io.containerd.x.vx",
        ),
        (
            "version = 'x'",
            "failed to unmarshal TOML at row 1 column 11: toml: cannot decode TOML string into version of type integer",
        ),
        (
            "version = 3\nroot = 1",
            "failed to unmarshal TOML at row 2 column 8: toml: cannot decode TOML integer into root of type string",
        ),
        (
            "plugins = 3",
            "failed to unmarshal TOML at row 1 column 11: toml: cannot decode TOML integer into plugins of type table",
        ),
        (
            "version = 3\n[plugins]\n'io.containerd.gc.v1.scheduler' = 3",
            "toml: cannot decode TOML integer into plugins.io.containerd.gc.v1.scheduler of type table",
        ),
        (
            "version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 'x'",
            "toml: cannot decode TOML string into io.containerd.gc.v1.scheduler mutation_threshold of type integer",
        ),
        (
            "version = 3\n[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = 'odd'",
            "toml: time: invalid duration \"odd\"",
        ),
        (
            "version = 3\n[timeouts]\nx = 3",
            "failed to unmarshal TOML at row 3 column 5: toml: cannot decode TOML integer into timeouts.x of type string",
        ),
        (
            "disabled_plugins = [1]",
            "failed to unmarshal TOML at row 1 column 20: toml: cannot decode TOML array into disabled_plugins of type array",
        ),
    ] {
        assert_eq!(read(text).unwrap_err().to_string(), message, "{text}");
    }
    let malformed = read("version = 3\nfoo = = 1").unwrap_err().to_string();
    assert!(malformed.starts_with("failed to unmarshal TOML at row 2 column 7: toml: "), "{malformed}");
}

#[test]
fn numbers_stand_for_durations_and_shares() {
    let text = format!(
        "version = 3\n[plugins.'{GC}']\nstartup_delay = 3\nschedule_delay = '60s'\npause_threshold = 0"
    );
    let config = read(&text).unwrap();
    assert_eq!((config.text(GC, "startup_delay"), config.text(GC, "schedule_delay")), ("3ns", "1m0s"));
    assert_eq!(config.plugin(GC).get("pause_threshold"), Some(&Value::Float(0.0)));
}

#[test]
fn a_daemon_checks_its_folders_and_limits() {
    let changed = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.validate().map_err(|error| error.to_string())
    };
    assert_eq!(changed(&|_| {}), Ok(()));
    assert_eq!(changed(&|config| config.root = "".into()), Err("root must be specified".into()));
    assert_eq!(changed(&|config| config.state = "".into()), Err("state must be specified".into()));
    assert_eq!(
        changed(&|config| config.state = config.root.clone()),
        Err("root and state must be different paths".into())
    );
    assert_eq!(
        changed(&|config| drop(config.timeouts.insert("x".into(), "3 apples".into()))),
        Err("unable to parse 3 apples into a time duration".into())
    );
    let config = read("version = 3\n[timeouts]\n'io.containerd.timeout.shim.load' = '9s'").unwrap();
    assert_eq!(config.timeout("io.containerd.timeout.shim.load"), Duration::from_secs(9));
    assert_eq!(config.timeout("io.containerd.timeout.task.state"), Duration::from_secs(2));
}

#[test]
fn options_can_be_read_as_a_type() {
    #[derive(Deserialize)]
    struct Scheduler {
        mutation_threshold: u8,
        #[serde(with = "duration")]
        startup_delay: Duration,
    }
    let options: Scheduler = Config::default().options(GC).unwrap();
    assert_eq!((options.mutation_threshold, options.startup_delay), (100, Duration::from_millis(100)));
    let text = format!("version = 4\n[plugins.'{GC}']\nmutation_threshold = 1000");
    let error = read(&text).unwrap().options::<Scheduler>(GC).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("invalid plugin config of io.containerd.gc.v1.scheduler: "), "{error}");
}

/// Files by name in a folder, the first one of which is loaded.
fn load(files: &[(&str, &str)]) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
    }
    Config::load(Some(&folder.path().join(files[0].0)))
}

#[test]
fn imports_are_merged_each_by_its_own_version() {
    let main = "version = 3
imports = ['conf.d/*.toml', 'FOLDER/sub/x.toml', 'missing.toml', 'none/*.toml', '[x']
oom_score = 5
disabled_plugins = ['a.b', 'c.d']
[debug]
level = 'debug'
[grpc]
uid = 3
[timeouts]
a = '1s'
[plugins.'io.containerd.snapshotter.v1.overlayfs']
upperdir_label = true
mount_options = ['a']
root_path = '/x'
[plugins.'io.containerd.unknown.v1.x']
a = 1
t = true
l = [1, 2]
m = {x = 1, y = 2}
[proxy_plugins.p]
type = 'snapshot'
address = '/p'
[stream_processors.s]
accepts = ['a']
path = 'c'";
    let first = "version = 3
imports = ['2.toml', '../main.toml']
oom_score = 0
disabled_plugins = ['c.d', 'e.f']
[debug]
level = ''
format = 'json'
[grpc]
uid = 0
[timeouts]
a = '2s'
[plugins.'io.containerd.snapshotter.v1.overlayfs']
upperdir_label = false
mount_options = ['b']
root_path = ''
slow_chown = true
[plugins.'io.containerd.unknown.v1.x']
a = 0
t = false
l = [2, 3]
m = {y = 3, z = 4}
[proxy_plugins.p]
type = 'snapshot'
platform = 'linux/arm64'
[proxy_plugins.q]
type = 'content'
[stream_processors.s]
path = 'd'";
    let config = load(&[
        ("main.toml", main),
        ("conf.d/1.toml", first),
        ("conf.d/2.toml", "version = 4\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 3"),
        ("conf.d/3.conf", "root = '/wrong'"),
        ("sub/x.toml", "root = '/r'\n[plugins.scheduler]\nstartup_delay = '7s'\n[grpc]\naddress = '/gx'"),
    ])
    .unwrap();
    assert_eq!((config.root.as_path(), config.oom_score), (Path::new("/r"), 5));
    assert_eq!(config.disabled_plugins, ["a.b", "c.d", "e.f"]);
    assert_eq!((config.debug.level.as_str(), config.debug.format.as_str()), ("debug", "json"));
    assert_eq!(config.number::<u32>(GRPC, "uid"), 3, "nothing does not override");
    assert_eq!((config.grpc_address(), config.ttrpc_address()), ("/gx".into(), "/gx.ttrpc".into()));
    assert_eq!(config.timeout("a"), Duration::from_secs(2));
    // Plugins are merged deeply, whatever the value.
    assert_eq!(
        (config.flag(OVERLAYFS, "upperdir_label"), config.flag(OVERLAYFS, "slow_chown")),
        (false, true)
    );
    assert_eq!(
        (config.texts(OVERLAYFS, "mount_options"), config.text(OVERLAYFS, "root_path")),
        (vec!["b".into()], "")
    );
    assert_eq!((config.number::<i32>(GC, "mutation_threshold"), config.text(GC, "startup_delay")), (3, "7s"));
    let unknown: Table = "a = 0\nt = false\nl = [2, 3]\nm = {x = 1, y = 3, z = 4}".parse().unwrap();
    assert_eq!(config.plugin("io.containerd.unknown.v1.x"), &unknown);
    // Of other sections entries are replaced.
    assert_eq!(config.proxy_plugins["p"].address, "");
    assert_eq!(config.proxy_plugins["p"].platform, "linux/arm64");
    assert_eq!(config.proxy_plugins["q"].kind, "content");
    assert_eq!(
        (config.stream_processors["s"].path.as_str(), config.stream_processors["s"].accepts.len()),
        ("d", 0)
    );
    assert_eq!(config.stream_processors.len(), 3);
    assert_eq!(config.imports.len(), 7);
    assert_eq!(warnings(&config), [""; 0]);
}

#[test]
fn a_bad_import_is_named() {
    let error =
        load(&[("main.toml", "version = 3\nimports = ['bad.toml']"), ("bad.toml", "a = = 1")]).unwrap_err();
    assert!(error.to_string().starts_with("failed to unmarshal TOML at row 1 column 5: "), "{error}");
    assert!(error.hint().unwrap_or_default().ends_with("/bad.toml"), "{:?}", error.hint());
    let error = load(&[("main.toml", "version = 3\nimports = ['bad.toml']"), ("bad.toml", "version = 9")])
        .unwrap_err();
    assert!(error.to_string().contains("bad.toml: expected containerd config version"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("c.toml"), b"\xff\xfe").unwrap();
    let error = Config::load(Some(&folder.path().join("c.toml"))).unwrap_err().to_string();
    assert!(error.starts_with("failed to unmarshal TOML at row 1 column 1: "), "{error}");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let missing = Path::new("/nonexistent/c.toml");
    let error = Config::load(Some(missing)).unwrap_err();
    assert_eq!(error.to_string(), "open /nonexistent/c.toml: no such file or directory");
    assert_eq!(Config::load_if_exists(Some(missing)).unwrap(), Config::default());
}

#[test]
fn the_pattern_of_imports_counts_only_in_a_file() {
    assert_eq!(Config::default().imports, ["/etc/containerd/conf.d/*.toml"]);
    assert_eq!(load(&[("empty.toml", "")]).unwrap().imports, [""; 0]);
}

#[test]
fn defaults_are_written_as_tools_know_them() {
    let text = Config::default().to_toml();
    for part in [
        "version = 4\nroot = '/var/lib/containerd'\nstate = '/run/containerd'\ntemp = ''\ndisabled_plugins = []\n",
        "\n\n[debug]\n  level = ''\n  format = ''\n  log_trace_id = false\n\n[plugins]\n  [plugins.'io",
        "  [plugins.'io.containerd.internal.v1.tracing']\n  [plugins.'io.containerd.metadata.v1.bolt']\n    content_sharing_policy = 'shared'\n    no_sync = false\n\n  [plugins",
        "\n\n[cgroup]\n  path = ''\n\n[timeouts]\n  'io.containerd.timeout.bolt.open' = '0s'\n",
        "\n\n[stream_processors]\n  [stream_processors.'io.containerd.ocicrypt.decoder.v1.tar']\n    accepts = [",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert!(!text.contains("\n\n\n") && text.ends_with("']\n"));
    assert_eq!(read(&text).unwrap(), Config::default());
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<bool>().prop_map(Value::Boolean),
        (-1e9..1e9).prop_map(Value::Float),
        ".*".prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            btree_map(".*", inner, 0..4).prop_map(|map| Value::Table(map.into_iter().collect())),
        ]
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let proxies = (".*", ".*", ".*", btree_map(".*", ".*", 0..3), vec(".*", 0..3)).prop_map(
        |(kind, address, platform, exports, capabilities)| ProxyPlugin {
            kind,
            address,
            platform,
            exports,
            capabilities,
        },
    );
    let processors = (vec(".*", 0..3), ".*", ".*", vec(".*", 0..3), vec(".*", 0..3)).prop_map(
        |(accepts, returns, path, args, env)| StreamProcessor { accepts, returns, path, args, env },
    );
    let uris = proptest::collection::btree_set("[a-z]{1,3}\\.[a-z]{1,3}", 0..4);
    (
        (".+", ".+", any::<i64>(), uris, ".*"),
        btree_map("[a-z.']{1,6}", btree_map(".*", values(), 0..4), 0..4),
        btree_map(".*", proxies, 0..3),
        btree_map(".*", processors, 0..3),
        btree_map(".*", "[0-9]{1,3}s", 0..3),
        (any::<bool>(), vec(".*", 0..3), ".*", 0..100i64),
    )
        .prop_map(|(top, plugins, proxies, processors, timeouts, overlay)| {
            let mut config = Config::default();
            let (root, state, oom_score, uris, level) = top;
            (config.root, config.state, config.oom_score) = (root.into(), state.into(), oom_score);
            config.disabled_plugins = uris.into_iter().collect();
            config.debug.level = level;
            for (uri, table) in plugins {
                config.plugins.insert(uri, Value::Table(table.into_iter().collect()));
            }
            crate::schema::sort(&mut config.plugins);
            config.proxy_plugins = proxies;
            config.stream_processors.extend(processors);
            config.timeouts.extend(timeouts);
            let (flag, list, text, number) = overlay;
            config.set(OVERLAYFS, "slow_chown", flag.into());
            config.set(OVERLAYFS, "mount_options", list.into());
            config.set(OVERLAYFS, "root_path", text.into());
            config.set(GRPC, "gid", number.into());
            config
        })
}

proptest! {
    #[test]
    fn what_is_dumped_is_read_back_as_it_was(config in configs()) {
        let text = config.to_toml();
        let read = read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        prop_assert_eq!(read.to_toml(), text);
        prop_assert_eq!(read, config);
    }

    #[test]
    fn no_file_breaks_the_reader(text in "(version = [0-5]\n)?(\\[?[a-z.']{0,9}\\]?( = [0-9'\\[{]{0,3})?\n){0,6}") {
        drop(read(&text));
    }
}
