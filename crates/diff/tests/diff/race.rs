//! Somebody changes the tree while a layer goes into it.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use corten_types::media_type;

use super::*;

/// CVE-2025-47290 (and 2021-32760): folders that become links while they are used lead nowhere else.
#[test]
fn cve_2025_47290_links_that_come_and_go_lead_nowhere() {
    let lab = Lab::new();
    let (root, outside) = (lab.new_folder("root"), lab.new_folder("outside"));
    std::fs::write(outside.join("victim"), "victim").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..200 {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(4);
        let name = if n % 3 == 0 { "swapped/victim".to_owned() } else { format!("swapped/sub/file-{n}") };
        tar.append_data(&mut header, name, &b"evil"[..]).unwrap();
    }
    let layer = lab.store(media_type::OCI_LAYER, &tar.into_inner().unwrap());
    let upper = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![format!("upperdir={}", root.display())],
    };
    for mounts in [bind(&root), vec![upper]] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let (place, aside) = (root.join("swapped"), root.join("aside"));
                while !done.load(Ordering::Relaxed) {
                    // A folder, then a link in its place, then the folder again.
                    if std::fs::rename(&place, &aside).is_ok() {
                        let _ = symlink(&outside, &place);
                        let _ = std::fs::remove_file(&place);
                        let _ = std::fs::rename(&aside, &place);
                        let _ = std::fs::remove_dir_all(&aside);
                    }
                    // The other side is to get on, too.
                    std::thread::yield_now();
                }
            });
            for _ in 0..3 {
                // It may fail: that is somebody's own doing.
                let _ = lab.apply(layer.clone(), &mounts);
            }
            done.store(true, Ordering::Relaxed);
            swapping.join().unwrap();
        });
        let names: Vec<_> =
            std::fs::read_dir(&outside).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["victim"]);
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "victim");
    }
}
