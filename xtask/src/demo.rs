//! `cargo xtask demo`: from a clone to an answer, with everything real.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::run::{root, step};
use crate::setup;

/// Where people expect the node.
const PORT_DEFAULT: u16 = 8090;

/// Builds, starts a platform in a fresh directory, pushes `examples/hello-wasm`, requests it and
/// stays up until Ctrl-C, or ends after the first good answer if `once`.
pub(crate) fn demo(once: bool) -> anyhow::Result<()> {
    setup::compiler()?;
    setup::wasm_target()?;
    step(&[
        "cargo",
        "build",
        "-p",
        "tabbify",
        "-p",
        "tabbify-runner",
        "-p",
        "tcli",
    ])?;

    let home = tempfile::Builder::new().prefix("tabbify-demo-").tempdir()?;
    let app = copy_example("hello-wasm", home.path())?;
    let platform = Platform::start(home.path())?;
    println!("── tcli push  (examples/hello-wasm)");
    let pushed = platform.tcli(&app).arg("push").status()?;
    if !pushed.success() {
        bail!(
            "tcli push: {pushed}; the platform's log is {}",
            platform.log.display()
        );
    }
    let shown = platform.json(&app, &["status"])?["app"].take();
    let field = |name: &str| shown[name].as_str().unwrap_or_default().to_owned();
    let (url, id, address) = (field("url"), field("id"), field("address"));
    let token = platform.json(&app, &["token"])?;
    let token = token["token"]
        .as_str()
        .context("tcli token prints a token")?;
    let answer = request(&platform.server, &id, token)?;
    let first = answer.lines().next().unwrap_or_default();
    println!("\n  {first}\n");
    println!("  URL            {url}   (private: `tcli open` signs a browser in)");
    println!("  by id          {}/app/{id}/", platform.server);
    println!("  mesh address   [{address}]:8730");
    if once {
        return Ok(());
    }
    println!("\n  What to type next, in another terminal:");
    println!("    export XDG_CONFIG_HOME={}", platform.config.display());
    println!("    export PATH=\"{}:$PATH\"", binaries().display());
    println!("    cd {}", app.display());
    println!("    tcli status · tcli logs -f · tcli open · edit src/lib.rs, then tcli push");
    println!("\n  Ctrl-C ends it and removes {}", home.path().display());
    platform.wait()
}

fn binaries() -> PathBuf {
    root().join("target/debug")
}

/// A copy, so that the demo leaves no `tabbify.lock` in the clone.
fn copy_example(name: &str, home: &Path) -> anyhow::Result<PathBuf> {
    let to = home.join(name);
    let from = root().join("examples").join(name);
    std::fs::create_dir_all(to.join("src"))?;
    for file in ["Cargo.toml", "Cargo.lock", "tabbify.toml", "src/lib.rs"] {
        std::fs::copy(from.join(file), to.join(file)).with_context(|| format!("{name}/{file}"))?;
    }
    Ok(to)
}

/// A running `tabbify up`, stopped with its apps when dropped.
struct Platform {
    up: Child,
    server: String,
    data: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Platform {
    fn start(home: &Path) -> anyhow::Result<Self> {
        let (data, config, log) = (home.join("data"), home.join("config"), home.join("up.log"));
        let port = match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_DEFAULT)) {
            Ok(_) => PORT_DEFAULT,
            Err(_) => 0,
        };
        println!("── tabbify up --listen 127.0.0.1:{port}");
        let mut up = Command::new(binaries().join("tabbify"))
            .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(&data)
            .env("XDG_CONFIG_HOME", &config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start tabbify")?;
        let mut server = None;
        for line in BufReader::new(up.stdout.take().context("its output is piped")?).lines() {
            let line = line?;
            println!("   {line}");
            if let Some(url) = line
                .split_whitespace()
                .find(|word| word.starts_with("http://"))
            {
                server = Some(url.to_owned());
                break;
            }
        }
        let Some(server) = server else {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("tabbify up ended: {}\n{said}", up.wait()?);
        };
        Ok(Self {
            up,
            server,
            data,
            config,
            log,
        })
    }

    fn tcli(&self, folder: &Path) -> Command {
        let mut command = Command::new(binaries().join("tcli"));
        command
            .current_dir(folder)
            .env("XDG_CONFIG_HOME", &self.config);
        command.env("XDG_CACHE_HOME", self.config.join("cache"));
        command
    }

    fn json(&self, folder: &Path, line: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.tcli(folder).arg("--json").args(line).output()?;
        if !output.status.success() {
            bail!(
                "tcli {}: {}",
                line.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn wait(mut self) -> anyhow::Result<()> {
        // Ctrl-C reaches the whole foreground group: `tabbify up` stops, and we outlive it to stop
        // the apps and remove the directory.
        ctrlc::set_handler(|| {})?;
        let status = self.up.wait()?;
        println!("tabbify up: {status}");
        Ok(())
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let down = Command::new(binaries().join("tabbify"))
            .args(["down", "--data-dir"])
            .arg(&self.data)
            .stdout(Stdio::null())
            .status();
        if !down.is_ok_and(|status| status.success()) {
            println!("tabbify down failed; see {}", self.log.display());
            // What could not be asked to stop is ended; an error means it is gone already.
            let _ = self.up.kill();
        }
        // Reaps it; it has been told to end.
        let _ = self.up.wait();
    }
}

/// `GET /app/<id>/` by the plainest client there is.
fn request(server: &str, id: &str, token: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let authority = server.strip_prefix("http://").context("a plain URL")?;
    let authority = authority.replace("localhost", "127.0.0.1");
    let mut stream = std::net::TcpStream::connect(&authority)?;
    write!(
        stream,
        "GET /app/{id}/ HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!(
            "the app answered {}",
            head.lines().next().unwrap_or_default()
        );
    }
    // Bodies of unknown length come in chunks, each after a line with its length.
    Ok(body
        .lines()
        .find(|line| line.contains("hello"))
        .unwrap_or(body)
        .to_owned())
}
