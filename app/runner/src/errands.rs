//! What the program does for a supervisor besides running apps, so that no supervisor has to speak to
//! container engines or make machines itself: says whether it could, and removes what a dead runner left.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use tabbify_api::runner::MicroVms;
use tabbify_container::Engine;
use tabbify_microvm::{Assets, Finding, doctor};
use tabbify_process::{chain, telemetry};
use tabbify_types::event::v1::InstanceRef;
use tokio::runtime::{Builder, Runtime};

use crate::Error;
use crate::home::Home;
use crate::{docker, microvm, runtime, volume};

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
            let mut said = format!("docker {}, {} groups", about.version, about.cgroups);
            if let Err(why) = volume::sizes_are_kept() {
                said.push_str(&format!(", volumes of any size: {why}"));
            }
            (ExitCode::SUCCESS, said)
        }
        Err(error) => (ExitCode::FAILURE, chain(&error).to_string()),
    }
}

/// `--probe-microvms <json>`: what makes microVMs of [`MicroVms`], or what is missing, in one line.
#[must_use]
pub fn probe_microvms(made_of: &OsStr) -> (ExitCode, String) {
    let findings = match looked_at(made_of) {
        Ok(findings) => findings,
        Err(why) => return (ExitCode::FAILURE, why),
    };
    let missing = findings.iter().find(|finding| finding.is_missing());
    if let Some(Finding { what, state, .. }) = missing {
        let said = format!("{what}: {state}. Run there: tabbify doctor");
        return (ExitCode::FAILURE, said);
    }
    let said: Vec<&str> = [findings.first(), findings.last()]
        .into_iter()
        .flatten()
        .map(|finding| finding.state.as_str())
        .collect();
    (ExitCode::SUCCESS, said.join("; KVM: "))
}

/// `--doctor <json>`: everything that microVMs need, one a line, each with what to do about it.
#[must_use]
pub fn doctor_of_microvms(made_of: &OsStr) -> (ExitCode, String) {
    let findings = match looked_at(made_of) {
        Ok(findings) => findings,
        Err(why) => return (ExitCode::FAILURE, why),
    };
    let lines = findings.iter().map(|finding| {
        let mark = match (finding.is_missing(), &finding.remedy) {
            (true, _) => "✗",
            (false, Some(_)) => "!",
            (false, None) => "✓",
        };
        let line = format!("{mark} {}: {}", finding.what, finding.state);
        match &finding.remedy {
            Some(remedy) => format!("{line}\n    {remedy}"),
            None => line,
        }
    });
    let said: Vec<String> = lines.collect();
    let code = match findings.iter().any(Finding::is_missing) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    };
    (code, said.join("\n"))
}

fn looked_at(made_of: &OsStr) -> Result<Vec<Finding>, String> {
    let text = made_of.to_str().unwrap_or_default();
    let made_of: MicroVms = serde_json::from_str(text)
        .map_err(|error| format!("what microVMs are made of cannot be read: {error}"))?;
    // What runners have found out is theirs, and nothing is kept of this.
    let assets = Assets::new(&made_of, "/nonexistent".into());
    Ok(doctor(&assets, made_of.acceleration))
}

/// `--clean <directory> [engine]`: removes what the dead runner of this directory left outside of it. A
/// directory without a boot document never had a runner, and nothing was made for it. One whose boot document
/// cannot be read tells neither the runtime nor the engine: what bears the instance's name goes, in `engine`.
#[must_use]
pub fn clean(directory: &Path, engine: Option<&OsStr>) -> ExitCode {
    telemetry::init();
    let engine = engine.and_then(OsStr::to_str);
    let boot = match Home::new(directory).boot() {
        Ok((boot, _)) => Some(boot),
        Err(Error::ReadBoot { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "what was started is not known: it is looked for by its name");
            None
        }
    };
    let cleaning = async {
        match &boot {
            Some(boot) => runtime::clean(directory, boot).await,
            None => clean_unknown(directory, engine).await,
        }
    };
    let cleaned = match start() {
        Ok(started) => started.block_on(cleaning),
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

/// Removes what bears the name of the directory's instance, if anything was made outside of it.
async fn clean_unknown(directory: &Path, engine: Option<&str>) -> Result<(), String> {
    if !directory.join(runtime::OUTSIDE_FILE).exists() {
        return Ok(());
    }
    microvm::reap(directory).await?;
    if microvm::is_made_by(directory) {
        return Ok(());
    }
    let of = instance_of(directory).ok_or("the directory is not one of an instance")?;
    let reaped = docker::reap(of, engine).await;
    reaped.map(drop).map_err(|error| chain(&error).to_string())
}

/// The instance whose directory this is: `<app>/<instance>`.
fn instance_of(directory: &Path) -> Option<InstanceRef> {
    let instance = directory.file_name()?.to_str()?.parse().ok()?;
    let app = directory.parent()?.file_name()?.to_str()?.parse().ok()?;
    Some(InstanceRef { app, instance })
}

fn start() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use tabbify_api::runner::BOOT_FILE;

    use super::*;

    #[test]
    fn what_microvms_lack_is_said_in_one_line_and_in_many() {
        let json = r#"{"kernel": "/no/vmlinuz", "init": "/no/init", "monitor": "/no/qemu"}"#;
        let (code, said) = probe_microvms(OsStr::new(json));
        assert_eq!(code, ExitCode::FAILURE);
        assert!(
            said.starts_with("/no/qemu: ") && said.ends_with("tabbify doctor"),
            "{said}"
        );
        let (code, said) = doctor_of_microvms(OsStr::new(json));
        assert_eq!(code, ExitCode::FAILURE);
        for part in [
            "✗ /no/qemu: ",
            "    apt-get install",
            "✗ the guest's kernel (/no/vmlinuz): missing",
        ] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert_eq!(probe_microvms(OsStr::new("{")).0, ExitCode::FAILURE);
    }

    #[test]
    fn what_is_not_known_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let app = "0191e7c2-1111-7222-8333-444455556666";
        let home = dir.path().join(app).join("7");
        std::fs::create_dir_all(&home).unwrap();
        let nowhere = Some(OsStr::new("unix:///no/engine"));
        let cleaned = |home: &Path| clean(home, nowhere) == ExitCode::SUCCESS;
        assert!(cleaned(&home), "nobody was ever told to run");
        std::fs::write(home.join(BOOT_FILE), "{").unwrap();
        assert!(cleaned(&home), "nothing was made outside");
        std::fs::write(home.join(runtime::OUTSIDE_FILE), "").unwrap();
        assert!(!cleaned(&home), "there is no engine to ask");
        std::fs::create_dir(home.join("machine")).unwrap();
        std::fs::write(home.join(runtime::OUTSIDE_FILE), microvm::OUTSIDE).unwrap();
        assert!(cleaned(&home), "a machine is in no engine");
        assert!(!home.join("machine").exists());
        let of = instance_of(&home).unwrap();
        assert_eq!((of.app.to_string(), of.instance.get()), (app.to_owned(), 7));
        assert_eq!(instance_of(dir.path()), None);
    }
}
