//! `containerd config …`.

use corten_tests::Scratch;
use toml::{Table, Value};

use crate::{ours, run, theirs};

/// Plugins of Debian's that are not there yet.
const ABSENT: [&str; 5] = [
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.devmapper",
];

fn parsed(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn section<'a>(table: &'a Table, path: &[&str]) -> &'a Table {
    path.iter().fold(table, |table, key| {
        table.get(*key).and_then(Value::as_table).unwrap_or_else(|| panic!("no {key} in {table:?}"))
    })
}

#[test]
fn defaults_are_those_of_debians_containerd() {
    let mine = parsed(&run(&ours(), ["config", "default"]).ok());
    let other = parsed(&run(&theirs(), ["config", "default"]).ok());
    for key in ["root", "state", "temp", "disabled_plugins", "required_plugins", "oom_score"] {
        assert_eq!(mine.get(key), other.get(key), "{key}");
    }
    for key in ["cgroup", "timeouts", "stream_processors"] {
        assert_eq!(mine.get(key), other.get(key), "{key}");
    }
    for (uri, table) in section(&other, &["plugins"]) {
        if ABSENT.contains(&uri.as_str()) {
            continue;
        }
        let own = section(&mine, &["plugins", uri]);
        for (key, value) in table.as_table().unwrap() {
            assert_eq!(own.get(key), Some(value), "{uri} {key}");
        }
    }
    // What version 3 has at the top are plugins since.
    let server = |name: &str| section(&mine, &["plugins", name]).clone();
    let mut grpc = section(&other, &["grpc"]).clone();
    grpc.retain(|key, _| !key.starts_with("tcp_"));
    assert_eq!(server("io.containerd.server.v1.grpc"), grpc);
    assert_eq!(server("io.containerd.server.v1.ttrpc").get("uid"), section(&other, &["ttrpc"]).get("uid"));
    assert_eq!(
        server("io.containerd.metrics.v1.grpc-prometheus").get("grpc_histogram"),
        section(&other, &["metrics"]).get("grpc_histogram")
    );
    for key in ["level", "format"] {
        assert_eq!(section(&mine, &["debug"]).get(key), section(&other, &["debug"]).get(key));
    }
    assert_eq!(mine.get("version"), Some(&Value::Integer(4)));
}

#[test]
fn defaults_look_like_debians() {
    let lines = |text: String| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let mine = lines(run(&ours(), ["config", "default"]).ok());
    let other = run(&theirs(), ["config", "default"]).ok();
    // Every block of a plugin that has the same options stands there in the same letters.
    let mut same = 0;
    for block in other.split("\n\n").filter(|block| block.starts_with("  [plugins.")) {
        let block = lines(block.to_owned());
        same += usize::from(mine.windows(block.len()).any(|window| window == block));
    }
    assert!(same >= 12, "only {same} blocks of plugins are the same");
    let tail = |text: &[String]| text[text.iter().position(|line| line == "[cgroup]").unwrap()..].to_vec();
    assert_eq!(tail(&mine), tail(&lines(other)));
}

/// A file with something of each version in it, its imports among them.
fn files(scratch: &Scratch) -> Vec<String> {
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(scratch.join("conf.d")).unwrap();
        std::fs::write(scratch.join(name), text).unwrap();
        scratch.join(name).display().to_string()
    };
    write("conf.d/1.toml", "oom_score = -3\n[plugins.scheduler]\nstartup_delay = '3s'\n");
    write(
        "conf.d/2.toml",
        "version = 3\n[timeouts]\na = '1m'\n[plugins.'x.y']\nb = 1\na = {d = 1, c = [1, 'x']}\n",
    );
    vec![
        write("docker.toml", "disabled_plugins = [\"cri\"]\n"),
        write(
            "two.toml",
            "version = 2\nimports = ['conf.d/*.toml']\nfoo = 1\n[bar]\nx = 2\n[debug]\n  zz = 1\nlevel = 'warn'\n[grpc]\naddress = '/g'\ngid = 5\n[plugins.'io.containerd.gc.v1.scheduler']\nnope = 1\nmutation_threshold = 5\n",
        ),
        write(
            "three.toml",
            "version = 3\nimports = ['conf.d/2.toml', 'none.toml']\ndisabled_plugins = ['a.b']\n[proxy_plugins.p]\ntype = 'snapshot'\naddress = '/p'\n[stream_processors.s]\npath = 'x'\n[plugins.'io.containerd.snapshotter.v1.overlayfs']\nmount_options = ['a', \"b'c\"]\nslow_chown = true\n",
        ),
    ]
}

#[test]
fn a_dump_has_what_debians_has() {
    let scratch = Scratch::new();
    for file in files(&scratch) {
        let (mine, other) =
            (run(&ours(), ["-c", &file, "config", "dump"]), run(&theirs(), ["-c", &file, "config", "dump"]));
        let told = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.contains("Ignoring unknown key"));
            lines.map(|line| line.split_once(" level=").unwrap().1.to_owned()).collect()
        };
        // Keys of plugins come last here, since all files are merged before.
        let (mut own, mut foreign) = (told(&mine.stderr), told(&other.stderr));
        own.sort();
        foreign.sort();
        assert_eq!(own, foreign, "{file}");
        let (mine, other) = (parsed(&mine.ok()), parsed(&other.ok()));
        for key in ["root", "disabled_plugins", "oom_score", "timeouts", "stream_processors", "proxy_plugins"]
        {
            assert_eq!(mine.get(key), other.get(key), "{file} {key}");
        }
        for uri in ["io.containerd.gc.v1.scheduler", "io.containerd.snapshotter.v1.overlayfs", "x.y"] {
            let of = |table: &Table| section(table, &["plugins"]).get(uri).cloned();
            assert_eq!(of(&mine), of(&other), "{file} {uri}");
        }
        let grpc = section(&mine, &["plugins", "io.containerd.server.v1.grpc"]);
        for key in ["address", "gid"] {
            assert_eq!(grpc.get(key), section(&other, &["grpc"]).get(key), "{file} {key}");
        }
    }
}

#[test]
fn a_dump_is_a_file_that_gives_the_same_dump() {
    let scratch = Scratch::new();
    for file in files(&scratch) {
        let dump = run(&ours(), ["-c", &file, "config", "dump"]).ok();
        assert_eq!(run(&ours(), ["-c", &file, "config", "migrate"]).ok(), dump);
        let again = scratch.join("again.toml");
        // Imports are in it already.
        let plain: Vec<&str> = dump.lines().filter(|line| !line.starts_with("imports")).collect();
        std::fs::write(&again, plain.join("\n")).unwrap();
        let second = run(&ours(), ["-c", again.to_str().unwrap(), "config", "dump"]);
        assert_eq!(second.stderr, "", "nothing to warn of");
        let second = second.ok();
        let second: Vec<&str> = second.lines().filter(|line| !line.starts_with("imports")).collect();
        assert_eq!(second, plain);
    }
    let missing = run(&ours(), ["-c", "/nonexistent.toml", "config", "dump"]).ok();
    assert!(missing.contains("[plugins]"), "{missing}");
    let flags =
        run(&ours(), ["--root", "/r", "--state", "/s", "-a", "/a", "-l", "warn", "config", "dump"]).ok();
    for part in ["root = '/r'", "state = '/s'", "address = '/a'", "address = '/a.ttrpc'", "level = 'warn'"] {
        assert!(flags.contains(part), "{part}\n{flags}");
    }
}
