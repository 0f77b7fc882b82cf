//! Places of a laboratory: network namespaces with cables between them, for processes as they are. Inside
//! [`crate::apart`], where the test's own network is one of them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context as _, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A network namespace, there as long as this is; a process holds it.
#[derive(Debug)]
pub struct Place {
    holder: Child,
}

impl Place {
    /// A new one, with a loopback interface that is up.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        // It says when it is in there, and waits until its input ends.
        let mut holder = std::process::Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo there && cat",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux)")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line == "there\n", "no network namespace: {line:?}");
        Ok(Self { holder })
    }

    /// A command that runs `program` in there.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command.arg(program);
        command
    }

    /// Runs `ip` with these words in there.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn ip(&self, words: &str) -> anyhow::Result<()> {
        done(self.command(Path::new("ip")).args(words.split(' '))).await
    }

    /// Lays a cable from the test's own network to this one. Ends are written `device address`.
    ///
    /// # Errors
    /// As [`Place::ip`].
    pub async fn cable_home(&self, end: &str, other: &str) -> anyhow::Result<()> {
        let (near, far) = (device(end), device(other));
        let pid = self.holder.id();
        ip(&format!(
            "link add {near} type veth peer name {far} netns {pid}"
        ))
        .await?;
        for words in furnished(end) {
            ip(&words).await?;
        }
        self.furnish(other).await
    }

    /// Lays a cable from here to another place.
    ///
    /// # Errors
    /// As [`Place::ip`].
    pub async fn cable(&self, end: &str, there: &Self, other: &str) -> anyhow::Result<()> {
        let (near, far) = (device(end), device(other));
        let pid = there.holder.id();
        self.ip(&format!(
            "link add {near} type veth peer name {far} netns {pid}"
        ))
        .await?;
        self.furnish(end).await?;
        there.furnish(other).await
    }

    async fn furnish(&self, end: &str) -> anyhow::Result<()> {
        for words in furnished(end) {
            self.ip(&words).await?;
        }
        Ok(())
    }

    /// Makes it a NAT: one port for each inner end, that only the ends which were sent to may answer.
    ///
    /// # Errors
    /// As [`Place::ip`].
    pub async fn translate(&self) -> anyhow::Result<()> {
        let rules = "table ip nat {
            chain post { type nat hook postrouting priority 100; policy accept;
                oifname \"wan\" masquerade; }
            chain forward { type filter hook forward priority 0; policy accept;
                iifname \"wan\" ct state new drop; }
            chain input { type filter hook input priority 0; policy accept;
                iifname \"wan\" ct state new drop; }
        }\n";
        let mut sysctl = self.command(Path::new("sh"));
        done(sysctl.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])).await?;
        let mut child = self
            .command(Path::new("nft"))
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("nft (nftables)")?;
        let mut input = child.stdin.take().context("piped")?;
        input.write_all(rules.as_bytes()).await?;
        drop(input);
        let ended = child.wait().await?;
        ensure!(ended.success(), "nft ended with {ended}");
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs `ip` with these words in the test's own network.
///
/// # Errors
/// As [`Place::ip`].
pub async fn ip(words: &str) -> anyhow::Result<()> {
    done(Command::new("ip").args(words.split(' '))).await
}

fn device(end: &str) -> &str {
    end.split(' ').next().unwrap_or_default()
}

/// What sets an end up.
fn furnished(end: &str) -> Vec<String> {
    let (name, addresses) = end.split_once(' ').unwrap_or((end, ""));
    let addresses = addresses.split(' ').filter(|address| !address.is_empty());
    let mut words: Vec<String> = addresses
        .map(|address| format!("addr add {address} dev {name}"))
        .collect();
    words.push(format!("link set {name} up"));
    words
}

async fn done(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {said}",
        output.status
    );
    Ok(())
}
