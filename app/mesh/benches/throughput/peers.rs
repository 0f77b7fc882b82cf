//! Stock WireGuard programs: a TUN device each, configured with `wg`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tabbify_mesh::PrivateKey;

use crate::Fallible;
use crate::lab::{Lab, Measured, PORT, outer, run, which};

const MTU: &str = "1420";

/// A program to compare with.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// Our cost is to be at most this much of its.
    pub(crate) aim: f64,
    program: PathBuf,
    arguments: &'static [&'static str],
}

/// Those that this machine has.
pub(crate) fn found(tools: &Path) -> Vec<Peer> {
    let known: [(&'static str, f64, &'static [&'static str]); 3] = [
        (crate::REFERENCE, 0.5, &["-f"]),
        ("boringtun-cli", 0.2, &["-f", "--disable-drop-privileges"]),
        ("gotatun", 0.2, &["-f", "--disable-drop-privileges"]),
    ];
    known
        .into_iter()
        .filter_map(|(name, aim, arguments)| {
            let built = tools.join(name);
            let program = built.exists().then_some(built).or_else(|| which(name))?;
            Some(Peer {
                name,
                version: version(name, &program),
                aim,
                program,
                arguments,
            })
        })
        .collect()
}

fn version(name: &str, program: &Path) -> String {
    // The package's, where the program itself knows none.
    let line = if name == crate::REFERENCE {
        Command::new("dpkg-query")
            .args(["-W", "-f", "${Version}", name])
            .output()
    } else {
        Command::new(program).arg("--version").output()
    };
    let said = line.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    said.split_whitespace()
        .last()
        .unwrap_or("unknown")
        .to_owned()
}

impl Peer {
    /// Sends through two of it, started anew.
    pub(crate) fn measure(&self, lab: &Lab, streams: usize, seconds: u64) -> Fallible<Measured> {
        let ends = [self.end(lab, 1)?, self.end(lab, 2)?];
        let before = ends[0].cpu()? + ends[1].cpu()?;
        let mut measured = lab.iperf("fd77::2", streams, seconds)?;
        measured.cpu_seconds += ends[0].cpu()? + ends[1].cpu()? - before;
        Ok(measured)
    }

    fn end(&self, lab: &Lab, n: u8) -> Fallible<End> {
        let device = format!("tun{}{n}", std::process::id());
        let mut command = lab.command(usize::from(n), &self.program);
        command.args(self.arguments).arg(&device);
        command.env("WG_PROCESS_FOREGROUND", "1");
        // The binary of Debian warns and waits when it finds a kernel that could do it.
        command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let socket = Path::new("/var/run/wireguard").join(format!("{device}.sock"));
        let end = End { child, socket };
        wait_for(&device)?;
        let other = 3 - n;
        let mut wg = Command::new("wg");
        wg.args(["set", &device, "private-key", "/dev/stdin"]);
        wg.args(["listen-port", &PORT.to_string(), "peer", &public(other)]);
        wg.args(["allowed-ips", &format!("fd77::{other}/128")]);
        wg.args(["endpoint", &format!("{}:{PORT}", outer(other))]);
        let mut wg = wg.stdin(Stdio::piped()).spawn()?;
        let mut stdin = wg.stdin.take().ok_or("no input")?;
        writeln!(stdin, "{}", STANDARD.encode([n; 32]))?;
        drop(stdin);
        if !wg.wait()?.success() {
            return Err(format!("wg does not configure {}", self.name).into());
        }
        let name = &lab.names[usize::from(n) - 1];
        let address = format!("fd77::{n}/64");
        let words = ["-n", name, "addr", "add", &address, "dev", &device, "nodad"];
        run("ip", &words)?;
        let words = ["-n", name, "link", "set", &device, "mtu", MTU, "up"];
        run("ip", &words)?;
        Ok(end)
    }
}

fn public(n: u8) -> String {
    PrivateKey::from_bytes(&[n; 32]).public().to_string()
}

/// Waits until `wg` can talk to the device's program.
#[expect(
    clippy::disallowed_methods,
    reason = "it tells nobody that it is ready"
)]
fn wait_for(device: &str) -> Fallible {
    for _ in 0..200 {
        let shown = Command::new("wg")
            .args(["show", device])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if shown.success() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Err(format!("nothing answers for {device}").into())
}

/// One running program; ended when dropped.
struct End {
    child: Child,
    /// Where `wg` talks to it.
    socket: PathBuf,
}

impl End {
    /// Processor seconds until now.
    fn cpu(&self) -> Fallible<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(')').ok_or("stat")?.1;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        #[expect(clippy::cast_precision_loss, reason = "a hundred")]
        let second = rustix::param::clock_ticks_per_second() as f64;
        Ok(ticks / second)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
