//! The volumes of this machine's apps, for their people: what there is, and its removal. Runners make them, and
//! hold a lock on each (`tabbify_api::volumes`); nothing here touches one that somebody has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Deserialize;
use tabbify_api::volumes::{AppVolumes, FILES_DIRECTORY, HOLDER_FILE, IMAGE_FILE, VolumeView};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_process::files;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppId, ByteSize, HostName, InstanceId};

use crate::config::volumes_dir;
use crate::runner_dir::try_lock;

/// How the names of volumes begin that are being removed: no app has such an id, so nobody finds them.
const GONE_PREFIX: &str = ".gone-";
/// LIMIT: who has a volume, in bytes.
const HOLDER_LEN_MAX: u64 = 64 * 1024;
/// LIMIT: files that are looked at to say how large a directory is; what it has beyond them is not counted.
const COUNTED_MAX: usize = 100_000;

/// The volumes below a data directory.
#[derive(Debug, Clone)]
pub struct FileVolumes {
    host: HostName,
    volumes: PathBuf,
}

/// As much as matters here of what a runner writes into the lock.
#[derive(Debug, Deserialize)]
struct Holder {
    of: InstanceRef,
    directory: PathBuf,
}

impl FileVolumes {
    /// Those of the machine `host`, whose data is in `data_dir`. What a removal that was cut off has left there
    /// goes now.
    #[must_use]
    pub fn new(host: HostName, data_dir: &Path) -> Self {
        let volumes = volumes_dir(data_dir);
        sweep(&volumes);
        Self { host, volumes }
    }

    fn home(&self, app: AppId) -> PathBuf {
        self.volumes.join(app.to_string())
    }
}

impl AppVolumes for FileVolumes {
    fn look(&self, app: AppId) -> BoxFuture<'_, Result<Option<VolumeView>, Problem>> {
        let (home, machine) = (self.home(app), self.host.clone());
        Box::pin(async move {
            let looked = tokio::task::spawn_blocking(move || look(&home, machine)).await;
            let looked = looked.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            looked.map_err(|error| unreadable(&error))
        })
    }

    fn remove(&self, app: AppId) -> BoxFuture<'_, Result<(), Problem>> {
        let home = self.home(app);
        Box::pin(async move {
            let removed = tokio::task::spawn_blocking(move || remove(&home)).await;
            let removed = removed.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            match removed.map_err(|error| unreadable(&error))? {
                Removal::Done => Ok(()),
                Removal::Held(instance) => {
                    let who = instance.map_or_else(
                        || "somebody".to_owned(),
                        |instance| format!("instance #{instance}"),
                    );
                    let detail = format!("{who} has the volume");
                    let fix = "Push a version without [runtime] volume first";
                    Err(Problem::new(ErrorCode::Conflict, detail).with_fix(fix))
                }
                Removal::Unclean(instance) => {
                    let detail = format!("what instance #{instance} left may still use the volume");
                    let problem = Problem::new(ErrorCode::Conflict, detail);
                    Err(problem.with_fix("Try again in a minute"))
                }
            }
        })
    }
}

fn unreadable(error: &io::Error) -> Problem {
    tracing::error!(%error, "a volume cannot be looked at");
    Problem::new(ErrorCode::Unavailable, "the volume cannot be looked at now")
}

fn look(home: &Path, machine: HostName) -> io::Result<Option<VolumeView>> {
    let (image, files) = (home.join(IMAGE_FILE), home.join(FILES_DIRECTORY));
    let (size, used) = match fs::metadata(&image) {
        Ok(found) => (Some(ByteSize(found.len())), found.blocks() * 512),
        Err(error) if error.kind() == ErrorKind::NotFound && files.is_dir() => (None, used(&files)),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let held_by = match File::open(home.join(HOLDER_FILE)) {
        Ok(mut file) => match try_lock(&file, FlockOperation::NonBlockingLockShared)? {
            true => None,
            false => holder(&mut file).map(|holder| holder.of.instance),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(Some(VolumeView {
        machine,
        size,
        used: ByteSize(used),
        held_by,
    }))
}

/// Who has it, or had it last; nobody, if a crash tore what is written of that.
fn holder(file: &mut File) -> Option<Holder> {
    let mut bytes = Vec::new();
    file.take(HOLDER_LEN_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What a directory takes of the disk, about; links are not followed.
fn used(directory: &Path) -> u64 {
    let mut waiting = vec![directory.to_owned()];
    let (mut counted, mut len) = (0, 0);
    while let Some(directory) = waiting.pop() {
        // What goes while we look is not counted.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            counted += 1;
            if counted > COUNTED_MAX {
                return len;
            }
            let Ok(found) = entry.metadata() else {
                continue;
            };
            len += found.blocks() * 512;
            if found.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    len
}

/// What came of a removal.
enum Removal {
    Done,
    Held(Option<InstanceId>),
    Unclean(InstanceId),
}

fn remove(home: &Path) -> io::Result<Removal> {
    let mut file = loop {
        let Some(mut file) = lock_of(home)? else {
            return Ok(Removal::Done);
        };
        if !try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
            let holder = holder(&mut file);
            return Ok(Removal::Held(holder.map(|holder| holder.of.instance)));
        }
        // Another removal, and a new volume, may have come in between.
        if is_at(&file, &home.join(HOLDER_FILE)) {
            break file;
        }
    };
    // A container outlives the runner that had it, until the directory of that is removed.
    if let Some(holder) = holder(&mut file).filter(|holder| holder.directory.exists()) {
        return Ok(Removal::Unclean(holder.of.instance));
    }
    // Whole or not at all, and whoever waits for the lock finds that it is no file of the volume any more.
    let volumes = home.parent().ok_or(ErrorKind::InvalidInput)?;
    let suffix = u64::from_le_bytes(tabbify_process::random());
    let gone = volumes.join(format!("{GONE_PREFIX}{suffix:016x}"));
    fs::rename(home, &gone)?;
    files::sync_dir(volumes)?;
    clear(&gone).map(|()| Removal::Done)
}

/// The lock of a volume, which is made if nobody ever had the volume; `None` if there is no volume.
fn lock_of(home: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    match options.mode(0o600).open(home.join(HOLDER_FILE)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `path` still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    let ids = |found: fs::Metadata| (found.dev(), found.ino());
    let at = fs::metadata(path).map(ids);
    let is = file.metadata().map(ids);
    matches!((at, is), (Ok(at), Ok(is)) if at == is)
}

/// Removes what removals have left that were cut off. Nobody else knows it, so an error is for this machine's
/// people alone, and the next start tries again.
fn sweep(volumes: &Path) {
    // Without volumes there is no directory of them.
    for entry in fs::read_dir(volumes).into_iter().flatten().flatten() {
        if !entry
            .file_name()
            .as_bytes()
            .starts_with(GONE_PREFIX.as_bytes())
        {
            continue;
        }
        let path = entry.path();
        if let Err(error) = clear(&path) {
            tracing::warn!(%error, path = %path.display(), "what a removed volume had cannot be removed");
        }
    }
}

fn clear(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::flock;

    use super::*;

    fn machine() -> HostName {
        "box1".parse().unwrap()
    }

    #[tokio::test]
    async fn what_nobody_has_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = FileVolumes::new(machine(), dir.path());
        let app = AppId::mint();
        assert_eq!(volumes.look(app).await.unwrap(), None);
        volumes.remove(app).await.unwrap();

        let home = volumes.home(app);
        fs::create_dir_all(&home).unwrap();
        let image = File::create(home.join(IMAGE_FILE)).unwrap();
        image.set_len(1 << 20).unwrap();
        let runner = dir.path().join("runner");
        let record = serde_json::json!({
            "of": { "app": app, "instance": 7 },
            "slot": { "target": 0, "ordinal": 0 },
            "epoch": 3,
            "directory": runner,
        });
        fs::write(home.join(HOLDER_FILE), record.to_string()).unwrap();
        let held = File::open(home.join(HOLDER_FILE)).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let seen = volumes.look(app).await.unwrap().unwrap();
        assert_eq!(seen.size, Some(ByteSize::mib(1)));
        assert_eq!(seen.held_by, Some(InstanceId(7)));
        let refused = volumes.remove(app).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert!(refused.detail.contains("#7 has"), "{}", refused.detail);

        drop(held);
        fs::create_dir(&runner).unwrap();
        let refused = volumes.remove(app).await.unwrap_err();
        assert!(
            refused.detail.contains("may still use"),
            "{}",
            refused.detail
        );
        fs::remove_dir(&runner).unwrap();
        assert_eq!(volumes.look(app).await.unwrap().unwrap().held_by, None);
        volumes.remove(app).await.unwrap();
        assert!(!home.exists());
        assert_eq!(fs::read_dir(&volumes.volumes).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_removal_that_was_cut_off_is_ended_and_takes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let app = AppId::mint();
        let home = volumes_dir(dir.path()).join(app.to_string());
        fs::create_dir_all(home.join(FILES_DIRECTORY)).unwrap();
        // As a crash between the two steps leaves it.
        let gone = home.with_file_name(format!("{GONE_PREFIX}0123456789abcdef"));
        fs::create_dir_all(gone.join(FILES_DIRECTORY)).unwrap();
        fs::write(gone.join(FILES_DIRECTORY).join("kept"), b"x").unwrap();
        let volumes = FileVolumes::new(machine(), dir.path());
        assert!(!gone.exists());
        assert!(volumes.look(app).await.unwrap().is_some());
    }

    #[test]
    fn a_lock_of_before_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("volume");
        assert!(lock_of(&home).unwrap().is_none());
        fs::create_dir(&home).unwrap();
        let before = lock_of(&home).unwrap().unwrap();
        fs::rename(&home, dir.path().join("gone")).unwrap();
        fs::create_dir(&home).unwrap();
        let path = home.join(HOLDER_FILE);
        assert!(!is_at(&before, &path));
        let now = lock_of(&home).unwrap().unwrap();
        assert!(is_at(&now, &path) && !is_at(&before, &path));
    }

    #[tokio::test]
    async fn a_directory_has_no_size_and_its_files_count() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = FileVolumes::new(machine(), dir.path());
        let app = AppId::mint();
        let files = volumes.home(app).join(FILES_DIRECTORY).join("deep");
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("kept"), vec![7; 64 * 1024]).unwrap();
        let seen = volumes.look(app).await.unwrap().unwrap();
        assert_eq!((seen.size, seen.held_by), (None, None));
        assert!(seen.used.bytes() >= 64 * 1024, "{seen:?}");
        volumes.remove(app).await.unwrap();
        assert_eq!(volumes.look(app).await.unwrap(), None);
    }
}
