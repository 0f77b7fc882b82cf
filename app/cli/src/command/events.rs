//! `events`: what has happened in the tenant, oldest first; with `-f` until Ctrl-C.

use tabbify_types::Recorded;
use tabbify_types::envelope::DATA_LEN_MAX;

use crate::args::EventsArgs;
use crate::command::Tool;
use crate::command::lines::{Lines, or_cut};
use crate::error::{Code, Exit, Failure, Result};
use crate::output::{Output, printable};

/// LIMIT: one event as JSON, in bytes: its data and room for the rest.
const JSON_LEN_MAX: u64 = DATA_LEN_MAX as u64 + 4096;

pub(crate) fn run(tool: &Tool, args: &EventsArgs) -> Result<Exit> {
    let mut query = vec![
        format!("follow={}", args.follow),
        format!("after={}", args.after),
    ];
    for (name, value) in [("segment", &args.segment), ("type", &args.kind)] {
        if let Some(value) = value {
            query.push(format!("{name}={}", plain(name, value)?));
        }
    }
    let client = tool.client()?;
    let app = tool
        .global
        .app
        .is_some()
        .then(|| tool.app(&client, None))
        .transpose()?;
    query.extend(app.map(|app| format!("key={}", app.id)));
    let server = client.server();
    let mut lines = Lines::new(
        client.events(&query.join("&"))?,
        server,
        JSON_LEN_MAX,
        args.follow,
    );
    let mut last = args.after;
    let what = format!("The events of {server}");
    let again = |last: u64| {
        let follow = if args.follow { " -f" } else { "" };
        format!("tcli events{follow} --after {last}")
    };
    while let Some(event) = or_cut(lines.next::<Recorded>(), &what, || again(last))? {
        last = event.position.get();
        tool.output.line(&shown(tool.output, &event))?;
    }
    Ok(Exit::Fine)
}

/// Segments and types need no escaping in a URL, and nothing else is one.
fn plain<'a>(name: &str, value: &'a str) -> Result<&'a str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.*".contains(&b);
    if value.is_empty() || !value.bytes().all(allowed) {
        let what = format!("{value:?} is not a {name}.");
        return Err(Failure::new(Code::Usage, what).fix("Letters, digits, and any of _ - . *"));
    }
    Ok(value)
}

/// `41 14:03:07.123 deploy_requested user:owner {"app":…}`, in UTC as the platform keeps time.
fn shown(output: Output, event: &Recorded) -> String {
    if output.json {
        return serde_json::to_string(event).expect("an event is JSON");
    }
    let at = event.at.to_string();
    let time = at.get(11..23).unwrap_or(&at);
    let (position, kind, actor) = (event.position, &event.kind, &event.actor);
    let text = format!("{position:>6} {time} {kind} {actor} {}", event.data.get());
    if output.terminal {
        printable(&text)
    } else {
        text
    }
}
