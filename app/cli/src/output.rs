//! Results and failures: standard output for what was asked, standard error for everything else.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::error::{Code, Exit, Failure, Result};

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON document instead of text.
    pub(crate) json: bool,
    /// Whether a person looks at standard output.
    pub(crate) terminal: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// Prints the result of a command: `text` for people, `document` for programs.
    pub(crate) fn result(self, text: &str, document: &impl Serialize) -> Result<()> {
        if self.json {
            self.line(&pretty(document))
        } else if text.is_empty() {
            Ok(())
        } else {
            self.line(text)
        }
    }

    /// Prints one line (or several, as `text` has them).
    pub(crate) fn line(self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        written.map_err(|error| Failure::new(Code::OutputClosed, error.to_string()))
    }
}

/// Ends the program over a command line that is not one of ours, or a call for help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let asked = !error.use_stderr();
    if error.print().is_err() {
        return Exit::Fine.into();
    }
    if asked {
        return Exit::Fine.into();
    }
    // The arguments could not be read, so whether JSON was asked for is read from them directly.
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let what = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        print_document(&Failure::new(Code::Usage, what));
    }
    Exit::Usage.into()
}

/// Ends the program over a failure.
pub(crate) fn failure(json: bool, failure: &Failure) -> ExitCode {
    if failure.code != Code::OutputClosed.as_str() {
        if json {
            print_document(failure);
        } else {
            // With standard error gone too there is nobody left to tell; the exit code still does.
            let _ = writeln!(io::stderr(), "{failure}");
        }
    }
    failure.exit.into()
}

fn print_document(failure: &Failure) {
    let document = json!({
        "error": {
            "code": failure.code,
            "what": failure.what,
            "fix": failure.fix,
            "exit": failure.exit.code(),
        },
        "operation": failure.operation,
    });
    let _ = writeln!(io::stdout(), "{}", pretty(&document));
}

fn pretty(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).expect("our documents have text as keys")
}

/// `text` without what could steer a terminal: control characters other than tab are dropped, and
/// of escape sequences only colors are kept. What apps print is not ours and may be hostile.
pub(crate) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(len) = color_len(rest) {
            clean.push_str(&rest[..len]);
            rest = &rest[len..];
            continue;
        }
        if c == '\t' || !c.is_control() {
            clean.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    clean
}

/// Length of the color sequence (ECMA-48 SGR: `ESC [ digits ; … m`) that `text` begins with.
fn color_len(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then_some(end + 3)
}

/// A size as people read it: `312 B`, `212 KB`, `1.4 MB`; a kilobyte is a thousand bytes.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KB", "MB", "GB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = "B";
    let (mut whole, mut rest) = (bytes, 0);
    for next in units {
        if whole < 1000 {
            break;
        }
        (whole, rest, unit) = (whole / 1000, whole % 1000, next);
    }
    if whole < 10 {
        format!("{whole}.{} {unit}", rest / 100)
    } else {
        format!("{whole} {unit}")
    }
}

/// Lines of cells as a table whose columns are as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colors_reach_the_terminal() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected, "{text:?}");
        check("plain\tä", "plain\tä");
        check("\x1b[1;31mred\x1b[0m\x1b[m", "\x1b[1;31mred\x1b[0m\x1b[m");
        check("\x1b[2Jcleared", "[2Jcleared");
        check("\x1b]0;title\x07", "]0;title");
        check("a\rb\x08c\x7f\u{9b}31m", "abc31m");
        check("\x1b", "");
        check("\x1b[", "[");
        check("\x1b[31", "[31");
    }

    #[test]
    fn sizes() {
        let check = |bytes: u64, expected: &str| assert_eq!(size(bytes), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 KB");
        check(212_345, "212 KB");
        check(1_449_000, "1.4 MB");
        check(u64::MAX, "18446744073 GB");
    }

    #[test]
    fn tables() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            table(&[row(["a", "b"]), row(["long", ""])]),
            "a     b\nlong"
        );
        assert_eq!(table(&[]), "");
    }

    proptest::proptest! {
        #[test]
        fn nothing_but_colors_is_left(text in "(\\PC|[\x00-\x1f]|\x1b\\[[0-9;]{0,4}[a-z]){0,40}") {
            let clean = printable(&text);
            let escapes = clean.match_indices('\x1b');
            for (at, _) in escapes {
                proptest::prop_assert!(color_len(&clean[at..]).is_some(), "{:?}", clean);
            }
            let steers = |c: char| c.is_control() && c != '\t' && c != '\x1b';
            proptest::prop_assert!(!clean.contains(steers), "{:?}", clean);
        }
    }
}
