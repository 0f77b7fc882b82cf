//! Layers on layers: what hides what.

use tar::EntryType;

use super::sample::{Archive, Layer};

/// The paths of a file system with their contents, without directories.
fn check(layers: Vec<Layer>, expected: &[&str]) {
    let lines = Archive::of(layers).listing().unwrap();
    let short = lines.iter().filter(|line| !line.starts_with('d'));
    let short: Vec<String> = short
        .map(|line| line.splitn(4, ' ').last().unwrap().to_owned())
        .collect();
    assert_eq!(short, expected);
}

#[test]
fn the_upper_one_counts() {
    let lower = Layer::new()
        .dir("etc/")
        .file("etc/a", "1")
        .file("etc/b", "1");
    let upper = Layer::new().file("etc/b", "2").file("./c", "2");
    check(vec![lower, upper], &["c 2", "etc/a 1", "etc/b 2"]);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let lower = || {
        Layer::new()
            .file("d/a", "1")
            .file("d/b", "1")
            .file("e/x", "1")
    };
    check(
        vec![lower(), Layer::new().file("d/.wh.a", "")],
        &["d/b 1", "e/x 1"],
    );
    check(vec![lower(), Layer::new().file(".wh.d", "")], &["e/x 1"]);
    // Whatever its place in the layer, a whiteout is not of the layer's own entries.
    let both = Layer::new().file("d/a", "2").file("d/.wh.a", "");
    check(vec![lower(), both], &["d/a 2", "d/b 1", "e/x 1"]);
    // A directory made again has nothing of the old one.
    let again = Layer::new().file("d/n", "2").file(".wh.d", "");
    check(vec![lower(), again], &["d/n 2", "e/x 1"]);
    // What is not there needs no hiding, and no directory is made for it.
    check(
        vec![lower(), Layer::new().file("no/.wh.a", "")],
        &["d/a 1", "d/b 1", "e/x 1"],
    );
    // In its own layer there is nothing below.
    check(
        vec![Layer::new().file("a", "1").file(".wh.a", "")],
        &["a 1"],
    );
}

#[test]
fn a_whiteout_again_and_again_is_one() {
    let lower = || Layer::new().file("d/e/a", "1").file("d/b", "1");
    let opaque = |layer: Layer, at: &str| layer.file(&format!("{at}.wh..wh..opq"), "");
    let upper = opaque(opaque(Layer::new(), "d/e/"), "d/e/").file("d/e/n", "2");
    let upper = opaque(opaque(upper, "d/e/"), "d/").file("d/m", "2");
    let upper = opaque(upper, "d/").file(".wh.d", "");
    check(vec![lower(), upper], &["d/e/n 2", "d/m 2"]);
    // And in the next layer, it is another.
    let next = || opaque(Layer::new(), "d/");
    let upper = next().file("d/m", "2");
    check(vec![lower(), upper, next().file("d/n", "3")], &["d/n 3"]);
}

#[test]
fn opaque_directories_hide_all_that_is_below() {
    let lower = || {
        Layer::new()
            .file("d/a", "1")
            .file("d/s/b", "1")
            .file("e", "1")
    };
    let first = Layer::new().file("d/.wh..wh..opq", "").file("d/s/n", "2");
    check(vec![lower(), first], &["d/s/n 2", "e 1"]);
    let last = Layer::new().file("d/s/n", "2").file("d/.wh..wh..opq", "");
    check(vec![lower(), last], &["d/s/n 2", "e 1"]);
    // The notes of an older union file system are not files of the image.
    let notes = Layer::new()
        .file(".wh..wh.plnk", "")
        .file(".wh..wh.aufs", "");
    check(vec![lower(), notes], &["d/a 1", "d/s/b 1", "e 1"]);
}

#[test]
fn hard_links_are_one_file_across_layers() {
    let lower = Layer::new().file("a", "1").link("b", "a");
    check(vec![lower], &["a 1", "b -> a"]);
    // The target is of the layer below, and the name that made the file is replaced.
    let lower = Layer::new().file("a", "1");
    let upper = Layer::new().link("z", "a").link("y", "./a").file("a", "2");
    check(vec![lower, upper], &["a 2", "y 1", "z -> y"]);
}

#[test]
fn kinds_replace_each_other() {
    let lower = || Layer::new().file("x/in", "1").file("y", "1");
    let upper = Layer::new().file("x", "2").file("y/in", "2");
    // A file where a directory was is a replacement; a file on the way to an entry is a mistake.
    let error = Archive::of(vec![lower(), upper]).listing().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("y/in: a part of its path is a file"),
        "{error}"
    );
    let upper = Layer::new().file("x", "2").dir("y").file("y/in", "2");
    check(vec![lower(), upper], &["x 2", "y/in 2"]);
}

#[test]
fn links_on_the_way_are_followed_inside_the_image() {
    // What a merged /usr looks like, with an upper layer that knows nothing of it.
    let lower = || {
        Layer::new()
            .dir("usr/lib")
            .symlink("lib", "usr/lib")
            .symlink("abs", "/usr/lib")
    };
    let upper = Layer::new().file("lib/a", "2").file("abs/b", "2");
    check(
        vec![lower(), upper],
        &[
            "abs -> /usr/lib",
            "lib -> usr/lib",
            "usr/lib/a 2",
            "usr/lib/b 2",
        ],
    );
    let whiteout = Layer::new().file("lib/.wh.a", "");
    let middle = Layer::new().file("usr/lib/a", "1");
    check(
        vec![lower(), middle, whiteout],
        &["abs -> /usr/lib", "lib -> usr/lib"],
    );
}

#[test]
fn owners_modes_attributes_and_long_names_are_kept() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let to = "t".repeat(180);
    let layer = Layer::new()
        .pax(
            "short",
            &[
                ("path", long.as_bytes()),
                ("uid", b"70000"),
                ("mtime", b"5.5"),
                ("SCHILY.xattr.user.note", b"\x00binary"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.system.posix_acl_access", b"acl"),
            ],
            b"text",
        )
        .entry(EntryType::GNULongLink, "././@LongLink", "", to.as_bytes())
        .symlink("s", "cut off")
        .entry(EntryType::Fifo, "p", "", b"");
    let archive = Archive::of(vec![layer]);
    let lines = archive.listing().unwrap();
    let file = format!("- 644 70000 {long} text");
    assert!(lines.contains(&file), "{lines:#?}");
    assert!(lines.contains(&format!("l 644 0 s -> {to}")), "{lines:#?}");
    assert!(lines.contains(&"p 644 0 p".to_owned()), "{lines:#?}");

    let dir = tempfile::tempdir().unwrap();
    let image = super::sample::open(&archive.write(dir.path())).unwrap();
    let mut tar = Vec::new();
    image
        .flatten(dir.path())
        .unwrap()
        .write_to(&mut tar)
        .unwrap();
    let holds = |text: &str| {
        tar.windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(holds("SCHILY.xattr.user.note=\0binary"));
    assert!(!holds("overlay.opaque") && !holds("posix_acl"));
}
