//! `logs`: what the app prints, oldest first; with `-f` until Ctrl-C.

use std::io::Read;
use std::time::Duration;

use tabbify_api::logs::{LINE_LEN_MAX, LogLine, Stream};
use tabbify_types::Timestamp;

use crate::args::LogsArgs;
use crate::clock;
use crate::command::Tool;
use crate::command::lines::{Lines, or_cut};
use crate::error::{Code, Exit, Failure, Result};
use crate::output::{Output, printable};
use crate::server::Server;

/// Lines shown when nothing else is said.
const TAIL: usize = 100;
/// LIMIT: one line as JSON, in bytes: every byte of the text may be an escape of six.
const JSON_LEN_MAX: u64 = 6 * LINE_LEN_MAX as u64 + 1024;

pub(crate) fn run(tool: &Tool, args: &LogsArgs) -> Result<Exit> {
    let since = args
        .since
        .as_deref()
        .map(|text| parse_since(text, clock::now()))
        .transpose()?;
    let mut query = vec![format!("follow={}", args.follow)];
    query.extend(since.map(|since| format!("since={since}")));
    let tail = args.tail.or_else(|| since.is_none().then_some(TAIL));
    query.extend(tail.map(|tail| format!("tail={tail}")));
    let client = tool.client()?;
    let app = tool.app(&client, None)?;
    let lines = client.logs(app.id, &query.join("&"))?;
    print(tool.output, lines, args.follow, client.server())
}

fn print(output: Output, lines: impl Read, follow: bool, server: &Server) -> Result<Exit> {
    let mut lines = Lines::new(lines, server, JSON_LEN_MAX, follow);
    let what = format!("The log of {server}");
    let mut last: Option<Timestamp> = None;
    let again = |last: Option<Timestamp>| {
        let since = last.map(|at| format!(" --since {at}")).unwrap_or_default();
        let again = if follow { "tcli logs -f" } else { "tcli logs" };
        format!("{again}{since}")
    };
    while let Some(line) = or_cut(lines.next::<LogLine>(), &what, || again(last))? {
        last = Some(line.at);
        output.line(&shown(output, &line))?;
    }
    Ok(Exit::Fine)
}

/// `14:03:07.123 #2 stdout| listening`, in UTC as the platform keeps time.
fn shown(output: Output, line: &LogLine) -> String {
    if output.json {
        return serde_json::to_string(line).expect("a log line is JSON");
    }
    let at = line.at.to_string();
    let time = at.get(11..23).unwrap_or(&at);
    let stream = match line.stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Platform => "tabbify",
    };
    let text = if output.terminal {
        printable(&line.line)
    } else {
        line.line.clone()
    };
    format!("{time} #{} {stream}| {text}", line.instance)
}

/// A time, or a span before `now`: `90s`, `10m`, `2h`, `3d`.
fn parse_since(text: &str, now: Timestamp) -> Result<Timestamp> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let wrong = || {
        let what = format!("{text:?} is not a time.");
        Failure::new(Code::Usage, what).fix("Write 90s, 10m, 2h, 3d, or 2026-11-22T14:00:00Z.")
    };
    let unit = text.chars().last().ok_or_else(wrong)?;
    let secs = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    let span = Duration::from_secs(count.saturating_mul(secs));
    let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    Ok(Timestamp::from_millis(now.millis().saturating_sub(span)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since() {
        let now = Timestamp::from_secs(1_000_000);
        let check = |text: &str, expected: Option<u64>| {
            let got = parse_since(text, now).ok().map(Timestamp::secs);
            assert_eq!(got, expected, "{text}");
        };
        check("90s", Some(999_910));
        check("10m", Some(999_400));
        check("2h", Some(992_800));
        check("3d", Some(740_800));
        check("99999999999999999999s", None);
        check("18446744073709551615d", Some(0));
        check("1970-01-02T00:00:00Z", Some(86_400));
        for bad in [
            "",
            "s",
            "10",
            "-1m",
            "+1m",
            "1.5h",
            "10 m",
            "10ä",
            "yesterday",
        ] {
            check(bad, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_time_or_refused(text in "\\PC{0,12}|[0-9]{1,22}[smhdä]") {
            let _ = parse_since(&text, Timestamp::from_secs(1_000_000));
        }
    }
}
