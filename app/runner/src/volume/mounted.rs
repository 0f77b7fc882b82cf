//! A file system that is mounted nowhere but in a descriptor of this process, and so is gone with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// Mounts the ext4 on `device`.
pub(super) fn mount(device: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    // What is removed from it is given back to the machine's disk.
    fsconfig_set_flag(context.as_fd(), "discard")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A name for its root, which means something to this process alone.
pub(super) fn directory_of(mount: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// Gives a volume in which nothing is yet to the user of the image that gets it: who is not root could not
/// begin to use it. One whose number is not known to us, but to the image, gets the right to write: nobody
/// but the app sees it.
///
/// # Errors
/// Those of mounting it, and of the file system.
pub(crate) fn hand_over(place: &Path, user: &str) -> io::Result<()> {
    let Some(owner) = Owner::of(user) else {
        return Ok(());
    };
    let mount = match place.is_dir() {
        true => None,
        false => Some(mount(place)?),
    };
    let directory = mount.as_ref().map(directory_of);
    let root = File::open(directory.as_deref().unwrap_or(place))?;
    let found = root.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    let is_new = found.uid() == own && found.mode() & 0o7777 == 0o755;
    let name = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    if !is_new || fs::read_dir(name)?.next().is_some() {
        return Ok(());
    }
    match owner {
        Owner::Number(user, group) if own == 0 => {
            Ok(rustix::fs::fchown(&root, Some(user), Some(group))?)
        }
        Owner::Number(..) | Owner::Name => Ok(rustix::fs::fchmod(&root, Mode::from(0o777))?),
    }
}

/// Whom an image runs as.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Number(Uid, Gid),
    Name,
}

impl Owner {
    /// What `USER` of an image says: `1000`, `1000:1000`, `app`, `app:app`; `None` for root.
    fn of(user: &str) -> Option<Self> {
        let (user, group) = user.split_once(':').unwrap_or((user, "0"));
        // What is all ones means nobody to the system.
        let number = |text: &str| text.parse::<u32>().ok().filter(|it| *it != u32::MAX);
        match (number(user), number(group)) {
            (Some(0), _) => None,
            _ if user.is_empty() || user == "root" => None,
            (Some(user), Some(group)) => {
                Some(Self::Number(Uid::from_raw(user), Gid::from_raw(group)))
            }
            _ => Some(Self::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_volume_is_for() {
        let number = |user, group| Some(Owner::Number(Uid::from_raw(user), Gid::from_raw(group)));
        for (user, expected) in [
            ("", None),
            ("0", None),
            ("root", None),
            ("root:users", None),
            ("0:5", None),
            ("1000", number(1000, 0)),
            ("1000:100", number(1000, 100)),
            ("app", Some(Owner::Name)),
            ("app:100", Some(Owner::Name)),
            ("1000:users", Some(Owner::Name)),
            ("4294967295", Some(Owner::Name)),
        ] {
            assert_eq!(Owner::of(user), expected, "{user}");
        }
    }
}
