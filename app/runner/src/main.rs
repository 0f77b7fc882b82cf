//! The program: `tabbify-runner <directory>`, where the directory holds `boot.json`; and small errands for a
//! supervisor: `--version`, `--probe-docker [engine]`, `--clean <directory of a dead runner>`.
//! See `tabbify_api::runner` for the files in it and `tabbify_runner` for its life.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(flag), None) if flag == "--version" => {
            // How a supervisor finds out that this program can run here.
            #[expect(clippy::print_stdout, reason = "the answer to --version")]
            {
                println!("tabbify-runner {}", env!("CARGO_PKG_VERSION"));
            }
            ExitCode::SUCCESS
        }
        (Some(flag), engine) if flag == "--probe-docker" => {
            let (code, said) = tabbify_runner::errands::probe_docker(engine.as_deref());
            #[expect(clippy::print_stdout, reason = "the answer to --probe-docker")]
            {
                println!("{said}");
            }
            code
        }
        (Some(flag), Some(directory)) if flag == "--clean" => {
            tabbify_runner::errands::clean(&PathBuf::from(directory))
        }
        (Some(directory), None) => tabbify_runner::run::main(&PathBuf::from(directory)),
        _ => {
            tabbify_process::telemetry::init();
            tracing::error!("usage: tabbify-runner <directory>; tabbify's supervisor starts it");
            ExitCode::from(2)
        }
    }
}
