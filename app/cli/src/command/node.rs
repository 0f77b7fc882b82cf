//! `node up` and `node join`: `tabbify join`, for whoever has `tcli` in their fingers. The program is the
//! one beside this one, else the one that the shell would find; it takes over, with its own output and
//! exit code.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::args::NodeArgs;
use crate::error::{Code, Exit, Failure, Result};

/// The server's program.
const PROGRAM: &str = "tabbify";

pub(crate) fn join(args: &NodeArgs) -> Result<Exit> {
    let program = beside().unwrap_or_else(|| PathBuf::from(PROGRAM));
    // Returns only if it could not begin.
    let error = Command::new(&program).arg("join").args(&args.rest).exec();
    let what = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("This machine has no program \"{PROGRAM}\": neither beside tcli nor in PATH.")
        }
        _ => format!("{} cannot be started: {error}.", program.display()),
    };
    let fix =
        "A machine needs the server's program: copy tabbify and tabbify-runner here, beside tcli.";
    Err(Failure::new(Code::NoProgram, what).fix(fix))
}

fn beside() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?.with_file_name(PROGRAM);
    here.is_file().then_some(here)
}
