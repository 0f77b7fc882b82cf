//! What the tests make: layers entry by entry, and archives of both forms around them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::{Digest, Image, Limits, Platform, Result};

/// How a layer lies in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    Plain,
    Gzip,
    Zstd,
}

/// Which of the two forms of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Layout,
    Saved,
}

/// A layer under construction.
pub(super) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// An entry of any kind and name, however wrong.
    pub(super) fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = header(kind, name, content.len() as u64);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).expect("memory takes it");
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    pub(super) fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, to, b"")
    }

    pub(super) fn link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name, to, b"")
    }

    /// A file with records before it.
    pub(super) fn pax(mut self, name: &str, records: &[(&str, &[u8])], content: &[u8]) -> Self {
        let appended = self.0.append_pax_extensions(records.iter().copied());
        appended.expect("memory takes it");
        self.entry(EntryType::Regular, name, "", content)
    }

    pub(super) fn tar(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}

pub(super) fn header(kind: EntryType, name: &str, len: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory {
        0o755
    } else {
        0o644
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(len);
    header.set_cksum();
    header
}

pub(super) fn pack(tar: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::Plain => tar.to_vec(),
        Packed::Gzip => {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(tar).expect("memory takes it");
            gzip.finish().expect("memory takes it")
        }
        Packed::Zstd => zstd::encode_all(tar, 1).expect("memory takes it"),
    }
}

/// An archive under construction.
pub(super) struct Archive {
    pub(super) form: Form,
    pub(super) packed: Packed,
    pub(super) architecture: &'static str,
    pub(super) settings: serde_json::Value,
    /// Tars, the lowest first.
    pub(super) layers: Vec<Vec<u8>>,
}

impl Archive {
    pub(super) fn of(layers: Vec<Layer>) -> Self {
        Self {
            form: Form::Layout,
            packed: Packed::Gzip,
            architecture: "amd64",
            settings: json!({"Entrypoint": ["/app"]}),
            layers: layers.into_iter().map(Layer::tar).collect(),
        }
    }

    pub(super) fn config(&self) -> Vec<u8> {
        let diffs: Vec<String> = self
            .layers
            .iter()
            .map(|tar| Digest::of(tar).to_string())
            .collect();
        let config = json!({
            "os": "linux", "architecture": self.architecture, "config": self.settings,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        config.to_string().into_bytes()
    }

    /// The parts of the archive by name.
    pub(super) fn parts(&self) -> Vec<(String, Vec<u8>)> {
        let config = self.config();
        let layers: Vec<Vec<u8>> = self
            .layers
            .iter()
            .map(|tar| pack(tar, self.packed))
            .collect();
        match self.form {
            Form::Layout => layout(&config, &layers, self.architecture),
            Form::Saved => saved(&config, &layers),
        }
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        let files = self.parts().into_iter();
        let archive = files.fold(Layer::new(), |tar, (name, content)| {
            tar.entry(EntryType::Regular, &name, "", &content)
        });
        archive.tar()
    }

    pub(super) fn write(&self, directory: &Path) -> PathBuf {
        write(directory, &self.tar())
    }

    /// What its file system is, one line an entry.
    pub(super) fn listing(&self) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().expect("a directory");
        let image = open(&self.write(dir.path()))?;
        let mut tar = Vec::new();
        let flat = image.flatten(dir.path())?;
        flat.write_to(&mut tar).expect("memory takes it");
        Ok(listing(&tar))
    }

    /// Its paths, whatever bytes they are of.
    pub(super) fn listing_of_any(&self) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().expect("a directory");
        let image = open(&self.write(dir.path()))?;
        let mut tar = Vec::new();
        let flat = image.flatten(dir.path())?;
        flat.write_to(&mut tar).expect("memory takes it");
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().expect("a tar");
        let paths = entries.map(|entry| {
            let entry = entry.expect("an entry");
            String::from_utf8_lossy(&entry.path_bytes()).into_owned()
        });
        Ok(paths.collect())
    }
}

pub(super) fn write(directory: &Path, tar: &[u8]) -> PathBuf {
    let path = directory.join("image.tar");
    std::fs::write(&path, tar).expect("the file is written");
    path
}

pub(super) fn open(path: &Path) -> Result<Image> {
    let amd64 = Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
    };
    Image::open(path, &amd64, small())
}

pub(super) fn small() -> Limits {
    Limits {
        entries: 2000,
        bytes: 512 << 20,
        name_bytes: 1 << 20,
        ..Limits::default()
    }
}

pub(super) fn blob(content: &[u8]) -> (String, Vec<u8>) {
    (
        format!("blobs/sha256/{}", Digest::of(content).hex()),
        content.to_vec(),
    )
}

fn layout(config: &[u8], layers: &[Vec<u8>], architecture: &str) -> Vec<(String, Vec<u8>)> {
    let descriptor =
        |content: &[u8]| json!({"digest": Digest::of(content).to_string(), "size": content.len()});
    let listed: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    let manifest =
        json!({"schemaVersion": 2, "config": descriptor(config), "layers": listed}).to_string();
    let mut of_image = descriptor(manifest.as_bytes());
    of_image["platform"] = json!({"os": "linux", "architecture": architecture});
    let index = json!({"schemaVersion": 2, "manifests": [of_image]}).to_string();
    let mut parts = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
        blob(manifest.as_bytes()),
        blob(config),
    ];
    for layer in layers {
        // One content is one blob, however often it is used.
        if !parts.iter().any(|(name, _)| *name == blob(layer).0) {
            parts.push(blob(layer));
        }
    }
    parts
}

fn saved(config: &[u8], layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let name = format!("{}.json", Digest::of(config).hex());
    let names: Vec<String> = (0..layers.len())
        .map(|at| format!("{at}/layer.tar"))
        .collect();
    let manifest = json!([{"Config": name, "RepoTags": ["app:1"], "Layers": names}]).to_string();
    let mut parts = vec![
        ("manifest.json".to_owned(), manifest.into_bytes()),
        (name, config.to_vec()),
    ];
    parts.extend(names.into_iter().zip(layers.iter().cloned()));
    parts
}

/// `type mode uid:gid path content-or-target`, in the order of the tar.
pub(super) fn listing(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("a tar");
    let lines = entries.map(|entry| {
        let mut entry = entry.expect("an entry");
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            EntryType::Regular => '-',
            EntryType::Directory => 'd',
            EntryType::Symlink => 'l',
            EntryType::Link => 'h',
            EntryType::Fifo => 'p',
            other => panic!("{other:?}"),
        };
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let target = entry
            .link_name_bytes()
            .map(|link| String::from_utf8_lossy(&link).into_owned());
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).expect("text");
        let (mode, uid) = (
            header.mode().expect("a mode"),
            header.uid().expect("a user"),
        );
        let rest = target.map_or(content, |target| format!("-> {target}"));
        format!("{kind} {mode:o} {uid} {path} {rest}")
            .trim_end()
            .to_owned()
    });
    lines.collect()
}
