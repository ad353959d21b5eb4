//! Mounts on a real kernel. Needs root.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use corten_mounts::{TempMount, mount_all, mount_points_below, unmount_all, unmount_one};
use corten_types::{ErrorClass, Mount};
use rustix::fs::{StatVfsMountFlags, statvfs};

/// A folder; whatever is mounted in it goes before it does.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new(folders: &[&str]) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for folder in folders {
            std::fs::create_dir_all(this.at(folder)).unwrap();
        }
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn bind(&self, source: &str, options: &[&str]) -> Mount {
        mount_of("bind", &self.text(source), options)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unmount_all(self.0.path()).unwrap();
    }
}

fn mount_of(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(ToString::to_string).collect();
    Mount { kind: kind.into(), source: source.into(), target: String::new(), options }
}

fn flags(path: &Path) -> StatVfsMountFlags {
    statvfs(path).unwrap().f_flag
}

#[test]
fn a_read_only_bind_mount_is_read_only_and_keeps_what_its_source_forbids() {
    let lab = Lab::new(&["source", "target", "again"]);
    mount_all(&[mount_of("tmpfs", "tmpfs", &["nosuid", "nodev", "size=1m"])], &lab.at("source")).unwrap();
    std::fs::write(lab.at("source/file"), "x").unwrap();
    mount_all(&[lab.bind("source", &["ro", "rbind"])], &lab.at("target")).unwrap();
    assert!(std::fs::write(lab.at("target/new"), "x").is_err());
    let kept = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    assert!(flags(&lab.at("target")).contains(kept));
    // The source itself is as it was.
    std::fs::write(lab.at("source/new"), "x").unwrap();
    mount_all(&[lab.bind("source", &["rbind", "rw"])], &lab.at("again")).unwrap();
    std::fs::write(lab.at("again/third"), "x").unwrap();
}

#[test]
fn an_overlay_shows_its_layers_and_writes_go_to_the_upper_one() {
    let lab = Lab::new(&["lower", "base", "upper,1", "work", "target"]);
    std::fs::write(lab.at("lower/file"), "lower").unwrap();
    std::fs::write(lab.at("base/deep"), "base").unwrap();
    let options = [
        format!("workdir={}", lab.text("work")),
        // A comma in a path is part of it.
        format!("upperdir={}", lab.text("upper,1")),
        format!("lowerdir={}:{}", lab.text("lower"), lab.text("base")),
        "index=off".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mount_all(&[mount_of("overlay", "overlay", &options)], &lab.at("target")).unwrap();
    assert_eq!(std::fs::read_to_string(lab.at("target/deep")).unwrap(), "base");
    std::fs::write(lab.at("target/file"), "upper").unwrap();
    unmount_one(&lab.at("target")).unwrap();
    assert_eq!(std::fs::read_to_string(lab.at("upper,1/file")).unwrap(), "upper");
    assert_eq!(std::fs::read_to_string(lab.at("lower/file")).unwrap(), "lower");
    assert!(mount_points_below(lab.0.path()).unwrap().is_empty());
}

#[test]
fn an_overlay_may_have_more_layers_than_fit_into_a_page() {
    let lab = Lab::new(&["upper", "work", "target"]);
    // One of them has a longer path than the newer calls take as a value, another one a colon.
    let long = format!("{}/layer", vec!["x".repeat(99); 4].join("/"));
    let names = (0..300).map(|layer| match layer {
        7 => long.clone(),
        8 => "with:colon".to_owned(),
        _ => format!("{layer:0>80}"),
    });
    let mut layers = Vec::new();
    for (index, name) in names.enumerate() {
        std::fs::create_dir_all(lab.at(&name)).unwrap();
        std::fs::write(lab.at(&name).join(index.to_string()), name.as_str()).unwrap();
        layers.push(lab.text(&name).replace(':', "\\:"));
    }
    let options = [
        format!("workdir={}", lab.text("work")),
        format!("upperdir={}", lab.text("upper")),
        format!("lowerdir={}", layers.join(":")),
        "index=off".to_owned(),
        "nodev".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mount_all(&[mount_of("overlay", "overlay", &options)], &lab.at("target")).unwrap();
    assert_eq!(std::fs::read_dir(lab.at("target")).unwrap().count(), 300);
    assert_eq!(std::fs::read_to_string(lab.at("target/7")).unwrap(), long);
    std::fs::write(lab.at("target/new"), "x").unwrap();
    assert!(lab.at("upper/new").exists());
    assert!(flags(&lab.at("target")).contains(StatVfsMountFlags::NODEV));
}

#[test]
fn sub_paths_are_resolved_inside_of_the_target() {
    let lab = Lab::new(&["root/real", "outside", "secret"]);
    std::fs::write(lab.at("outside/marker"), "x").unwrap();
    std::os::unix::fs::symlink(lab.text("secret"), lab.at("root/absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../real", lab.at("root/relative")).unwrap();
    let inner =
        |target: &str, options: &[&str]| Mount { target: target.into(), ..lab.bind("outside", options) };
    // Where the link would lead on the host there is nothing inside of the target.
    let error = mount_all(&[inner("absolute", &["rbind"])], &lab.at("root")).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(!lab.at("secret/marker").exists());
    mount_all(&[inner("/relative/../../relative", &["rbind", "ro"])], &lab.at("root")).unwrap();
    assert!(lab.at("root/real/marker").exists());
    // It is the new mount that is read only, not what it lies on.
    assert!(flags(&lab.at("root/real")).contains(StatVfsMountFlags::RDONLY));
    assert!(!flags(&lab.at("root")).contains(StatVfsMountFlags::RDONLY));
}

#[test]
fn a_list_is_mounted_whole_or_not_at_all_and_the_error_says_which() {
    let lab = Lab::new(&["source", "target"]);
    let missing = lab.bind("missing", &["rbind"]);
    let error = mount_all(&[lab.bind("source", &["rbind"]), missing], &lab.at("target")).unwrap_err();
    let text = error.to_string();
    assert!(error.is_not_found(), "{text}");
    assert!(text.starts_with(&format!("mount source: {:?}, target: ", lab.text("missing"))), "{text}");
    assert!(text.ends_with("err: no such file or directory"), "{text}");
    assert!(mount_points_below(&lab.at("target")).unwrap().is_empty());
}

#[test]
fn files_are_mounted_by_loop_devices_that_go_with_the_mount() {
    let lab = Lab::new(&["target"]);
    let file = lab.at("disk");
    std::fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let made = std::process::Command::new("/sbin/mkfs.ext4").arg("-q").arg(&file).status().unwrap();
    assert!(made.success());
    let devices = || {
        let all = std::fs::read_dir("/sys/block").unwrap().flatten();
        let files = all.filter_map(|it| std::fs::read_to_string(it.path().join("loop/backing_file")).ok());
        files.filter(|name| name.trim() == lab.text("disk")).count()
    };
    for (mode, written) in [("rw", true), ("ro", false)] {
        mount_all(&[mount_of("ext4", &lab.text("disk"), &["loop", mode])], &lab.at("target")).unwrap();
        assert_eq!(devices(), 1);
        assert_eq!(std::fs::write(lab.at("target/file"), "x").is_ok(), written);
        assert!(lab.at("target/file").exists());
        corten_mounts::unmount_all(&lab.at("target")).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while devices() > 0 {
            assert!(std::time::Instant::now() < end, "the loop device stays");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let missing = mount_all(&[mount_of("ext4", &lab.text("missing"), &["loop"])], &lab.at("target"));
    assert!(missing.unwrap_err().is_not_found());
}

#[test]
fn options_that_cannot_be_honoured_are_refused() {
    let lab = Lab::new(&["source", "target"]);
    let error = mount_all(&[lab.bind("source", &["X-containerd.mkdir.path=/x"])], &lab.at("target"));
    assert_eq!(error.unwrap_err().class(), ErrorClass::InvalidArgument);
    assert!(mount_points_below(&lab.at("target")).unwrap().is_empty());
}

#[test]
fn everything_below_goes_even_what_is_stacked_or_in_use() {
    let lab = Lab::new(&["with space", "other/inner"]);
    let tmpfs = || mount_of("tmpfs", "tmpfs", &[]);
    let target = lab.at("with space");
    mount_all(&[tmpfs(), tmpfs()], &target).unwrap();
    std::fs::create_dir(target.join("in")).unwrap();
    mount_all(&[tmpfs()], &target.join("in")).unwrap();
    assert_eq!(mount_points_below(&target).unwrap().len(), 3);
    let used = std::fs::File::create(target.join("in/used")).unwrap();
    // A neighbour whose name starts alike is none of its business.
    std::fs::create_dir(lab.at("with space 2")).unwrap();
    mount_all(&[tmpfs()], &lab.at("with space 2")).unwrap();
    unmount_all(&target).unwrap();
    assert!(mount_points_below(&target).unwrap().is_empty());
    assert_eq!(mount_points_below(&lab.at("with space 2")).unwrap().len(), 1);
    drop(used);
    // Through a link, and where there is nothing.
    std::os::unix::fs::symlink(lab.at("other"), lab.at("link")).unwrap();
    mount_all(&[tmpfs()], &lab.at("other/inner")).unwrap();
    unmount_all(&lab.at("link")).unwrap();
    assert!(mount_points_below(&lab.at("other")).unwrap().is_empty());
    unmount_all(&lab.at("nowhere")).unwrap();
}

#[test]
fn propagation_is_set() {
    let lab = Lab::new(&["target"]);
    mount_all(&[mount_of("tmpfs", "tmpfs", &["rshared"])], &lab.at("target")).unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&lab.text("target"))).unwrap();
    assert!(line.contains(" shared:"), "{line}");
}

#[test]
fn temporary_mounts_go_with_their_guard_and_those_of_the_dead_are_cleared() {
    let lab = Lab::new(&["source", "temporary"]);
    std::fs::write(lab.at("source/file"), "x").unwrap();
    let mounted = TempMount::new(&lab.at("temporary"), &[lab.bind("source", &["rbind"])]).unwrap();
    assert!(mounted.path().join("file").exists());
    drop(mounted);
    let failed = TempMount::new(&lab.at("temporary"), &[lab.bind("missing", &["rbind"])]);
    assert!(failed.unwrap_err().is_not_found());
    assert_eq!(std::fs::read_dir(lab.at("temporary")).unwrap().count(), 0);
    std::mem::forget(TempMount::new(&lab.at("temporary"), &[lab.bind("source", &["rbind"])]).unwrap());
    TempMount::clear(&lab.at("temporary")).unwrap();
    assert_eq!(std::fs::read_dir(lab.at("temporary")).unwrap().count(), 0);
    assert!(lab.at("source/file").exists());
}

fn owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

#[test]
fn owners_are_mapped_in_a_bind_mount() {
    let lab = Lab::new(&["source", "target"]);
    std::fs::write(lab.at("source/file"), "x").unwrap();
    let options = ["uidmap=0:1000:10", "gidmap=0:2000:5,5:9000:5", "ro", "rbind"];
    mount_all(&[lab.bind("source", &options)], &lab.at("target")).unwrap();
    assert_eq!(owner(&lab.at("target/file")), (1000, 2000));
    assert_eq!(owner(&lab.at("source/file")), (0, 0));
    assert!(flags(&lab.at("target")).contains(StatVfsMountFlags::RDONLY));
}

#[test]
fn owners_are_mapped_in_the_lower_layers_of_an_overlay() {
    let mut lower = Vec::new();
    let lab = Lab::new(&["upper", "work", "target"]);
    // More of them than fit into one value.
    for layer in 0..40 {
        lower.push(lab.text(&format!("lower{layer}")));
        std::fs::create_dir(&lower[layer]).unwrap();
        std::fs::write(format!("{}/{layer}", lower[layer]), "x").unwrap();
    }
    std::os::unix::fs::chown(lab.at("upper"), Some(1000), Some(1000)).unwrap();
    let layers = format!("lowerdir={}", lower.join(":"));
    let (upper, work) = (format!("upperdir={}", lab.text("upper")), format!("workdir={}", lab.text("work")));
    let options = ["uidmap=0:1000:10", "gidmap=0:1000:10", &work, &upper, &layers, "index=off"];
    mount_all(&[mount_of("overlay", "overlay", &options)], &lab.at("target")).unwrap();
    for layer in 0..40 {
        assert_eq!(owner(&lab.at(&format!("target/{layer}"))), (1000, 1000));
    }
    std::fs::write(lab.at("target/7"), "changed").unwrap();
    assert_eq!(owner(&lab.at("upper/7")), (1000, 1000), "a copy belongs to whom it is shown to belong");
    assert_eq!(owner(Path::new(&format!("{}/7", lower[7]))), (0, 0));
    assert_eq!(mount_points_below(&lab.at("target")).unwrap().len(), 1, "only the overlay itself");
    unmount_one(&lab.at("target")).unwrap();
    assert!(mount_points_below(&lab.at("target")).unwrap().is_empty());
}

#[test]
fn half_a_mapping_is_refused_and_leaves_nothing() {
    let lab = Lab::new(&["source", "lower", "target"]);
    let refused = |mount: Mount| mount_all(&[mount], &lab.at("target")).unwrap_err().class();
    assert_eq!(refused(lab.bind("source", &["uidmap=0:1000:10", "rbind"])), ErrorClass::InvalidArgument);
    let broken = ["uidmap=0:1:1", "gidmap=0:1:1", &format!("lowerdir={}:/nonexistent", lab.text("lower"))];
    assert_eq!(refused(mount_of("overlay", "overlay", &broken)), ErrorClass::NotFound);
    assert!(mount_points_below(&lab.at("target")).unwrap().is_empty());
}
