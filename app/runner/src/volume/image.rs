//! A volume as a file with an ext4 in it: it takes of the machine's disk what is in it, and no more than it
//! may.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use tabbify_api::runner::Failure;
use tabbify_api::volumes::{IMAGE_FILE, PART_FILE};
use tabbify_process::files;
use tabbify_types::ByteSize;

use super::holder::Holder;
use super::programs::{find, run};
use super::{failed, failure};

/// File that is there while the image grows: if it is found, the last one who tried did not come to the end.
const GROWING_FILE: &str = "growing";

/// Whether images can be made here.
pub(super) fn is_possible() -> bool {
    ["mkfs.ext4", "debugfs"]
        .iter()
        .all(|name| find(name).is_some())
}

/// Makes the image in `home`, whole or not at all.
pub(super) fn make(home: &Path, size: ByteSize, holder: &Holder) -> Result<(), Failure> {
    room(home, size, 0)?;
    let part = home.join(PART_FILE);
    blank(&part, size).map_err(failed(&part, "made"))?;
    let name = part.to_string_lossy();
    // Nothing of it is kept for root, its tables are not written out, and it is read-only once it is broken.
    let make = [
        "-q",
        "-F",
        "-m",
        "0",
        "-e",
        "remount-ro",
        "-E",
        "lazy_itable_init=0,nodiscard",
        &name,
    ];
    run(holder, "mkfs.ext4", &make, &[0])?;
    emptied(&name, holder)?;
    let image = home.join(IMAGE_FILE);
    fs::File::open(&part)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&part, &image))
        .and_then(|()| files::sync_dir(home))
        .map_err(failed(&image, "made"))
}

/// Makes an empty file. One that is there is not written into: whoever may still have it open has it alone.
fn blank(part: &Path, size: ByteSize) -> io::Result<()> {
    match fs::remove_file(part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(part)?;
    file.set_len(size.bytes())
}

/// What to tell the app's people of an image that a guest's kernel wrote, if it has not the size that it is to
/// have. No program of ours reads it, so nothing lets it grow.
pub(super) fn kept(home: &Path, size: ByteSize) -> Result<Option<String>, Failure> {
    let image = home.join(IMAGE_FILE);
    let found = fs::metadata(&image).map_err(failed(&image, "read"))?;
    let has = ByteSize(found.len());
    Ok((has != size).then(|| {
        format!(
            "the volume keeps its size of {has}: it is {size} in this version, and one that is a microVM's \
             disk neither shrinks nor grows"
        )
    }))
}

/// Lets the image in `home` grow to `size`; what to tell the app's people if it is larger already.
pub(super) fn fit(home: &Path, size: ByteSize, holder: &Holder) -> Result<Option<String>, Failure> {
    let image = home.join(IMAGE_FILE);
    let growing = home.join(GROWING_FILE);
    let found = fs::metadata(&image).map_err(failed(&image, "read"))?;
    let is_half_done = growing.exists();
    if found.len() > size.bytes() && !is_half_done {
        let has = ByteSize(found.len());
        return Ok(Some(format!(
            "the volume keeps its size of {has}: it is {size} in this version, and volumes never shrink"
        )));
    }
    if found.len() >= size.bytes() && !is_half_done {
        return Ok(None);
    }
    room(home, size, found.blocks().saturating_mul(512))?;
    files::write_atomic(&growing, b"", 0o600).map_err(failed(&growing, "written"))?;
    let to = size.bytes().max(found.len());
    OpenOptions::new()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(to))
        .map_err(failed(&image, "grown"))?;
    let name = image.to_string_lossy();
    // Exit code 1: something was mended, such as a journal that a crash had left.
    run(holder, "e2fsck", &["-f", "-p", &name], &[0, 1])?;
    run(holder, "resize2fs", &[&name], &[0])?;
    emptied(&name, holder)?;
    fs::remove_file(&growing).map_err(failed(&growing, "removed"))?;
    tracing::info!(size = to, "the volume has grown");
    Ok(None)
}

/// Takes `lost+found` away, if nothing is in it: programs refuse to begin in a directory in which something is.
/// It comes back with each check.
fn emptied(image: &str, holder: &Holder) -> Result<(), Failure> {
    let remove = ["-w", "-R", "rmdir lost+found", image];
    run(holder, "debugfs", &remove, &[0])
}

/// Whether the machine's disk has room for an image of `size`, of which it has `taken` bytes already. What is
/// promised to other volumes is not counted.
fn room(home: &Path, size: ByteSize, taken: u64) -> Result<(), Failure> {
    let disk =
        rustix::fs::statvfs(home).map_err(|errno| failed(home, "looked at")(errno.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < size.bytes().saturating_sub(taken) {
        return Err(failure(format!(
            "its volume of {size} does not fit on its machine: {} MiB of disk are free. Write a smaller \
             size in [runtime] volume, or make room there",
            free >> 20
        )));
    }
    Ok(())
}
