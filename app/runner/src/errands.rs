//! What the program does for a supervisor besides running apps, so that no supervisor has to speak to
//! container engines itself: says whether there is one, and removes what a dead runner left in it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use tabbify_container::Engine;
use tabbify_process::{chain, telemetry};
use tokio::runtime::{Builder, Runtime};

use crate::home::Home;
use crate::runtime;

/// `--probe-docker [engine]`: what there is, or why there is nothing, in one line.
#[must_use]
pub fn probe_docker(engine: Option<&OsStr>) -> (ExitCode, String) {
    let engine = engine.and_then(OsStr::to_str);
    let found = match start() {
        Ok(runtime) => runtime.block_on(Engine::connect(engine)),
        Err(error) => return (ExitCode::FAILURE, error.to_string()),
    };
    match found {
        Ok(engine) => {
            let about = engine.about();
            let said = format!("docker {}, {} groups", about.version, about.cgroups);
            (ExitCode::SUCCESS, said)
        }
        Err(error) => (ExitCode::FAILURE, chain(&error).to_string()),
    }
}

/// `--clean <directory>`: removes what the dead runner of this directory left outside of it. A directory
/// without a boot document never had a runner, and nothing was made for it.
#[must_use]
pub fn clean(directory: &Path) -> ExitCode {
    telemetry::init();
    let boot = match Home::new(directory).boot() {
        Ok((boot, _)) => boot,
        Err(error) => {
            tracing::info!(error = %chain(&error), "nothing is known to be left");
            return ExitCode::SUCCESS;
        }
    };
    let cleaned = match start() {
        Ok(started) => started.block_on(runtime::clean(directory, &boot)),
        Err(error) => Err(error.to_string()),
    };
    match cleaned {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(why, "something of the app may be left");
            ExitCode::FAILURE
        }
    }
}

fn start() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
