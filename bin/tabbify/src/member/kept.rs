//! A machine that has joined starts again: what it has kept of its platform, and the process that one of its
//! roles runs in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tabbify_membership::Membership;
use tabbify_process::{Clock, SystemClock, Tasks, files, signals};
use tabbify_types::Digest;

use super::{Beginning, Member, Secrets, Section};
use crate::data_dir::{DataDir, Held, UpRecord};
use crate::role;

/// What a machine keeps of having joined: `membership.json`, 0600.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Where the coordinator answers, as `host:port`: as it was said to `tabbify join`.
    pub(crate) coordinator: String,
    /// Where that led when it was looked up last.
    #[serde(default)]
    pub(crate) known: Vec<SocketAddr>,
    /// The digest of its TLS key, as the join token pinned it.
    pub(crate) pin: Digest,
    /// What it said last.
    pub(crate) membership: Membership,
}

impl Kept {
    /// What the machine of a data directory has kept.
    pub(crate) fn read(data: &DataDir) -> anyhow::Result<Self> {
        let path = data.membership();
        let bytes = match files::read_secret(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is no member of a platform yet. Run: tabbify join <coordinator> --data-dir {}",
                data.path().display(),
                data.path().display()
            ),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        serde_json::from_slice(&bytes).with_context(|| {
            let path = path.display();
            format!("{path} is damaged or of another version. Run `tabbify join` with a new token")
        })
    }

    /// Keeps it for the next start.
    pub(crate) fn write(&self, data: &DataDir) -> anyhow::Result<()> {
        let path = data.membership();
        let text = serde_json::to_vec_pretty(self)?;
        files::write_atomic(&path, &text, 0o600).with_context(|| path.display().to_string())
    }
}

/// The process of a role on a machine that has joined: the only one in its data directory, it ends by a
/// signal, and it is a member of the mesh without asking anybody.
pub(crate) struct Again {
    /// The machine in the mesh.
    pub(crate) member: Member,
    /// What the process does.
    pub(crate) tasks: Tasks,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    held: Held,
}

impl Again {
    /// Takes the data directory and becomes the member that it was.
    pub(crate) async fn start(
        data: &DataDir,
        kept: Kept,
        section: &Section,
    ) -> anyhow::Result<Self> {
        let mut held = data.hold()?;
        held.clear()?;
        let tasks = Tasks::new();
        signals::stop_on_signals(&tasks)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (beginning, secrets) = (Beginning::again(kept), Secrets::load_or_create(data)?);
        let member = Member::start(data, beginning, secrets, section, &clock, &tasks).await?;
        Ok(Self {
            member,
            tasks,
            clock,
            held,
        })
    }

    /// Says in the directory and to whoever started it that the role serves, and serves until a signal.
    pub(crate) async fn serve(mut self, said: &str) -> anyhow::Result<()> {
        self.held.record(&UpRecord {
            pid: std::process::id(),
            server: self.member.address().to_string(),
        })?;
        role::say(said);
        role::until_stopped(&self.tasks).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::tests::membership;

    #[test]
    fn kept_for_the_next_start() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::choose(Some(home.path().to_path_buf())).unwrap();
        let missing = Kept::read(&data).unwrap_err().to_string();
        assert!(missing.contains("tabbify join"), "{missing}");
        let kept = Kept {
            coordinator: "apps.example.com:8888".to_owned(),
            known: vec!["192.0.2.1:8888".parse().unwrap()],
            pin: Digest::of(b"tls"),
            membership: membership(Some(1)),
        };
        kept.write(&data).unwrap();
        let again = Kept::read(&data).unwrap();
        assert_eq!(again.membership, kept.membership);
        assert_eq!(again.known, kept.known);
        assert_eq!((again.coordinator, again.pin), (kept.coordinator, kept.pin));
        // What an earlier release has kept does not say where the name led.
        let text = std::fs::read_to_string(data.membership()).unwrap();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document.as_object_mut().unwrap().remove("known");
        files::write_atomic(&data.membership(), document.to_string().as_bytes(), 0o600).unwrap();
        assert!(Kept::read(&data).unwrap().known.is_empty());
        files::write_atomic(&data.membership(), b"{}", 0o600).unwrap();
        let damaged = format!("{:#}", Kept::read(&data).unwrap_err());
        assert!(damaged.contains("tabbify join"), "{damaged}");
    }
}
