//! How much memory this machine has.

use std::fs;

use tabbify_types::ByteSize;

/// The memory of this machine, or what its control group leaves of it, as the system tells; none where it
/// does not.
#[must_use]
pub fn memory_total() -> Option<ByteSize> {
    let total = of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    // Of version 2, then of version 1, as a container sees its own.
    let groups = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limits = groups
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    let least = limits.filter_map(|text| text.trim().parse().ok().map(ByteSize));
    Some(least.fold(total, ByteSize::min))
}

/// The line `MemTotal:       16384 kB` of `/proc/meminfo`, proc(5).
fn of_machine(text: &str) -> Option<ByteSize> {
    let mut lines = text.lines();
    let said = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = said.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024).map(ByteSize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_tells() {
        let text = "MemFree: 1 kB\nMemTotal:       16384 kB\nMemAvailable: 2 kB\n";
        assert_eq!(of_machine(text), Some(ByteSize::mib(16)));
        for bad in [
            "",
            "MemTotal: 5",
            "MemTotal: -1 kB",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(of_machine(bad), None, "{bad}");
        }
        let here = memory_total().unwrap();
        assert!(
            here > ByteSize::mib(16) && here < ByteSize::mib(1 << 30),
            "{here}"
        );
    }
}
