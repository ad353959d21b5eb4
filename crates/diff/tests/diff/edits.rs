//! Random changes of a tree.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, mknodat, setxattr};

/// A source of decisions that can be repeated.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// One of few names, so that things meet.
    fn name(&mut self) -> String {
        match self.below(12) {
            0 => format!("{}é", "long-".repeat(self.below(45))),
            1 => "dash-".to_owned(),
            2 => ".hidden".to_owned(),
            other => char::from(b'a' + u8::try_from(other % 5).unwrap()).to_string(),
        }
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..=self.below(4) {
            path.push(self.name());
        }
        path
    }
}

/// A pipe is not waited for, and nothing is written elsewhere.
const NO_WAIT: i32 = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();
/// A valid file capability.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Changes a tree `count` times; what cannot be done is left. `clock` gives each change a second of its own.
pub fn edit(root: &Path, dice: &mut Dice, count: usize, clock: &mut u64) {
    for _ in 0..count {
        *clock += 1;
        let path = dice.path(root);
        let _ = one(root, &path, dice, *clock);
    }
}

fn one(root: &Path, path: &Path, dice: &mut Dice, clock: u64) -> std::io::Result<()> {
    // Some as archives have them, some with a fraction.
    let fraction = if dice.below(2) == 0 { 0 } else { 123_456_789 };
    let when = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000 + clock, fraction);
    match dice.below(16) {
        0..=3 => {
            std::fs::create_dir_all(path.parent().unwrap())?;
            let mut file = File::options().append(true).create(true).custom_flags(NO_WAIT).open(path)?;
            file.write_all(&vec![u8::try_from(clock % 251).unwrap(); dice.below(5000)])?;
            file.set_modified(when)
        }
        4 | 5 => std::fs::create_dir_all(path),
        6 => symlink(format!("../{}", dice.name()), path),
        7 => {
            let (kind, mode) = (dice.below(3), Mode::from_raw_mode(0o640));
            let kind = [FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice][kind];
            let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(4000, clock as u32) };
            Ok(mknodat(CWD, path, kind, mode, device)?)
        }
        8 | 9 => std::fs::hard_link(dice.path(root), path),
        10 => match std::fs::symlink_metadata(path)?.is_dir() {
            true => std::fs::remove_dir_all(path),
            false => std::fs::remove_file(path),
        },
        11 => std::fs::rename(path, dice.path(root)),
        12 => std::fs::set_permissions(
            path,
            Permissions::from_mode(0o700 + u32::try_from(dice.below(64)).unwrap() + 0o4000),
        ),
        13 => lchown(path, Some(u32::try_from(clock).unwrap()), Some(3_000_000)),
        // Folders keep theirs when others are laid over them, as with the original.
        14 if std::fs::symlink_metadata(path)?.is_file() => {
            chown(path, Some(0), Some(0))?;
            Ok(setxattr(path, "security.capability", &CAPABILITY, XattrFlags::empty())?)
        }
        14 => Ok(()),
        _ => {
            std::fs::remove_dir_all(path)?;
            std::fs::create_dir(path)?;
            File::create(path.join(dice.name()))?.set_modified(when)
        }
    }
}
