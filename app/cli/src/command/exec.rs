//! `exec`: a command in the app, its output as it comes, and its exit code as ours.

use std::io::{self, Read, Write};

use tabbify_api::attach::{ARGUMENTS_MAX, COMMAND_LEN_MAX, CommandLine, LINE_LEN_MAX, RunCommand};

use crate::args::ExecArgs;
use crate::command::Tool;
use crate::command::lines::{Lines, or_cut};
use crate::error::{Code, Exit, Failure, Result};
use crate::output::Output;
use crate::server::Server;

pub(crate) fn run(tool: &Tool, args: &ExecArgs) -> Result<Exit> {
    let command = RunCommand {
        command: args.command.clone(),
    };
    if !command.is_sound() {
        let what = format!(
            "The command is empty, has more than {ARGUMENTS_MAX} arguments or more than {COMMAND_LEN_MAX} bytes."
        );
        return Err(Failure::new(Code::Usage, what));
    }
    let client = tool.client()?;
    let app = tool.app(&client, args.name.as_deref())?;
    let lines = client.exec(app.id, &command)?;
    pass(tool.output, lines, client.server())
}

fn pass(output: Output, lines: impl Read, server: &Server) -> Result<Exit> {
    // It is followed: its end is a line, and not the end of the lines.
    let mut lines = Lines::new(lines, server, LINE_LEN_MAX as u64 + 1, true);
    let again = || "tcli logs, to see what the app says".to_owned();
    while let Some(line) = or_cut(lines.next::<CommandLine>(), "The command", again)? {
        if output.json {
            let text = serde_json::to_string(&line).expect("a line is JSON");
            output.line(&text)?;
        }
        match line {
            CommandLine::Stdout(piece) if !output.json => write(io::stdout().lock(), &piece.0)?,
            CommandLine::Stderr(piece) if !output.json => write(io::stderr().lock(), &piece.0)?,
            CommandLine::Stdout(_) | CommandLine::Stderr(_) => {}
            CommandLine::Ended(0) => return Ok(Exit::Fine),
            CommandLine::Ended(code) => {
                return Ok(Exit::Command(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            CommandLine::Failed(why) => {
                let what = format!("The command was not run to its end: {why}.");
                return Err(Failure::new(Code::CommandFailed, what));
            }
        }
    }
    Err(Failure::new(Code::Interrupted, "The command broke off."))
}

/// As it is: what is run here is ours to look at, as over any remote shell.
fn write(mut to: impl Write, bytes: &[u8]) -> Result<()> {
    let written = to.write_all(bytes).and_then(|()| to.flush());
    written.map_err(|error| Failure::new(Code::OutputClosed, error.to_string()))
}
