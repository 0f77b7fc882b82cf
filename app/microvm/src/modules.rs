//! Which modules a guest's kernel needs, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, VmError};

/// What every guest needs, by the names of modules.
const NEEDED: [&str; 7] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "squashfs",
    "overlay",
];
/// What a guest with a volume needs; kernels have it built in nearly always.
const FOR_VOLUMES: &str = "ext4";
/// LIMIT: directories in directories of modules.
const DEPTH_MAX: usize = 12;

/// The modules in `directory`, each behind those that it needs.
pub(crate) fn modules(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    index(&directory.join("kernel"), DEPTH_MAX, &mut found)
        .map_err(VmError::io("read", directory))?;
    let built_in = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    let built_in: BTreeSet<String> = built_in
        .lines()
        .filter_map(|line| name(Path::new(line)))
        .collect();
    let mut order = Order {
        found,
        built_in,
        taken: BTreeSet::new(),
        paths: Vec::new(),
    };
    for module in NEEDED.iter().chain([&FOR_VOLUMES]) {
        if !order.add(module)? && *module != FOR_VOLUMES {
            return Err(VmError::Module {
                module: (*module).to_owned(),
                directory: directory.to_owned(),
            });
        }
    }
    Ok(order.paths)
}

struct Order {
    found: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    taken: BTreeSet<String>,
    paths: Vec<PathBuf>,
}

impl Order {
    /// Whether the kernel has it, in one way or the other.
    fn add(&mut self, module: &str) -> Result<bool> {
        if self.built_in.contains(module) || self.taken.contains(module) {
            return Ok(true);
        }
        let Some(path) = self.found.get(module).cloned() else {
            return Ok(false);
        };
        // Before its needs: modules that need each other would not end otherwise.
        self.taken.insert(module.to_owned());
        let bytes = fs::read(&path).map_err(VmError::io("read", &path))?;
        for needed in depends(&bytes) {
            self.add(&needed)?;
        }
        self.paths.push(path);
        Ok(true)
    }
}

fn index(
    directory: &Path,
    depth: usize,
    found: &mut BTreeMap<String, PathBuf>,
) -> std::io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(());
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, depth, found)?;
        } else if let Some(name) = name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// `virtio_rng` of `…/virtio-rng.ko`.
fn name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// The `depends=` of a module's `.modinfo`, which is a list of texts that end with a zero.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY);
    let Some(rest) = at.and_then(|at| module.get(at + KEY.len()..)) else {
        return Vec::new();
    };
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_behind_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        let module = |name: &str, needs: &str| {
            let text = format!("\x7fELF...license=GPL\0depends={needs}\0name={name}\0");
            fs::write(kernel.join(format!("{name}.ko")), text).unwrap();
        };
        module("virtio_pci", "virtio,virtio_ring");
        module("virtio", "virtio_ring");
        module("virtio_ring", "virtio");
        module("virtio_blk", "virtio");
        module("virtio_console", "");
        module("virtio-rng", "");
        module("squashfs", "");
        module("unused", "");
        let missing = modules(dir.path()).unwrap_err();
        assert!(missing.to_string().contains("no virtio_net"), "{missing}");
        fs::write(
            dir.path().join("modules.builtin"),
            "kernel/net/virtio_net.ko\nkernel/fs/overlay.ko\n",
        )
        .unwrap();
        let paths = modules(dir.path()).unwrap();
        let names: Vec<String> = paths.iter().filter_map(|path| name(path)).collect();
        assert_eq!(
            names,
            [
                "virtio_ring",
                "virtio",
                "virtio_pci",
                "virtio_blk",
                "virtio_console",
                "virtio_rng",
                "squashfs"
            ]
        );
    }

    #[test]
    fn any_bytes_are_read() {
        assert!(depends(b"").is_empty());
        assert!(depends(b"\0depends=").is_empty());
        assert_eq!(depends(b"x\0depends=a-b,c"), ["a_b", "c"]);
    }
}
