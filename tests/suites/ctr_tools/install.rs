//! What `make install` places.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use corten_tests::command::run;
use corten_tests::{Scratch, peers};

use crate::program;

#[test]
fn install_places_programs_manuals_completions_and_the_unit() {
    let scratch = Scratch::new();
    let root = scratch.path().display().to_string();
    let mut make = Command::new("make");
    let programs = peers::programs().display().to_string();
    let settings = [format!("DESTDIR={root}"), "PREFIX=/opt/corten".into(), format!("RELEASE={programs}")];
    make.current_dir(peers::workspace()).arg("place").args(settings);
    run(make).ok();
    let placed = |path: &str| scratch.join("opt/corten").join(path);
    for name in ["containerd", "ctr", "containerd-shim-runc-v2", "corten-cni"] {
        let metadata = std::fs::metadata(placed("bin").join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755, "{name}");
    }
    for name in [
        "share/man/man8/ctr.8",
        "share/man/man8/ctr-run.8",
        "share/man/man8/ctr-images.8",
        "share/bash-completion/completions/ctr",
        "share/zsh/site-functions/_ctr",
        "share/fish/vendor_completions.d/ctr.fish",
        "lib/systemd/system/containerd.service",
    ] {
        let metadata = std::fs::metadata(placed(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(metadata.len() > 100 && metadata.permissions().mode() & 0o777 == 0o644, "{name}");
    }
    let unit = std::fs::read_to_string(placed("lib/systemd/system/containerd.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/corten/bin/containerd\n"), "{unit}");
    assert!(!unit.contains("PREFIX"), "{unit}");
    let mut version = Command::new(placed("bin/ctr"));
    version.arg("--version");
    assert!(run(version).ok().starts_with("ctr github.com/containerd/containerd/v2 "));
}

#[test]
fn manuals_are_pages_without_mistakes() {
    let scratch = Scratch::new();
    let mut command = Command::new(program());
    command.args(["manual", "--folder"]).arg(scratch.path());
    run(command).ok();
    let mut pages = 0;
    for entry in std::fs::read_dir(scratch.path()).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|end| end != "8") {
            continue;
        }
        pages += 1;
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path);
        let told = run(groff);
        assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{path:?}");
    }
    assert!(pages > 20, "{pages}: each command has a page");
    let page = std::fs::read_to_string(scratch.join("ctr-run.8")).unwrap();
    assert!(page.contains("\\-\\-rlimit\\-nofile") && page.contains(".SH SEE ALSO"), "{page}");
}

#[test]
fn the_documentation_is_that_of_the_commands() {
    let mut command = Command::new(program());
    command.arg("manual");
    let made = run(command).ok();
    let kept = std::fs::read_to_string(peers::workspace().join("docs/ctr.md")).unwrap();
    assert!(made == kept, "docs/ctr.md is old: `make docs`");
}
