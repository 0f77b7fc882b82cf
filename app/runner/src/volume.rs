//! The volume of an instance: what its app keeps on this machine beyond instances, versions and restarts
//! (`tabbify_api::volumes`, docs/adr/0030-volumes.md).
//!
//! ```text
//! lock ─▶ nobody newer had it ─▶ nothing of who had it last is left ─▶ make or grow ─▶ device ─▶ mount
//! ```
//! All that makes it reachable is held by descriptors of this process, and by what the runtime makes for the
//! instance: the one is gone with the process, the other with the cleaning that every directory gets.

mod holder;
mod image;
mod loops;
mod mounted;
mod programs;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use tabbify_api::runner::{Boot, Failure};
use tabbify_api::volumes::{FILES_DIRECTORY, IMAGE_FILE};
use tabbify_process::files;
use tabbify_types::event::v1::{FailureReason, RuntimeKind, VolumeUse};

use self::holder::Holder;

pub(crate) use mounted::hand_over;

/// File in a volume's directory that says that a guest's own kernel has written to the image. What a guest
/// wrote is no file system to this machine's kernel any more: it may be made to harm it.
const GUEST_FILE: &str = "guest";

/// A volume that this process has, until it ends or this is dropped.
#[derive(Debug)]
pub struct Volume {
    place: PathBuf,
    notices: Vec<String>,
    // In this order: nobody else may have it while something of it is still open here.
    _mount: Option<OwnedFd>,
    _device: Option<File>,
    _holder: Holder,
}

/// What a runtime can do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// A directory, of this process.
    Directory,
    /// A directory, or a device with an ext4, which an engine mounts.
    DeviceOrDirectory,
    /// The image itself.
    Image,
}

impl Volume {
    /// What the runtime is given: a directory that this process alone sees, for components; a block device
    /// with an ext4 or a directory, for containers; a file with an ext4, for microVMs.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What the app's people must know of it, for the app's log.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
}

/// Takes the volume that `boot` names, if it names one, for the runner in `directory`: waits a moment for
/// whoever has it, makes it the first time, and lets it grow.
///
/// # Errors
/// [`FailureReason::Volume`], with what to do.
pub async fn take(boot: &Boot, directory: &Path) -> Result<Option<Volume>, Failure> {
    let Some(used) = &boot.run.volume else {
        return Ok(None);
    };
    let Some(volumes) = &boot.volumes else {
        return Err(failure(
            "it has a volume, and the supervisor of its machine knows none: restart supervisord there, in \
             this version",
        ));
    };
    let home = volumes.join(boot.of.app.to_string());
    let holder = Holder::take(&home, boot, directory).await?;
    let (used, runtime) = (used.clone(), boot.run.runtime);
    let opened = tokio::task::spawn_blocking(move || open(&home, &used, wants(runtime), holder));
    match opened.await {
        Ok(opened) => opened.map(Some),
        Err(panic) => Err(failure(format!("its volume cannot be opened: {panic}"))),
    }
}

/// Whether the size of a volume that is made here now would be kept to; why not, for people.
///
/// # Errors
/// Why not.
pub fn sizes_are_kept() -> Result<(), String> {
    loops::is_possible()?;
    match image::is_possible() {
        true => Ok(()),
        false => Err("mkfs.ext4 or debugfs is missing: install e2fsprogs".to_owned()),
    }
}

const fn wants(runtime: RuntimeKind) -> Wants {
    match runtime {
        RuntimeKind::WasmHttp => Wants::Directory,
        RuntimeKind::Docker => Wants::DeviceOrDirectory,
        RuntimeKind::Firecracker => Wants::Image,
    }
}

fn open(home: &Path, used: &VolumeUse, wants: Wants, holder: Holder) -> Result<Volume, Failure> {
    let mut notices = Vec::new();
    let image = home.join(IMAGE_FILE);
    let files = home.join(FILES_DIRECTORY);
    if !image.exists() && !files.exists() {
        make(home, used, wants, &holder)?;
    }
    if files.exists() {
        if wants == Wants::Image {
            return Err(failure(format!(
                "its volume is a directory ({}), which a microVM cannot have: take the app back to \
                 type = \"docker\", or remove the volume with what is in it: tcli volumes rm",
                files.display()
            )));
        }
        notices.push(format!(
            "nothing limits the size of the volume here: it is a directory of the machine ({})",
            sizes_are_kept()
                .err()
                .unwrap_or_else(|| "it was made as one".to_owned())
        ));
        return Ok(Volume {
            place: files,
            notices,
            _mount: None,
            _device: None,
            _holder: holder,
        });
    }
    let guest = home.join(GUEST_FILE);
    // Before any program of ours reads it: root's own are no safer from it than the kernel is.
    let is_guest = guest.try_exists().map_err(failed(&guest, "read"))?;
    if is_guest && wants != Wants::Image {
        return Err(failure(
            "its volume has been the disk of a microVM, and this machine mounts nothing that a guest's kernel \
             wrote: write type = \"firecracker\", or remove the volume with what is in it: tcli volumes rm",
        ));
    }
    let notice = match is_guest {
        true => image::kept(home, used.size)?,
        false => image::fit(home, used.size, &holder)?,
    };
    notices.extend(notice);
    if wants == Wants::Image {
        files::write_atomic(&guest, b"", 0o600).map_err(failed(&guest, "written"))?;
        return Ok(Volume {
            place: image,
            notices,
            _mount: None,
            _device: None,
            _holder: holder,
        });
    }
    attach(&image, wants, notices, holder)
}

/// Makes the volume: an image where it can be used, else a directory.
fn make(home: &Path, used: &VolumeUse, wants: Wants, holder: &Holder) -> Result<(), Failure> {
    if wants == Wants::Image || sizes_are_kept().is_ok() {
        return image::make(home, used.size, holder);
    }
    let files = home.join(FILES_DIRECTORY);
    // For everybody whom an image calls its user; nobody else gets past the directory above.
    files::private_dir(&files).map_err(failed(&files, "made"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&files, mode).map_err(failed(&files, "made"))
}

fn attach(
    image: &Path,
    wants: Wants,
    notices: Vec<String>,
    holder: Holder,
) -> Result<Volume, Failure> {
    let (device, path) = loops::attach(image).map_err(|error| {
        failure(format!(
            "its volume cannot be made a device: {error}. Let the machine's platform run as root, with \
             /dev/loop-control"
        ))
    })?;
    let (mount, place) = match wants {
        Wants::Directory => {
            let mount = mounted::mount(&path).map_err(|error| {
                failure(format!(
                    "its volume cannot be mounted: {error}. On the machine, while the app is stopped: \
                     e2fsck -f {}",
                    image.display()
                ))
            })?;
            let place = mounted::directory_of(&mount);
            (Some(mount), place)
        }
        Wants::DeviceOrDirectory | Wants::Image => (None, path),
    };
    tracing::info!(device = device.as_raw_fd(), place = %place.display(), "has its volume");
    Ok(Volume {
        place,
        notices,
        _mount: mount,
        _device: Some(device),
        _holder: holder,
    })
}

fn failure(detail: impl Into<String>) -> Failure {
    Failure {
        reason: FailureReason::Volume,
        detail: detail.into(),
    }
}

fn failed<'a>(path: &'a Path, done: &'a str) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| failure(format!("{} cannot be {done}: {error}", path.display()))
}
