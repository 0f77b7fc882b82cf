//! Volumes: what outlives the one who has it, who may have it, and how large it gets.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tabbify_api::runner::{Boot, Failure};
use tabbify_api::volumes::{FILES_DIRECTORY, HOLDER_FILE, IMAGE_FILE};
use tabbify_runner::volume::{Volume, take};
use tabbify_types::event::v1::{FailureReason, RuntimeKind, VolumeUse};
use tabbify_types::{AppId, ByteSize, Digest, Epoch, InstanceId};

use crate::artifact::boot;

/// An app with a volume in a directory of the test's own.
struct Site {
    dir: tempfile::TempDir,
    boot: Boot,
}

impl Site {
    fn new(size: ByteSize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut boot = boot(dir.path(), AppId::mint(), Digest::of(b""))?;
        boot.run.volume = Some(VolumeUse {
            mount: "/data".to_owned(),
            size,
            snapshots: None,
        });
        Ok(Self { dir, boot })
    }

    fn home(&self) -> PathBuf {
        let volumes = self.boot.volumes.as_ref().expect("it was given");
        volumes.join(self.boot.of.app.to_string())
    }

    /// The same app as another instance, with a volume of this size.
    fn instance(&self, number: u32, size: ByteSize) -> Boot {
        let mut boot = self.boot.clone();
        boot.of.instance = InstanceId(number);
        boot.epoch = Epoch(number);
        if let Some(volume) = &mut boot.run.volume {
            volume.size = size;
        }
        boot
    }

    async fn take(&self, boot: &Boot) -> Result<Volume, Failure> {
        let taken = take(boot, &self.dir.path().join("runner")).await?;
        Ok(taken.expect("it names one"))
    }
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn is_root(name: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("NOT RUN: {name}: file systems are mounted by root");
    }
    is_root
}

/// What a directory can hold, in bytes.
fn capacity(directory: &Path) -> u64 {
    let disk = rustix::fs::statvfs(directory).expect("a file system");
    disk.f_blocks * disk.f_frsize
}

fn refused(taken: Result<Volume, Failure>, part: &str) {
    let failure = taken.expect_err("it is refused");
    assert_eq!(failure.reason, FailureReason::Volume);
    assert!(failure.detail.contains(part), "{}", failure.detail);
}

#[tokio::test]
async fn what_is_in_it_outlives_who_has_it_and_it_grows() {
    if !is_root("volume::what_is_in_it_outlives_who_has_it_and_it_grows") {
        return;
    }
    let (small, large) = (ByteSize::mib(8), ByteSize::mib(24));
    let site = Site::new(small).unwrap();
    let volume = site.take(&site.boot).await.unwrap();
    assert!(volume.notices().is_empty(), "{:?}", volume.notices());
    assert_eq!(fs::read_dir(volume.place()).unwrap().count(), 0);
    let kept = volume.place().join("kept");
    fs::write(&kept, b"for ever").unwrap();
    let mut full = fs::File::create(volume.place().join("full")).unwrap();
    let chunk = vec![7; 1 << 20];
    let ended = (0..16).find_map(|_| full.write_all(&chunk).err());
    assert_eq!(
        ended.map(|error| error.kind()),
        Some(ErrorKind::StorageFull)
    );
    drop((full, volume));

    let volume = site.take(&site.instance(2, large)).await.unwrap();
    let kept = volume.place().join("kept");
    assert_eq!(fs::read(&kept).unwrap(), b"for ever");
    assert_eq!(fs::read_dir(volume.place()).unwrap().count(), 2);
    let has = capacity(volume.place());
    assert!(has > 16 << 20 && has <= large.bytes(), "{has}");
    drop(volume);

    let volume = site.take(&site.instance(3, small)).await.unwrap();
    let notices = volume.notices().join(" ");
    assert!(notices.contains("keeps its size of 24MiB"), "{notices}");
    assert_eq!(capacity(volume.place()), has);
    drop(volume);
    let image = site.home().join(IMAGE_FILE);
    assert_eq!(fs::metadata(&image).unwrap().len(), large.bytes());
    assert_eq!(devices(&image), 0, "nothing of it is left");
}

/// How many devices have the file.
fn devices(image: &Path) -> usize {
    let devices = fs::read_dir("/sys/block")
        .expect("the kernel's list")
        .flatten();
    let backing = devices.map(|device| device.path().join("loop/backing_file"));
    let files = backing.filter_map(|path| fs::read_to_string(path).ok());
    let image = image.display().to_string();
    files.filter(|file| file.trim_end() == image).count()
}

#[tokio::test]
async fn growing_that_was_cut_off_goes_on() {
    if !is_root("volume::growing_that_was_cut_off_goes_on") {
        return;
    }
    let (small, large) = (ByteSize::mib(8), ByteSize::mib(24));
    let site = Site::new(small).unwrap();
    drop(site.take(&site.boot).await.unwrap());
    // As a crash between the two steps leaves it.
    fs::write(site.home().join("growing"), b"").unwrap();
    let image = fs::OpenOptions::new()
        .write(true)
        .open(site.home().join(IMAGE_FILE));
    image.unwrap().set_len(large.bytes()).unwrap();
    let volume = site.take(&site.instance(2, large)).await.unwrap();
    assert!(capacity(volume.place()) > 16 << 20);
    assert!(!site.home().join("growing").exists());
}

#[tokio::test]
async fn one_has_it_and_no_older_one_after_it() {
    let size = ByteSize::mib(8);
    let site = Site::new(size).unwrap();
    fs::create_dir_all(site.home().join(FILES_DIRECTORY)).unwrap();
    let first = site.take(&site.instance(4, size)).await.unwrap();
    refused(
        site.take(&site.instance(5, size)).await,
        "in use by instance #4",
    );
    drop(first);
    drop(site.take(&site.instance(5, size)).await.unwrap());
    refused(
        site.take(&site.instance(4, size)).await,
        "#5 has had its volume since",
    );
    // The same again: it was stopped, and is woken.
    drop(site.take(&site.instance(5, size)).await.unwrap());
    let mut behind = site.instance(6, size);
    behind.epoch = Epoch(4);
    refused(site.take(&behind).await, "is not to have it again");
    // A crash in the middle of a record leaves any part of it.
    fs::write(site.home().join(HOLDER_FILE), b"{\"of\":").unwrap();
    drop(site.take(&site.instance(6, size)).await.unwrap());
}

#[tokio::test]
async fn a_directory_is_one_for_good_and_says_so() {
    let size = ByteSize::mib(8);
    let site = Site::new(size).unwrap();
    let files = site.home().join(FILES_DIRECTORY);
    fs::create_dir_all(&files).unwrap();
    let volume = site.take(&site.boot).await.unwrap();
    assert_eq!(volume.place(), files);
    let notices = volume.notices().join(" ");
    assert!(notices.contains("nothing limits the size"), "{notices}");
    drop(volume);
    let mut machine = site.boot.clone();
    machine.run.runtime = RuntimeKind::Firecracker;
    refused(site.take(&machine).await, "which a microVM cannot have");
}

#[tokio::test]
async fn what_a_guest_wrote_is_not_mounted() {
    if !Path::new("/sbin/mkfs.ext4").exists() {
        eprintln!("NOT RUN: volume::what_a_guest_wrote_is_not_mounted: no mkfs.ext4");
        return;
    }
    let site = Site::new(ByteSize::mib(8)).unwrap();
    let mut machine = site.boot.clone();
    machine.run.runtime = RuntimeKind::Firecracker;
    let volume = site.take(&machine).await.unwrap();
    assert_eq!(volume.place(), site.home().join(IMAGE_FILE));
    drop(volume);
    let mut container = site.boot.clone();
    for runtime in [RuntimeKind::Docker, RuntimeKind::WasmHttp] {
        container.run.runtime = runtime;
        refused(
            site.take(&container).await,
            "has been the disk of a microVM",
        );
    }
    drop(site.take(&machine).await.unwrap());

    // Any program of ours that read it now would fail.
    let image = site.home().join(IMAGE_FILE);
    let hostile = vec![0xa5; 8 << 20];
    fs::write(&image, &hostile).unwrap();
    for boot in [&mut machine, &mut container] {
        boot.run.volume.as_mut().unwrap().size = ByteSize::mib(24);
    }
    let volume = site.take(&machine).await.unwrap();
    let notices = volume.notices().join(" ");
    assert!(notices.contains("neither shrinks nor grows"), "{notices}");
    drop(volume);
    for runtime in [RuntimeKind::Docker, RuntimeKind::WasmHttp] {
        container.run.runtime = runtime;
        refused(
            site.take(&container).await,
            "has been the disk of a microVM",
        );
    }
    assert!(fs::read(&image).unwrap() == hostile, "nobody wrote to it");
}

#[tokio::test]
async fn who_waits_for_one_that_is_removed_gets_a_new_one() {
    let size = ByteSize::mib(8);
    let site = Site::new(size).unwrap();
    let home = site.home();
    fs::create_dir_all(home.join(FILES_DIRECTORY)).unwrap();
    fs::write(home.join(FILES_DIRECTORY).join("kept"), b"").unwrap();
    let held = fs::File::create(home.join(HOLDER_FILE)).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    // As a supervisor does it, while the runner has begun to wait: the first is polled before the second.
    let removed = async {
        let gone = home.with_file_name(".gone-1");
        fs::rename(&home, &gone).unwrap();
        drop(held);
        fs::remove_dir_all(&gone).unwrap();
    };
    let (taken, ()) = tokio::join!(biased; site.take(&site.boot), removed);
    drop(taken.unwrap());
    assert!(home.join(HOLDER_FILE).exists());
    assert!(!home.join(FILES_DIRECTORY).join("kept").exists());
}

#[tokio::test]
async fn what_cannot_be_had_is_said() {
    let site = Site::new(ByteSize::mib(64 << 20)).unwrap();
    let mut machine = site.boot.clone();
    machine.run.runtime = RuntimeKind::Firecracker;
    refused(site.take(&machine).await, "does not fit on its machine");
    let mut old = site.boot.clone();
    old.volumes = None;
    refused(site.take(&old).await, "restart supervisord");
    old.run.volume = None;
    assert!(take(&old, site.dir.path()).await.unwrap().is_none());
}
