//! Root file systems made by the real `sqfstar`, and kept.

use std::path::Path;
use std::process::Command;

use tar::EntryType;

use super::sample::{Archive, Layer, open};
use crate::{Cache, ImageError};

/// Whether the programs of squashfs-tools are there; if not, `name` says that it did not run.
fn tools(name: &str) -> bool {
    let there = |program: &str| {
        let paths = crate::DEFAULT_PATH.split(':');
        paths
            .map(|dir| Path::new(dir).join(program))
            .any(|path| path.is_file())
    };
    let both = there("sqfstar") && there("unsquashfs");
    if !both {
        eprintln!("NOT RUN: {name}: squashfs-tools is not installed");
    }
    both
}

fn image(content: &str) -> Archive {
    let xattr: &[(&str, &[u8])] = &[("uid", b"1000"), ("SCHILY.xattr.user.note", b"kept")];
    let lower = Layer::new()
        .file("app", content)
        .pax("data/owned", xattr, b"mine")
        .file("gone", "");
    let upper = Layer::new()
        .link("data/app", "app")
        .symlink("data/to", "../app");
    let upper = upper
        .file(".wh.gone", "")
        .entry(EntryType::Fifo, "data/pipe", "", b"");
    Archive::of(vec![lower, upper])
}

fn unsquashfs(arguments: &[&str], squashfs: &Path) -> String {
    let output = Command::new("unsquashfs")
        .args(arguments)
        .arg(squashfs)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_squashfs_has_what_the_layers_say() {
    if !tools("a_squashfs_has_what_the_layers_say") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = open(&image("code").write(dir.path())).unwrap();
    let cache = Cache::open(&dir.path().join("roots"), 1 << 30).unwrap();
    let root = cache.root(&image).unwrap();
    let lines = unsquashfs(&["-lln"], root.path());
    let expected = [
        ("drwxr-xr-x 0/0", "squashfs-root"),
        ("-rw-r--r-- 0/0", "squashfs-root/app"),
        ("-rw-r--r-- 0/0", "squashfs-root/data/app"),
        ("-rw-r--r-- 1000/0", "squashfs-root/data/owned"),
        ("prw-r--r-- 0/0", "squashfs-root/data/pipe"),
        ("lrw", "squashfs-root/data/to -> ../app"),
    ];
    for (head, path) in expected {
        let found = lines
            .lines()
            .any(|line| line.starts_with(head) && line.ends_with(path));
        assert!(found, "{head} {path} is not in\n{lines}");
    }
    assert!(!lines.contains("gone"), "{lines}");
    // Unpacked by itself, as root or not, links and attributes are what they were.
    let out = dir.path().join("out");
    unsquashfs(
        &["-quiet", "-no-progress", "-d", &out.to_string_lossy()],
        root.path(),
    );
    use std::os::unix::fs::MetadataExt as _;
    let app = std::fs::metadata(out.join("app")).unwrap();
    assert_eq!(
        app.ino(),
        std::fs::metadata(out.join("data/app")).unwrap().ino()
    );
    assert_eq!(std::fs::read(out.join("app")).unwrap(), b"code");
    let mut note = [0; 16];
    match rustix::fs::getxattr(out.join("data/owned"), "user.note", &mut note) {
        Ok(len) => assert_eq!(&note[..len], b"kept"),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            eprintln!("NOT RUN: attributes: this file system has none")
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn it_is_made_once_and_made_again_when_it_is_damaged() {
    if !tools("it_is_made_once_and_made_again_when_it_is_damaged") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = image("code").write(dir.path());
    let image = open(&archive).unwrap();
    let cache = Cache::open(&dir.path().join("roots"), 1 << 30).unwrap();
    let path = cache.root(&image).unwrap().path().to_owned();
    let made = std::fs::read(&path).unwrap();
    // Without the archive only the cache can have it.
    let kept = std::fs::read(&archive).unwrap();
    std::fs::write(&archive, b"").unwrap();
    cache.root(&image).unwrap();
    std::fs::write(&archive, kept).unwrap();
    for damage in [&b"short"[..], b"", &[0; 8192]] {
        std::fs::write(&path, damage).unwrap();
        cache.root(&image).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            made,
            "the same image gives the same bytes"
        );
    }
    let names = |ending: &str| {
        let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(ending)).count()
    };
    assert_eq!((names("squashfs"), names("part"), names("sum")), (1, 0, 1));
}

#[test]
fn the_least_recently_used_goes_and_what_is_in_use_stays() {
    if !tools("the_least_recently_used_goes_and_what_is_in_use_stays") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = |bytes: u64| Cache::open(&dir.path().join("roots"), bytes).unwrap();
    let root = |cache: &Cache, content: &str| {
        let image = open(&image(content).write(dir.path())).unwrap();
        cache.root(&image).unwrap()
    };
    let held = root(&cache(1 << 30), "held");
    let old = root(&cache(1 << 30), "old").path().to_owned();
    let young = root(&cache(1 << 30), "young").path().to_owned();
    // Used once more, the old one is the younger, whatever a clock that ticks slowly makes of it.
    root(&cache(1 << 30), "old");
    for path in [held.path(), &old, &young] {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let two = 2 * std::fs::metadata(&old).unwrap().len();
    root(&cache(two + two / 2), "one more");
    assert!(held.path().exists() && old.exists() && !young.exists());
    root(&cache(1), "last");
    assert!(held.path().exists() && !old.exists());
    let left = std::fs::read_dir(dir.path().join("roots")).unwrap();
    let left = left.map(|entry| entry.unwrap().path());
    let used = left.filter(|path| path.extension().is_some_and(|ending| ending == "used"));
    // Of the one that is held, and of the last: what is removed leaves no number.
    assert_eq!(used.count(), 2);
}

/// Uses are counted on by every process, and a number that is spoilt is the oldest.
#[test]
fn uses_have_an_order_whatever_happens_to_their_numbers() {
    if !tools("uses_have_an_order_whatever_happens_to_their_numbers") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots");
    let root = |bytes: u64, content: &str| {
        let image = open(&image(content).write(dir.path())).unwrap();
        let root = Cache::open(&roots, bytes).unwrap().root(&image).unwrap();
        root.path().to_owned()
    };
    let [first, second] = ["first", "second"].map(|content| root(1 << 30, content));
    let used = |path: &Path| std::fs::read_to_string(path.with_extension("used")).unwrap();
    assert_eq!([used(&first), used(&second)], ["1", "2"]);
    root(1 << 30, "first");
    assert_eq!(used(&first), "3");
    std::fs::write(first.with_extension("used"), "no number").unwrap();
    let one = std::fs::metadata(&first).unwrap().len();
    root(2 * one, "third");
    assert!(!first.exists() && second.exists());
}

#[test]
fn many_at_once_make_one() {
    if !tools("many_at_once_make_one") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = image("code").write(dir.path());
    let cache = Cache::open(&dir.path().join("roots"), 1 << 30).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| cache.root(&open(&archive).unwrap()).unwrap());
        }
    });
    let left = std::fs::read_dir(dir.path().join("roots")).unwrap();
    let mut endings: Vec<_> = left
        .map(|entry| entry.unwrap().path().extension().unwrap().to_owned())
        .collect();
    endings.sort();
    assert_eq!(endings, ["lock", "lock", "squashfs", "sum", "used"]);
}

#[test]
fn an_image_that_is_refused_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bad = Archive::of(vec![Layer::new().entry(
        EntryType::Char,
        "dev/null",
        "",
        b"",
    )]);
    let image = open(&bad.write(dir.path())).unwrap();
    let cache = Cache::open(&dir.path().join("roots"), 1 << 30).unwrap();
    let error = cache.root(&image).unwrap_err();
    assert!(
        matches!(error, ImageError::Refused { layer: 1, .. }),
        "{error}"
    );
    let left = std::fs::read_dir(dir.path().join("roots")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
}
