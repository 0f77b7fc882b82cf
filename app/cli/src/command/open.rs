//! `open`: a link that signs a browser in, once; and the browser, where there is a screen.

use std::process::{Command, Stdio};

use crate::args::OpenArgs;
use crate::command::Tool;
use crate::error::{Exit, Result};

pub(crate) fn run(tool: &Tool, args: &OpenArgs) -> Result<Exit> {
    let client = tool.client()?;
    let app = tool.app(&client, None)?;
    let link = client.open_link(app.id)?;
    tool.output.result(&link.url, &link)?;
    let for_a_person = tool.output.terminal && !tool.output.json && tool.env.display;
    // Only what is a web link goes to a program that opens anything.
    if for_a_person && !args.print && link.url.starts_with("http://") {
        let quiet = |command: &mut Command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .is_ok()
        };
        if !quiet(Command::new("xdg-open").arg(&link.url)) {
            tool.progress.say("Open it in a browser; it works once.");
        }
    }
    Ok(Exit::Fine)
}
