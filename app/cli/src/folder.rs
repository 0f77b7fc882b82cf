//! The project on disk: its manifest, its lock file, and what it looks like without a manifest.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tabbify_manifest::limits::FILE_LEN_MAX;
use tabbify_manifest::{Detected, Lock, LockEntry, Manifest, ManifestErrors, Parsed};
use tabbify_types::SigningKeyId;

use crate::error::{Code, Failure, Result};
use crate::files;

/// The manifest's name.
pub(crate) const MANIFEST: &str = "tabbify.toml";
/// Its name in the legacy form.
const LEGACY: &str = "manifest.toml";
/// The lock file's name.
pub(crate) const LOCK: &str = "tabbify.lock";
/// LIMIT: a `Cargo.toml` or `Dockerfile` that is looked into, in bytes.
const LOOKED_INTO_MAX: usize = 1024 * 1024;

/// A folder with an app.
pub(crate) struct Folder(PathBuf);

/// While it lives, no other tcli decides which app this folder is.
pub(crate) struct Guard(
    #[expect(dead_code, reason = "holds the lock until it is dropped")] Option<File>,
);

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = self.0 == Path::new(".");
        if here {
            f.write_str("This folder")
        } else {
            self.0.display().fmt(f)
        }
    }
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// A path of the manifest, which is relative to the folder.
    pub(crate) fn join(&self, path: &str) -> PathBuf {
        // `./x` reads worse than `x` in messages, and means the same.
        if self.0 == Path::new(".") {
            PathBuf::from(path)
        } else {
            self.0.join(path)
        }
    }

    /// The folder's own name.
    pub(crate) fn name(&self) -> Option<String> {
        let whole = self.0.canonicalize().ok()?;
        Some(whole.file_name()?.to_str()?.to_owned())
    }

    /// The manifest; its absence is an error.
    pub(crate) fn manifest(&self) -> Result<Parsed> {
        self.manifest_if_any()?.ok_or_else(|| {
            Failure::new(Code::NoManifest, format!("{self} has no {MANIFEST}."))
                .fix("Run: tcli init")
        })
    }

    /// The manifest, of today's form or of an earlier one.
    pub(crate) fn manifest_if_any(&self) -> Result<Option<Parsed>> {
        for name in [MANIFEST, LEGACY] {
            if let Some(text) = self.read(name, FILE_LEN_MAX)? {
                let parsed = Manifest::parse(&text, name);
                return parsed
                    .map(Some)
                    .map_err(|errors| mistakes(Code::InvalidManifest, &errors));
            }
        }
        Ok(None)
    }

    /// Whether there is something under a manifest's name, readable or not.
    pub(crate) fn manifest_file_exists(&self) -> bool {
        [MANIFEST, LEGACY]
            .iter()
            .any(|name| self.join(name).symlink_metadata().is_ok())
    }

    /// The whole lock file; empty if there is none. A legacy file counts for `platform`.
    pub(crate) fn locks(&self, platform: &SigningKeyId) -> Result<Lock> {
        let Some(text) = self.read(LOCK, FILE_LEN_MAX)? else {
            return Ok(Lock::default());
        };
        Lock::parse(&text, LOCK, platform.as_str())
            .map_err(|errors| mistakes(Code::InvalidLock, &errors))
    }

    /// Which app this folder is on `platform`, as far as the lock file says.
    pub(crate) fn lock(&self, platform: &SigningKeyId) -> Result<Option<LockEntry>> {
        Ok(self
            .locks(platform)?
            .servers
            .get(platform.as_str())
            .copied())
    }

    /// Records which app this folder is on `platform`. The caller holds the [`Guard`].
    pub(crate) fn save_lock(&self, platform: &SigningKeyId, entry: LockEntry) -> Result<()> {
        let mut lock = self.locks(platform)?;
        if lock.servers.insert(platform.to_string(), entry) == Some(entry) {
            return Ok(());
        }
        let path = self.join(LOCK);
        files::replace(&path, lock.to_string().as_bytes(), 0o644)
            .map_err(|error| Failure::file("write", &path, &error))
    }

    /// Waits until no other tcli works on the lock file.
    pub(crate) fn guard(&self) -> Guard {
        // The folder itself is locked: nothing is left behind. A file system without locks gets
        // none; two pushes at once are then told apart by the platform, which refuses the name.
        let held = File::open(&self.0).and_then(|folder| folder.lock().map(|()| folder));
        Guard(held.ok())
    }

    /// What the folder looks like, most certain sign first.
    pub(crate) fn detect(&self) -> Result<Detected> {
        if let Some(crate_name) = self.component_crate()? {
            return Ok(Detected::RustWasm { crate_name });
        }
        if let Some(path) = self.only_component()? {
            return Ok(Detected::Component { path });
        }
        match self.read("Dockerfile", LOOKED_INTO_MAX)? {
            Some(text) => Ok(Detected::Dockerfile {
                expose: exposed(&text),
            }),
            None => Ok(Detected::Nothing),
        }
    }

    /// Name of the library, if the folder is a Rust crate that builds a `cdylib`.
    fn component_crate(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Cargo {
            package: Option<Package>,
            lib: Option<Lib>,
        }
        #[derive(Deserialize)]
        struct Package {
            name: String,
        }
        #[derive(Deserialize)]
        struct Lib {
            name: Option<String>,
            #[serde(default, rename = "crate-type")]
            crate_type: Vec<String>,
        }

        let Some(text) = self.read("Cargo.toml", LOOKED_INTO_MAX)? else {
            return Ok(None);
        };
        // A Cargo.toml that cargo itself will not take is cargo's to complain about.
        let Ok(Cargo {
            package: Some(package),
            lib: Some(lib),
        }) = toml::from_str(&text)
        else {
            return Ok(None);
        };
        let is_component = lib.crate_type.iter().any(|kind| kind == "cdylib");
        Ok(is_component.then_some(lib.name.unwrap_or(package.name)))
    }

    /// The `*.wasm` of the folder, if there is exactly one.
    fn only_component(&self) -> Result<Option<String>> {
        let failed = |error| Failure::file("list", &self.0, &error);
        let mut found = Vec::new();
        for entry in self.0.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            found.extend(
                name.to_str()
                    .filter(|name| name.ends_with(".wasm"))
                    .map(str::to_owned),
            );
        }
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    fn read(&self, name: &str, max: usize) -> Result<Option<String>> {
        let path = self.join(name);
        files::read_text(&path, max).map_err(|error| Failure::file("read", &path, &error))
    }
}

/// All mistakes of a file, one a line.
pub(crate) fn mistakes(code: Code, errors: &ManifestErrors) -> Failure {
    Failure::new(code, errors.to_string())
}

/// The only TCP port that a Dockerfile exposes.
fn exposed(dockerfile: &str) -> Option<u16> {
    let ports = dockerfile.lines().filter_map(|line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        word.eq_ignore_ascii_case("expose").then_some(rest)
    });
    let mut ports = ports.flat_map(str::split_whitespace);
    let first = ports.next()?;
    let number = first.strip_suffix("/tcp").unwrap_or(first).parse().ok();
    if ports.next().is_none() { number } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ports() {
        let check = |text: &str, port: Option<u16>| assert_eq!(exposed(text), port, "{text}");
        check("FROM x\nEXPOSE 3000\n", Some(3000));
        check("expose 80/tcp", Some(80));
        check("EXPOSE 80 443", None);
        check("EXPOSE 80\nEXPOSE 443", None);
        check("EXPOSE $PORT", None);
        check("EXPOSED 80\n# EXPOSE 80", None);
        check("EXPOSE 53/udp", None);
        check("", None);
    }

    proptest::proptest! {
        #[test]
        fn any_dockerfile_can_be_looked_into(text in "(EXPOSE |\\PC|\n|[0-9]|/tcp){0,40}") {
            let _ = exposed(&text);
        }
    }
}
