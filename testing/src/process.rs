//! What the kernel says about processes: memory, life, command lines.

use std::path::Path;

use anyhow::Context as _;

/// Resident memory of a process, in bytes: what `/proc/<pid>/status` calls `field`.
///
/// # Errors
/// If the process is gone.
pub fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid}"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .context("no such field")?;
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .context("a number")?
        .parse()?;
    Ok(kib * 1024)
}

/// Forgets the peak that `VmHWM` remembers, so that the next reading is of what follows.
///
/// # Errors
/// If the process is gone.
pub fn reset_peak(pid: u32) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("process {pid}"))
}

/// Whether a process runs: it is there and not a zombie.
#[must_use]
pub fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']))
}

/// Every running process whose command line mentions `directory`, with its command line.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn mentioning(directory: &Path) -> anyhow::Result<Vec<(u32, String)>> {
    let needle = directory.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&needle) && runs(pid) {
            found.push((pid, line));
        }
    }
    Ok(found)
}

/// The runners of a data directory, by process id.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn runners(data: &Path) -> anyhow::Result<Vec<u32>> {
    let found = mentioning(&data.join("runners"))?;
    let runners = found
        .into_iter()
        .filter(|(_, line)| line.contains("tabbify-runner"));
    Ok(runners.map(|(pid, _)| pid).collect())
}
