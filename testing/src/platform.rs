//! A platform of real processes, in a directory of its own, gone with the test.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use anyhow::{Context as _, bail};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::http::{self, SendBody};

/// The project's folder.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// A program of ours, built before the tests by `cargo build --workspace --bins`.
///
/// # Errors
/// If it is not there, with what to run.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    // Beside the test: target/<profile>/deps/<test>.
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("target/<profile>/deps")?;
    let path = profile.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing. Run: cargo build --workspace --bins",
            path.display()
        );
    }
    Ok(path)
}

/// Builds an example or fixture (a path below the project's folder) as [`Platform::copy_app`] shares it:
/// the first time, its dependencies come from the network.
///
/// # Errors
/// If it cannot be built.
pub fn build_app(from: &str) -> anyhow::Result<()> {
    let target = root().join("target/wasm-apps");
    std::fs::create_dir_all(&target)?;
    let built = std::process::Command::new("cargo")
        .args([
            "build",
            "--release",
            "--target",
            "wasm32-wasip2",
            "--target-dir",
        ])
        .arg(target)
        .current_dir(root().join(from))
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .output()?;
    let complained = String::from_utf8_lossy(&built.stderr);
    anyhow::ensure!(built.status.success(), "{from}: {complained}");
    Ok(())
}

/// A running platform.
#[derive(Debug)]
pub struct Platform {
    home: TempDir,
    env: Vec<(String, String)>,
    up: Option<Child>,
    said: Option<BufReader<ChildStdout>>,
    /// `127.0.0.1:port` of its node.
    pub authority: String,
    port: u16,
}

impl Platform {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// If it does not come up, with what it said.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// Starts one on a free port with this configuration.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub async fn start_with(config: &str) -> anyhow::Result<Self> {
        Self::start_in(config, &[]).await
    }

    /// The same, with these variables in its environment.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub async fn start_in(config: &str, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let env = env.iter();
        let env = env.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let home = tempfile::Builder::new().prefix("tabbify-e2e-").tempdir()?;
        let mut platform = Self {
            home,
            env: env.collect(),
            up: None,
            said: None,
            authority: String::new(),
            port: 0,
        };
        std::fs::write(platform.config_path(), config)?;
        platform.up().await?;
        Ok(platform)
    }

    /// Ends `tabbify up` as a crash does, and starts it with this configuration.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub async fn restart_with(&mut self, config: &str) -> anyhow::Result<()> {
        self.kill().await?;
        std::fs::write(self.config_path(), config)?;
        self.up().await
    }

    /// Starts `tabbify up` again, on the port it had.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub async fn up(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut up = Command::new(binary("tabbify")?)
            .args([
                "up",
                "--listen",
                &format!("127.0.0.1:{}", self.port),
                "--data-dir",
            ])
            .arg(self.data())
            .arg("--config")
            .arg(self.config_path())
            .env("XDG_CONFIG_HOME", self.config())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(up.stdout.take().context("piped")?).lines();
        while let Some(line) = lines.next_line().await? {
            let url = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix("http://"));
            if let Some(authority) = url {
                self.authority = authority.replace("localhost", "127.0.0.1");
                self.port = self
                    .authority
                    .rsplit(':')
                    .next()
                    .context("a port")?
                    .parse()?;
                self.up = Some(up);
                // Kept open: what it says later has a reader.
                self.said = Some(lines.into_inner());
                return Ok(());
            }
        }
        bail!("tabbify up: {}\n{}", up.wait().await?, self.log())
    }

    /// Ends `tabbify up` as a crash does.
    ///
    /// # Errors
    /// If there is none.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("it is up")?;
        up.kill().await?;
        Ok(())
    }

    /// Waits until `tabbify up` has ended by itself.
    ///
    /// # Errors
    /// If it is not up, or does not end in time.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let up = self.up.as_mut().context("it is up")?;
        let ended = tokio::time::timeout(crate::wait::WATCHDOG, up.wait()).await;
        Ok(ended.context("tabbify up does not end")??)
    }

    /// Process id of `tabbify up`.
    ///
    /// # Errors
    /// If it is not up.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.up.as_ref().and_then(Child::id).context("it is up")
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The configuration directory of its user.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// A folder of the test's own, gone with the platform.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn config_path(&self) -> PathBuf {
        self.home.path().join("up.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("up.log")
    }

    /// All that `tabbify up` has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A copy of an example or fixture (a path below the project's folder), ready to push.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn copy_app(&self, from: &str, name: &str) -> anyhow::Result<PathBuf> {
        let to = self.scratch(name);
        let from = root().join(from);
        std::fs::create_dir_all(to.join("src"))?;
        for entry in ["Cargo.toml", "Cargo.lock", "tabbify.toml"] {
            if from.join(entry).is_file() {
                std::fs::copy(from.join(entry), to.join(entry))
                    .with_context(|| entry.to_owned())?;
            }
        }
        for entry in std::fs::read_dir(from.join("src"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join("src").join(entry.file_name()))?;
        }
        // Copies share what they build, so that only the first one builds its dependencies.
        let shared = root().join("target/wasm-apps");
        std::fs::create_dir_all(&shared)?;
        std::os::unix::fs::symlink(shared, to.join("target"))?;
        Ok(to)
    }

    /// `tcli` as the platform's user, in `folder`.
    ///
    /// # Errors
    /// If the program is missing.
    pub fn tcli(&self, folder: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("tcli")?);
        command
            .current_dir(folder)
            .env("XDG_CONFIG_HOME", self.config())
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs `tcli` to its end.
    ///
    /// # Errors
    /// If it cannot be run; not if it fails.
    pub async fn run(&self, folder: &Path, line: &[&str]) -> anyhow::Result<Output> {
        Ok(self.tcli(folder)?.args(line).output().await?)
    }

    /// Runs `tcli`, which must succeed, and gives its output.
    ///
    /// # Errors
    /// If it fails, with all it said and all the platform said.
    pub async fn succeed(&self, folder: &Path, line: &[&str]) -> anyhow::Result<String> {
        let output = self.run(folder, line).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let complained = String::from_utf8_lossy(&output.stderr);
            bail!(
                "tcli {line:?}: {}\n{said}{complained}\n{}",
                output.status,
                self.log()
            );
        }
        Ok(said)
    }

    /// `tcli --json …`, parsed.
    ///
    /// # Errors
    /// As [`Platform::succeed`].
    pub async fn json(&self, folder: &Path, line: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut all = vec!["--json"];
        all.extend(line);
        let said = self.succeed(folder, &all).await?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// The app of a folder, as `tcli status` shows it.
    ///
    /// # Errors
    /// As [`Platform::succeed`].
    pub async fn status(&self, folder: &Path) -> anyhow::Result<serde_json::Value> {
        Ok(self.json(folder, &["status"]).await?["app"].take())
    }

    /// A bearer token of the owner.
    ///
    /// # Errors
    /// As [`Platform::succeed`].
    pub async fn token(&self) -> anyhow::Result<String> {
        let shown = self.json(self.home.path(), &["token"]).await?;
        Ok(shown["token"].as_str().context("a token")?.to_owned())
    }

    /// A request to the node, signed in as the owner.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: SendBody,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("authorization", format!("Bearer {}", self.token().await?))
            .body(body)?;
        http::send(&self.authority, request).await
    }

    /// `GET path`, signed in as the owner: status and body.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let response = self.request("GET", path, http::full("")).await?;
        Ok((response.status().as_u16(), http::text(response).await?))
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // The apps outlive `tabbify up` by design; a test takes them along.
        let Ok(tabbify) = binary("tabbify") else {
            return;
        };
        let down = std::process::Command::new(tabbify)
            .args(["down", "--data-dir"])
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // A failure shows in the next line: what is left is ended by its process id.
        drop(down);
        for pid in crate::process::runners(&self.data()).unwrap_or_default() {
            let _ = std::process::Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status();
        }
    }
}
