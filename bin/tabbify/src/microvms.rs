//! What microVMs are made of on this machine: as `[microvm]` says, else where it is commonly found.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use tabbify_api::runner::{Acceleration, MicroVms};

/// Where a package puts what guests need, and a person who has none.
const PLACE: &str = "/usr/lib/tabbify/guest";
/// The guests' first process: beside the runner, as it is shipped.
const INIT: &str = "tabbify-guest-init";
/// Kernels of distributions that are made for virtual machines: they boot in a moment.
const OF_CLOUDS: &str = "-cloud-";

/// `[microvm]`.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// The kernel of the guests.
    kernel: Option<PathBuf>,
    /// Its modules, if it needs any.
    modules: Option<PathBuf>,
    /// Their first process.
    init: Option<PathBuf>,
    /// The program that runs them.
    monitor: Option<PathBuf>,
    /// Who executes their instructions.
    acceleration: Acceleration,
}

impl Section {
    /// What is there. What is not is named where it would be looked for: then `tabbify doctor` says so, and what
    /// to do.
    pub(crate) fn found(&self, runner: &Path) -> MicroVms {
        self.found_in(runner, Path::new(PLACE), Path::new("/"))
    }

    fn found_in(&self, runner: &Path, place: &Path, root: &Path) -> MicroVms {
        let (kernel, modules) = match &self.kernel {
            Some(kernel) => (kernel.clone(), None),
            None => kernel(place, root),
        };
        let init = self.init.clone().unwrap_or_else(|| {
            let beside = runner.with_file_name(INIT);
            let placed = place.join(INIT);
            if placed.is_file() && !beside.is_file() {
                placed
            } else {
                beside
            }
        });
        MicroVms {
            kernel,
            modules: self.modules.clone().or(modules),
            init,
            monitor: self.monitor.clone(),
            acceleration: self.acceleration,
        }
    }
}

/// The kernel and its modules: what was put there for guests, or else the newest of those that this machine has
/// for itself and that are made for virtual machines.
fn kernel(place: &Path, root: &Path) -> (PathBuf, Option<PathBuf>) {
    let (kernel, modules) = (place.join("vmlinuz"), place.join("modules"));
    let modules = modules.is_dir().then_some(modules);
    if kernel.is_file() {
        return (kernel, modules);
    }
    let installed = std::fs::read_dir(root.join("boot")).into_iter().flatten();
    let releases = installed.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let release = name.strip_prefix("vmlinuz-")?.to_owned();
        let modules = root.join("lib/modules").join(&release);
        (release.contains(OF_CLOUDS) && modules.is_dir()).then_some(release)
    });
    match releases.max_by(|a, b| by_numbers(a, b)) {
        Some(release) => (
            root.join(format!("boot/vmlinuz-{release}")),
            Some(root.join("lib/modules").join(release)),
        ),
        None => (kernel, modules),
    }
}

/// Compares releases as people do: `6.1.0-9` is older than `6.1.0-10`.
fn by_numbers(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let parts = text.split(['.', '-', '+']);
        parts
            .map(|part| (part.parse().unwrap_or_default(), part.to_owned()))
            .collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (runner, place) = (path("bin/tabbify-runner"), path("place"));
        for made in ["boot", "bin", "place"] {
            fs::create_dir(path(made)).unwrap();
        }
        let told = Section::default();
        let found = || told.found_in(&runner, &place, dir.path());
        assert_eq!(found().kernel, place.join("vmlinuz"));
        assert_eq!(found().init, path("bin/tabbify-guest-init"));
        assert_eq!(found().modules, None);

        for release in [
            "6.1.0-9-cloud-amd64",
            "6.1.0-10-cloud-amd64",
            "6.12.9-amd64",
        ] {
            fs::write(path(&format!("boot/vmlinuz-{release}")), "").unwrap();
            fs::create_dir_all(path(&format!("lib/modules/{release}"))).unwrap();
        }
        fs::write(path("boot/vmlinuz-7.0.0-1-cloud-amd64"), "without modules").unwrap();
        assert_eq!(found().kernel, path("boot/vmlinuz-6.1.0-10-cloud-amd64"));
        assert_eq!(
            found().modules,
            Some(path("lib/modules/6.1.0-10-cloud-amd64"))
        );

        fs::write(place.join("vmlinuz"), "").unwrap();
        fs::write(place.join(INIT), "").unwrap();
        assert_eq!(
            (found().kernel, found().modules),
            (place.join("vmlinuz"), None)
        );
        assert_eq!(found().init, place.join(INIT));

        let told = Section {
            kernel: Some("/vmlinux".into()),
            ..Section::default()
        };
        let found = told.found_in(&runner, &place, dir.path());
        assert_eq!((found.kernel, found.modules), ("/vmlinux".into(), None));
    }
}
