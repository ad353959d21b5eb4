//! Images: saved and loaded, tagged, pulled and pushed; volumes; what takes space and how it is freed.

use corten_tests::{Image, ImageBuilder, Layer, Registry, eventually};

use crate::table::Check;
use corten_tests::engine::{BOX, Engine, Kind, PATIENCE};

pub const CHECKS: &[Check] = &[
    ("save and load", save_and_load),
    ("load of several images, and from standard input", load_several),
    ("load of what ctr exports, and ctr imports what is saved", to_and_from_ctr),
    ("tag, list, history, inspect, remove", names),
    ("an image that is used is not removed", used),
    ("push and pull", push_and_pull),
    ("pull by digest, and of all tags", pull_by_digest),
    ("pull of another platform", pull_platform),
    ("pull says what is missing", pull_missing),
    ("layers that are there are not pulled again", shared_layers),
    ("image prune", prune),
    ("volumes: create, use, list, remove", volumes),
    ("a new volume has what the image has there", volume_content),
    ("volume prune", volume_prune),
    ("system df, info, version", system),
];

fn save_and_load(e: &Engine) {
    let file = format!("{}/image.tar", e.folder("save"));
    e.out(&format!("run --name image-save {BOX} sh -c 'echo saved > /saved'"));
    e.docker("commit image-save image-save:1").ok();
    let id = e.inspect("image-save:1", ".Id");
    e.docker(&format!("save -o {file} image-save:1 {BOX}")).ok();
    e.remove("image-save");
    e.docker("rmi image-save:1").ok();
    let told = e.out(&format!("load -i {file}"));
    assert!(told.contains("Loaded image: image-save:1"), "{told}");
    assert_eq!(e.inspect("image-save:1", ".Id"), id);
    assert_eq!(e.out("run --rm image-save:1 cat /saved"), "saved");
    e.docker("rmi image-save:1").ok();
}

fn load_several(e: &Engine) {
    let folder = e.folder("load");
    for name in ["one", "two"] {
        let image = ImageBuilder::busybox().set("Labels", serde_json::json!({"name": name})).build();
        image
            .save_for_docker(format!("{folder}/{name}.tar").as_ref(), &format!("image-load:{name}"))
            .unwrap();
        let archive = std::fs::read(format!("{folder}/{name}.tar")).unwrap();
        let told = e.docker_with_input("load", &archive).ok();
        assert!(told.contains(&format!("Loaded image: image-load:{name}")), "{told}");
        assert_eq!(e.inspect(&format!("image-load:{name}"), ".Config.Labels.name"), name);
    }
    e.docker(&format!("save -o {folder}/both.tar image-load:one image-load:two")).ok();
    e.docker("rmi image-load:one image-load:two").ok();
    e.docker(&format!("load -i {folder}/both.tar")).ok();
    assert_eq!(e.out("images -q image-load").lines().count(), 2);
    e.docker("rmi image-load:one image-load:two").ok();
}

fn to_and_from_ctr(e: &Engine) {
    let folder = e.folder("ctr");
    let (name, at) = ("docker.io/lab/ctr:1", |file: &str| format!("{folder}/{file}.tar"));
    let layer = Layer::new().file("made", 0o644, b"by ctr").finish();
    ImageBuilder::busybox().layer(layer).build().save(at("made").as_ref(), name).unwrap();
    let ctr = |args: &[&str]| e.node.lock().unwrap().ctr(args.iter().copied()).ok();
    ctr(&["images", "import", "--no-unpack", &at("made")]);
    ctr(&["images", "export", &at("exported"), name]);
    ctr(&["images", "rm", "--sync", name]);
    let told = e.out(&format!("load -i {}", at("exported")));
    assert!(told.contains("Loaded image: lab/ctr:1"), "{told}");
    assert_eq!(e.out("run --rm lab/ctr:1 cat /made"), "by ctr");
    e.docker(&format!("save -o {} lab/ctr:1", at("saved"))).ok();
    e.docker("rmi lab/ctr:1").ok();
    ctr(&["images", "import", &at("saved")]);
    assert_eq!(ctr(&["run", "--rm", name, "from-docker", "cat", "/made"]), "by ctr");
    ctr(&["images", "rm", "--sync", name]);
}

fn names(e: &Engine) {
    e.docker(&format!("tag {BOX} image-names/box:2")).ok();
    assert_eq!(e.out("images --format '{{.Repository}}:{{.Tag}}' image-names/box"), "image-names/box:2");
    assert_eq!(e.inspect("image-names/box:2", ".Id"), e.inspect(BOX, ".Id"));
    e.docker("history image-names/box:2").ok();
    assert_eq!(e.inspect("image-names/box:2", "json .Config.Cmd"), "[\"sh\"]");
    let told = e.out("rmi image-names/box:2");
    assert!(told.contains("Untagged: image-names/box:2"), "{told}");
    e.docker("inspect image-names/box:2").fails(1);
    e.docker("rmi nosuchimage:7").fails_with("No such image");
}

fn used(e: &Engine) {
    e.docker_with_input("import - image-used:1", &tree("used")).ok();
    e.out("create --name image-used image-used:1 /bin/true");
    e.docker("rmi image-used:1").fails_with("is using its referenced image");
    e.remove("image-used");
    let told = e.out("rmi image-used:1");
    assert!(told.contains("Deleted: sha256:"), "{told}");
}

/// A tree that differs by its text from others.
fn tree(text: &str) -> Vec<u8> {
    Layer::new().dir("bin/", 0o755).file("bin/true", 0o755, text.as_bytes()).finish()
}

fn push_and_pull(e: &Engine) {
    let registry = Registry::start();
    let name = format!("{}/a/b:1", registry.host());
    e.out(&format!("run --name image-push {BOX} sh -c 'echo pushed > /pushed'"));
    e.docker(&format!("commit image-push {name}")).ok();
    e.remove("image-push");
    let id = e.inspect(&name, ".Id");
    let told = e.out(&format!("push {name}"));
    assert!(told.contains("digest: sha256:"), "{told}");
    let told = e.out(&format!("push {name}"));
    assert!(told.contains("Layer already exists"), "{told}");
    e.docker(&format!("rmi {name}")).ok();
    let told = e.out(&format!("pull {name}"));
    assert!(told.contains("Status: Downloaded newer image"), "{told}");
    assert_eq!(e.inspect(&name, ".Id"), id);
    let told = e.out(&format!("pull {name}"));
    assert!(told.contains("Status: Image is up to date"), "{told}");
    assert_eq!(e.out(&format!("run --rm {name} cat /pushed")), "pushed");
    e.docker(&format!("rmi {name}")).ok();
}

fn pull_by_digest(e: &Engine) {
    let registry = Registry::start();
    let image = ImageBuilder::busybox().layer(Layer::new().file("d", 0o644, b"digest").finish()).build();
    let reference = registry.push(&image, "many:one");
    registry.push(&image, "many:two");
    let repository = reference.trim_end_matches(":one");
    let name = format!("{repository}@{}", image.target.digest());
    e.docker(&format!("pull {name}")).ok();
    assert_eq!(e.out(&format!("run --rm {name} cat /d")), "digest");
    assert_eq!(e.inspect(&name, "index .RepoDigests 0"), name);
    e.docker(&format!("pull -a {repository}")).ok();
    let tags = e.out(&format!("images --format '{{{{.Tag}}}}' {repository}"));
    assert!(tags.contains("one") && tags.contains("two"), "{tags}");
    e.docker(&format!("rmi {repository}:one {repository}:two {name}"));
}

fn pull_platform(e: &Engine) {
    let registry = Registry::start();
    let make = |name: &str| {
        let layer = Layer::new().file("architecture", 0o644, name.as_bytes()).finish();
        ImageBuilder::busybox().architecture(name).layer(layer).build()
    };
    let index = Image::index(vec![(make("amd64"), "amd64"), (make("s390x"), "s390x")]);
    let name = registry.push(&index, "platforms:1");
    e.docker(&format!("pull {name}")).ok();
    assert_eq!(e.inspect(&name, ".Architecture"), corten_tests::image::host_architecture());
    assert_eq!(e.out(&format!("run --rm {name} cat /architecture")), "amd64");
    e.docker(&format!("rmi {name}")).ok();
    e.docker(&format!("pull --platform linux/s390x {name}")).ok();
    if e.kind != Kind::Docker26Store {
        assert_eq!(e.inspect(&name, ".Architecture"), "s390x");
    }
    e.docker(&format!("rmi {name}")).ok();
    e.docker(&format!("pull --platform linux/riscv64 {name}")).fails(1);
}

fn pull_missing(e: &Engine) {
    let registry = Registry::start();
    let finished = e.docker(&format!("pull {}/nosuch:1", registry.host()));
    assert!(
        finished.stderr.contains("not found") || finished.stderr.contains("manifest unknown"),
        "{finished:?}"
    );
    finished.fails(1);
    e.docker("pull 127.0.0.1:1/x:1").fails_with("connection refused");
}

fn shared_layers(e: &Engine) {
    let registry = Registry::start();
    let base = || ImageBuilder::busybox().layer(Layer::new().file("base", 0o644, b"shared").finish());
    let first = registry.push(&base().build(), "layers:1");
    let second = base().layer(Layer::new().file("more", 0o644, b"more").finish()).build();
    let second = registry.push(&second, "layers:2");
    e.docker(&format!("pull {first}")).ok();
    let told = e.out(&format!("pull {second}"));
    assert_eq!(told.matches("Pulling fs layer").count(), 1, "{told}");
    assert_eq!(e.out(&format!("run --rm {second} cat /base /more")), "sharedmore");
    e.docker(&format!("rmi {first} {second}")).ok();
}

fn prune(e: &Engine) {
    let label = |file: &str| format!("import --change 'LABEL prune=image' - {file}");
    e.docker_with_input(&label("image-prune:1"), &tree("first")).ok();
    e.docker_with_input(&label("image-prune:1"), &tree("second")).ok();
    let list = "images -aq --filter label=prune=image";
    let before = e.out(list).lines().count();
    e.docker("image prune -f --filter label=prune=image").ok();
    assert!(e.out(list).lines().count() <= before);
    assert_eq!(e.out("images -q image-prune").lines().count(), 1);
    e.docker("image prune -a -f --filter label=prune=image").ok();
    assert_eq!(e.out(list), "");
}

fn volumes(e: &Engine) {
    assert_eq!(e.out("volume create --label v=1 vol-one"), "vol-one");
    e.docker(&format!("run --rm -v vol-one:/v {BOX} sh -c 'echo kept > /v/f'")).ok();
    assert_eq!(e.out(&format!("run --rm -v vol-one:/v:ro {BOX} cat /v/f")), "kept");
    assert_eq!(e.out("volume ls -q --filter label=v=1"), "vol-one");
    let place = e.inspect("vol-one", ".Mountpoint");
    assert_eq!(std::fs::read_to_string(format!("{place}/f")).unwrap(), "kept\n");
    e.out(&format!("create --name vol-user -v vol-one:/v {BOX}"));
    e.docker("volume rm vol-one").fails_with("volume is in use");
    e.remove("vol-user");
    e.docker("volume rm vol-one").ok();
    assert!(!std::path::Path::new(&place).exists());
    // With a file system of its own.
    e.docker("volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=64k vol-tmpfs").ok();
    let found = e.out(&format!("run --rm -v vol-tmpfs:/v {BOX} grep ' /v ' /proc/mounts"));
    assert!(found.starts_with("tmpfs /v tmpfs") && found.contains("size=64k"), "{found}");
    e.docker("volume rm vol-tmpfs").ok();
}

fn volume_content(e: &Engine) {
    e.out(&format!("run --rm -v vol-content:/etc --entrypoint /bin/cat {BOX} /etc/passwd"));
    let found = e.out(&format!("run --rm -v vol-content:/v {BOX} cat /v/passwd"));
    assert!(found.starts_with("root:x:0:0"), "{found}");
    e.docker("volume rm vol-content").ok();
}

fn volume_prune(e: &Engine) {
    e.docker("volume create --label prune=volume vol-prune").ok();
    let all = if e.kind == Kind::Docker20 { "" } else { "-a" };
    e.docker(&format!("volume prune {all} -f --filter label=prune=volume")).ok();
    e.docker("volume inspect vol-prune").fails(1);
}

fn system(e: &Engine) {
    let told = eventually("system df answers", PATIENCE, || {
        let finished = e.docker("system df");
        (finished.code == Some(0)).then_some(finished.stdout)
    });
    for word in ["Images", "Containers", "Local Volumes", "Build Cache"] {
        assert!(told.contains(word), "{told}");
    }
    // It trips over containers that are removed meanwhile, those of the other checks.
    let told = eventually("system df -v answers", PATIENCE, || {
        let finished = e.docker("system df -v");
        (finished.code == Some(0)).then_some(finished.stdout)
    });
    assert!(told.contains(BOX.split(':').next().unwrap()), "{told}");
    let info = e.out("info");
    for line in [
        "Default Runtime: runc",
        "Runtimes:",
        "containerd version:",
        "runc version:",
        "Cgroup Driver: cgroupfs",
    ] {
        assert!(info.contains(line), "{line:?} is missing:\n{info}");
    }
    let version = e.out("version --format '{{json .Server.Components}}'");
    for name in ["Engine", "containerd", "runc", "docker-init"] {
        assert!(version.contains(&format!("\"Name\":\"{name}\"")), "{version}");
    }
}
