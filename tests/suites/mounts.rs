//! Mounts that the daemon activates: they are made where they should be, known, kept and taken away.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use corten_api::services::diff::{ApplyRequest, DiffRequest};
use corten_api::services::leases::{CreateRequest as CreateLease, DeleteRequest as DeleteLease};
use corten_api::services::mounts::{
    ActivateRequest, DeactivateRequest, InfoRequest, ListRequest, UpdateRequest,
};
use corten_api::services::tasks::{
    CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use corten_api::types::{ActivationInfo, Mount};
use corten_tests::{Client, ImageBuilder, Node, eventually};
use tonic::{Code, Status};

const IMAGE: &str = "example.com/lab/box:1";
const PATIENCE: Duration = Duration::from_secs(30);

fn client(node: &Node) -> Client {
    Client::new(&node.address(), Some(node.namespace()))
}

/// One whose mounts are kept: the first collection comes soon after the start.
fn keeper(node: &Node) -> Client {
    let client = client(node);
    client.wait(client.leases().create(CreateLease { id: "keeps".into(), ..Default::default() })).unwrap();
    Client::new(&node.address(), Some(node.namespace())).leased("keeps")
}

fn mount(kind: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    let source = source.as_ref().to_str().unwrap().to_owned();
    let options = options.iter().map(ToString::to_string).collect();
    Mount { r#type: kind.into(), source, target: String::new(), options }
}

fn request(name: &str, mounts: Vec<Mount>) -> ActivateRequest {
    ActivateRequest { name: name.into(), mounts, ..Default::default() }
}

fn activate(client: &Client, request: ActivateRequest) -> Result<ActivationInfo, Status> {
    client.wait(client.mounts().activate(request)).map(|answer| answer.info.unwrap())
}

fn deactivate(client: &Client, name: &str) -> Result<(), Status> {
    client.wait(client.mounts().deactivate(DeactivateRequest { name: name.into() }))
}

fn info(client: &Client, name: &str) -> Result<ActivationInfo, Status> {
    client.wait(client.mounts().info(InfoRequest { name: name.into() })).map(|answer| answer.info.unwrap())
}

fn list(client: &Client) -> Vec<ActivationInfo> {
    client.block_on(async {
        let mut stream = client.mounts().list(ListRequest::default()).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            found.push(message.info.unwrap());
        }
        found
    })
}

/// Where activations lie.
fn folder(node: &Node) -> PathBuf {
    node.join("state/io.containerd.mount-manager.v1.bolt/t")
}

fn mounted(node: &Node) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder(node))).collect()
}

fn nothing_is_mounted(node: &Node) {
    eventually("mounts and their folders go", PATIENCE, || {
        let empty = std::fs::read_dir(folder(node)).unwrap().next().is_none();
        (mounted(node).is_empty() && empty).then_some(())
    });
}

/// An image of a folder with one file.
fn erofs(node: &Node, name: &str, text: &str) -> PathBuf {
    let tree = node.join(format!("{name}.tree"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(name), text).unwrap();
    pack(&tree, node.join(format!("{name}.erofs")))
}

fn pack(tree: &Path, image: PathBuf) -> PathBuf {
    let output = Command::new("mkfs.erofs").arg("-Enoinline_data").arg(&image).arg(tree).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    image
}

/// Two layers and an overlay of them, writable in a folder that is to be made.
fn layers(node: &Node) -> Vec<Mount> {
    let upper = node.join("root/upper");
    let made = |name: &str| format!("X-containerd.mkdir.path={}/{name}:0755", upper.display());
    vec![
        mount("erofs", erofs(node, "low", "1"), &[]),
        mount("erofs", erofs(node, "high", "2"), &["ro"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                &made("fs"),
                &made("work"),
                "lowerdir={{ overlay 1 0 }}",
                &format!("upperdir={}/fs", upper.display()),
                &format!("workdir={}/work", upper.display()),
            ],
        ),
    ]
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[test]
fn layers_are_mounted_and_the_overlay_is_left_to_the_caller() {
    let node = Node::start();
    let client = keeper(&node);
    let made = activate(&client, request("a", layers(&node))).unwrap();
    let points: Vec<&str> = made.active.iter().map(|active| active.mount_point.as_str()).collect();
    let point = |number: u32| folder(&node).join(format!("1/{number}")).display().to_string();
    assert_eq!(points, [point(2), point(1)]);
    assert_eq!(made.active[0].mount.as_ref().unwrap().r#type, "erofs");
    assert!(made.active[0].mounted_at.is_some());
    assert_eq!(std::fs::read_to_string(Path::new(points[0]).join("low")).unwrap(), "1");
    let upper = node.join("root/upper").display().to_string();
    let options = [
        format!("lowerdir={}:{}", point(1), point(2)),
        format!("upperdir={upper}/fs"),
        format!("workdir={upper}/work"),
    ];
    assert_eq!(made.system.len(), 1);
    assert_eq!((made.system[0].r#type.as_str(), &made.system[0].options[..]), ("overlay", &options[..]));
    assert!(Path::new(&upper).join("work").is_dir());

    assert_eq!(info(&client, "a").unwrap(), made);
    assert_eq!(list(&client), [made]);
    refused(
        activate(&client, request("a", layers_again(&node))),
        Code::AlreadyExists,
        "mount \"a\": already exists",
    );
    assert_eq!(mounted(&node).len(), 2, "the second attempt mounted nothing");
    deactivate(&client, "a").unwrap();
    nothing_is_mounted(&node);
    assert!(list(&client).is_empty());
    node.finish();
}

fn layers_again(node: &Node) -> Vec<Mount> {
    vec![mount("erofs", node.join("low.erofs"), &[])]
}

#[test]
fn what_cannot_or_need_not_be_activated_is_told() {
    let node = Node::start();
    let client = keeper(&node);
    refused(deactivate(&client, "a"), Code::NotFound, "missing v1 bucket: not found");
    refused(info(&client, "zz"), Code::NotFound, "mount \"zz\" not found");
    refused(activate(&client, request("a", vec![])), Code::Unimplemented, "not implemented");
    let plain = vec![mount("bind", node.path(), &["rbind"]), mount("unknown/overlay", "x", &[])];
    refused(activate(&client, request("a", plain)), Code::Unimplemented, "not implemented");
    let update = client.wait(client.mounts().update(UpdateRequest::default()));
    refused(update, Code::Unimplemented, "not implemented");

    let erofs = mount("erofs", erofs(&node, "one", "1"), &[]);
    for (second, code) in [
        (mount("format/bind", "{{ mount 1 }}", &[]), Code::InvalidArgument),
        (mount("format/bind", "{{ mount 0", &[]), Code::InvalidArgument),
        (mount("mkdir/bind", "x", &["X-containerd.mkdir.path=/corten-must-not-be"]), Code::Unimplemented),
        (mount("mkfs/ext4", node.join("root/x.img"), &["loop"]), Code::InvalidArgument),
        (mount("erofs", node.join("nothing"), &[]), Code::NotFound),
    ] {
        let status = activate(&client, request("a", vec![erofs.clone(), second.clone()])).unwrap_err();
        assert_eq!(status.code(), code, "{second:?}: {status:?}");
        nothing_is_mounted(&node);
    }
    assert!(!Path::new("/corten-must-not-be").exists());
    activate(&client, request("a", vec![erofs])).unwrap();
    refused(deactivate(&client, "b"), Code::NotFound, "missing mount \"b\" bucket: not found");
    let other = Client::new(&node.address(), Some("corten-other"));
    refused(deactivate(&other, "a"), Code::NotFound, "missing namespace \"corten-other\" bucket: not found");
    refused(info(&other, "a"), Code::NotFound, "mount \"a\" not found");
    deactivate(&client, "a").unwrap();
    node.finish();
}

#[test]
fn images_are_formatted_and_temporary_mounts_can_be_bound() {
    let node = Node::start();
    let client = keeper(&node);
    let image = node.join("root/disk.img");
    let options = ["X-containerd.mkfs.size=16MiB", "X-containerd.mkfs.fs=ext4", "loop"];
    let made = activate(&client, request("disk", vec![mount("mkfs/ext4", &image, &options)])).unwrap();
    assert!(made.active.is_empty());
    assert_eq!(made.system, [mount("ext4", &image, &["loop"])]);
    assert_eq!(&std::fs::read(&image).unwrap()[1024 + 56..1024 + 58], [0x53, 0xef], "ext4's magic number");
    deactivate(&client, "disk").unwrap();
    assert!(image.exists());

    let source = node.join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "here").unwrap();
    let temporary =
        ActivateRequest { temporary: true, ..request("t", vec![mount("bind", &source, &["rbind", "ro"])]) };
    let made = activate(&client, temporary).unwrap();
    let [system] = &made.system[..] else { panic!("{made:?}") };
    assert_eq!((system.r#type.as_str(), &system.options[..]), ("bind", &["rbind".to_owned()][..]));
    assert_eq!(std::fs::read_to_string(Path::new(&system.source).join("file")).unwrap(), "here");
    assert!(std::fs::write(Path::new(&system.source).join("file"), "").is_err(), "it is read only");
    deactivate(&client, "t").unwrap();
    nothing_is_mounted(&node);
    node.finish();
}

#[test]
fn layers_are_made_of_and_applied_to_mounts_that_are_activated_meanwhile() {
    let node = Node::start();
    let client = keeper(&node);
    let low = mount("erofs", erofs(&node, "low", "1"), &[]);
    let high = mount("erofs", erofs(&node, "high", "2"), &["ro"]);
    let both = mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]);
    let compared = DiffRequest {
        left: vec![low.clone()],
        right: vec![low.clone(), high, both],
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        ..Default::default()
    };
    let layer = client.wait(client.diff().diff(compared)).unwrap().diff.unwrap();
    let upper = node.join("root/upper");
    let path = |name: &str| format!("{}/{name}", upper.display());
    let options = [
        format!("X-containerd.mkdir.path={}:0755", path("fs")),
        format!("X-containerd.mkdir.path={}", path("work")),
        "lowerdir={{ mount 0 }}".into(),
        format!("upperdir={}", path("fs")),
        format!("workdir={}", path("work")),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let writable = mount("format/mkdir/overlay", "overlay", &options);
    let apply =
        ApplyRequest { diff: Some(layer.clone()), mounts: vec![low, writable], ..ApplyRequest::default() };
    let applied = client.wait(client.diff().apply(apply)).unwrap().applied.unwrap();
    assert_eq!(applied.digest, layer.digest);
    assert_eq!(std::fs::read_to_string(upper.join("fs/high")).unwrap(), "2");
    assert!(!upper.join("fs/low").exists(), "only what is other");
    nothing_is_mounted(&node);
    node.finish();
}

#[test]
fn activations_outlive_the_daemon_and_agree_with_what_is_mounted() {
    let mut node = Node::start();
    let leased = keeper(&node);
    let kept = activate(&leased, request("kept", layers(&node))).unwrap();
    let lost = activate(&leased, request("lost", layers_again(&node))).unwrap();
    node.kill_daemon();
    // One that nobody knows, as a crash between mounting and recording leaves it.
    let stray = folder(&node).join("77/1");
    std::fs::create_dir_all(&stray).unwrap();
    rustix::mount::mount_bind(node.path(), &stray).unwrap();
    // And one that somebody took away.
    rustix::mount::unmount(&*lost.active[0].mount_point, rustix::mount::UnmountFlags::empty()).unwrap();
    node.start_daemon();

    let client = client(&node).leased("keeps");
    assert_eq!(list(&client), std::slice::from_ref(&kept));
    eventually("what nobody knows goes", PATIENCE, || {
        (mounted(&node).len() == 2 && !folder(&node).join("77").exists()).then_some(())
    });
    assert_eq!(std::fs::read_to_string(Path::new(&kept.active[1].mount_point).join("high")).unwrap(), "2");
    let again = activate(&client, request("lost", layers_again(&node))).unwrap();
    assert!(again.active[0].mount_point.contains("/t/78/"), "numbers are not used twice: {again:?}");
    deactivate(&client, "kept").unwrap();
    deactivate(&client, "lost").unwrap();
    nothing_is_mounted(&node);
    node.finish();
}

#[test]
fn the_collector_keeps_what_is_leased_or_referred_to_and_takes_the_rest() {
    let node = Node::start();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), IMAGE).unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    node.ctr(["containers", "create", IMAGE, "box", "true"]).ok();
    let client = client(&node);
    for id in ["keeps", "other"] {
        client.wait(client.leases().create(CreateLease { id: id.into(), ..Default::default() })).unwrap();
    }
    let one = mount("erofs", erofs(&node, "low", "1"), &[]);
    let leased = Client::new(&node.address(), Some(node.namespace())).leased("keeps");
    activate(&leased, request("leased", vec![one.clone()])).unwrap();
    activate(&client, request("free", vec![one.clone()])).unwrap();
    let label = |key: &str| [(key.to_owned(), "box".to_owned())].into();
    for (name, key) in [
        ("container's", "containerd.io/gc.bref.container.x"),
        ("nobody's", "containerd.io/gc.bref.containerx"),
    ] {
        let labels = label(key);
        activate(&client, ActivateRequest { labels, ..request(name, vec![one.clone()]) }).unwrap();
    }
    activate(&client, request("image's", vec![one])).unwrap();
    node.ctr(["images", "label", IMAGE, "containerd.io/gc.ref.mount.a=image's"]).ok();
    let resources = client.wait(
        client
            .leases()
            .list_resources(corten_api::services::leases::ListResourcesRequest { id: "keeps".into() }),
    );
    assert_eq!(resources.unwrap().resources, [], "leases do not list mounts");

    let collect = |id: &str| {
        client.wait(client.leases().delete(DeleteLease { id: id.into(), sync: true })).unwrap();
        list(&client).into_iter().map(|one| one.name).collect::<Vec<_>>()
    };
    assert_eq!(collect("other"), ["container's", "image's", "leased"]);
    assert_eq!(mounted(&node).len(), 3);
    assert_eq!(collect("keeps"), ["container's", "image's"]);
    node.ctr(["containers", "rm", "box"]).ok();
    node.ctr(["images", "rm", "--sync", IMAGE]).ok();
    assert!(list(&client).is_empty());
    nothing_is_mounted(&node);
    node.finish();
}

#[test]
fn a_container_runs_on_layers_that_the_daemon_mounts() {
    let mut node = Node::start();
    ImageBuilder::busybox().build().save(&node.join("image.tar"), IMAGE).unwrap();
    node.ctr(["images", "import", node.join("image.tar").to_str().unwrap()]).ok();
    node.ctr(["containers", "create", IMAGE, "box", "sleep", "1000"]).ok();
    let unpacked = node.join("root/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs");
    let image = pack(&unpacked, node.join("layer.erofs"));
    let upper = node.join("root/upper");
    let rootfs = vec![
        mount("erofs", image, &[]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                &format!("X-containerd.mkdir.path={}/fs:0755", upper.display()),
                &format!("X-containerd.mkdir.path={}/work", upper.display()),
                "lowerdir={{ mount 0 }}",
                &format!("upperdir={}/fs", upper.display()),
                &format!("workdir={}/work", upper.display()),
            ],
        ),
    ];
    let client = client(&node);
    let container_id = || "box".to_owned();
    let create =
        || CreateTaskRequest { container_id: container_id(), rootfs: rootfs.clone(), ..Default::default() };
    client.wait(client.tasks().create(create())).unwrap();
    let start = StartRequest { container_id: container_id(), ..Default::default() };
    client.wait(client.tasks().start(start)).unwrap();
    let [active] = &list(&client)[..] else { panic!("{:?}", list(&client)) };
    assert_eq!(active.name, "box");
    assert_eq!(active.labels["containerd.io/gc.bref.container"], "box");
    // The collector and a crash leave what is in use alone.
    node.kill_daemon();
    node.start_daemon();
    let client = self::client(&node);
    client.wait(client.leases().create(CreateLease { id: "x".into(), ..Default::default() })).unwrap();
    client.wait(client.leases().delete(DeleteLease { id: "x".into(), sync: true })).unwrap();
    assert_eq!(mounted(&node).len(), 1);
    node.ctr(["tasks", "exec", "--exec-id", "e", "box", "sh", "-c", "echo changed > /file"]).ok();
    assert_eq!(std::fs::read_to_string(upper.join("fs/file")).unwrap(), "changed\n");

    let kill = KillRequest { container_id: container_id(), signal: 9, ..Default::default() };
    client.wait(client.tasks().kill(kill)).unwrap();
    client
        .wait(client.tasks().wait(WaitRequest { container_id: container_id(), ..Default::default() }))
        .unwrap();
    client.wait(client.tasks().delete(DeleteTaskRequest { container_id: container_id() })).unwrap();
    nothing_is_mounted(&node);
    assert!(list(&client).is_empty());

    // A creation that fails leaves nothing mounted.
    let mut bad = create();
    bad.rootfs[1].r#type = "format/nonsense".into();
    client.wait(client.tasks().create(bad)).unwrap_err();
    nothing_is_mounted(&node);
    node.ctr(["containers", "rm", "box"]).ok();
    node.finish();
}
