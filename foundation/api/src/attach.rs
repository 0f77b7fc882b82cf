//! Into a running app: a command in one of its instances, and connections to its raw ports.
//!
//! Of people, at the node:
//!
//! | method and path | body → answer | scope |
//! |---|---|---|
//! | `POST /v1/apps/{id}/exec` | [`RunCommand`] → one [`CommandLine`] a line | `app:exec` |
//! | `GET /v1/apps/{id}/ports/{port}`, `Upgrade: tabbify-tcp` | → 101, then the connection's bytes | `app:forward` |
//!
//! Each is in the log before it begins (`app_command_admitted`; `app_port_admitted` once for a person, a port
//! and a minute), and ends with the token that asked for it.
//!
//! Of nodes, at an instance, over the mesh, on [`ATTACH_PORT`]: `POST /v1/exec`, the same. Raw ports are
//! ports of the app's own address: no service stands between.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where a runner runs commands for nodes; everybody else is refused. No `[[port]]` has this number.
pub const ATTACH_PORT: u16 = 8731;
/// Path of a command at a runner.
pub const EXEC_PATH: &str = "/v1/exec";
/// What a caller upgrades to for the bytes of a raw port.
pub const PORT_PROTOCOL: &str = "tabbify-tcp";
/// LIMIT: a command's arguments, its program among them.
pub const ARGUMENTS_MAX: usize = 256;
/// LIMIT: a command's arguments together, in bytes.
pub const COMMAND_LEN_MAX: usize = 64 * 1024;
/// LIMIT: a [`RunCommand`] as JSON, in bytes: a byte may be an escape of six.
pub const RUN_COMMAND_LEN_MAX: usize = 6 * COMMAND_LEN_MAX + 8 * ARGUMENTS_MAX + 64;
/// LIMIT: output in one [`CommandLine`], in bytes.
pub const PIECE_LEN_MAX: usize = 32 * 1024;
/// LIMIT: one [`CommandLine`] as JSON, in bytes.
pub const LINE_LEN_MAX: usize = PIECE_LEN_MAX / 3 * 4 + 1024;

/// A command to run in an instance, as the app's own user, with its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunCommand {
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl RunCommand {
    /// Whether it is within the limits, and names a program.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let len: usize = self.command.iter().map(String::len).sum();
        let named = self
            .command
            .first()
            .is_some_and(|program| !program.is_empty());
        named
            && self.command.len() <= ARGUMENTS_MAX
            && len <= COMMAND_LEN_MAX
            && !self.command.iter().any(|part| part.contains('\0'))
    }
}

/// What a command prints and how it ends; the last line is [`CommandLine::Ended`] or [`CommandLine::Failed`],
/// and an answer without either was cut off. Empty lines in between show that somebody is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandLine {
    /// On its standard output.
    Stdout(Piece),
    /// On its standard error.
    Stderr(Piece),
    /// It has ended, with this exit code; 128 and the signal's number for one that a signal ended.
    Ended(i64),
    /// It was not run, or was given up: why, for people.
    Failed(String),
}

/// Bytes of a stream, at most [`PIECE_LEN_MAX`]; in JSON as base64 (RFC 4648 section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece(pub Vec<u8>);

impl Serialize for Piece {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn lines_are_spelled_so() {
        let check = |line: CommandLine, json: &str| {
            assert_eq!(serde_json::to_string(&line).unwrap(), json);
            assert_eq!(serde_json::from_str::<CommandLine>(json).unwrap(), line);
        };
        let piece = Piece(b"hi\xff".to_vec());
        check(CommandLine::Stdout(piece.clone()), r#"{"stdout":"aGn/"}"#);
        check(CommandLine::Stderr(piece), r#"{"stderr":"aGn/"}"#);
        check(CommandLine::Ended(137), r#"{"ended":137}"#);
        check(CommandLine::Failed("no".to_owned()), r#"{"failed":"no"}"#);
    }

    #[test]
    fn commands_have_limits() {
        let check = |command: &[&str], expected: bool| {
            let command = command.iter().map(|part| (*part).to_owned()).collect();
            assert_eq!(RunCommand { command }.is_sound(), expected);
        };
        let long = "a".repeat(COMMAND_LEN_MAX);
        check(&["ls"], true);
        check(&["ls", ""], true);
        check(&[&long], true);
        check(&[], false);
        check(&["", "a"], false);
        check(&["a", "\0"], false);
        check(&[&long, "a"], false);
        check(&["a"; ARGUMENTS_MAX], true);
        check(&["a"; ARGUMENTS_MAX + 1], false);
    }

    #[test]
    fn the_longest_of_each_fits() {
        let escaped = "\u{1}".repeat(COMMAND_LEN_MAX / ARGUMENTS_MAX);
        let command = RunCommand {
            command: vec![escaped; ARGUMENTS_MAX],
        };
        assert!(command.is_sound());
        assert!(serde_json::to_vec(&command).unwrap().len() <= RUN_COMMAND_LEN_MAX);
        let line = CommandLine::Stdout(Piece(vec![0; PIECE_LEN_MAX]));
        assert!(serde_json::to_vec(&line).unwrap().len() <= LINE_LEN_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_output_comes_back(bytes in any::<Vec<u8>>()) {
            let line = CommandLine::Stderr(Piece(bytes));
            let json = serde_json::to_string(&line).unwrap();
            prop_assert_eq!(serde_json::from_str::<CommandLine>(&json).unwrap(), line);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = serde_json::from_str::<CommandLine>(&text);
            let _ = serde_json::from_str::<RunCommand>(&text);
        }
    }
}
