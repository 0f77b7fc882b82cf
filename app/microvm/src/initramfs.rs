//! What the guest's kernel starts from: our init and the modules, made once for each combination.

use std::fs;
use std::path::PathBuf;

use crate::cpio::Cpio;
use crate::error::{Result, VmError};
use crate::machine::Assets;
use crate::modules::modules;

/// The initramfs for `assets`, in their directory of state under its own digest.
pub(crate) fn initramfs(assets: &Assets) -> Result<PathBuf> {
    let init = fs::read(&assets.init).map_err(VmError::io("read", &assets.init))?;
    let mut cpio = Cpio::default();
    for directory in ["dev", "proc", "sys", "modules"] {
        cpio.directory(directory);
    }
    cpio.console("dev/console");
    cpio.program("init", &init);
    let modules = assets.modules.as_deref().map(modules).transpose()?;
    for (at, path) in modules.unwrap_or_default().into_iter().enumerate() {
        let content = fs::read(&path).map_err(VmError::io("read", &path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Sorted by name they are in the order in which they are loaded.
        cpio.program(&format!("modules/{at:03}-{name}"), &content);
    }
    let bytes = cpio.finish();
    let name = format!("initramfs-{}.cpio", blake3::hash(&bytes).to_hex());
    let path = assets.state.join(name);
    // Reading it back costs as much as making it, and what has this name has this content.
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(path);
    }
    tabbify_process::files::private_dir(&assets.state)
        .map_err(VmError::io("make", &assets.state))?;
    tabbify_process::files::write_atomic(&path, &bytes, 0o600)
        .map_err(VmError::io("write", &path))?;
    Ok(path)
}
