//! Files of images, good and hostile, without an engine.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use tabbify_container::{Archive, ArchiveError};
use tabbify_testing::image::{Image, digest};
use tempfile::TempDir;

const HERE: &str = "amd64";

fn open(bytes: &[u8]) -> Result<Archive, ArchiveError> {
    let dir = TempDir::new().map_err(ArchiveError::Read)?;
    let path = dir.path().join("image.tar");
    std::fs::write(&path, bytes).map_err(ArchiveError::Read)?;
    Archive::open(&path, HERE)
}

/// A tar of these files.
fn tar(files: &[(&str, &[u8])]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // By hand: the library refuses names that hostile files have.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content)?;
    }
    tar.into_inner()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "os": "linux", "architecture": HERE, "rootfs": { "diff_ids": ids },
        "config": { "Cmd": ["/run"], "ExposedPorts": { "9000/tcp": {}, "53/udp": {}, "x": {} } },
    });
    config.to_string().into_bytes()
}

fn saved(layers: &[&str]) -> Vec<u8> {
    let saved = json!([{ "Config": "config.json", "Layers": layers }]);
    saved.to_string().into_bytes()
}

fn refused(bytes: &[u8], expected: &str) {
    match open(bytes) {
        Ok(archive) => panic!("{expected}: {archive:?}"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(expected), "{text:?}, not {expected:?}");
        }
    }
}

#[test]
fn both_forms_are_one_image() {
    let dir = TempDir::new().unwrap();
    let image = Image::script("true").empty().for_architecture(HERE);
    let image = image.with("ExposedPorts", json!({ "3000/tcp": {} }));
    let path = |name: &str| dir.path().join(name);
    let id = image.save_docker(&path("docker.tar")).unwrap();
    assert_eq!(image.save_oci(&path("oci.tar")).unwrap(), id);
    for name in ["docker.tar", "oci.tar"] {
        let archive = Archive::open(&path(name), HERE).unwrap();
        assert_eq!(archive.id().to_string(), id, "{name}");
        assert_eq!(archive.facts.port(), 3000);
        assert!(!archive.facts.command.is_empty());
        let elsewhere = Archive::open(&path(name), "arm64").unwrap_err().to_string();
        assert!(
            elsewhere.contains("for linux/amd64, and this machine is linux/arm64"),
            "{elsewhere}"
        );
    }
    assert!(matches!(
        Archive::open(Path::new("/no/such/file"), HERE),
        Err(ArchiveError::Read(_))
    ));
}

#[test]
fn the_port_is_the_one_that_is_exposed() {
    let layer: &[u8] = &tar(&[("file", b"layer")]).unwrap();
    let file = [
        ("config.json", &config(&[layer])[..]),
        ("l", layer),
        ("manifest.json", &saved(&["l"])),
    ];
    let archive = open(&tar(&file).unwrap()).unwrap();
    assert_eq!(archive.facts.ports, [9000]);
}

#[test]
fn what_is_damaged_is_refused_with_its_place() {
    let layer: &[u8] = &tar(&[("file", b"the layer")]).unwrap();
    let config = config(&[layer]);
    let make = |files: &[(&str, &[u8])]| tar(files).unwrap();
    let manifest = saved(&["l"]);
    let good = make(&[
        ("config.json", &config),
        ("l", layer),
        ("manifest.json", &manifest),
    ]);
    open(&good).unwrap();
    refused(
        &make(&[
            ("config.json", &config),
            ("l", &tar(&[("file", b"another")]).unwrap()),
            ("manifest.json", &manifest),
        ]),
        "layer 1 is not what its digest",
    );
    refused(
        &make(&[("config.json", &config), ("manifest.json", &manifest)]),
        "\"l\" is missing",
    );
    refused(
        &make(&[("l", layer), ("manifest.json", &manifest)]),
        "\"config.json\" is missing",
    );
    refused(
        &make(&[
            ("config.json", b"{"),
            ("l", layer),
            ("manifest.json", &manifest),
        ]),
        "its config cannot be read",
    );
    refused(
        &make(&[
            ("config.json", &config),
            ("l", layer),
            ("manifest.json", &saved(&["l", "l"])),
        ]),
        "2 layers and the digests of 1",
    );
    refused(
        &make(&[("manifest.json", b"[{\"Config\":\"a\"},{\"Config\":\"b\"}]")]),
        "2 images",
    );
    refused(&make(&[("manifest.json", b"[]")]), "0 images");
    refused(&make(&[("etc/passwd", b"root")]), "neither index.json");
    refused(&make(&[("index.json", b"{}")]), "names no image");
    refused(b"", "neither index.json");
    refused(b"#!/bin/sh\necho hello\n", "no tar archive");
    refused(
        b"\x1f\x8b\x08 compressed as a whole",
        "compressed with gzip",
    );
    // Cut off in the middle of the layer.
    let long = vec![7; 4096];
    let files = [("manifest.json", &manifest[..]), ("l", &long[..])];
    refused(&make(&files)[..2048], "in the middle of \"l\"");
}

#[test]
fn an_index_is_followed_to_the_image_of_this_machine() {
    let layer: &[u8] = &tar(&[("file", b"layer")]).unwrap();
    let config = config(&[layer]);
    let manifest = json!({
        "config": { "digest": digest(&config) }, "layers": [{ "digest": digest(layer) }],
    });
    let manifest = manifest.to_string().into_bytes();
    let blob = |bytes: &[u8]| digest(bytes).replace("sha256:", "blobs/sha256/");
    let make = |index: &[u8], more: &[(&str, &[u8])]| {
        let names = [blob(&manifest), blob(&config), blob(layer)];
        let mut files = vec![("index.json", index)];
        files.push((&names[0], &manifest));
        files.push((&names[1], &config));
        files.push((&names[2], layer));
        files.extend(more);
        // Names of blobs fit a header.
        tar(&files).unwrap()
    };
    let of = |os: &str, architecture: &str| json!({ "digest": digest(&manifest), "platform": { "os": os, "architecture": architecture } });
    let inner = json!({ "manifests": [
        of("linux", "arm64"), of("unknown", "unknown"), of("linux", HERE),
    ]});
    let inner = inner.to_string().into_bytes();
    let outer = json!({ "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(&inner),
    }]});
    let name = blob(&inner);
    let nested = make(outer.to_string().as_bytes(), &[(&name, &inner)]);
    open(&nested).unwrap();

    let others = json!({ "manifests": [of("linux", "arm64"), of("windows", HERE)] });
    refused(
        &make(others.to_string().as_bytes(), &[]),
        "is for linux/arm64",
    );
    let twice = json!({ "manifests": [of("linux", HERE), of("linux", HERE)] });
    refused(&make(twice.to_string().as_bytes(), &[]), "2 images");
    let absent = json!({ "manifests": [{ "digest": digest(b"absent") }] });
    refused(&make(absent.to_string().as_bytes(), &[]), "is missing");
    for bad in [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "md5:0",
        "sha256:é",
    ] {
        let bad = json!({ "manifests": [{ "digest": bad }] });
        refused(
            &make(bad.to_string().as_bytes(), &[]),
            "is no sha256 digest",
        );
    }
    // One whose content is another.
    let name = blob(b"something else");
    let lying = json!({ "manifests": [{
        "mediaType": "index", "digest": digest(b"something else"),
    }]});
    refused(
        &make(
            lying.to_string().as_bytes(),
            &[(&name, b"{\"manifests\":[]}")],
        ),
        "has another digest",
    );
}

#[test]
fn a_bomb_is_measured_and_not_unpacked() {
    use std::io::Write as _;
    const MAX: u64 = 64 << 20;
    // Zeros, a thousand times as long as their compressed form: more than this image may have.
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    let count = (MAX >> 20) + 1;
    for _ in 0..count {
        packed.write_all(&zeros).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let config = config(&[b"whatever"]);
    let files = [
        ("config.json", &config[..]),
        ("l", &packed[..]),
        ("manifest.json", &saved(&["l"])),
    ];
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bomb.tar");
    std::fs::write(&path, tar(&files).unwrap()).unwrap();
    let error = Archive::open_within(&path, HERE, MAX)
        .unwrap_err()
        .to_string();
    assert!(error.contains("at most 64MiB is taken"), "{error}");
    assert!(
        Archive::open_within(&path, HERE, MAX * 2)
            .unwrap_err()
            .to_string()
            .contains("layer 1")
    );
}

#[test]
fn a_layer_that_an_engine_would_make_larger_is_refused() {
    for (key, value, expected) in [
        (
            "GNU.sparse.realsize",
            "1099511627776",
            "it has a sparse file",
        ),
        ("size", "0", "it has a file of 8 GiB or more"),
    ] {
        let mut layer = tar::Builder::new(Vec::new());
        let record = [(key, value.as_bytes())];
        layer.append_pax_extensions(record).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_cksum();
        layer
            .append_data(&mut header, "file", b"x".as_slice())
            .unwrap();
        let layer = layer.into_inner().unwrap();
        let files = [
            ("config.json", &config(&[&layer])[..]),
            ("l", &layer),
            ("manifest.json", &saved(&["l"])),
        ];
        refused(&tar(&files).unwrap(), expected);
    }
}

#[test]
fn an_index_that_names_too_much_is_not_followed() {
    let other = json!({
        "digest": digest(b"an image"),
        "platform": { "os": "plan9", "architecture": "mips" },
    });
    let index = json!({ "manifests": vec![other; 257] }).to_string();
    refused(
        &tar(&[("index.json", index.as_bytes())]).unwrap(),
        "name more than 256 images",
    );
}

#[test]
fn long_names_and_many_entries_have_limits() {
    let mut long = tar::Header::new_gnu();
    long.set_entry_type(tar::EntryType::GNULongName);
    long.set_size(1 << 20);
    long.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&long, &vec![b'a'; 1 << 20][..]).unwrap();
    refused(&builder.into_inner().unwrap(), "longest name");
    let many = vec![("x", &b""[..]); 5000];
    refused(&tar(&many).unwrap(), "entries");
}

#[test]
fn links_within_the_file_are_followed_and_circles_are_not() {
    let layer: &[u8] = &tar(&[("file", b"layer")]).unwrap();
    let config = config(&[layer]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: Result<&[u8], &str>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match content {
            Ok(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, content).unwrap();
            }
            Err(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    };
    add("config.json", Ok(&config));
    add("one/layer.tar", Ok(layer));
    add("two/layer.tar", Err("../one/layer.tar"));
    add("a", Err("b"));
    add("b", Err("a"));
    add("out", Err("../../../../etc/passwd"));
    let base = builder.get_ref().clone();
    let with = |name: &str| {
        let mut all = base.clone();
        all.extend(tar(&[("manifest.json", &saved(&[name]))]).unwrap());
        all
    };
    open(&with("two/layer.tar")).unwrap();
    refused(&with("a"), "\"a\" is missing");
    refused(&with("out"), "\"out\" is missing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A good file with some bytes changed is refused, or is the same image.
    #[test]
    fn perturbed_files_never_panic(
        changes in proptest::collection::vec((0_usize..6000, any::<u8>()), 1..8),
    ) {
        let layer: &[u8] = &tar(&[("file", b"the layer")]).unwrap();
        let config = config(&[layer]);
        let files = [("config.json", &config[..]), ("l", layer), ("manifest.json", &saved(&["l"]))];
        let mut bytes = tar(&files).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = open(&bytes);
    }

    #[test]
    fn any_document_can_be_read(text in "[\\[\\]{}:,\"a-z0-9 ]{0,200}") {
        for name in ["manifest.json", "index.json"] {
            prop_assert!(open(&tar(&[(name, text.as_bytes())]).unwrap()).is_err());
        }
    }
}
