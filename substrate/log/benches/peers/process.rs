//! Programs that are started and ended here, and what the machine says about itself.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// A program that ends with this value.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// As if the power had gone, for this program.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a program without a voice.
pub(crate) fn start(command: &mut Command) -> anyhow::Result<Running> {
    let shown = shown(command);
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = quiet
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    Ok(Running(child))
}

/// The command line, for the notes.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// What a program prints, such as its version.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An address that is free now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Waits until somebody listens.
pub(crate) async fn listening(address: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..600 {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nobody listens at {address}")
}

/// Makes `command` run as the account `name`, and `dir` its own, if we may: some programs refuse to
/// run as root.
pub(crate) fn run_as(command: &mut Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    if output(Command::new("id").arg("-u"))? != "0" {
        return Ok(());
    }
    let accounts = fs::read_to_string("/etc/passwd")?;
    let line = accounts
        .lines()
        .find(|line| line.split(':').next() == Some(name))
        .with_context(|| format!("there is no account {name}"))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    let (Some(Ok(uid)), Some(Ok(gid))) = (numbers.next(), numbers.next()) else {
        bail!("the account {name} has no numbers");
    };
    chown(dir, Some(uid), Some(gid))?;
    command.uid(uid).gid(gid);
    Ok(())
}

pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, {}, kernel {}",
        model.map_or("unknown", |(_, model)| model),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// How busy the machine is with others: shares of the last ten seconds in which work waited.
pub(crate) fn pressure() -> String {
    let of = |what: &str| {
        let text = fs::read_to_string(format!("/proc/pressure/{what}")).unwrap_or_default();
        let some = text.split_whitespace().nth(1).unwrap_or("avg10=?");
        format!("{what} {}", some.trim_start_matches("avg10="))
    };
    format!("{} %, {} %", of("cpu"), of("io"))
}

/// Memory that the process holds, in MiB.
pub(crate) fn memory_mib(id: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = kib.context("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
