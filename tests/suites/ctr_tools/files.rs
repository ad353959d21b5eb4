//! `cp`, `diff` and `logs`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;
use std::time::Duration;

use corten_tests::command::run;
use serde_json::Value;

use crate::{IMAGE, node, sh};

#[test]
fn files_are_copied_out_of_containers_and_into_them() {
    let node = node();
    let script = "mkdir -p /data/deep; echo one >/data/one; ln -s one /data/link; echo two >/data/deep/two; \
                  chmod 4750 /data/one; chown 7:8 /data/deep/two; echo ready; exec sleep 1000";
    node.ctr(["run", "-d", "--null-io", IMAGE, "box", "sh", "-c", script]).ok();
    node.ctr(["c", "create", IMAGE, "still"]).ok();
    let here = |name: &str| node.join(name).display().to_string();
    corten_tests::eventually("the container has its files", Duration::from_secs(60), || {
        let seen = node.ctr(["t", "exec", "--exec-id", "look", "box", "cat", "/data/deep/two"]);
        (seen.stdout == "two\n").then_some(())
    });
    // Out: a folder under a new name, into a folder that is there, and its contents alone.
    node.ctr(["cp", "box:/data", &here("new")]).ok();
    std::fs::create_dir(node.join("there")).unwrap();
    node.ctr(["cp", "box:/data", &here("there")]).ok();
    node.ctr(["cp", "box:/data/.", &here("there")]).ok();
    for folder in ["new", "there/data", "there"] {
        let folder = node.join(folder);
        assert_eq!(std::fs::read_to_string(folder.join("one")).unwrap(), "one\n", "{folder:?}");
        assert_eq!(std::fs::read_link(folder.join("link")).unwrap().to_str(), Some("one"));
        assert_eq!(std::fs::read_to_string(folder.join("deep/two")).unwrap(), "two\n");
    }
    let one = std::fs::metadata(node.join("new/one")).unwrap();
    assert_eq!((one.mode() & 0o7777, one.uid()), (0o750, 0), "nothing is setuid here that was in there");
    assert_eq!(std::fs::metadata(node.join("new/deep/two")).unwrap().uid(), 0);
    node.ctr(["cp", "-a", "box:/data/.", &here("kept")]).ok();
    assert_eq!(std::fs::metadata(node.join("kept/one")).unwrap().mode() & 0o7777, 0o4750);
    let two = std::fs::metadata(node.join("kept/deep/two")).unwrap();
    assert_eq!((two.uid(), two.gid()), (7, 8));
    // A link itself, or what it leads to.
    node.ctr(["cp", "box:/data/link", &here("as-link")]).ok();
    assert!(std::fs::symlink_metadata(node.join("as-link")).unwrap().is_symlink());
    node.ctr(["cp", "-L", "box:/data/link", &here("as-file")]).ok();
    assert_eq!(std::fs::read_to_string(node.join("as-file")).unwrap(), "one\n");
    // In: to one that runs and to one that does not; from one to the other.
    std::fs::write(node.join("in"), "hello\n").unwrap();
    std::fs::set_permissions(node.join("in"), PermissionsExt::from_mode(0o640)).unwrap();
    node.ctr(["cp", &here("in"), "box:/data/one"]).ok();
    node.ctr(["cp", &here("in"), "still:/etc"]).ok();
    node.ctr(["cp", "box:/data/one", "still:/etc/copied"]).ok();
    let seen = node.ctr(["t", "exec", "--exec-id", "look", "box", "stat", "-c", "%a %u %s", "/data/one"]);
    assert_eq!(seen.ok(), "640 0 6\n");
    node.ctr(["cp", "still:/etc/in", &here("back")]).ok();
    node.ctr(["cp", "still:/etc/copied", &here("back")]).ok();
    assert_eq!(std::fs::read_to_string(node.join("back")).unwrap(), "hello\n");
    // What cannot be is told in one line.
    sh(node.path(), "mkfifo pipe").ok();
    for (args, text) in [
        (["cp", "box:/nope", &here("x")], "box:/nope: no such file or directory"),
        (["cp", "nope:/x", &here("x")], "container \"nope\" in namespace"),
        (["cp", "box:/data", &here("in")], "cannot copy a folder to"),
        (["cp", &here("in"), "box:/none/x"], "no such file or directory"),
        (["cp", &here("in"), "box:/none/"], "folder /none/: not found"),
        (["cp", "box:/data/one", &here("pipe")], "/pipe: it is neither a file nor a folder"),
        (["cp", &here("in"), "box:/dev/null"], "cannot copy to /dev/null: it is neither a file nor a folder"),
    ] {
        let told = node.ctr(args).fails_with(text);
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    node.ctr(["stop", "-t", "0s", "--rm", "box"]).ok();
    node.ctr(["c", "rm", "still"]).ok();
    node.finish();
}

/// Names and values of the extended attributes of a file that a copy may carry.
fn attributes(path: &std::path::Path) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &'static str| {
        let mut value = vec![0; 64];
        let length = rustix::fs::lgetxattr(path, name, &mut *value).ok()?;
        Some((name, value[..length].to_vec()))
    };
    ["security.capability", "user.note"].into_iter().filter_map(read).collect()
}

#[test]
fn what_gives_rights_goes_in_and_comes_out_when_it_is_asked_for() {
    use rustix::fs::{XattrFlags, setxattr};
    let node = node();
    node.ctr(["c", "create", IMAGE, "box"]).ok();
    let from = node.join("from");
    std::fs::create_dir(&from).unwrap();
    let tool = from.join("tool");
    std::fs::write(&tool, "#!").unwrap();
    std::fs::hard_link(&tool, from.join("same")).unwrap();
    std::os::unix::fs::chown(&tool, Some(7), Some(8)).unwrap();
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o4755)).unwrap();
    // With a line end among its bytes: cap_dac_override and cap_fowner.
    let capability = [&[1, 0, 0, 2, 10][..], &[0; 15]].concat();
    setxattr(&tool, "security.capability", &capability, XattrFlags::empty()).unwrap();
    // Not all file systems have those of users.
    setxattr(&tool, "user.note", b"a\nb", XattrFlags::empty()).ok();
    setxattr(&from, "user.note", b"of the folder", XattrFlags::empty()).ok();
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::open(&tool).unwrap().set_modified(time).unwrap();
    let here = |name: &str| node.join(name).display().to_string();

    node.ctr(["cp", &here("from"), "box:/in"]).ok();
    node.ctr(["cp", "-a", &here("from"), "box:/kept"]).ok();
    for (name, source, args) in
        [("out", "in", &["cp"][..]), ("all", "in", &["cp", "-a"]), ("kept", "kept", &["cp", "-a"])]
    {
        node.ctr(args.iter().copied().chain([&*format!("box:/{source}"), &*here(name)])).ok();
        let copied = node.join(name).join("tool");
        let found = std::fs::metadata(&copied).unwrap();
        let is_out = name == "out";
        assert_eq!(found.mode() & 0o7777, if is_out { 0o755 } else { 0o4755 }, "{name}");
        assert_eq!((found.uid(), found.gid()), if name == "kept" { (7, 8) } else { (0, 0) }, "{name}");
        assert_eq!(found.mtime(), 1_000_000_000, "{name}");
        assert_eq!(found.ino(), std::fs::metadata(node.join(name).join("same")).unwrap().ino(), "{name}");
        let mut expected = attributes(&tool);
        expected.retain(|(attribute, _)| !is_out || attribute.starts_with("user."));
        assert_eq!(attributes(&copied), expected, "{name}");
        assert_eq!(attributes(&node.join(name)), attributes(&from), "{name}");
    }
    assert!(attributes(&tool).contains(&("security.capability", capability)));
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}

#[test]
fn archives_go_through_pipes() {
    let node = node();
    node.ctr(["c", "create", IMAGE, "box"]).ok();
    let mut out = node.ctr_command(["cp", "box:/bin/busybox", "-"]);
    out.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let archive = out.output().unwrap();
    assert!(archive.status.success(), "{archive:?}");
    let listed = node.join("out.tar");
    std::fs::write(&listed, &archive.stdout).unwrap();
    assert_eq!(sh(node.path(), "tar tf out.tar").ok(), "busybox\n");
    sh(node.path(), "mkdir t; echo x >t/a; ln t/a t/b; mkfifo t/p; tar cf in.tar -C t .").ok();
    let archive = std::fs::read(node.join("in.tar")).unwrap();
    node.ctr_with_input(["cp", "-", "box:/etc"], &archive).ok();
    node.ctr(["cp", "box:/etc/.", &node.join("etc").display().to_string()]).ok();
    assert_eq!(std::fs::read_to_string(node.join("etc/b")).unwrap(), "x\n");
    node.ctr_with_input(["cp", "-", "box:/nope"], &archive).fails_with("an archive needs one");
    node.ctr_with_input(["cp", "-", "box:/etc"], b"no archive at all").fails(1);
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}

#[test]
fn no_link_of_a_container_leads_out_of_it() {
    let node = node();
    node.ctr(["c", "create", IMAGE, "box"]).ok();
    let secret = node.join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    let folder = node.path().display().to_string();
    // Links that an archive brings in, as a container makes them, too.
    let evil = node.join("evil");
    std::fs::create_dir(&evil).unwrap();
    symlink(&secret, evil.join("file")).unwrap();
    symlink(&folder, evil.join("folder")).unwrap();
    symlink("../../../../../../../../..", evil.join("up")).unwrap();
    node.ctr(["cp", &evil.display().to_string(), "box:/evil"]).ok();
    let out = node.join("out").display().to_string();
    for path in ["file", "folder/secret", &format!("up/{}", secret.display())] {
        let path = format!("box:/evil/{path}");
        node.ctr(["cp", "-L", &path, &out]).fails_with("no such file or directory");
    }
    // Writing through them stays inside, too.
    node.ctr(["cp", &secret.display().to_string(), "box:/evil/folder/new"]).fails(1);
    node.ctr(["cp", &secret.display().to_string(), "box:/evil/file"]).fails(1);
    assert!(!node.join("new").exists());
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host");
    // An archive with names that lead out, for a folder of ours.
    let script = "import tarfile,io\nt=tarfile.open('bad.tar','w')\n\
        l=tarfile.TarInfo('l');l.type=tarfile.SYMTYPE;l.linkname='../../away';t.addfile(l)\n\
        for n in ('l/x','../y','/z'):\n f=tarfile.TarInfo(n);f.size=1;t.addfile(f,io.BytesIO(b'!'))\n";
    std::fs::create_dir(node.join("away")).unwrap();
    std::fs::create_dir_all(node.join("a/b")).unwrap();
    std::fs::write(node.join("make.py"), script).unwrap();
    sh(node.path(), "python3 make.py").ok();
    let archive = std::fs::read(node.join("bad.tar")).unwrap();
    node.ctr_with_input(["cp", "-", &node.join("a/b").display().to_string()], &archive).fails(1);
    assert!(!node.join("away/x").exists());
    node.ctr(["c", "rm", "box"]).ok();
    node.finish();
}

#[test]
fn changes_of_a_container_are_told_as_docker_tells_them() {
    let node = node();
    let script = "echo x >/new; mkdir /made; echo y >/made/file; rm /bin/ls; rm -rf /tmp; chmod 700 /etc; exec sleep 1000";
    node.ctr(["run", "-d", "--null-io", IMAGE, "box", "sh", "-c", script]).ok();
    let wanted = ["A /made", "A /made/file", "A /new", "C /bin", "C /etc", "D /bin/ls"];
    let told = corten_tests::eventually("the changes are there", Duration::from_secs(60), || {
        let told = node.ctr(["diff", "box"]).ok();
        wanted.iter().all(|line| told.lines().any(|one| one == *line)).then_some(told)
    });
    assert!(!told.lines().any(|line| line.ends_with("/busybox")), "{told}");
    let list: Value = serde_json::from_str(&node.ctr(["diff", "--format", "json", "box"]).ok()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), told.lines().count());
    node.ctr(["stop", "-t", "0s", "box"]).ok();
    assert_eq!(node.ctr(["diff", "box"]).ok(), told, "one that does not run any more has them, too");
    node.ctr(["diff", "nope"]).fails_with("container \"nope\" in namespace");
    node.ctr(["c", "rm", "box"]).ok();
    assert_eq!(node.ctr(["leases", "ls", "-q"]).ok(), "", "nothing stays of the comparison");
    node.finish();
}

#[test]
fn logs_are_shown_and_followed() {
    let node = node();
    let log = node.join("box.log");
    let uri = format!("file://{}", log.display());
    let script = "echo one; echo two >&2; echo three; while [ ! -e /go ]; do sleep 0.1; done; echo four";
    node.ctr(["run", "-d", "--log-uri", &uri, IMAGE, "box", "sh", "-c", script]).ok();
    let wait = |text: &str| {
        corten_tests::eventually("the log is written", Duration::from_secs(60), || {
            Some(node.ctr(["logs", "box"]).ok()).filter(|log| log == text)
        })
    };
    wait("one\ntwo\nthree\n");
    assert_eq!(node.ctr(["logs", "-n", "1", "box"]).ok(), "three\n");
    assert_eq!(node.ctr(["logs", "--tail=2", "box"]).ok(), "two\nthree\n");
    let following = node.ctr_running(["logs", "-f", "--tail", "1", "box"]);
    assert_eq!(following.next_output(Duration::from_secs(60)).as_deref(), Some("three\n"));
    node.ctr(["t", "exec", "--exec-id", "go", "box", "touch", "/go"]).ok();
    assert_eq!(following.finish().ok(), "three\nfour\n", "it ends with the container");
    node.ctr(["t", "rm", "box"]).ok();
    node.ctr(["c", "rm", "box"]).ok();

    node.ctr(["run", "-d", "--null-io", IMAGE, "mute", "sleep", "1000"]).ok();
    node.ctr(["logs", "mute"]).fails_with("the output of container \"mute\" is not kept");
    node.ctr(["logs", "nope"]).fails_with("container \"nope\" in namespace");
    // What nerdctl's logger keeps, and what another one does with it.
    let folder = node.join("containers").join(node.namespace()).join("mute");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("mute-json.log"), "{\"log\":\"one\\n\"}\n{\"log\":\"two\\n\"}\n").unwrap();
    let logger = format!("binary:///bin/logger?_NERDCTL_INTERNAL_LOGGING={}", node.path().display());
    node.ctr(["c", "label", "mute", &format!("nerdctl/log-uri={logger}")]).ok();
    assert_eq!(node.ctr(["logs", "mute"]).ok(), "one\ntwo\n");
    assert_eq!(node.ctr(["logs", "-n", "1", "mute"]).ok(), "two\n");
    node.ctr(["c", "label", "mute", "nerdctl/log-uri=binary:///bin/logger?to=x"]).ok();
    node.ctr(["logs", "mute"]).fails_with("the output of container \"mute\" goes to the program /bin/logger");
    node.ctr(["run", "-d", IMAGE, "piped", "sleep", "1000"]).ok();
    node.ctr(["logs", "piped"]).fails_with("the output of container \"piped\" goes to /");
    node.ctr(["stop", "-t", "0s", "--rm", "piped"]).ok();
    node.ctr(["c", "label", "mute", &format!("containerd.io/restart.loguri={uri}")]).ok();
    assert!(node.ctr(["logs", "mute"]).ok().ends_with("four\n"));
    // A reader that goes ends it.
    let mut command = node.ctr_command(["logs", "-f", "mute"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(141));
    node.ctr(["stop", "-t", "0s", "--rm", "mute"]).ok();
    run(node.ctr_command(["c", "ls", "-q"])).ok();
    node.finish();
}
