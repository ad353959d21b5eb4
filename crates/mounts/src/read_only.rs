//! The same tree, but nothing can be changed.

use corten_types::Mount;

/// Mounts that show what these show, read only. An overlay gives up its upper directory, so that it can be
/// mounted beside one that is in use.
#[must_use]
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    mounts.iter().map(|mount| if mount.kind == "overlay" { overlay(mount) } else { plain(mount) }).collect()
}

fn plain(mount: &Mount) -> Mount {
    let mut options: Vec<String> =
        mount.options.iter().filter(|option| *option != "rw" && *option != "ro").cloned().collect();
    options.insert(0, "ro".to_owned());
    Mount { options, ..mount.clone() }
}

fn overlay(mount: &Mount) -> Mount {
    let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    let Some(upper) = option("upperdir=") else { return mount.clone() };
    let Some(lower) = option("lowerdir=") else {
        // One layer is no overlay.
        let options = vec!["ro".to_owned(), "rbind".to_owned()];
        return Mount { kind: "bind".into(), source: upper.into(), target: mount.target.clone(), options };
    };
    let own = ["upperdir=", "workdir=", "lowerdir="];
    let mut options: Vec<String> = mount.options.clone();
    options.retain(|option| !own.iter().any(|key| option.starts_with(key)));
    options.insert(0, format!("lowerdir={upper}:{lower}"));
    Mount { options, ..mount.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(kind: &str, options: &str) -> String {
        let options = options.split(',').map(str::to_owned).collect();
        let mount = Mount { kind: kind.into(), source: "/s".into(), target: String::new(), options };
        let [only] = read_only(&[mount]).try_into().unwrap();
        format!("{} {} {}", only.kind, only.source, only.options.join(","))
    }

    #[test]
    fn writable_mounts_become_read_only() {
        assert_eq!(shown("bind", "rbind,rw"), "bind /s ro,rbind");
        assert_eq!(
            shown("overlay", "workdir=/w,upperdir=/u,lowerdir=/b:/a,index=off"),
            "overlay /s lowerdir=/u:/b:/a,index=off"
        );
        assert_eq!(shown("overlay", "lowerdir=/b:/a"), "overlay /s lowerdir=/b:/a");
        assert_eq!(shown("overlay", "upperdir=/u"), "bind /u ro,rbind");
    }
}
