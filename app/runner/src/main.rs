//! The program: `tabbify-runner <directory>`, where the directory holds `boot.json`; and small errands for a
//! supervisor: `--version`, `--probe-docker [engine]`, `--probe-microvms <json>`, `--doctor <json>`,
//! `--clean <directory of a dead runner> [engine]`.
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
            answer(tabbify_runner::errands::probe_docker(engine.as_deref()))
        }
        (Some(flag), Some(made_of)) if flag == "--probe-microvms" => {
            answer(tabbify_runner::errands::probe_microvms(&made_of))
        }
        (Some(flag), Some(made_of)) if flag == "--doctor" => {
            answer(tabbify_runner::errands::doctor_of_microvms(&made_of))
        }
        (Some(flag), Some(directory)) if flag == "--clean" => {
            let engine = arguments.next();
            tabbify_runner::errands::clean(&PathBuf::from(directory), engine.as_deref())
        }
        (Some(directory), None) => tabbify_runner::run::main(&PathBuf::from(directory)),
        _ => {
            tabbify_process::telemetry::init();
            tracing::error!("usage: tabbify-runner <directory>; tabbify's supervisor starts it");
            ExitCode::from(2)
        }
    }
}

fn answer((code, said): (ExitCode, String)) -> ExitCode {
    #[expect(
        clippy::print_stdout,
        reason = "the answer to a question of a supervisor's"
    )]
    {
        println!("{said}");
    }
    code
}
