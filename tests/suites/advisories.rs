//! A test for each class of containerd's published advisories that images and their extraction have a part in, named
//! after the advisory.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use corten_tests::image::gzip;
use corten_tests::{Blob, Digest, Entry, Finished, Image, ImageBuilder, Layer, Node, command};
use corten_types::media_type;
use serde_json::json;

const NAME: &str = "example.com/lab/image:1";

fn import(node: &Node, image: &Image) -> Finished {
    let archive = node.join("image.tar");
    image.save(&archive, NAME).unwrap();
    node.ctr(["images", "import", archive.to_str().unwrap()])
}

/// What a shell in a container of the image says.
fn shell(node: &Node, script: &str) -> Finished {
    node.ctr(["run", "--rm", NAME, "see", "sh", "-c", script])
}

/// Accounts of images.
fn accounts(passwd: &str, group: &str) -> Vec<u8> {
    let layer = Layer::new().dir("etc", 0o755).file("etc/passwd", 0o644, passwd.as_bytes());
    layer.file("etc/group", 0o644, group.as_bytes()).finish()
}

/// Credentials for a registry are not sent to addresses that an image names, whatever they ask for.
#[test]
fn cve_2020_15157_addresses_in_manifests_get_no_credentials() {
    let node = Node::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|count| count > 0) {}
            log.lock().unwrap().push(head);
            let answer = format!(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",\
                 service=\"x\"\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    // The registry itself has the layer, so that in the end the pull goes well.
    let tar = Layer::new().file("a", 0o644, b"a").finish();
    let layer = Blob::new("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gzip(&tar));
    let config = json!({
        "architecture": corten_tests::image::host_architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&tar)]},
    });
    let config = Blob::new(media_type::OCI_CONFIG, config.to_string().into_bytes());
    let mut image = Image::new(config, vec![layer]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.target.data).unwrap();
    manifest["layers"][0]["urls"] = json!([format!("http://127.0.0.1:{port}/layer")]);
    image.target = Blob::new(media_type::OCI_MANIFEST, manifest.to_string().into_bytes());
    let registry = corten_tests::ScriptedRegistry::start(image);
    let reference = registry.reference();
    node.ctr(["images", "pull", "--plain-http", "--user", "name:secret", &reference]).ok();
    let heard = heard.lock().unwrap();
    assert!(heard.iter().any(|head| head.starts_with("GET /layer ")), "{heard:?}");
    for head in heard.iter() {
        assert!(!head.to_lowercase().contains("authorization") && !head.contains("secret"), "{head}");
    }
    drop(heard);
    node.finish();
}

/// No shim listens where any process of the host's network may connect.
#[test]
fn cve_2020_15257_shims_have_no_abstract_sockets() {
    let node = Node::start();
    import(&node, &ImageBuilder::busybox().build()).ok();
    node.ctr(["run", "-d", NAME, "c", "sleep", "1000"]).ok();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let here = node.path().display().to_string();
    let abstract_ones = sockets.lines().filter(|line| line.contains(" @") && line.contains("shim"));
    let ours = abstract_ones.filter(|line| line.contains(&here) || line.contains(node.namespace()));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    node.ctr(["tasks", "rm", "-f", "c"]);
    node.ctr(["containers", "rm", "c"]).ok();
    node.finish();
}

/// Modes are set on what an archive brings, never through a link to something else.
#[test]
fn cve_2021_32760_modes_are_not_changed_through_links() {
    for snapshotter in ["overlayfs", "native"] {
        let node = Node::start();
        let victim = node.join("victim");
        std::fs::write(&victim, "victim").unwrap();
        std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o600)).unwrap();
        let outside = victim.to_str().unwrap();
        let up = format!("{}{}", "../".repeat(30), outside.trim_start_matches('/'));
        let layer = Layer::new()
            .symlink("absolute", outside)
            .symlink("relative", &up)
            .entry(&Entry::new(b'2', "mode", 0o777))
            .entry(&Entry::link("hard", "absolute").owner(12, 34))
            .entry(&Entry::link("again", "relative"))
            .entry(&Entry::symlink("mode-too", outside).owner(12, 34).xattr("user.a", "b"))
            .finish();
        let archive = node.join("image.tar");
        ImageBuilder::busybox().layer(layer).build().save(&archive, NAME).unwrap();
        node.ctr(["images", "import", "--snapshotter", snapshotter, archive.to_str().unwrap()]);
        let metadata = victim.metadata().unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.nlink()),
            (0o600, 0, 1),
            "{snapshotter}"
        );
        node.finish();
    }
}

/// Whoever is not root reaches nothing below the daemon's folders: programs with the set-user-ID bit in images are none
/// of his. And the daemon's umask has no say in what an image's files may be.
#[test]
fn cve_2021_41103_and_2024_25621_folders_are_closed_and_modes_are_the_archives() {
    for umask in ["000", "077"] {
        let scratch = corten_tests::Scratch::new();
        // The folder above is open, so that only the daemon's own ones stand in the way.
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let script = scratch.join("containerd");
        let daemon = corten_tests::peers::programs().join("containerd");
        std::fs::write(&script, format!("#!/bin/sh\numask {umask}\nexec {} \"$@\"\n", daemon.display()))
            .unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let node = Node::builder().daemon(script).search(&[corten_tests::peers::programs()]).start();
        let layer = Layer::new()
            .dir("folder", 0o1777)
            .dir("set-group", 0o2755)
            .file("folder/program", 0o4755, b"#!/bin/sh\n")
            .file("writable", 0o666, b"")
            .file("implied/file", 0o640, b"")
            .finish();
        import(&node, &ImageBuilder::busybox().layer(layer).build()).ok();
        let stat = "stat -c %a /folder /set-group /folder/program /writable /implied /implied/file";
        assert_eq!(shell(&node, stat).ok(), "1777\n2755\n4755\n666\n755\n640\n", "umask {umask}");
        for folder in [node.root().to_owned(), node.join("state")] {
            let found = find_foreign(&folder);
            assert_eq!(found, Vec::<String>::new(), "umask {umask}");
        }
        node.finish();
    }
}

/// What somebody who is not root can list or change of a folder that he can enter.
fn find_foreign(folder: &Path) -> Vec<String> {
    let mode = folder.metadata().map_or(0, |metadata| metadata.mode());
    if mode & 0o007 == 0 {
        return Vec::new();
    }
    let open =
        |path: &Path| path.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o006 != 0);
    let inside = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.filter(|path| open(path)).map(|path| path.display().to_string()).collect()
}

/// A document is a manifest or an index, never both, whatever a header calls it.
#[test]
fn cve_2021_41190_documents_are_of_one_kind() {
    let node = Node::start();
    let good = ImageBuilder::busybox().build();
    let manifest: serde_json::Value = serde_json::from_slice(&good.target.data).unwrap();
    let mut both = manifest.clone();
    both["manifests"] = json!([good.target.descriptor()]);
    let mut called = manifest.clone();
    called["mediaType"] = json!(media_type::OCI_INDEX);
    let index = json!({"schemaVersion": 2, "manifests": [good.target.descriptor()], "layers": []});
    let old = json!({"schemaVersion": 1, "fsLayers": [], "config": manifest["config"], "layers": []});
    for (kind, document) in [
        (media_type::OCI_MANIFEST, &both),
        (media_type::OCI_MANIFEST, &called),
        (media_type::OCI_MANIFEST, &index),
        (media_type::OCI_MANIFEST, &old),
        (media_type::OCI_INDEX, &both),
        (media_type::OCI_INDEX, &index),
        (media_type::OCI_INDEX, &manifest),
    ] {
        let target = Blob::new(kind, document.to_string().into_bytes());
        let mut blobs = good.blobs.clone();
        blobs.push(good.target.clone());
        let registry = corten_tests::ScriptedRegistry::start(Image { target, blobs });
        let done = node.ctr(["images", "pull", "--plain-http", &registry.reference()]);
        assert_eq!(done.code, Some(1), "{kind} {document}");
        assert_eq!(node.ctr(["images", "ls", "-q"]).ok(), "");
    }
    node.finish();
}

/// Containers of one image that start at the same time have each the environment that was meant for it.
#[test]
fn cve_2021_21334_environments_are_not_shared() {
    let node = Node::start();
    import(&node, &ImageBuilder::busybox().set("Env", json!(["PATH=/bin", "OF=image"])).build()).ok();
    let start = |n: usize| {
        let (own, id) = (format!("OWN={n}"), format!("c{n}"));
        let script = "echo $OWN $OF; env | grep -c OWN";
        node.ctr_running(["run", "--rm", "--env", &own, NAME, &id, "sh", "-c", script])
    };
    let running: Vec<_> = (0..8).map(start).collect();
    for (n, one) in running.into_iter().enumerate() {
        assert_eq!(one.finish().ok(), format!("{n} image\n1\n"));
    }
    node.finish();
}

/// What the processor draws is not shown to containers.
#[test]
fn ghsa_7ww5_4wqc_m92c_the_power_of_the_processor_is_hidden() {
    let node = Node::start();
    let spec: serde_json::Value = serde_json::from_str(&node.ctr(["oci", "spec"]).ok()).unwrap();
    let masked = spec["linux"]["maskedPaths"].as_array().unwrap();
    assert!(masked.contains(&"/sys/devices/virtual/powercap".into()), "{masked:?}");
    node.finish();
}

/// Capabilities of a container are not inheritable.
#[test]
fn cve_2022_24769_capabilities_are_not_inheritable() {
    let node = Node::start();
    import(&node, &ImageBuilder::busybox().build()).ok();
    assert_eq!(shell(&node, "grep CapInh /proc/self/status").ok(), "CapInh:\t0000000000000000\n");
    node.finish();
}

/// Documents of registries and archives are refused by their size, before they are read into memory.
#[test]
fn cve_2023_25153_documents_without_end_are_not_read() {
    let node = Node::start();
    let most = || {
        let pid = node.pid().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = most();
    for name in ["index.json", "manifest.json", "oci-layout"] {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_size(4 << 30);
        header.set_mode(0o644);
        header.set_cksum();
        let file = node.join("in.tar");
        let mut archive = std::fs::File::create(&file).unwrap();
        archive.write_all(header.as_bytes()).unwrap();
        archive.set_len(512 + (4 << 30)).unwrap();
        let done = node.ctr(["images", "import", file.to_str().unwrap()]);
        assert_eq!(done.code, Some(1), "{name}: {done:?}");
        assert!(done.stderr.contains(name), "{done:?}");
        std::fs::remove_file(&file).unwrap();
    }
    let target = Blob::new(media_type::OCI_MANIFEST, vec![b' '; 30 << 20]);
    let registry = corten_tests::ScriptedRegistry::start(Image { target, blobs: Vec::new() });
    let done = node.ctr(["images", "pull", "--plain-http", &registry.reference()]);
    done.fails_with("rejecting 31457280 byte manifest");
    assert!(most() < before + (64 << 10), "{} kB before, {} kB after", before, most());
    node.finish();
}

/// The groups of a user are those that the image and the caller name, and no others.
#[test]
fn cve_2023_25173_groups_are_those_of_the_user() {
    let node = Node::start();
    let passwd = "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";
    let group = "root:x:0:\nuser:x:1000:\none:x:11:user,other\ntwo:x:22:other\nthree:x:33:user\n";
    let image = |user: &str| {
        let config = json!({"User": user, "Env": ["PATH=/bin"]});
        ImageBuilder::busybox().layer(accounts(passwd, group)).set("User", config["User"].clone()).build()
    };
    for (user, want) in [
        ("user", "1000 1000 11 33"),
        ("1000", "1000 1000 11 33"),
        ("user:two", "1000 22 11 33"),
        ("1000:44", "1000 44"),
        ("", "0 0"),
    ] {
        import(&node, &image(user)).ok();
        let said = shell(&node, "echo $(id -u) $(id -G)").ok();
        let mut words: Vec<&str> = said.split_whitespace().collect();
        words.dedup();
        let (mut known, mut expected) = (words.clone(), want.split(' ').collect::<Vec<_>>());
        known.sort_unstable();
        known.dedup();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(known, expected, "{user:?}: {said}");
    }
    node.finish();
}

/// Numbers of users that no kernel has are refused, and never taken for names that an image gives to root.
#[test]
fn cve_2024_40635_and_2026_46680_users_that_cannot_be_are_refused() {
    let node = Node::start();
    let numbers = ["4294967296", "4294968296", "18446744073709551616", "-1", "2147483648"];
    let lines: String = numbers.iter().map(|number| format!("{number}:x:0:0::/:/bin/sh\n")).collect();
    for number in numbers {
        let image =
            ImageBuilder::busybox().layer(accounts(&lines, "root:x:0:\n")).set("User", json!(number)).build();
        import(&node, &image).ok();
        let done = shell(&node, "id -u");
        assert!(done.code != Some(0) || done.stdout.trim() == number, "{number}: {done:?}");
        node.ctr(["containers", "rm", "see"]);
    }
    node.finish();
}

/// What an image says of itself does not become an order to the daemon.
#[test]
fn cve_2026_53488_labels_of_images_are_no_orders() {
    let node = Node::start();
    let proof = node.join("proof");
    let uri = format!("binary:///bin/touch?{}", proof.display());
    let labels = json!({
        "containerd.io/restart.loguri": uri, "containerd.io/restart.status": "running",
        "containerd.io/gc.root": "x", "io.cri-containerd.kind": "sandbox", "harmless": "kept",
    });
    import(&node, &ImageBuilder::busybox().set("Labels", labels).build()).ok();
    node.ctr(["containers", "create", NAME, "c", "true"]).ok();
    let about: serde_json::Value = serde_json::from_str(&node.ctr(["containers", "info", "c"]).ok()).unwrap();
    let labels = about["Labels"].as_object().unwrap();
    let reserved = labels
        .keys()
        .filter(|key| key.starts_with("containerd.io/restart.") || key.starts_with("containerd.io/gc."));
    assert_eq!(reserved.collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(labels["harmless"], "kept");
    assert!(!proof.exists());
    node.ctr(["containers", "rm", "c"]).ok();
    node.finish();
}

/// A checkpoint names an image, and brings none under that name.
#[test]
fn cve_2026_50195_checkpoints_rename_no_images() {
    let node = Node::start();
    import(&node, &ImageBuilder::busybox().build()).ok();
    let before = node.ctr(["images", "ls"]).ok();
    let other = ImageBuilder::busybox().set("Labels", json!({"is": "other"})).build();
    let mut listed = other.target.descriptor();
    listed["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [listed],
        "annotations": {
            "org.opencontainers.image.ref.name": NAME, "io.containerd.checkpoint.snapshotter": "overlayfs",
            "io.containerd.checkpoint.runtime": "io.containerd.runc.v2",
        },
    });
    let target = Blob::new(media_type::OCI_INDEX, index.to_string().into_bytes());
    let blobs = other.blobs.iter().chain([&other.target]).cloned().collect();
    let archive = node.join("checkpoint.tar");
    Image { target, blobs }.save(&archive, "example.com/lab/checkpoint:1").unwrap();
    node.ctr(["images", "import", "--no-unpack", archive.to_str().unwrap()]).ok();
    node.ctr(["containers", "restore", "again", "example.com/lab/checkpoint:1"]).ok();
    let after = node.ctr(["images", "ls", &format!("name=={NAME}")]).ok();
    assert_eq!(after.lines().nth(1), before.lines().nth(1));
    node.ctr(["stop", "-t", "0s", "--rm", "again"]).ok();
    node.finish();
}

/// Accounts of an image are read up to a limit.
#[test]
fn cve_2026_47262_accounts_without_end_are_not_read() {
    let node = Node::start();
    let mut passwd = "x:x:1:1::/:/bin/sh\n".repeat(4 << 20);
    passwd.push_str("last:x:7:7::/:/bin/sh\n");
    let image = ImageBuilder::busybox().layer(accounts(&passwd, "root:x:0:\n"));
    import(&node, &image.set("User", json!("last")).build()).ok();
    let mut command = node.ctr_command(["run", "--rm", NAME, "see", "id", "-u"]);
    command.stdin(std::process::Stdio::null());
    let done = command::run(limited(&command));
    assert_eq!(done.code, Some(1), "{done:?}");
    node.ctr(["containers", "rm", "see"]);
    node.finish();
}

/// A command that may not have more than 60 MB of memory of its own.
fn limited(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("ulimit -d 60000; exec \"$@\"")
        .arg("sh")
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    shell
}
