//! A stock WireGuard client: Debian's `wireguard-go`, configured over its UAPI socket from a file in the
//! format of `wg-quick`. It needs a network namespace of its own, see [`crate::apart`].

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// LIMIT: how long the program may take to make its interface.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(10);
/// LIMIT: how long it may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A client and its interface, gone with it.
#[derive(Debug)]
pub struct Stock {
    interface: String,
    program: Child,
}

/// A configuration in the format of `wg-quick`, with one peer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct File {
    /// `[Interface]`: keys and values in order.
    pub interface: Vec<(String, String)>,
    /// `[Peer]`: the same.
    pub peer: Vec<(String, String)>,
}

impl File {
    /// Reads a configuration as stock clients do; what they do not know is an error, as it is to them.
    ///
    /// # Errors
    /// With the line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        const KNOWN: [&str; 8] = [
            "PrivateKey",
            "ListenPort",
            "Address",
            "MTU",
            "PublicKey",
            "AllowedIPs",
            "Endpoint",
            "PersistentKeepalive",
        ];
        let mut file = Self::default();
        let mut in_peer = None;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            match (line, in_peer) {
                ("", _) => {}
                ("[Interface]", None) => in_peer = Some(false),
                ("[Peer]", Some(false)) => in_peer = Some(true),
                (line, Some(in_peer)) => {
                    let (key, value) = line.split_once('=').with_context(|| line.to_owned())?;
                    let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
                    ensure!(KNOWN.contains(&key.as_str()), "{key} is not known");
                    let section = match in_peer {
                        true => &mut file.peer,
                        false => &mut file.interface,
                    };
                    section.push((key, value));
                }
                (line, None) => bail!("{line:?} is in no section"),
            }
        }
        Ok(file)
    }

    /// The first value of a key of `[Interface]`.
    #[must_use]
    pub fn interface(&self, key: &str) -> Option<&str> {
        find(&self.interface, key)
    }

    /// The first value of a key of `[Peer]`.
    #[must_use]
    pub fn peer(&self, key: &str) -> Option<&str> {
        find(&self.peer, key)
    }

    /// The same in the words of the UAPI.
    fn uapi(&self) -> anyhow::Result<String> {
        let mut text = String::from("set=1\n");
        let private = self.interface("PrivateKey").context("PrivateKey")?;
        writeln!(text, "private_key={}", hex(private)?)?;
        if let Some(port) = self.interface("ListenPort") {
            writeln!(text, "listen_port={port}")?;
        }
        let public = self.peer("PublicKey").context("PublicKey")?;
        writeln!(text, "replace_peers=true\npublic_key={}", hex(public)?)?;
        if let Some(endpoint) = self.peer("Endpoint") {
            writeln!(text, "endpoint={endpoint}")?;
        }
        if let Some(seconds) = self.peer("PersistentKeepalive") {
            writeln!(text, "persistent_keepalive_interval={seconds}")?;
        }
        writeln!(text, "replace_allowed_ips=true")?;
        for prefix in self.allowed() {
            writeln!(text, "allowed_ip={prefix}")?;
        }
        text.push('\n');
        Ok(text)
    }

    fn allowed(&self) -> impl Iterator<Item = &str> {
        let allowed = self.peer("AllowedIPs").unwrap_or_default();
        allowed.split(',').map(str::trim)
    }
}

fn find<'a>(section: &'a [(String, String)], key: &str) -> Option<&'a str> {
    let mut values = section.iter().filter(|(known, _)| known == key);
    values.next().map(|(_, value)| value.as_str())
}

fn hex(key: &str) -> anyhow::Result<String> {
    let bytes = STANDARD.decode(key).context("a key in base64")?;
    ensure!(bytes.len() == 32, "a key of {} bytes", bytes.len());
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

impl Stock {
    /// Starts the program; nothing if it is not installed. The name of the interface must be the caller's
    /// alone on the machine: the directory of its socket is shared.
    ///
    /// # Errors
    /// If it does not come up, with what it said.
    pub fn start(interface: &str) -> anyhow::Result<Option<Self>> {
        let mut command = Command::new("wireguard-go");
        command.args(["-f", interface]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let program = match command.env("LOG_LEVEL", "error").spawn() {
            Ok(program) => program,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("wireguard-go"),
        };
        let interface = interface.to_owned();
        let mut stock = Self { interface, program };
        let tries = STARTS_WITHIN.as_millis() / INTERVAL.as_millis();
        for _ in 0..tries {
            if stock.connect().is_ok() {
                return Ok(Some(stock));
            }
            if let Some(status) = stock.program.try_wait()? {
                let mut said = String::new();
                if let Some(mut stderr) = stock.program.stderr.take() {
                    stderr.read_to_string(&mut said)?;
                }
                bail!("wireguard-go: {status}: {said}");
            }
            pause();
        }
        bail!("wireguard-go does not serve {}", stock.socket().display())
    }

    /// Makes the interface what the file says, with its routes.
    ///
    /// # Errors
    /// If the file or the program does not allow it.
    pub fn apply(&self, file: &File) -> anyhow::Result<()> {
        self.set(&file.uapi()?)?;
        let device = self.interface.as_str();
        if let Some(mtu) = file.interface("MTU") {
            ip(&["link", "set", "dev", device, "mtu", mtu])?;
        }
        let address = file.interface("Address").context("Address")?;
        ip(&["-6", "addr", "replace", address, "dev", device, "nodad"])?;
        ip(&["link", "set", "dev", device, "up"])?;
        for prefix in file.allowed() {
            ip(&["-6", "route", "replace", prefix, "dev", device])?;
        }
        Ok(())
    }

    /// Sends a `set` request of the UAPI.
    ///
    /// # Errors
    /// If it is refused.
    pub fn set(&self, request: &str) -> anyhow::Result<()> {
        let answer = self.ask(request)?;
        let errno = answer.lines().find_map(|line| line.strip_prefix("errno="));
        ensure!(errno == Some("0"), "the UAPI says {answer:?}");
        Ok(())
    }

    /// A value of what the interface says about itself.
    ///
    /// # Errors
    /// If it is not there.
    pub fn get(&self, key: &str) -> anyhow::Result<String> {
        let answer = self.ask("get=1\n\n")?;
        let mut lines = answer.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(known, _)| *known == key);
        Ok(found.with_context(|| key.to_owned())?.1.to_owned())
    }

    fn ask(&self, request: &str) -> anyhow::Result<String> {
        let mut socket = self.connect()?;
        socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
        socket.write_all(request.as_bytes())?;
        // An answer ends with an empty line; the connection stays.
        let mut answer = Vec::new();
        let mut room = [0; 4096];
        while !answer.ends_with(b"\n\n") {
            match socket.read(&mut room)? {
                0 => break,
                len => answer.extend(&room[..len]),
            }
        }
        Ok(String::from_utf8(answer)?)
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.socket())
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/wireguard/{}.sock", self.interface))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let _ = std::fs::remove_file(self.socket());
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).output().context("ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {said}", words.join(" "));
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
fn pause() {
    std::thread::sleep(INTERVAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_stock_clients_do() {
        let key = STANDARD.encode([0xab; 32]);
        let text = format!(
            "# a comment\n[Interface]\nPrivateKey = {key}\nAddress = fd5a:1f01:0:1::1/128 # mine\n\
             [Peer]\nPublicKey={key}\nAllowedIPs = fd5a:1f00::/32, fd5a:1f02::/32\nEndpoint = 127.0.0.1:9\n"
        );
        let file = File::parse(&text).unwrap();
        assert_eq!(file.interface("Address"), Some("fd5a:1f01:0:1::1/128"));
        let hex = "ab".repeat(32);
        let expected = format!(
            "set=1\nprivate_key={hex}\nreplace_peers=true\npublic_key={hex}\nendpoint=127.0.0.1:9\n\
             replace_allowed_ips=true\nallowed_ip=fd5a:1f00::/32\nallowed_ip=fd5a:1f02::/32\n\n"
        );
        assert_eq!(file.uapi().unwrap(), expected);
        for bad in [
            "PrivateKey = x",
            "[Interface]\nDns = 1.1.1.1",
            "[Interface]\nx",
            "[Peer]",
        ] {
            assert!(File::parse(bad).is_err(), "{bad}");
        }
    }
}
