//! Archives of both forms, packed in every way, and what is said of those that cannot be used.

use serde_json::json;

use super::sample::{Archive, Form, Layer, Packed, blob, open, small, write};
use crate::{Digest, Image, ImageError, Limits, Platform};

fn hello() -> Archive {
    let lower = Layer::new().dir("bin").file("bin/app", "one");
    Archive::of(vec![lower, Layer::new().file("bin/app", "two")])
}

#[test]
fn both_forms_in_every_packing_are_the_same_image() {
    let mut ids = Vec::new();
    for form in [Form::Layout, Form::Saved] {
        for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
            let archive = Archive {
                form,
                packed,
                ..hello()
            };
            assert_eq!(
                archive.listing().unwrap(),
                ["d 755 0 bin", "- 644 0 bin/app two"],
                "{form:?} {packed:?}"
            );
            let dir = tempfile::tempdir().unwrap();
            ids.push(open(&archive.write(dir.path())).unwrap().id());
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

#[test]
fn another_architecture_is_said_to_be_one() {
    for form in [Form::Layout, Form::Saved] {
        let archive = Archive {
            form,
            architecture: "arm64",
            ..hello()
        };
        let error = archive.listing().unwrap_err();
        assert!(matches!(error, ImageError::Architecture { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("linux/arm64") && text.contains("--platform linux/amd64"),
            "{text}"
        );
    }
}

#[test]
fn the_image_of_the_platform_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let arm = Archive {
        architecture: "arm64",
        ..Archive::of(vec![Layer::new().file("arm", "")])
    };
    let mut parts = hello().parts();
    let take_index = |parts: &mut Vec<(String, Vec<u8>)>| {
        let at = parts
            .iter()
            .position(|(name, _)| name == "index.json")
            .unwrap();
        let index: serde_json::Value = serde_json::from_slice(&parts.remove(at).1).unwrap();
        index["manifests"][0].clone()
    };
    let mut others = arm.parts();
    let (ours, theirs) = (take_index(&mut parts), take_index(&mut others));
    parts.extend(others);
    // A nested index of both, as builders of several platforms write it, with an attestation.
    let nested = json!({"manifests": [theirs, ours,
        {"digest": Digest::of(b"").to_string(), "size": 0, "platform": {"os": "unknown", "architecture": "unknown"}}]});
    let nested = nested.to_string().into_bytes();
    let top = json!({"manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(&nested).to_string(), "size": nested.len()}]});
    parts.push(blob(&nested));
    parts.push(("index.json".to_owned(), top.to_string().into_bytes()));
    parts.sort();
    parts.dedup_by(|a, b| a.0 == b.0);
    let tar = parts
        .into_iter()
        .fold(Layer::new(), |tar, (name, content)| {
            tar.entry(tar::EntryType::Regular, &name, "", &content)
        });
    let path = write(dir.path(), &tar.tar());
    let here = |architecture: &str| Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
    };
    let ours = Image::open(&path, &here("amd64"), small()).unwrap();
    let theirs = Image::open(&path, &here("arm64"), small()).unwrap();
    assert_eq!(ours.config().architecture, "amd64");
    assert_ne!(ours.id(), theirs.id());
    let none = Image::open(&path, &here("riscv64"), small()).unwrap_err();
    assert!(
        none.to_string().contains("linux/amd64, linux/arm64"),
        "{none}"
    );
}

#[test]
fn damage_is_found_wherever_it_is() {
    for form in [Form::Layout, Form::Saved] {
        let archive = Archive {
            form,
            packed: Packed::Plain,
            ..hello()
        };
        for (name, content) in archive.parts() {
            if name == "oci-layout" {
                continue; // nothing in it is read
            }
            // One changed bit of each part in turn.
            let tar =
                archive
                    .parts()
                    .into_iter()
                    .fold(Layer::new(), |tar, (other, mut content)| {
                        if other == name {
                            let middle = content.len() / 2;
                            content[middle] ^= 1;
                        }
                        tar.entry(tar::EntryType::Regular, &other, "", &content)
                    });
            let dir = tempfile::tempdir().unwrap();
            let path = write(dir.path(), &tar.tar());
            let read = open(&path).and_then(|image| image.flatten(dir.path()).map(drop));
            let error = read.expect_err(&format!("{form:?} {name} of {} bytes", content.len()));
            assert!(error.is_of_the_image(), "{error}");
        }
    }
}

#[test]
fn a_cut_archive_and_other_files_are_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let tar = hello().tar();
    for len in [0, 100, 512, 1500, tar.len() / 2] {
        let path = write(dir.path(), &tar[..len]);
        let read = open(&path).and_then(|image| image.flatten(dir.path()).map(drop));
        read.expect_err(&len.to_string());
    }
    let gzip = super::sample::pack(&tar, Packed::Gzip);
    let error = open(&write(dir.path(), &gzip)).unwrap_err();
    assert!(error.to_string().contains("gzip -d"), "{error}");
    let error = open(&write(dir.path(), b"\x7fELF")).unwrap_err();
    assert!(error.to_string().contains("docker save"), "{error}");
    let missing = open(&dir.path().join("missing")).unwrap_err();
    assert!(!missing.is_of_the_image());
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let check = |archive: &Archive, limits: Limits, says: &str| {
        let path = archive.write(dir.path());
        let read = Image::open(
            &path,
            &Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
            },
            limits,
        );
        let error = read
            .and_then(|image| image.flatten(dir.path()).map(drop))
            .unwrap_err();
        assert!(
            error.to_string().contains(says),
            "{error} does not say {says}"
        );
    };
    let archive = hello();
    check(
        &archive,
        Limits {
            layers: 1,
            ..small()
        },
        "number of layers",
    );
    check(
        &archive,
        Limits {
            entries: 2,
            ..small()
        },
        "more than 2 entries",
    );
    check(
        &archive,
        Limits {
            bytes: 1024,
            ..small()
        },
        "in bytes",
    );
    check(
        &archive,
        Limits {
            name_bytes: 4,
            ..small()
        },
        "names of the image are too long",
    );
    // 100 MiB of zeros in a few hundred KiB, or less.
    let zeros = "\0".repeat(100 << 20);
    for packed in [Packed::Gzip, Packed::Zstd] {
        let bomb = Archive {
            packed,
            ..Archive::of(vec![Layer::new().file("zeros", &zeros)])
        };
        check(
            &bomb,
            Limits {
                ratio: 20,
                ..small()
            },
            "what a layer expands to",
        );
    }
    // What is implied by names counts, too.
    let deep = |at: usize| format!("{at}/{}", "d/".repeat(40));
    let many = (0..60).fold(Layer::new(), |layer, at| layer.file(&(deep(at) + "f"), ""));
    check(&Archive::of(vec![many]), small(), "more than 2000 entries");
}
