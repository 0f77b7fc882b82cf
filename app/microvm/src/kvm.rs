//! Whether guests run under KVM here. The device says nothing: where hypervisors are nested, it opens
//! and no kernel gets to its first process. So one is booted, and the answer kept until the host is.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use tabbify_api::runner::Acceleration;
use tabbify_process::Tasks;
use tabbify_types::ByteSize;

use crate::error::{Result, VmError};
use crate::guest::{Guest, Phase};
use crate::machine::{Assets, Machine};
use crate::qemu::Qemu;
use crate::vm::Directory;
use crate::vmm::Vmm as _;

/// The device.
pub(crate) const DEVICE: &str = "/dev/kvm";
/// LIMIT: how long the guest may take to its init: under a KVM that works it takes under one second.
const BOOT_WITHIN: Duration = Duration::from_secs(10);
/// The answers, as they are kept.
const YES: &str = "guests boot under KVM\n";
const NO: &str = "guests do not boot under KVM\n";

/// Whether this process may use the device at all.
pub(crate) fn opens() -> std::io::Result<()> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map(drop)
}

/// What is known, without trying.
pub(crate) fn known(assets: &Assets) -> Option<bool> {
    match fs::read_to_string(answer(assets)).ok()?.as_str() {
        YES => Some(true),
        NO => Some(false),
        _ => None,
    }
}

/// Whether a guest boots under KVM.
pub(crate) async fn usable(assets: &Assets, tasks: &Tasks) -> Result<bool> {
    if opens().is_err() {
        return Ok(false);
    }
    if let Some(known) = known(assets) {
        return Ok(known);
    }
    let usable = boots(assets, tasks).await?;
    let text = if usable { YES } else { NO };
    let path = answer(assets);
    tabbify_process::files::write_atomic(&path, text.as_bytes(), 0o600)
        .map_err(VmError::io("write", &path))?;
    if !usable {
        tracing::warn!(
            "/dev/kvm opens, but no guest boots under it: machines run in software, slowly"
        );
    }
    Ok(usable)
}

async fn boots(assets: &Assets, tasks: &Tasks) -> Result<bool> {
    let name = format!("kvm-{:016x}", u64::from_le_bytes(tabbify_process::random()));
    let machine = Machine {
        directory: assets.state.join(name),
        // Never looked at: the guest is ended when it asks what to run.
        root: assets.init.clone(),
        volume: None,
        memory: ByteSize::mib(128),
        processors: 1,
        way_out: false,
        ports: Vec::new(),
    };
    let _directory = Directory::make(&machine.directory)?;
    let qemu = Qemu::new(assets.clone(), Acceleration::Kvm);
    let launched = match Box::pin(qemu.launch(&machine, tasks)).await {
        Ok(launched) => launched,
        // QEMU itself may find that it cannot use the device.
        Err(VmError::Monitor { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let tasks = tasks.child();
    let (guest, _output) = Guest::talk(launched.control, &tasks);
    let booted = guest.reaches(|phase| *phase == Phase::Booted);
    let booted = tokio::time::timeout(BOOT_WITHIN, booted).await;
    launched.process.kill();
    launched.process.ended().await;
    Ok(booted == Ok(Phase::Booted))
}

/// Where the answer is kept: one for each kernel, QEMU's own changes aside, and each boot of the host.
fn answer(assets: &Assets) -> PathBuf {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kernel = fs::metadata(&assets.kernel).map_or(0, |found| found.len());
    let about = format!("{}\n{kernel}\n{boot}", assets.kernel.display());
    let name = format!("kvm-{}", &blake3::hash(about.as_bytes()).to_hex()[..16]);
    assets.state.join(name)
}
