//! The vocabulary: a host with a kernel and an init, an image of the fixture, a machine of that image.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tabbify_image::{Cache, Digest, Image, Limits, Platform};
use tabbify_microvm::order::Process;
use tabbify_microvm::{
    Acceleration, App, Assets, Chunk, Ending, Machine, Qemu, Source, Vm, VmError,
};
use tabbify_process::{SystemClock, Tasks};
use tabbify_testing::guest;
use tabbify_types::ByteSize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;

/// LIMIT: of a test that is stuck.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);
/// Where the fixture listens.
pub(crate) const PORT: u16 = 8080;
/// A port that is forwarded and that nobody listens on but in the guest's own loopback.
pub(crate) const ELSEWHERE: u16 = 3000;

/// A host with all that machines need.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) assets: Assets,
    pub(crate) tasks: Tasks,
    /// A program that is linked statically.
    fixture: Vec<u8>,
}

impl Host {
    /// `None` if this machine lacks something; then `test` has said that it did not run.
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    pub(crate) fn find(test: &str) -> Result<Option<Self>> {
        let made_of = match guest::microvms()? {
            Ok(made_of) => made_of,
            Err(what) => {
                eprintln!("NOT RUN: {test}: {what}");
                return Ok(None);
            }
        };
        let dir = tempfile::tempdir()?;
        let assets = Assets {
            kernel: made_of.kernel,
            modules: made_of.modules,
            init: made_of.init,
            monitor: None,
            state: dir.path().join("state"),
        };
        let fixture = guest::program("machine.rs")?;
        Ok(Some(Self {
            dir,
            assets,
            tasks: Tasks::new(),
            fixture,
        }))
    }

    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::new(self.assets.clone(), Acceleration::Tcg)
    }

    /// The root file system of an image from scratch, with the fixture in it.
    pub(crate) fn image(
        &self,
        settings: &serde_json::Value,
    ) -> Result<(Image, tabbify_image::Root)> {
        let path = self.dir.path().join("image.tar");
        std::fs::write(&path, archive(&self.fixture, settings)?)?;
        let image = Image::open(&path, &Platform::here(), Limits::default())?;
        let root = Cache::open(&self.dir.path().join("roots"), 1 << 30)?.root(&image)?;
        Ok((image, root))
    }

    pub(crate) fn machine(&self, root: &Path) -> Machine {
        Machine {
            directory: self.dir.path().join("machine"),
            root: root.to_owned(),
            volume: None,
            memory: ByteSize::mib(192),
            processors: 1,
            way_out: true,
            ports: vec![PORT, ELSEWHERE],
        }
    }

    /// Boots a machine of an image with these settings, as `change` has it.
    pub(crate) async fn boot(
        &self,
        settings: serde_json::Value,
        change: impl FnOnce(&mut Machine, &mut App),
    ) -> Result<(Running, Machine), VmError> {
        let (image, root) = self.image(&settings).expect("the image is good");
        let config = image.config();
        let mut env = config.env.clone();
        env.push(("PORT".to_owned(), PORT.to_string()));
        let mut app = App {
            process: Process {
                command: config.command(&[]).expect("it has a command"),
                env,
                user: config.user.clone(),
                working_dir: config.working_dir.clone(),
            },
            hostname: "shop".to_owned(),
            scratch: ByteSize::mib(24),
            volume: None,
            files: Vec::new(),
        };
        let mut machine = self.machine(root.path());
        change(&mut machine, &mut app);
        let qemu = self.qemu();
        let booted = Vm::boot(&qemu, &machine, app, &SystemClock, &self.tasks);
        let booted = tokio::time::timeout(WATCHDOG, booted)
            .await
            .expect("the watchdog");
        let (vm, output) = booted?;
        let running = Running {
            vm: Arc::new(vm),
            output,
            printed: Vec::new(),
        };
        Ok((running, machine))
    }
}

/// A machine and what its app has printed.
pub(crate) struct Running {
    pub(crate) vm: Arc<Vm>,
    output: Receiver<Chunk>,
    printed: Vec<Chunk>,
}

impl Running {
    /// Reads what the app prints until `source` has `text` in it, and gives all of that source.
    pub(crate) async fn printed(&mut self, source: Source, text: &str) -> Result<String> {
        let read = async {
            loop {
                let all = self.all(source);
                if all.contains(text) {
                    return Ok(all);
                }
                let chunk = self.output.recv().await;
                self.printed
                    .push(chunk.with_context(|| format!("{text:?} is not in {all}"))?);
            }
        };
        tokio::time::timeout(WATCHDOG, read).await?
    }

    /// Everything that it printed, once it is over.
    pub(crate) async fn over(&mut self) -> Result<Ending> {
        let read = async {
            while let Some(chunk) = self.output.recv().await {
                self.printed.push(chunk);
            }
            self.vm.wait().await
        };
        Ok(tokio::time::timeout(WATCHDOG, read).await?)
    }

    pub(crate) fn all(&self, source: Source) -> String {
        let of = self.printed.iter().filter(|chunk| chunk.source == source);
        let bytes: Vec<u8> = of.flat_map(|chunk| chunk.bytes.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs the fixture beside the app: what it printed, and its code.
    pub(crate) async fn exec(
        &self,
        arguments: &[&str],
    ) -> Result<(String, tabbify_microvm::order::Status)> {
        let command = [&["/bin/app"], arguments].concat();
        let command = command.into_iter().map(str::to_owned).collect();
        let mut exec = self.vm.exec(command).await?;
        let mut printed = Vec::new();
        let run = async {
            while let Some(chunk) = exec.output().await {
                printed.extend(chunk.bytes);
            }
            exec.end().await
        };
        let end = tokio::time::timeout(WATCHDOG, run).await??;
        Ok((String::from_utf8_lossy(&printed).into_owned(), end.status))
    }

    /// Asks over HTTP, through the forwarded port, once the app listens.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let address = self.vm.listening(PORT, WATCHDOG).await?;
        let ask = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(WATCHDOG, ask).await?
    }
}

/// What `docker save` writes, of one layer.
fn archive(fixture: &[u8], settings: &serde_json::Value) -> Result<Vec<u8>> {
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n";
    let group = "root:x:0:\nweb:x:1001:\nlogs:x:44:web\n";
    let layer = tar(&[
        ("bin/app", fixture, 0o755),
        ("bin/script", b"#!/bin/none\n", 0o755),
        ("bin/noise", b"\0\x01\x02\x03noise", 0o755),
        ("etc/passwd", passwd.as_bytes(), 0o644),
        ("etc/group", group.as_bytes(), 0o644),
    ])?;
    let config = json!({
        "os": Platform::here().os, "architecture": Platform::here().architecture, "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
    });
    let config = config.to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{"Config": name, "RepoTags": [], "Layers": ["layer.tar"]}]).to_string();
    tar(&[
        ("manifest.json", manifest.as_bytes(), 0o644),
        (&name, config.as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
    ])
}

fn tar(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, name, *content)?;
    }
    Ok(tar.into_inner()?)
}
