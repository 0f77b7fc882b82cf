//! More machines: each a data directory, joined to a platform, with a `tabbify supervisord` of its own; in
//! the network of the test, or in a place of the laboratory.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::Platform;
use crate::place::Place;
use crate::platform::binary;
use crate::role;

/// A machine that is to join, or has.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// Its data directory.
    pub data: PathBuf,
    log: PathBuf,
    place: Option<Place>,
    supervisord: Option<Child>,
}

impl Machine {
    /// A machine called `name`, with a directory among those of the platform's test.
    #[must_use]
    pub fn new(platform: &Platform, name: &str, place: Option<Place>) -> Self {
        Self::below(&platform.scratch(""), name, place)
    }

    /// The same, with a directory below `home`.
    #[must_use]
    pub fn below(home: &Path, name: &str, place: Option<Place>) -> Self {
        Self {
            name: name.to_owned(),
            data: home.join(name),
            log: home.join(format!("{name}.log")),
            place,
            supervisord: None,
        }
    }

    fn tabbify(&self, words: &[&str]) -> anyhow::Result<Command> {
        let program = binary("tabbify")?;
        let mut command = match &self.place {
            Some(place) => place.command(&program),
            None => Command::new(program),
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        command
            .args(words)
            .arg("--data-dir")
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Joins at `coordinator` with a token of the platform in `data`, and goes on as a supervisor.
    ///
    /// # Errors
    /// If it does not come up, with what it said.
    pub async fn join(&mut self, data: &Path, coordinator: &str) -> anyhow::Result<()> {
        let token = role::done(&["invite", &self.name], data).await?;
        let file = token_file(&self.data.with_extension("token"), &token)?;
        let file = file.to_str().context("a path of a test is text")?;
        let words = ["join", coordinator, "--token-file", file];
        let joined = self.tabbify(&words)?.spawn()?;
        self.until_it_serves(joined).await
    }

    /// Starts it again, without a token.
    ///
    /// # Errors
    /// As [`Machine::join`].
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let started = self.tabbify(&["supervisord"])?.spawn()?;
        self.until_it_serves(started).await
    }

    async fn until_it_serves(&mut self, mut child: Child) -> anyhow::Result<()> {
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("supervisord") {
                self.supervisord = Some(child);
                return Ok(());
            }
        }
        bail!("{}: {}\n{}", self.name, child.wait().await?, self.log())
    }

    /// Ends its supervisor as a crash does.
    ///
    /// # Errors
    /// If there is none.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut supervisord = self.supervisord.take().context("it runs")?;
        supervisord.kill().await?;
        Ok(())
    }

    /// Ends its supervisor as a service manager does.
    ///
    /// # Errors
    /// If there is none, or it does not end well.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        role::end(self.supervisord.take().context("it runs")?).await
    }

    /// Sends its supervisor a signal, as `kill` calls it: `-STOP`.
    ///
    /// # Errors
    /// If there is none, or it takes none.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let supervisord = self.supervisord.as_ref().and_then(Child::id);
        let pid = supervisord.context("it runs")?.to_string();
        let status = Command::new("kill").args([name, &pid]).status().await?;
        ensure!(status.success(), "kill {name} {pid}: {status}");
        Ok(())
    }

    /// Its place in the laboratory.
    ///
    /// # Errors
    /// If it has none.
    pub fn place(&self) -> anyhow::Result<&Place> {
        self.place.as_ref().context("it is in a place")
    }

    /// All that its supervisor has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A file with a join token that only its owner can read.
///
/// # Errors
/// Those of the file system.
pub fn token_file(path: &Path, token: &str) -> anyhow::Result<PathBuf> {
    let mut private = std::fs::OpenOptions::new();
    let mut file = private
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    std::io::Write::write_all(&mut file, token.as_bytes())?;
    Ok(path.to_path_buf())
}

/// `tabbify join` of a machine that is to be refused; gives what it says.
///
/// # Errors
/// If it is not refused.
pub async fn refused(coordinator: &str, token: &Path, data: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary("tabbify")?)
        .args(["join", coordinator, "--no-run", "--token-file"])
        .arg(token)
        .arg("--data-dir")
        .arg(data)
        .env("TABBIFY_LOG", "off")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(!output.status.success(), "it has joined");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

impl Drop for Machine {
    fn drop(&mut self) {
        // First whoever would start them again. The apps outlive it by design; a test takes them along.
        if let Some(supervisord) = &mut self.supervisord {
            let _ = supervisord.start_kill();
        }
        for pid in crate::process::runners(&self.data).unwrap_or_default() {
            let _ = std::process::Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status();
        }
    }
}
