//! Two namespaces, the programs in them, and what they used.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde_json::Value;

use crate::Fallible;

pub(crate) const PORT: u16 = 51820;

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

impl Measured {
    pub(crate) fn cpu_per_gigabyte(&self) -> f64 {
        self.cpu_seconds / (self.bytes / 1e9)
    }

    pub(crate) fn gigabits_per_second(&self) -> f64 {
        self.bytes * 8.0 / 1e9 / self.seconds
    }
}

/// The outer address of end 1 or 2.
pub(crate) fn outer(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, n)
}

/// What cannot be found.
pub(crate) fn missing() -> Vec<String> {
    let mut missing: Vec<String> = ["ip", "wg", "iperf3"]
        .iter()
        .filter(|program| which(program).is_none())
        .map(|program| format!("{program} is missing"))
        .collect();
    if !rustix::process::geteuid().is_root() {
        missing.push("not root".to_owned());
    }
    missing
}

/// Where a program is.
pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(program))
    .find(|path| path.exists())
}

/// Two namespaces with a veth between them; gone when dropped.
pub(crate) struct Lab {
    pub(crate) names: [String; 2],
}

impl Lab {
    pub(crate) fn new() -> Fallible<Self> {
        let id = std::process::id();
        let lab = Self {
            names: [format!("tabbify-{id}-1"), format!("tabbify-{id}-2")],
        };
        let [a, b] = [lab.names[0].as_str(), lab.names[1].as_str()];
        run("ip", &["netns", "add", a])?;
        run("ip", &["netns", "add", b])?;
        run(
            "ip",
            &[
                "link", "add", "veth1", "netns", a, "type", "veth", "peer", "name", "veth2",
                "netns", b,
            ],
        )?;
        for (n, name) in [(1, a), (2, b)] {
            let (device, address) = (format!("veth{n}"), format!("{}/24", outer(n)));
            run("ip", &["-n", name, "addr", "add", &address, "dev", &device])?;
            run("ip", &["-n", name, "link", "set", &device, "up"])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        // More addresses of end 1, for a flood.
        let [here, there] = ["10.77.1.0/24", "10.77.0.1"];
        let words = ["-n", a, "route", "add", "local", here, "dev", "lo"];
        run("ip", &words)?;
        run("ip", &["-n", b, "route", "add", here, "via", there])?;
        Ok(lab)
    }

    /// A command in the namespace of end 1 or 2.
    pub(crate) fn command(&self, n: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[n - 1]]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// Ours over `stack`.
    pub(crate) fn ours(&self, stack: &str, streams: usize, seconds: u64) -> Fallible<Measured> {
        let program = std::env::current_exe()?;
        let (streams, seconds) = (streams.to_string(), seconds.to_string());
        let before = children()?;
        let mut receiver = self.command(2, &program);
        receiver.args(["end", "receive", stack, &streams, &seconds]);
        let (mut receiver, mut lines) = start(receiver)?;
        expect(&mut lines, "ready")?;
        let mut sender = self.command(1, &program);
        let sent = sender
            .args(["end", "send", stack, &streams, &seconds])
            .status()?;
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if !receiver.wait()?.success() || !sent.success() {
            return Err(format!("an end failed over {stack}").into());
        }
        let (bytes, seconds) = line.trim().split_once(' ').ok_or("no figures")?;
        Ok(Measured {
            bytes: bytes.parse()?,
            seconds: seconds.parse()?,
            cpu_seconds: children()? - before,
        })
    }

    /// This program in the namespace of end `n`, once it says that it is ready; ended when dropped.
    pub(crate) fn background(&self, n: usize, arguments: &[&str]) -> Fallible<Background> {
        let mut command = self.command(n, &std::env::current_exe()?);
        command.args(arguments);
        let (child, mut lines) = start(command)?;
        let background = Background(child);
        expect(&mut lines, "ready")?;
        Ok(background)
    }

    /// `iperf3` between the namespaces without a tunnel.
    pub(crate) fn bare(&self, streams: usize, seconds: u64) -> Fallible<Measured> {
        self.iperf(&outer(2).to_string(), streams, seconds)
    }

    /// `iperf3` to this address of end 2; the cost is that of `iperf3` alone.
    pub(crate) fn iperf(&self, to: &str, streams: usize, seconds: u64) -> Fallible<Measured> {
        let program = which("iperf3").ok_or("iperf3 is missing")?;
        let before = children()?;
        let mut server = self.command(2, &program);
        server.args(["-s", "-1", "--forceflush"]);
        let (mut server, mut lines) = start(server)?;
        expect(&mut lines, "Server listening")?;
        let mut client = self.command(1, &program);
        client.args(["-J", "-c", to, "-t", &seconds.to_string()]);
        let output = client.args(["-P", &streams.to_string()]).output()?;
        // It would wait for somebody to read what it prints.
        std::io::copy(&mut lines, &mut std::io::sink())?;
        server.wait()?;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        let sum = &told["end"]["sum_received"];
        let figure = |name: &str| sum[name].as_f64().ok_or_else(|| format!("iperf3: {told}"));
        Ok(Measured {
            bytes: figure("bytes")?,
            seconds: figure("seconds")?,
            cpu_seconds: children()? - before,
        })
    }
}

/// See [`Lab::background`].
pub(crate) struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

/// Runs a command of this machine.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Fallible {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {said}", arguments.join(" ")).into())
}

type Lines = BufReader<std::process::ChildStdout>;

fn start(mut command: Command) -> Fallible<(Child, Lines)> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let lines = child.stdout.take().ok_or("no output")?;
    Ok((child, BufReader::new(lines)))
}

fn expect(lines: &mut Lines, what: &str) -> Fallible {
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        if line.contains(what) {
            return Ok(());
        }
        line.clear();
    }
    Err(format!("never said {what}").into())
}

/// Processor seconds of all children that ended.
fn children() -> Fallible<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    #[expect(clippy::cast_precision_loss, reason = "seconds, not years")]
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
