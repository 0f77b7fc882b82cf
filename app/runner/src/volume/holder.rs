//! Who has a volume: a lock for life, and a word about who had it last, which outlives every process.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tabbify_api::runner::{BOOT_FILE, Boot, Failure};
use tabbify_api::volumes::{HOLDER_FILE, IMAGE_FILE};
use tabbify_process::files;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{Epoch, SlotId};
use tokio::time::{Instant, sleep};

use super::{failed, failure, loops};
use crate::home::Home;
use crate::runtime;

/// LIMIT: how long who has the volume may take to end: its supervisor stops it before it starts another.
const LOCKED_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: how long the kernel may take to let go of the image once nobody uses it.
const RELEASED_WITHIN: Duration = Duration::from_secs(15);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// LIMIT: a record, in bytes.
const RECORD_LEN_MAX: u64 = 64 * 1024;

/// The held lock. The system frees it when the process ends, however it ends, and with it each program that got
/// it from here.
#[derive(Debug)]
pub(super) struct Holder {
    file: File,
}

/// Who has the volume, or had it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    of: InstanceRef,
    slot: SlotId,
    epoch: Epoch,
    /// Its runner's directory.
    directory: PathBuf,
}

impl Record {
    /// Whether `boot` is of an instance that was placed before the one here: it has lost its slot, even if
    /// nobody could tell it so yet. Numbers of instances are given in order, and never again.
    fn is_newer_than(&self, boot: &Boot) -> bool {
        let older_epoch = self.slot == boot.slot && boot.epoch < self.epoch;
        older_epoch || boot.of.instance < self.of.instance
    }
}

impl Holder {
    /// Has the volume in `home` for the runner in `directory`.
    pub(super) async fn take(home: &Path, boot: &Boot, directory: &Path) -> Result<Self, Failure> {
        let path = home.join(HOLDER_FILE);
        let mut file = lock(home, &path).await?;
        let last = read(&mut file).map_err(failed(&path, "read"))?;
        if let Some(last) = &last {
            if last.is_newer_than(boot) {
                return Err(failure(format!(
                    "instance #{} has had its volume since: this one, #{}, is not to have it again",
                    last.of.instance, boot.of.instance
                )));
            }
            clean(last).await?;
        }
        released(&home.join(IMAGE_FILE)).await?;
        let record = Record {
            of: boot.of,
            slot: boot.slot,
            epoch: boot.epoch,
            directory: directory.to_owned(),
        };
        write(&mut file, &record).map_err(failed(&path, "written"))?;
        Ok(Self { file })
    }

    /// The locked file, for programs that are to hold it, too.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }
}

async fn lock(home: &Path, path: &Path) -> Result<File, Failure> {
    let deadline = Instant::now() + LOCKED_WITHIN;
    let file = loop {
        // Each time anew: a volume is removed with its directory.
        files::private_dir(home).map_err(failed(home, "made"))?;
        let file = match open(path) {
            // It was removed since.
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                sleep(PAUSE).await;
                continue;
            }
            file => file.map_err(failed(path, "opened"))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Somebody may have removed the volume while we waited, and this file with it.
            Ok(()) if is_at(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(Errno::WOULDBLOCK) => break file,
            Err(errno) => return Err(failed(path, "locked")(errno.into())),
        }
    };
    let mut file = file;
    let who = read(&mut file).ok().flatten();
    let who = who.map_or_else(
        || "another process".to_owned(),
        |record| format!("instance #{}", record.of.instance),
    );
    Err(failure(format!(
        "its volume is in use by {who}, and a volume has one holder: stop that one, then: tcli restart"
    )))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

/// Whether `path` still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    let ids = |found: std::fs::Metadata| (found.dev(), found.ino());
    let at = std::fs::metadata(path).map(ids);
    let is = file.metadata().map(ids);
    matches!((at, is), (Ok(at), Ok(is)) if at == is)
}

/// What stands in the file; a record that a crash has torn is none: what it would tell is looked for anyway.
fn read(file: &mut File) -> io::Result<Option<Record>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(RECORD_LEN_MAX).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_slice(&bytes);
    Ok(record
        .inspect_err(|error| tracing::warn!(%error, "who had the volume last is not known"))
        .ok())
}

fn write(file: &mut File, record: &Record) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(record)?;
    bytes.push(b'\n');
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

/// Removes what the dead runner that had it last may have left in an engine, which may have it mounted. Its
/// supervisor does the same when it removes the directory, and has done so if there is none.
async fn clean(last: &Record) -> Result<(), Failure> {
    if !last.directory.join(BOOT_FILE).exists() {
        return Ok(());
    }
    let cleaned = match Home::new(&last.directory).boot() {
        Ok((boot, _)) => runtime::clean(&last.directory, &boot).await,
        Err(error) => Err(tabbify_process::chain(&error).to_string()),
    };
    cleaned.map_err(|why| {
        failure(format!(
            "what instance #{} left may still use its volume, and cannot be removed: {why}",
            last.of.instance
        ))
    })
}

/// Waits until no device has the image.
async fn released(image: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + RELEASED_WITHIN;
    loop {
        let devices = loops::of(image);
        let Some(device) = devices.first() else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(failure(format!(
                "its volume is still in use as {}: find out by whom (findmnt {0}), unmount it, then: tcli \
                 restart",
                device.display()
            )));
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::{AppId, InstanceId};

    use super::*;

    fn record() -> Record {
        Record {
            of: InstanceRef {
                app: AppId::mint(),
                instance: InstanceId(7),
            },
            slot: SlotId::FIRST,
            epoch: Epoch(3),
            directory: PathBuf::from("/nowhere"),
        }
    }

    #[test]
    fn a_record_is_kept_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HOLDER_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        assert_eq!(read(&mut file).unwrap(), None);
        let record = record();
        write(&mut file, &record).unwrap();
        assert_eq!(read(&mut file).unwrap(), Some(record.clone()));
        let mut longer = record;
        longer.directory = PathBuf::from("/some/other/place");
        write(&mut file, &longer).unwrap();
        assert_eq!(read(&mut file).unwrap(), Some(longer));
        let len = file.metadata().unwrap().len();
        file.set_len(len / 2).unwrap();
        assert_eq!(read(&mut file).unwrap(), None);
    }
}
