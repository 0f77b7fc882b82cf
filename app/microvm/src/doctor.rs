//! What a host lacks for microVMs, and how to get it.

use std::path::Path;
use std::process::{Command, Stdio};

use tabbify_api::runner::Acceleration;

use crate::kvm;
use crate::machine::Assets;
use crate::modules::modules;
use crate::qemu;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing.
    pub what: String,
    /// How it is with it, in a few words.
    pub state: String,
    /// What to do, if something is to be done.
    pub remedy: Option<String>,
    /// Whether machines run without it.
    pub optional: bool,
}

impl Finding {
    /// Whether there are no machines without it.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        self.remedy.is_some() && !self.optional
    }
}

/// Looks at everything that a machine needs. Starts none, so that of KVM it knows what an earlier one
/// found out. The first is the monitor, the last KVM.
#[must_use]
pub fn doctor(assets: &Assets, acceleration: Acceleration) -> Vec<Finding> {
    let monitor = qemu::program(assets);
    let mut findings = vec![
        program(&monitor, "--version", qemu::PACKAGE, false),
        program("sqfstar".as_ref(), "-version", "squashfs-tools", false),
        program("mkfs.ext4".as_ref(), "-V", "e2fsprogs", true),
    ];
    let file = |what: &str, path: &Path, remedy: &str| Finding {
        what: format!("{what} ({})", path.display()),
        state: if path.is_file() { "there" } else { "missing" }.to_owned(),
        remedy: (!path.is_file()).then(|| remedy.to_owned()),
        optional: false,
    };
    findings.push(file(
        "the guest's kernel",
        &assets.kernel,
        "docs/operating/microvms.md says how to get one: four commands, and nothing is installed",
    ));
    findings.push(file(
        "the guest's init",
        &assets.init,
        "it comes with tabbify: put tabbify-guest-init beside tabbify-runner",
    ));
    if let Some(directory) = &assets.modules {
        let found = modules(directory);
        findings.push(Finding {
            what: format!("the kernel's modules ({})", directory.display()),
            state: match &found {
                Ok(paths) => format!("{} are loaded into each guest", paths.len()),
                Err(error) => tabbify_process::chain(error).to_string(),
            },
            remedy: found.is_err().then(|| {
                "name the directory lib/modules/<release> of the kernel's own package".to_owned()
            }),
            optional: false,
        });
    }
    findings.push(of_kvm(assets, acceleration));
    findings
}

fn of_kvm(assets: &Assets, acceleration: Acceleration) -> Finding {
    let (state, remedy) = match (kvm::opens(), kvm::known(assets)) {
        _ if acceleration == Acceleration::Tcg => (
            "not used, as the configuration says: machines run in software".to_owned(),
            None,
        ),
        (Err(error), _) => (
            format!("{}: {error}", kvm::DEVICE),
            Some(
                "machines run in software, ten times slower. To mend it: usermod -aG kvm $USER, \
                  or turn virtualization on in the firmware or in the hypervisor above",
            ),
        ),
        (Ok(()), None) => ("not tried yet: the first machine tries it".to_owned(), None),
        (Ok(()), Some(true)) => ("guests boot under it".to_owned(), None),
        (Ok(()), Some(false)) => (
            "opens, but no guest boots under it: machines run in software, ten times slower"
                .to_owned(),
            Some(
                "use a host that is not itself a virtual machine, or one with nested virtualization",
            ),
        ),
    };
    Finding {
        what: "KVM".to_owned(),
        state,
        remedy: remedy.map(str::to_owned),
        optional: true,
    }
}

fn program(name: &Path, version: &str, package: &str, optional: bool) -> Finding {
    let run = Command::new(name)
        .arg(version)
        .env("PATH", qemu::PATH)
        .stdin(Stdio::null())
        .output();
    let (state, remedy) = match run {
        Ok(output) => {
            // Some tell their version as an error.
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            (text.lines().next().unwrap_or("there").to_owned(), None)
        }
        Err(error) => (
            error.to_string(),
            Some(format!("apt-get install {package}")),
        ),
    };
    Finding {
        what: name.display().to_string(),
        state,
        remedy,
        optional,
    }
}
