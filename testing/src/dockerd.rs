//! A container engine of the test's own: Debian's `dockerd`, with all its files in one directory, in the
//! network of the test. What it ran has ended with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

/// LIMIT: how long it may take to listen, and to end.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A running engine. Its network must be the test's own ([`crate::apart`]): it changes the filters and the
/// forwarding of the one that it is in.
#[derive(Debug)]
pub struct Dockerd {
    dir: TempDir,
    child: Option<Child>,
    flags: Vec<String>,
}

impl Dockerd {
    /// Why none can be run here, if so, in words for `NOT RUN`.
    #[must_use]
    pub fn missing() -> Option<String> {
        let path = std::env::split_paths("/usr/sbin:/usr/bin:/sbin:/bin").collect::<Vec<_>>();
        let found = |program: &&str| path.iter().any(|dir| dir.join(program).is_file());
        let programs = [
            "dockerd",
            "containerd",
            "runc",
            "iptables",
            "busybox",
            "setpriv",
        ];
        if let Some(program) = programs.iter().find(|program| !found(program)) {
            return Some(format!("{program} is not installed"));
        }
        let status = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = status.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        let root = rustix::process::geteuid().is_root();
        (!root || !whole).then(|| "dockerd needs root".to_owned())
    }

    /// Starts one with these further flags.
    ///
    /// # Errors
    /// If it does not listen in time, with what it said.
    pub fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let mut this = Self {
            dir: tempfile::Builder::new()
                .prefix("tabbify-dockerd-")
                .tempdir()?,
            child: None,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        this.up()?;
        Ok(this)
    }

    /// Starts it again, with what it had.
    ///
    /// # Errors
    /// As [`Dockerd::start`].
    #[expect(clippy::disallowed_types, reason = "waits outside of any runtime")]
    pub fn up(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))?;
        let below = |name: &str| self.dir.path().join(name).into_os_string();
        let mut command = Command::new("setpriv");
        // It ends with the test, however that ends; its own containerd does so with it.
        command.args(["--pdeathsig", "TERM", "dockerd", "--host", &self.address()]);
        for flag in ["data-root", "exec-root", "pidfile"] {
            command.arg(format!("--{flag}")).arg(below(flag));
        }
        // Away from those of an engine that the machine itself may have.
        for what in ["", "-plugins"] {
            let name = format!("tabbify-test-{}{what}", std::process::id());
            command.args([&format!("--containerd{what}-namespace"), &name]);
        }
        command.args(&self.flags).env_remove("DOCKER_HOST");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("setpriv (util-linux)")?);
        let began = std::time::Instant::now();
        // It listens before it answers.
        while self.client(&["version"]).is_err() {
            let ended = self.child.as_mut().context("it was started")?.try_wait()?;
            if ended.is_some() || began.elapsed() > WATCHDOG {
                bail!("dockerd does not come up:\n{}", self.log());
            }
            pause();
        }
        Ok(())
    }

    /// Ends it as a crash does; what it ran goes on.
    ///
    /// # Errors
    /// If it is not up.
    #[expect(clippy::disallowed_types, reason = "waits outside of any runtime")]
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("it is up")?;
        let kept = self.dir.path().join("exec-root/containerd/containerd.pid");
        let containerd: u32 = std::fs::read_to_string(&kept)?.trim().parse()?;
        child.kill()?;
        child.wait()?;
        // Its containerd dies with it, a moment later; the next engine would take it for alive.
        let began = std::time::Instant::now();
        while crate::process::runs(containerd) {
            ensure!(began.elapsed() < WATCHDOG, "containerd does not end");
            pause();
        }
        // As a zombie it would still be taken for alive.
        std::fs::remove_file(kept)?;
        Ok(())
    }

    /// Ends it in order, and what it runs unless its flags say otherwise.
    ///
    /// # Errors
    /// If it does not end.
    #[expect(clippy::disallowed_types, reason = "waits outside of any runtime")]
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = child.id().to_string();
        let asked = Command::new("kill").arg(&pid).status()?;
        ensure!(asked.success(), "dockerd cannot be asked to end");
        let began = std::time::Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > WATCHDOG {
                child.kill()?;
                child.wait()?;
                bail!("dockerd does not end:\n{}", self.log());
            }
            pause();
        }
        Ok(())
    }

    /// `unix://…`, for `DOCKER_HOST`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// All its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What the engine's own client prints, a line for each thing.
    ///
    /// # Errors
    /// If it fails.
    pub fn client(&self, line: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("docker");
        command.arg("--host").arg(self.address()).args(line);
        let output = command.output().context("docker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {line:?}: {said}");
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// All that it holds: containers, networks but its own three, images, volumes, mounts below its
    /// directory. A test compares it with what was there before.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn holds(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for (what, line) in [
            ("container", &["ps", "--all", "--format", "{{.Names}}"][..]),
            (
                "network",
                &[
                    "network",
                    "ls",
                    "--filter",
                    "type=custom",
                    "--format",
                    "{{.Name}}",
                ],
            ),
            (
                "image",
                &["images", "--all", "--format", "{{.Repository}} {{.ID}}"],
            ),
            ("volume", &["volume", "ls", "--quiet"]),
        ] {
            let listed = self.client(line)?;
            all.extend(listed.into_iter().map(|line| format!("{what} {line}")));
        }
        // The others are the engine's own: it mounts its directories over themselves.
        let of_containers =
            |place: &&String| place.contains("overlay2/") || place.contains("/netns/");
        let mounts = self.mounts()?;
        let mounts = mounts.iter().filter(of_containers);
        all.extend(
            mounts
                .filter(|place| !place.ends_with("/default"))
                .map(|place| format!("mount {place}")),
        );
        all.sort_unstable();
        Ok(all)
    }

    /// Where something is mounted below its directory, the innermost last.
    fn mounts(&self) -> anyhow::Result<Vec<String>> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let below = self.dir.path().display().to_string();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let ours = places.filter(|place| place.starts_with(&below));
        Ok(ours.map(str::to_owned).collect())
    }
}

#[expect(clippy::disallowed_methods, reason = "waits outside of any runtime")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Ok(ids) = self.client(&["ps", "--all", "--quiet"])
            && !ids.is_empty()
        {
            let mut line = vec!["rm", "--force", "--volumes"];
            line.extend(ids.iter().map(String::as_str));
            // What is left then ends with the engine.
            drop(self.client(&line));
        }
        drop(self.stop());
        // It mounts its directory over itself, and leaves that so if it was killed.
        for place in self.mounts().unwrap_or_default().iter().rev() {
            drop(Command::new("umount").args(["--lazy", place]).status());
        }
    }
}
