//! Looks into an image's files without mounting them: users and groups.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use corten_api::types::Mount;
use corten_types::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Users' files are small; what is larger is not one.
const LIMIT: u64 = 10 << 20;

/// The folders behind mounts, the topmost first.
fn layers(mounts: &[Mount]) -> Vec<String> {
    let [mount] = mounts else { return Vec::new() };
    if mount.r#type == "bind" {
        return vec![mount.source.clone()];
    }
    let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    let upper = option("upperdir=").map(str::to_owned);
    let lower = option("lowerdir=").unwrap_or_default().split(':').map(str::to_owned);
    upper.into_iter().chain(lower).collect()
}

fn read(mounts: &[Mount], path: &str) -> Result<String> {
    for layer in layers(mounts) {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(root) = openat(CWD, Path::new(&layer), folder, Mode::empty()) else { continue };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file: OwnedFd = match openat2(root, path, flags, Mode::empty(), inside) {
            Ok(file) => file,
            Err(_) => continue,
        };
        let file = std::fs::File::from(file);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > LIMIT {
            return Err(Error::unknown(format!("{path} of the image is not a file of users")));
        }
        let mut text = String::new();
        file.take(LIMIT).read_to_string(&mut text)?;
        return Ok(text);
    }
    Ok(String::new())
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
}

fn id(text: &str, user: &str, what: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return Ok(None);
    }
    // A number is never looked up as a name.
    match text.parse::<u32>() {
        Ok(number) if number <= i32::MAX as u32 => Ok(Some(number)),
        _ => Err(Error::unknown(format!("invalid USER value {user:?}: {what} out of range"))),
    }
}

/// Resolves `user`, `uid`, `user:group`, … in the files of an image.
pub fn user(mounts: &[Mount], wanted: &str) -> Result<User> {
    let (name, group) = wanted.split_once(':').map_or((wanted, None), |(name, group)| (name, Some(group)));
    let number = id(name, wanted, "uid")?;
    let group_number = group.map(|group| id(group, wanted, "gid")).transpose()?.flatten();
    let passwd =
        if number.is_some() && group_number.is_some() { String::new() } else { read(mounts, "etc/passwd")? };
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| match number {
        Some(number) => fields.get(2).and_then(|uid| uid.parse().ok()) == Some(number),
        None => fields.first() == Some(&name),
    });
    let field = |at: usize| entry.as_ref()?.get(at)?.parse::<u32>().ok();
    let uid = match number {
        Some(number) => number,
        None => field(2).ok_or_else(|| Error::unknown("no users found"))?,
    };
    let groups =
        if group_number.is_some() && number.is_some() { String::new() } else { read(mounts, "etc/group")? };
    let groups: Vec<Vec<&str>> = groups.lines().map(|line| line.split(':').collect()).collect();
    let gid = match (group, group_number) {
        (_, Some(number)) => number,
        (Some(group), None) => {
            let entry = groups.iter().find(|fields| fields.first() == Some(&group));
            let gid = entry.and_then(|fields| fields.get(2)?.parse().ok());
            gid.ok_or_else(|| Error::unknown("no groups found"))?
        }
        (None, None) => field(3).unwrap_or(0),
    };
    let login = entry.as_ref().and_then(|fields| fields.first().copied()).unwrap_or(name);
    let member = |fields: &&Vec<&str>| {
        fields.first() != Some(&login)
            && fields.get(3).is_some_and(|list| list.split(',').any(|one| one == login))
    };
    let mut additional = vec![gid];
    for number in groups.iter().filter(member).filter_map(|fields| fields.get(2)?.parse().ok()) {
        if !additional.contains(&number) {
            additional.push(number);
        }
    }
    Ok(User { uid, gid, additional })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_and_numbers_are_never_names() {
        let folder = std::env::temp_dir().join(format!("corten-users-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("etc")).unwrap();
        std::fs::write(
            folder.join("etc/passwd"),
            "root:x:0:0::/:\nann:x:1000:100::/:\n2147483648:x:0:0::/:\n",
        )
        .unwrap();
        std::fs::write(folder.join("etc/group"), "users:x:100:\nwheel:x:10:ann,bob\n").unwrap();
        let mounts =
            [Mount { r#type: "bind".into(), source: folder.display().to_string(), ..Mount::default() }];
        let ann = User { uid: 1000, gid: 100, additional: vec![100, 10] };
        assert_eq!(user(&mounts, "ann").unwrap(), ann);
        assert_eq!(user(&mounts, "1000").unwrap(), ann);
        assert_eq!(user(&mounts, "ann:wheel").unwrap().gid, 10);
        assert_eq!(user(&mounts, "5:6").unwrap(), User { uid: 5, gid: 6, additional: vec![6] });
        for bad in ["2147483648", "4294967296", "-1", "nobody-here"] {
            assert!(user(&mounts, bad).is_err(), "{bad}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
