//! A person at a shell: a home directory, a project folder, a token or key, and what tcli says.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use expect_test::Expect;
use serde_json::Value;
use tabbify_api::contexts::{Context, Contexts};
use tabbify_token::{PublicKey, SecretKey};
use tempfile::TempDir;

use crate::node::Node;

/// The shortest component: its preamble. The node of these tests does not run it.
pub(crate) const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Somebody with a home and a folder called `shop`.
pub(crate) struct Person {
    home: TempDir,
    /// `TABBIFY_SERVER` and `TABBIFY_TOKEN`.
    server: Option<String>,
    token: Option<String>,
    masks: Vec<(String, &'static str)>,
}

/// What a run of tcli left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) exit: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Person {
    /// Somebody without credentials.
    pub(crate) fn new() -> io::Result<Self> {
        let home = TempDir::new()?;
        fs::create_dir(home.path().join("shop"))?;
        let masks = vec![(home.path().display().to_string(), "<home>")];
        Ok(Self {
            home,
            server: None,
            token: None,
            masks,
        })
    }

    /// Somebody who was given a token for `node`.
    pub(crate) fn with_token(node: &Node) -> io::Result<Self> {
        let mut person = Self::new()?;
        person.server = Some(node.url());
        person.token = Some("given".to_owned());
        person.masks_of(node);
        Ok(person)
    }

    /// Somebody whose key `node` knows: what `tabbify up` leaves.
    pub(crate) fn with_key(node: &Node) -> io::Result<Self> {
        let mut person = Self::new()?;
        let key = SecretKey::generate().map_err(io::Error::other)?;
        let public = PublicKey::try_from(key.public()).map_err(io::Error::other)?;
        node.state().owner = Some(public);
        let path = person.home.path().join("owner.key");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        io::Write::write_all(&mut file, key.to_text().as_bytes())?;
        person.put_context(&node.url(), node.state().platform.as_str(), &path)?;
        person.masks_of(node);
        Ok(person)
    }

    pub(crate) fn put_context(&self, server: &str, platform: &str, key: &Path) -> io::Result<()> {
        let context = Context {
            server: server.to_owned(),
            platform: platform.parse().map_err(io::Error::other)?,
            owner_key: key.to_path_buf(),
            subject: "user:owner".to_owned(),
        };
        let mut contexts = Contexts::default();
        contexts.put_current("local", context);
        self.put_contexts_text(&contexts.to_text())
    }

    pub(crate) fn put_contexts_text(&self, text: &str) -> io::Result<()> {
        let directory = self.home.path().join("config/tabbify");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("contexts.toml"), text)
    }

    /// Says where the server is, in the environment.
    pub(crate) fn go_to(&mut self, server: &str) {
        self.server = Some(server.to_owned());
    }

    /// Has a token in the environment.
    pub(crate) fn hold(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    fn masks_of(&mut self, node: &Node) {
        self.masks.push((node.url(), "<server>"));
        self.masks.push((node.addr.to_string(), "<host>"));
        self.masks
            .push((node.state().platform.to_string(), "<platform>"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file of the project.
    pub(crate) fn put(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.path("shop").join(name), content)
    }

    /// The text of a file of the project; empty if there is none.
    pub(crate) fn get(&self, name: &str) -> String {
        fs::read_to_string(self.path("shop").join(name)).unwrap_or_default()
    }

    /// A project that can be pushed: a manifest and a component that is built already.
    pub(crate) fn with_component(self) -> io::Result<Self> {
        self.put(
            "tabbify.toml",
            "[app]\nname = \"shop\" # ours\n\n[build]\nwasm = \"shop.wasm\"\n",
        )?;
        self.put("shop.wasm", COMPONENT)?;
        Ok(self)
    }

    /// Names of the project's files, hidden ones too.
    pub(crate) fn files(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(self.path("shop"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>();
        names.map(|mut names| {
            names.sort();
            names
        })
    }

    /// Runs `tcli` in the project.
    pub(crate) fn tcli(&self, args: &[&str]) -> io::Result<Run> {
        let output = self.command(args).output()?;
        Ok(self.run_of(&output))
    }

    /// The command, to be run by the caller.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcli"));
        command
            .args(args)
            .current_dir(self.path("shop"))
            .stdin(Stdio::null());
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.home.path());
        command.env("XDG_CONFIG_HOME", self.path("config"));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        // A proxy of the environment must not come between us and this machine.
        command.env("http_proxy", "http://127.0.0.1:9");
        command.envs(
            self.server
                .as_ref()
                .map(|server| ("TABBIFY_SERVER", server)),
        );
        command.envs(self.token.as_ref().map(|token| ("TABBIFY_TOKEN", token)));
        command
    }

    pub(crate) fn run_of(&self, output: &Output) -> Run {
        Run {
            exit: output.status.code().unwrap_or(-1),
            out: self.mask(&String::from_utf8_lossy(&output.stdout)),
            err: self.mask(&String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Replaces what differs between two runs: places, ids, seconds, mesh addresses.
    pub(crate) fn mask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (what, mask) in &self.masks {
            text = text.replace(what, mask);
        }
        let mut masked = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            let same = || (c.len_utf8(), &rest[..c.len_utf8()]);
            let (len, mask) = varying(rest).unwrap_or_else(same);
            masked.push_str(mask);
            rest = &rest[len..];
        }
        masked
    }

    pub(crate) fn mode(path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.permissions().mode() & 0o777)
    }
}

/// Length and mask of an id, a span in seconds, or an address of an app that `text` begins with.
fn varying(text: &str) -> Option<(usize, &'static str)> {
    if text
        .get(..36)
        .is_some_and(|id| id.parse::<tabbify_types::AppId>().is_ok())
    {
        return Some((36, "<id>"));
    }
    if text.starts_with("fd5a:1f02:") {
        let end = text
            .find(|c: char| !c.is_ascii_hexdigit() && c != ':')
            .unwrap_or(text.len());
        return Some((end, "<address>"));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let seconds = end > 2 && text[..end].contains('.') && text[end..].starts_with(" s");
    seconds.then_some((end, "<t>"))
}

impl Run {
    /// Compares exit, standard output and standard error with a snapshot.
    pub(crate) fn check(&self, exit: i32, expected: &Expect) {
        let mut text = self.out.clone();
        if !self.err.is_empty() {
            text.push_str("--- stderr\n");
            text.push_str(&self.err);
        }
        expected.assert_eq(&text);
        assert_eq!(self.exit, exit, "{self:?}");
    }

    /// The JSON document, which is all there is.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.err, "", "--json is silent");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}
