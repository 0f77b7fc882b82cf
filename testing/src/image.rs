//! Images made by tests, from scratch: one layer with busybox and files of the test's own.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::Digest as _;

/// Where Debian's `busybox-static` puts it.
const BUSYBOX: &str = "/bin/busybox";
/// The programs of it that tests use.
const APPLETS: [&str; 16] = [
    "cat", "env", "grep", "head", "httpd", "id", "ls", "mkdir", "nc", "printf", "pwd", "sh",
    "sleep", "tail", "touch", "wget",
];

/// An image to be.
#[derive(Debug, Clone)]
pub struct Image {
    config: Value,
    architecture: String,
    files: Vec<(String, u32, Vec<u8>)>,
    busybox: bool,
    traversing: bool,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            config: json!({ "Env": ["PATH=/bin"] }),
            architecture: machine().to_owned(),
            files: Vec::new(),
            busybox: true,
            traversing: false,
        }
    }
}

/// What images call this machine.
fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Image {
    /// One that runs a script of busybox's shell.
    #[must_use]
    pub fn script(script: &str) -> Self {
        Self::default().with("Cmd", json!(["sh", "-c", script]))
    }

    /// With a key of the image's configuration, as the OCI image specification has them.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// For another machine.
    #[must_use]
    pub fn for_architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// With a file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.to_owned(), mode, content.into()));
        self
    }

    /// Without busybox: nothing can be run in it.
    #[must_use]
    pub fn empty(mut self) -> Self {
        self.busybox = false;
        self
    }

    /// With a file in its layer that would be written outside of the image.
    #[must_use]
    pub const fn traversing(mut self) -> Self {
        self.traversing = true;
        self
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut folder = tar::Header::new_gnu();
        folder.set_entry_type(tar::EntryType::Directory);
        folder.set_mode(0o1777);
        of_root(&mut folder);
        folder.set_size(0);
        for name in ["tmp/", "data/", "bin/"] {
            tar.append_data(&mut folder.clone(), name, &[][..])?;
        }
        if self.busybox {
            append(&mut tar, "bin/busybox", 0o755, &std::fs::read(BUSYBOX)?)?;
            for applet in APPLETS {
                let mut link = tar::Header::new_gnu();
                link.set_entry_type(tar::EntryType::Symlink);
                link.set_size(0);
                link.set_mode(0o777);
                of_root(&mut link);
                tar.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
            }
        }
        for (path, mode, content) in &self.files {
            append(&mut tar, path, *mode, content)?;
        }
        if self.traversing {
            // No builder of archives takes such a name; whoever writes one does it by hand.
            let mut header = tar::Header::new_ustar();
            let name = b"../../tmp/escaped";
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_mode(0o644);
            header.set_size(0);
            of_root(&mut header);
            header.set_cksum();
            tar.append(&header, &[][..])?;
        }
        Ok(tar.into_inner()?)
    }

    fn config(&self, layer: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
        }))?)
    }

    /// As `docker save` writes it. The digest by which engines know the image.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save_docker(&self, to: &Path) -> anyhow::Result<String> {
        let layer = self.layer()?;
        let config = self.config(&layer)?;
        let manifest = json!([{
            "Config": "config.json",
            "RepoTags": ["somebody/else:latest"],
            "Layers": ["one/layer.tar"],
        }]);
        let mut tar = tar::Builder::new(std::fs::File::create(to)?);
        append(&mut tar, "one/layer.tar", 0o644, &layer)?;
        append(&mut tar, "config.json", 0o644, &config)?;
        append(
            &mut tar,
            "manifest.json",
            0o644,
            &serde_json::to_vec(&manifest)?,
        )?;
        tar.into_inner()?.sync_all()?;
        Ok(digest(&config))
    }

    /// As an OCI layout, its layer compressed. The digest by which engines know the image.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save_oci(&self, to: &Path) -> anyhow::Result<String> {
        let layer = self.layer()?;
        let config = self.config(&layer)?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&layer)?;
        let packed = packed.finish()?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
        }))?;
        let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        named["platform"] = json!({ "os": "linux", "architecture": self.architecture });
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [named] }))?;
        let mut tar = tar::Builder::new(std::fs::File::create(to)?);
        append(
            &mut tar,
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        append(&mut tar, "index.json", 0o644, &index)?;
        for blob in [&config, &packed, &manifest] {
            let name = digest(blob).replace("sha256:", "blobs/sha256/");
            append(&mut tar, &name, 0o644, blob)?;
        }
        tar.into_inner()?.sync_all()?;
        Ok(digest(&config))
    }
}

/// A number that is left out is not one to every reader.
fn of_root(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
}

fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    of_root(&mut header);
    tar.append_data(&mut header, name, content)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

/// `sha256:` and digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}
