//! How an image wants to be run (OCI image specification, config).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{ImageError, Result};

/// `PATH` of an image that does not set one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// LIMIT: arguments and variables of a config: what fits a kernel's argument pages.
const WORDS_LEN_MAX: usize = 512 << 10;

/// The config of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `ENTRYPOINT`: the program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `CMD`: the arguments that a command replaces, or the whole command.
    pub cmd: Vec<String>,
    /// `ENV`, in the image's order.
    pub env: Vec<(String, String)>,
    /// `USER`: a name or a number, and after a colon a group; empty is root.
    pub user: String,
    /// `WORKDIR`; empty is `/`.
    pub working_dir: String,
    /// `EXPOSE` of TCP, ascending.
    pub ports: Vec<u16>,
    /// `STOPSIGNAL`, such as `SIGQUIT` or `3`; without it SIGTERM.
    pub stop_signal: Option<String>,
    /// The digest of each layer's tar, the lowest first.
    pub(crate) layers: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    os: String,
    architecture: String,
    #[serde(default)]
    config: Option<Settings>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

/// A list of words, or a line for a shell: builders make the first of both, and very old ones did not.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    Line(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::List(words) => words,
            Self::Line(line) if line.is_empty() => Vec::new(),
            Self::Line(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line],
        }
    }
}

impl Config {
    /// Reads a config; the sentence says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let settings = document.config.unwrap_or_default();
        let list = |words: Option<Words>| words.map(Words::list).unwrap_or_default();
        let pair = |line: String| match line.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{line:?} is no NAME=value")),
        };
        let env = settings.env.unwrap_or_default().into_iter().map(pair);
        let ports = settings.exposed_ports.unwrap_or_default();
        let mut ports: Vec<u16> = ports.keys().filter_map(|text| tcp_port(text)).collect();
        ports.sort_unstable();
        let config = Self {
            os: document.os,
            architecture: document.architecture,
            entrypoint: list(settings.entrypoint),
            cmd: list(settings.cmd),
            env: env.collect::<Result<_, _>>()?,
            user: settings.user.unwrap_or_default(),
            working_dir: settings.working_dir.unwrap_or_default(),
            ports,
            stop_signal: settings.stop_signal.filter(|signal| !signal.is_empty()),
            layers: document.rootfs.diff_ids,
        };
        config.check()?;
        Ok(config)
    }

    /// What a process can be started with: no zero bytes, and not more than a kernel takes.
    fn check(&self) -> Result<(), String> {
        let words = self.entrypoint.iter().chain(&self.cmd);
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let mut len = 0;
        for text in words.chain(env).chain([&self.user, &self.working_dir]) {
            if text.contains('\0') {
                return Err(format!("{text:?} has a zero byte"));
            }
            len += text.len();
        }
        if len > WORDS_LEN_MAX {
            return Err(format!("its words have more than {WORDS_LEN_MAX} bytes"));
        }
        Ok(())
    }

    /// The program and its arguments: `instead`, or else the image's `ENTRYPOINT` and `CMD`.
    ///
    /// # Errors
    /// [`ImageError::NoCommand`] if there is neither.
    pub fn command(&self, instead: &[String]) -> Result<Vec<String>> {
        let command = match instead {
            [] => [&self.entrypoint[..], &self.cmd[..]].concat(),
            instead => instead.to_vec(),
        };
        match command.first() {
            Some(program) if !program.is_empty() => Ok(command),
            _ => Err(ImageError::NoCommand),
        }
    }
}

/// `8080`, `8080/tcp`; nothing of others, such as `53/udp`.
fn tcp_port(text: &str) -> Option<u16> {
    let number = text.strip_suffix("/tcp").unwrap_or(text);
    number.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(settings: &str) -> Result<Config, String> {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{settings},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        Config::parse(text.as_bytes())
    }

    #[test]
    fn both_forms_of_a_command() {
        let list = parse(r#"{"Entrypoint":["/app"],"Cmd":["--port","80"]}"#).unwrap();
        assert_eq!(list.command(&[]).unwrap(), ["/app", "--port", "80"]);
        let line = parse(r#"{"Entrypoint":null,"Cmd":"exec app"}"#).unwrap();
        assert_eq!(line.command(&[]).unwrap(), ["/bin/sh", "-c", "exec app"]);
        let instead = ["other".to_owned()];
        assert_eq!(list.command(&instead).unwrap(), instead);
    }

    #[test]
    fn nothing_to_run() {
        for settings in [
            "null",
            "{}",
            r#"{"Entrypoint":[],"Cmd":[]}"#,
            r#"{"Cmd":[""]}"#,
        ] {
            let error = parse(settings).unwrap().command(&[]).unwrap_err();
            assert!(error.to_string().contains("[runtime] command"), "{error}");
        }
    }

    #[test]
    fn what_else_it_says() {
        let config = parse(
            r#"{"Env":["A=1","B=","PATH=/x=y"],"User":"app:staff","WorkingDir":"/srv","StopSignal":"SIGQUIT",
                "ExposedPorts":{"9000/tcp":{},"80":{},"53/udp":{},"x":{}},"Labels":{"any":"thing"}}"#,
        )
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            config.env,
            [pair("A", "1"), pair("B", ""), pair("PATH", "/x=y")]
        );
        assert_eq!(config.ports, [80, 9000]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(
            (config.user.as_str(), config.working_dir.as_str()),
            ("app:staff", "/srv")
        );
    }

    #[test]
    fn what_no_process_can_be_given() {
        for settings in [
            r#"{"Env":["A"]}"#,
            r#"{"Env":["=1"]}"#,
            r#"{"Cmd":["a\u0000b"]}"#,
            r#"{"Cmd":7}"#,
        ] {
            parse(settings).unwrap_err();
        }
        let long = "x".repeat(WORDS_LEN_MAX + 1);
        parse(&format!(r#"{{"Cmd":["{long}"]}}"#)).unwrap_err();
    }
}
