//! Entries that no layer should have, and bytes that are no archive.

use proptest::prelude::*;
use tar::EntryType;

use super::sample::{Archive, Form, Layer, Packed, header, open, write};
use crate::ImageError;

fn refused(layer: Layer, says: &str) {
    let below = Layer::new()
        .file("etc/passwd", "root")
        .symlink("up", "../..")
        .symlink("loop", "loop");
    let error = Archive::of(vec![below, layer]).listing().unwrap_err();
    assert!(error.is_of_the_image());
    let text = error.to_string();
    assert!(
        text.contains(says) && text.contains("layer 2"),
        "{text} does not say {says}"
    );
}

#[test]
fn nothing_leaves_the_image() {
    for name in ["../x", "a/../../x", "a/..", ".."] {
        refused(Layer::new().file(name, ""), "leaves the image");
        refused(Layer::new().dir(name), "leaves the image");
        refused(Layer::new().link("x", name), "leaves the image");
    }
    for name in ["/etc/passwd", "//x"] {
        refused(Layer::new().file(name, ""), "its path is absolute");
    }
    refused(Layer::new().file("up/x", ""), "leaves the image");
    refused(Layer::new().file("up/.wh.x", ""), "leaves the image");
    refused(Layer::new().link("x", "up/y"), "leaves the image");
    refused(Layer::new().file("loop/x", ""), "a loop of symbolic links");
    refused(Layer::new().file("", "x"), "replace the root");
    refused(Layer::new().symlink(".", "x"), "replace the root");
    refused(Layer::new().link("x", ""), "which is not there");
}

#[test]
fn entries_that_are_no_files_of_an_app() {
    refused(
        Layer::new().entry(EntryType::Char, "dev/null", "", b""),
        "it is a device",
    );
    refused(
        Layer::new().entry(EntryType::Block, "dev/sda", "", b""),
        "it is a device",
    );
    refused(Layer::new().link("a", "missing"), "which is not there");
    refused(Layer::new().dir("d").link("a", "d"), "which is a directory");
    refused(Layer::new().symlink("a", ""), "it points nowhere");
    refused(
        Layer::new().entry(EntryType::GNUSparse, "a", "", b""),
        "sparse",
    );
    refused(
        Layer::new().entry(EntryType::new(b'V'), "a", "", b""),
        "of type",
    );
    refused(
        Layer::new().file("etc/passwd/x", ""),
        "a part of its path is a file",
    );
    for name in [".wh.", ".wh..", ".wh..."] {
        refused(Layer::new().file(name, ""), "a whiteout of nothing");
    }
    let nul: &[(&str, &[u8])] = &[("path", b"a\0b")];
    refused(Layer::new().pax("a", nul, b""), "zero byte");
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1")];
    refused(Layer::new().pax("a", sparse, b""), "sparse");
    let size: &[(&str, &[u8])] = &[("size", b"9999999999")];
    refused(Layer::new().pax("a", size, b""), "8 GiB");
    let owner: &[(&str, &[u8])] = &[("uid", b"4294967296")];
    refused(Layer::new().pax("a", owner, b""), "over 32 bits");
}

#[test]
fn names_have_an_end() {
    let long = "n".repeat(256);
    refused(
        Layer::new().pax("a", &[("path", long.as_bytes())], b""),
        "over 255 bytes",
    );
    let deep = "d/".repeat(300);
    refused(
        Layer::new().pax("a", &[("path", deep.as_bytes())], b""),
        "deeper than 256",
    );
    let longer = "d/".repeat(3000);
    refused(
        Layer::new().pax("a", &[("path", longer.as_bytes())], b""),
        "more than 4096 bytes",
    );
    let huge = vec![b'x'; 300 << 10];
    let layer = Layer::new().entry(EntryType::GNULongName, "././@LongLink", "", &huge);
    refused(layer.file("a", ""), "an extended header of");
    // A link that leads ever deeper ends, too.
    let spiral = Layer::new().symlink("s", "s/s/s/s/s/s/s/s").file("s/x", "");
    refused(spiral, "a loop of symbolic links");
}

#[test]
fn entries_that_add_nothing_are_counted() {
    let layer = (0..1000).fold(Layer::new(), |layer, at| layer.file(&format!("d/{at}"), ""));
    let layer = (0..1001).fold(layer, |layer, _| layer.file("d/.wh..wh..opq", ""));
    refused(layer, "more than 2000 entries");
    let layer = (0..2001).fold(Layer::new(), |layer, _| layer.dir("d"));
    refused(layer, "more than 2000 entries");
}

#[test]
fn a_header_that_promises_more_than_there_is() {
    let mut tar = header(EntryType::Regular, "big", 1 << 40)
        .as_bytes()
        .to_vec();
    tar.extend([0; 2048]);
    let archive = Archive {
        layers: vec![tar],
        ..Archive::of(vec![])
    };
    let error = archive.listing().unwrap_err();
    assert!(error.to_string().contains("big is cut off"), "{error}");
}

#[test]
fn parts_of_one_name_and_of_a_strange_kind() {
    let dir = tempfile::tempdir().unwrap();
    let parts = |extra: Layer| {
        let parts = Archive::of(vec![Layer::new().file("a", "")]).parts();
        let all = parts.into_iter().fold(extra, |tar, (name, content)| {
            tar.entry(EntryType::Regular, &name, "", &content)
        });
        open(&write(dir.path(), &all.tar()))
    };
    parts(Layer::new()).unwrap();
    for extra in [
        Layer::new().file("index.json", "{}"),
        Layer::new().file("./index.json", "{}"),
        Layer::new().file("../index.json", "{}"),
        Layer::new().file("/index.json", "{}"),
        Layer::new().symlink("x", "/etc/passwd"),
        Layer::new().symlink("x", "../../etc/passwd"),
        Layer::new().entry(EntryType::Fifo, "x", "", b""),
    ] {
        let error = parts(extra).unwrap_err();
        assert!(matches!(error, ImageError::NotAnImage { .. }), "{error}");
    }
    // A link inside the archive that goes in circles is a part that is not there.
    let circle = Layer::new()
        .symlink("manifest.json", "b")
        .symlink("b", "manifest.json");
    open(&write(dir.path(), &circle.tar())).unwrap_err();
}

/// Small archives of both forms, with something of everything in them.
fn samples() -> Vec<Vec<u8>> {
    let layer = || {
        let xattr: &[(&str, &[u8])] = &[("path", b"etc/long"), ("SCHILY.xattr.user.a", b"1")];
        Layer::new()
            .dir("etc")
            .file("etc/a", "1")
            .link("b", "etc/a")
            .symlink("c", "etc")
            .pax("x", xattr, b"y")
    };
    let upper = || {
        Layer::new()
            .file("c/.wh.a", "")
            .file("etc/.wh..wh..opq", "")
    };
    let forms = [Form::Layout, Form::Saved];
    let tars = forms.map(|form| {
        Archive {
            form,
            packed: Packed::Plain,
            ..Archive::of(vec![layer(), upper()])
        }
        .tar()
    });
    tars.to_vec()
}

fn read(tar: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let read = open(&write(dir.path(), tar)).and_then(|image| image.flatten(dir.path()));
    if let Ok(flat) = read {
        flat.write_to(std::io::sink()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        read(&bytes);
    }

    #[test]
    fn changed_archives_are_an_error_and_no_panic(
        form in 0_usize..2,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut tar = samples().swap_remove(form);
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        read(&tar);
        tar.truncate(cut.index(tar.len()));
        read(&tar);
    }

    /// The digests of the layer are right here: what is changed is the layer's tar itself.
    #[test]
    fn changed_layers_are_an_error_and_no_panic(
        changes in proptest::collection::vec((0_usize..6, 0_usize..512, any::<u8>()), 1..6),
    ) {
        let pax: &[(&str, &[u8])] = &[("path", b"etc/long"), ("linkpath", b"q"), ("uid", b"7")];
        let layer = Layer::new().pax("x", pax, b"y").link("b", "etc/long").symlink("c", "b");
        let mut tar = layer.tar();
        for (block, at, byte) in changes {
            let start = block * 512;
            if let Some(changed) = tar.get_mut(start + at) {
                *changed = byte;
            }
            // Most changes would fail at the checksum and test nothing behind it.
            if let Some(block) = tar.get_mut(start..start + 512) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        // Whatever comes out is a file system below its root.
        if let Ok(lines) = (Archive { layers: vec![tar], ..Archive::of(vec![]) }).listing_of_any() {
            for path in lines {
                prop_assert!(!path.starts_with('/') && !path.split('/').any(|name| name == ".."), "{path}");
            }
        }
    }

    /// Layers of random changes give what a file system gives in which they are carried out.
    #[test]
    fn merging_agrees_with_a_model(layers in proptest::collection::vec(proptest::collection::vec(change(), 0..8), 1..5)) {
        let tars = layers.iter().map(|changes| changes.iter().fold(Layer::new(), |layer, change| change.add(layer)));
        let lines = Archive::of(tars.collect()).listing().unwrap();
        let files = lines.iter().filter_map(|line| line.strip_prefix("- 644 0 ")).map(str::to_owned);
        prop_assert_eq!(files.collect::<Vec<_>>(), model(&layers));
    }
}

/// A change of a layer, in directories `a` and `b` with files `x` and `y`.
#[derive(Debug, Clone)]
enum Change {
    File(usize, usize, u8),
    Whiteout(usize, usize),
    Opaque(usize),
}

const DIRECTORIES: [&str; 2] = ["a", "b"];
const FILES: [&str; 2] = ["x", "y"];

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (0_usize..2, 0_usize..2, 0_u8..10).prop_map(|(d, f, c)| Change::File(d, f, c)),
        1 => (0_usize..2, 0_usize..2).prop_map(|(d, f)| Change::Whiteout(d, f)),
        1 => (0_usize..2).prop_map(Change::Opaque),
    ]
}

impl Change {
    fn add(&self, layer: Layer) -> Layer {
        match self {
            Self::File(d, f, content) => layer.file(
                &format!("{}/{}", DIRECTORIES[*d], FILES[*f]),
                &content.to_string(),
            ),
            Self::Whiteout(d, f) => {
                layer.file(&format!("{}/.wh.{}", DIRECTORIES[*d], FILES[*f]), "")
            }
            Self::Opaque(d) => layer.file(&format!("{}/.wh..wh..opq", DIRECTORIES[*d]), ""),
        }
    }
}

/// First all that a layer hides, then all that it has.
fn model(layers: &[Vec<Change>]) -> Vec<String> {
    let mut files = std::collections::BTreeMap::new();
    for layer in layers {
        for change in layer {
            match change {
                Change::Whiteout(d, f) => drop(files.remove(&(*d, *f))),
                Change::Opaque(d) => files.retain(|(directory, _), _| directory != d),
                Change::File(..) => {}
            }
        }
        for change in layer {
            if let Change::File(d, f, content) = change {
                files.insert((*d, *f), *content);
            }
        }
    }
    let lines = files.into_iter();
    lines
        .map(|((d, f), content)| format!("{}/{} {content}", DIRECTORIES[d], FILES[f]))
        .collect()
}
