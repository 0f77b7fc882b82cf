//! The file systems of the guest: those of the kernel, and the image's under a layer that can be written.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown, symlink,
};
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use crate::account::Account;
use crate::enter::SECRETS_DIRECTORY;
use crate::order::Start;

/// Where the parts lie before they become the root.
const LOWER: &str = "/image";
const UPPER: &str = "/scratch";
const ROOT: &str = "/root";
/// The modules of the kernel, in the order in which they are loaded.
const MODULES: &str = "/modules";
/// The first drive, and the second.
const IMAGE_DRIVE: &str = "/dev/vda";
const VOLUME_DRIVE: &str = "/dev/vdb";

/// The kernel's own, in the initramfs.
pub(crate) fn early() -> Result<(), String> {
    let nothing = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    on("proc", "/proc", "proc", nothing, "")?;
    on("sysfs", "/sys", "sysfs", nothing, "")?;
    on(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )
}

/// Loads what the kernel has as modules, and frees the memory that they lie in.
pub(crate) fn modules() -> Result<(), String> {
    let Ok(entries) = fs::read_dir(MODULES) else {
        return Ok(()); // a kernel that has everything built in
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let shown = path.display();
        let file = fs::File::open(&path).map_err(|error| format!("{shown}: {error}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(format!("the kernel does not take {shown}: {error}")),
        }
    }
    // What stays is a few megabytes of memory.
    let _ = fs::remove_dir_all(MODULES);
    Ok(())
}

/// Lets a guest that is out of memory kill something, instead of reading the same pages of programs from
/// the drive for ever: what was used in the last second must stay, or the app ends. Kernels that cannot
/// do so (before 6.1) find their own way, later.
pub(crate) fn no_thrashing() {
    for (name, value) in [("enabled", "y"), ("min_ttl_ms", "1000")] {
        let _ = fs::write(format!("/sys/kernel/mm/lru_gen/{name}"), value);
    }
}

/// Makes the image the root, with memory over it and the volume in it.
pub(crate) fn switch(start: &Start) -> Result<(), String> {
    crate::channel::wait_for("the drive of the image", || Path::new(IMAGE_DRIVE).exists())?;
    let plain = MountFlags::empty();
    on(IMAGE_DRIVE, LOWER, "squashfs", MountFlags::RDONLY, "")?;
    let size = format!("size={},mode=0755", start.scratch_bytes);
    on("tmpfs", UPPER, "tmpfs", plain, &size)?;
    for directory in ["/scratch/upper", "/scratch/work"] {
        made(directory)?;
    }
    let layers = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
    on("overlay", ROOT, "overlay", plain, &layers)?;
    let inside = |path: &str| format!("{ROOT}/{}", path.trim_start_matches('/'));
    if let Some(volume) = &start.volume {
        crate::channel::wait_for("the drive of the volume", || {
            Path::new(VOLUME_DRIVE).exists()
        })?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        on(VOLUME_DRIVE, &inside(volume), "ext4", flags, "")?;
    }
    for moved in ["/proc", "/sys", "/dev"] {
        let to = inside(moved);
        made(&to)?;
        mount_move(moved, to.as_str())
            .map_err(|error| format!("{moved} does not move: {error}"))?;
    }
    let failed = |error: rustix::io::Errno| format!("the root does not change: {error}");
    rustix::process::chdir(ROOT).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    rustix::process::chroot(".").map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)
}

/// What programs expect beside the image's own files.
pub(crate) fn furnish(start: &Start) -> Result<(), String> {
    let nothing = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    on(
        "devpts",
        "/dev/pts",
        "devpts",
        nothing,
        "mode=0620,ptmxmode=0666,gid=5",
    )?;
    on("tmpfs", "/dev/shm", "tmpfs", nothing, "mode=1777")?;
    on(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755",
    )?;
    if !Path::new("/tmp").exists() {
        let made = fs::DirBuilder::new().mode(0o777).create("/tmp");
        let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        made.and_then(|()| fs::set_permissions("/tmp", sticky))
            .map_err(|error| format!("/tmp: {error}"))?;
    }
    for (name, to) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        // Where the image has them already they are the same.
        let _ = symlink(format!("/proc/self/fd{to}"), format!("/dev/{name}"));
    }
    made("/etc")?;
    let hostname = &start.hostname;
    let own = start
        .network
        .map_or(Ipv4Addr::LOCALHOST, |network| network.address);
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{own} {hostname}\n");
    written("/etc/hosts", &hosts)?;
    written("/etc/hostname", &format!("{hostname}\n"))?;
    if let Some(resolver) = start.network.and_then(|network| network.resolver) {
        written("/etc/resolv.conf", &format!("nameserver {resolver}\n"))?;
    }
    Ok(())
}

/// Makes secrets files that the app's user alone reads, in memory.
pub(crate) fn secrets(files: &[(String, Vec<u8>)], account: &Account) -> Result<(), String> {
    if files.is_empty() {
        return Ok(());
    }
    made(SECRETS_DIRECTORY)?;
    for (name, content) in files {
        let path = Path::new(SECRETS_DIRECTORY).join(name);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        // The host's word for a name is not to be a way to somewhere else.
        if path.parent() != Some(Path::new(SECRETS_DIRECTORY)) || path.file_name().is_none() {
            return Err(format!("{name:?} is no name of a secret"));
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&path)
            .map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        chown(&path, Some(account.uid), Some(account.gid)).map_err(failed)?;
    }
    Ok(())
}

/// Gives a volume that nobody has used yet to the app's user: a fresh one is root's.
pub(crate) fn hand_over(volume: &str, account: &Account) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("the volume {volume}: {error}");
    let found = fs::metadata(volume).map_err(failed)?;
    let mut names = fs::read_dir(volume).map_err(failed)?;
    // What `mkfs` makes is not of an app.
    let used = names.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found"));
    if used || found.uid() != 0 || account.uid == 0 {
        return Ok(());
    }
    chown(volume, Some(account.uid), Some(account.gid)).map_err(failed)
}

/// Puts the volume's last writes on the drive.
pub(crate) fn release(volume: Option<&str>) {
    rustix::fs::sync();
    if let Some(volume) = volume {
        // Something may still have a file open in it: then the synced state is what stays.
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(volume, flags);
        rustix::fs::sync();
    }
}

fn on(what: &str, path: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), String> {
    made(path)?;
    let data = CString::new(data).map_err(|_| format!("{path}: a zero byte"))?;
    mount(what, path, kind, flags, data.as_c_str())
        .map_err(|error| format!("{kind} cannot be mounted on {path}: {error}"))
}

fn made(path: &str) -> Result<(), String> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
    made.map_err(|error| format!("{path}: {error}"))
}

fn written(path: &str, text: &str) -> Result<(), String> {
    // An image may have a link there that leads nowhere.
    let _ = fs::remove_file(path);
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
}
