//! The data directory: one folder for everything that a platform keeps.
//!
//! ```text
//! <data>/            0700
//!   keys/            root, issuer, owner, the node's mesh key and the vault's, 0600 each
//!   vault/           the values of secrets, sealed; worth nothing without the vault's key
//!   tokens/          what roles that run alone show to the log, 0600 each
//!   log/             the event log
//!   consumers/       how far its consumers have come
//!   read/            the read model; may be deleted
//!   log.sock read.sock auth.sock vault.sock coordinator.sock mesh.sock   where other processes of this user reach the roles
//!   node.key host.key   the machine's WireGuard key, and what it signs spawn tickets with, 0600
//!   membership.json  what a machine that joined knows of its platform, 0600
//!   coordinator.key coordinator.json   the coordinator's TLS key, 0600, and where it listens
//!   relay.key        the relay's key, 0600
//!   snapshots/       what roles know of the log, to start with while it is away; may be deleted
//!   log.key          signs the log's checkpoints, 0600
//!   checkpoints/     what the log was, signed; best kept elsewhere ([log] checkpoints)
//!   objects/tabbify-apps/apps/<uuid>/v<N>/…   artifacts
//!   runners/<app>/<instance>/                 one living or just ended runner each
//!   logs/<app>/<instance>.ndjson              what apps print
//!   cache/           compiled code; may be deleted
//!   up.json          the running `tabbify up`, held locked while it runs
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tabbify_process::{env, files};

/// What `up.json` says about the process that holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UpRecord {
    /// Its process id.
    pub(crate) pid: u32,
    /// Where it answers: its node, or of a supervisor, its address in the mesh.
    pub(crate) server: String,
}

/// A data directory; clones name the same one.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// Proof that this process is the directory's only `tabbify up`; gone with the process.
#[derive(Debug)]
pub(crate) struct Held(File);

impl DataDir {
    /// `given`, or `TABBIFY_DATA_DIR`, or `tabbify` in the user's data directory (XDG).
    pub(crate) fn choose(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let chosen = given
            .or_else(|| env::read(env::DATA_DIR).map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(env::read(env::XDG_DATA_HOME)?).join("tabbify")))
            .or_else(|| Some(PathBuf::from(env::read(env::HOME)?).join(".local/share/tabbify")))
            .context("no data directory: give --data-dir, or set HOME")?;
        Ok(Self(std::path::absolute(chosen)?))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory if it is not there; says whether it was new.
    pub(crate) fn create(&self) -> anyhow::Result<bool> {
        let new = !self.0.join("log").exists();
        files::private_dir(&self.0).with_context(|| format!("cannot make {}", self.0.display()))?;
        files::private_dir(&self.objects())?;
        Ok(new)
    }

    /// Where keys are.
    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// The node's WireGuard key.
    pub(crate) fn node_key(&self) -> PathBuf {
        self.0.join("node.key")
    }

    /// The key that signs spawn tickets on this machine.
    pub(crate) fn host_key(&self) -> PathBuf {
        self.0.join("host.key")
    }

    /// What the machine has kept of having joined.
    pub(crate) fn membership(&self) -> PathBuf {
        self.0.join("membership.json")
    }

    /// The coordinator's TLS key; join tokens name its digest.
    pub(crate) fn coordinator_key(&self) -> PathBuf {
        self.0.join("coordinator.key")
    }

    /// Where the coordinator says where machines reach it.
    pub(crate) fn coordinator_record(&self) -> PathBuf {
        self.0.join("coordinator.json")
    }

    /// The relay's key; its clients know its public half.
    pub(crate) fn relay_key(&self) -> PathBuf {
        self.0.join("relay.key")
    }

    /// The key that signs the log's checkpoints.
    pub(crate) fn log_key(&self) -> PathBuf {
        self.0.join("log.key")
    }

    /// Where checkpoints are, unless they are kept in a better place.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Where the log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Where consumers keep how far they have come.
    pub(crate) fn consumers(&self) -> PathBuf {
        self.0.join("consumers")
    }

    /// Where the read model is.
    pub(crate) fn read(&self) -> PathBuf {
        self.0.join("read")
    }

    /// Where what roles know of the log is stored: the role that folds it has a file named after its
    /// fold, and roles that only check tokens a directory of their own.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    /// What `role` shows to the log.
    pub(crate) fn token(&self, role: &str) -> PathBuf {
        self.0.join("tokens").join(role)
    }

    /// Where artifacts are: the bucket `tabbify-apps` of the local object store.
    pub(crate) fn objects(&self) -> PathBuf {
        self.0.join("objects/tabbify-apps")
    }

    /// The same as a URL, as runners get it.
    pub(crate) fn store_url(&self) -> String {
        // What a URL gives a meaning of its own is escaped; runners decode it.
        let path = self.objects().display().to_string();
        let escaped = path
            .replace('%', "%25")
            .replace('?', "%3F")
            .replace('#', "%23");
        format!("file://{}", escaped.replace(' ', "%20"))
    }

    /// Becomes the directory's only `tabbify up`.
    pub(crate) fn hold(&self) -> anyhow::Result<Held> {
        let path = self.0.join("up.json");
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options
            .open(&path)
            .with_context(|| path.display().to_string())?;
        if file.try_lock().is_err() {
            match self.running() {
                Some(up) => bail!(
                    "{} is in use by tabbify (pid {}), which answers at {}. \
                     Use it, or give another --data-dir",
                    self.0.display(),
                    up.pid,
                    up.server
                ),
                None => bail!("{} is in use by another tabbify", self.0.display()),
            }
        }
        Ok(Held(file))
    }

    /// The `tabbify up` that runs on this directory, if one does and has said so.
    pub(crate) fn running(&self) -> Option<UpRecord> {
        let path = self.0.join("up.json");
        let file = File::open(&path).ok()?;
        if file.try_lock_shared().is_ok() {
            return None;
        }
        serde_json::from_slice(&std::fs::read(&path).ok()?).ok()
    }
}

impl Held {
    /// Says who holds it.
    pub(crate) fn record(&mut self, record: &UpRecord) -> anyhow::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        self.0.write_all(&serde_json::to_vec(record)?)?;
        Ok(())
    }

    /// Forgets what was said before, so that nobody takes an old record for this process.
    pub(crate) fn clear(&mut self) -> anyhow::Result<()> {
        let mut before = String::new();
        self.0.read_to_string(&mut before)?;
        self.0.set_len(0)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_up_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(dir.path().join("data"))).unwrap();
        assert!(data.create().unwrap());
        assert!(data.running().is_none());
        let mut held = data.hold().unwrap();
        held.record(&UpRecord {
            pid: 7,
            server: "http://localhost:1".to_owned(),
        })
        .unwrap();
        assert_eq!(data.running().unwrap().pid, 7);
        let refused = data.hold().unwrap_err().to_string();
        assert!(
            refused.contains("pid 7") && refused.contains("http://localhost:1"),
            "{refused}"
        );
        drop(held);
        assert!(data.running().is_none());
        data.hold().unwrap();
    }
}
