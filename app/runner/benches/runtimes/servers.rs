//! Servers of a component, each a process of its own.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures, with nothing asynchronous beside it"
)]

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::Fallible;

/// LIMIT: how long a server may take to answer.
const WITHIN: Duration = Duration::from_secs(60);

/// How a server is started: the port is put where `{port}` stands.
pub(crate) struct Kind {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// A server that answers.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Kind {
    /// This program's own server; what it has compiled is in `cache` afterwards.
    pub(crate) fn ours(component: &Path, cache: &Path) -> Fallible<Self> {
        std::fs::create_dir_all(cache)?;
        let arguments = ["serve".as_ref(), component.as_os_str(), cache.as_os_str()];
        let mut arguments: Vec<OsString> = arguments.map(ToOwned::to_owned).into();
        arguments.push("{port}".into());
        let kind = Self {
            name: "tabbify",
            program: std::env::current_exe()?,
            arguments,
        };
        kind.start()?;
        Ok(kind)
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&self) -> Fallible<Server> {
        let address = free()?;
        let process = self.spawn(address)?;
        let server = Server {
            name: self.name,
            address,
            process,
        };
        first_byte(address)?;
        Ok(server)
    }

    /// How long it takes from its start to the first byte of an answer.
    pub(crate) fn first_byte(&self) -> Fallible<Duration> {
        let address = free()?;
        let began = Instant::now();
        let server = Server {
            name: self.name,
            address,
            process: self.spawn(address)?,
        };
        first_byte(address)?;
        let took = began.elapsed();
        drop(server);
        Ok(took)
    }

    fn spawn(&self, address: SocketAddr) -> Fallible<Child> {
        let port = address.port().to_string();
        let arguments = self.arguments.iter().map(|word| match word.to_str() {
            Some(text) => text.replace("{port}", &port).into(),
            None => word.clone(),
        });
        Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| self.program.display().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The peer.
pub(crate) struct Wasmtime {
    program: PathBuf,
    pub(crate) version: String,
}

impl Wasmtime {
    /// In `directory`, else in the path.
    pub(crate) fn find(directory: &Path) -> Option<Self> {
        let programs = [directory.join("wasmtime"), PathBuf::from("wasmtime")];
        programs.into_iter().find_map(|program| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
            Some(Self { program, version })
        })
    }

    /// `wasmtime serve` of the component, compiled before.
    pub(crate) fn kind(&self, component: &Path, scratch: &Path) -> Fallible<Kind> {
        let compiled = scratch.join("hello.cwasm");
        let compiling = Command::new(&self.program)
            .arg("compile")
            .args([component, Path::new("-o"), &compiled])
            .status()?;
        ensure!(
            compiling.success(),
            "wasmtime does not compile {component:?}"
        );
        let options = ["serve", "-Scli", "--allow-precompiled"];
        let mut arguments: Vec<OsString> = options.map(OsString::from).into();
        arguments.extend(["--addr".into(), "127.0.0.1:{port}".into(), compiled.into()]);
        Ok(Kind {
            name: "wasmtime serve",
            program: self.program.clone(),
            arguments,
        })
    }
}

fn free() -> Fallible<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Asks until there is an answer.
fn first_byte(address: SocketAddr) -> Fallible {
    let began = Instant::now();
    while began.elapsed() < WITHIN {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(WITHIN))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            let mut first = [0; 12];
            stream.read_exact(&mut first)?;
            ensure!(&first == b"HTTP/1.1 200", "not served: {first:?}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    bail!("nothing answers at {address}")
}
