//! The real program in a directory of its own: its lock, its control socket, its app over the
//! mesh, its memory, its last word.

use std::fs::{File, OpenOptions};
use std::net::SocketAddrV6;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tabbify_api::mesh::PeerRecord;
use tabbify_api::runner::{
    Answer, BIRTH_FILE, BOOT_FILE, Birth, CONTROL_SOCKET, EXIT_FILE, ExitRecord, Request,
    StateName, Status,
};
use tabbify_mesh::{Config, Mesh, PrivateKey};
use tabbify_process::{Tasks, unix};
use tabbify_runner::peers::Peers;
use tabbify_types::event::v1::FailureReason;
use tabbify_types::{APP_PORT, AppId, AppUla, Digest, HostUla, InstanceId, InstanceUla};
use tokio::net::UnixStream;

use crate::artifact::{boot, publish};
use crate::control::{Caller, SECRET};
use crate::harness::{Client, WATCHDOG, client, get, lines, request, sent_body, text, watched};
use crate::wasm::{Package, component};

const MIB: usize = 1 << 20;

/// A runner's directory, and a node that may call it.
struct Site {
    dir: tempfile::TempDir,
    app: AppId,
    tasks: Tasks,
    node: Mesh,
    known: Arc<Peers>,
}

/// A running runner; killed if the test ends before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, which is what most tests are about.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    fn new(entry: &[u8]) -> anyhow::Result<Self> {
        Self::with(entry, |digest| digest)
    }

    /// With a digest that need not be the published one.
    fn with(entry: &[u8], announced: fn(Digest) -> Digest) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let app = AppId::mint();
        let digest = publish(&dir.path().join("objects"), app, entry)?;
        let key = PrivateKey::generate();
        let host = HostUla::new(1, 1).addr();
        let mut boot = boot(dir.path(), app, announced(digest))?;
        boot.secret = URL_SAFE_NO_PAD.encode(SECRET);
        boot.peers = vec![PeerRecord::unrestricted(key.public(), vec![host], vec![]).node()];
        let (tasks, known) = (Tasks::new(), Arc::new(Peers::default()));
        let config = Config::new(key, vec![host], ([127, 0, 0, 1], 0).into());
        let node = Mesh::bind(config, Arc::clone(&known) as _, &tasks)?;
        let site = Self {
            dir,
            app,
            tasks,
            node,
            known,
        };
        std::fs::create_dir(site.home())?;
        std::fs::write(site.home().join(BOOT_FILE), serde_json::to_vec(&boot)?)?;
        Ok(site)
    }

    /// Deep enough that a socket's own path would be too long.
    fn home(&self) -> PathBuf {
        self.dir.path().join("r".repeat(100))
    }

    fn spawn(&self, stdin: Stdio) -> anyhow::Result<Running> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_tabbify-runner"));
        program.arg(self.home()).stdin(stdin);
        program.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running(program.spawn()?))
    }

    /// Connects to the control socket as soon as it is there.
    async fn control(&self) -> anyhow::Result<Caller<UnixStream>> {
        let connected = watched(async {
            loop {
                match unix::connect(&self.home(), CONTROL_SOCKET).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let mut caller = Caller::new(connected.await?);
        caller.hello().await?;
        Ok(caller)
    }

    /// Waits until the runner has begun, and lets the node know it.
    async fn begun(&self, caller: &mut Caller<UnixStream>) -> anyhow::Result<Status> {
        let seen = StateName::Starting;
        let Answer::Status(status) = caller.ask(&Request::Wait { seen }).await? else {
            bail!("not a status");
        };
        self.known.set(vec![PeerRecord::unrestricted(
            status.key,
            vec![
                AppUla::derive(self.app).addr(),
                InstanceUla::derive(self.app, InstanceId(1)).addr(),
            ],
            vec![status.underlay],
        )]);
        Ok(status)
    }

    async fn ready(&self) -> anyhow::Result<(Caller<UnixStream>, Status)> {
        let mut caller = self.control().await?;
        let status = self.begun(&mut caller).await?;
        ensure!(status.state == StateName::Ready, "{status:?}");
        Ok((caller, status))
    }

    async fn dial(&self) -> anyhow::Result<Client> {
        let address = AppUla::derive(self.app).addr();
        let remote = SocketAddrV6::new(address, APP_PORT, 0, 0);
        client(self.node.dial(remote).await?, &self.tasks).await
    }

    fn exit_record(&self) -> anyhow::Result<ExitRecord> {
        let bytes = std::fs::read(self.home().join(EXIT_FILE)).context("exit.json")?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn birth_file(&self) -> anyhow::Result<File> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        Ok(options.open(self.home().join(BIRTH_FILE))?)
    }

    fn is_locked(&self) -> anyhow::Result<bool> {
        let file = self.birth_file()?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }
}

impl Running {
    /// Its exit code, once it has ended.
    async fn ended(mut self) -> anyhow::Result<Option<i32>> {
        let waiting = tokio::task::spawn_blocking(move || self.0.wait());
        let status = tokio::time::timeout(WATCHDOG, waiting).await;
        Ok(status.context("the runner does not end")???.code())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.0);
        Ok(kill_process(pid, signal)?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lives_serves_and_stops() {
    let site = Site::new(&component(Package::Hello).unwrap()).unwrap();
    let running = site.spawn(Stdio::null()).unwrap();
    let (mut control, status) = site.ready().await.unwrap();
    assert_eq!(status.pid, running.0.id());
    assert_eq!(status.of.app, site.app);
    let birth = std::fs::read(site.home().join(BIRTH_FILE)).unwrap();
    let birth: Birth = serde_json::from_slice(&birth).unwrap();
    assert_eq!((birth.pid, birth.of), (status.pid, status.of));

    let mut node = site.dial().await.unwrap();
    let response = watched(node.send_request(get("/over/the/mesh").unwrap())).await;
    let said = text(response.unwrap().unwrap()).await.unwrap();
    assert_eq!(said, "good day from /over/the/mesh\n");
    let Answer::Status(status) = control.ask(&Request::Status).await.unwrap() else {
        panic!("not a status");
    };
    assert_eq!((status.state, status.total), (StateName::Ready, 1));

    // A second one in the same directory, as after a confusion about who is alive.
    assert!(site.is_locked().unwrap());
    let second = site.spawn(Stdio::null()).unwrap();
    assert_eq!(second.ended().await.unwrap(), Some(2));
    // And one that brings the file, but not the lock.
    let second = site.spawn(site.birth_file().unwrap().into()).unwrap();
    assert_eq!(second.ended().await.unwrap(), Some(2));
    assert!(site.exit_record().is_err(), "the living one has not ended");

    assert_eq!(control.ask(&Request::Stop).await.unwrap(), Answer::Done);
    assert_eq!(running.ended().await.unwrap(), Some(0));
    let record = site.exit_record().unwrap();
    assert_eq!((record.code, record.failure), (0, None));
    assert!(!site.is_locked().unwrap());
    let printed = lines(&site.dir.path().join("logs/1.ndjson")).unwrap();
    assert_eq!(printed[0].line, "Method::Get /over/the/mesh");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inherits_its_lock_and_loses_it_only_by_its_end() {
    let site = Site::new(&component(Package::Hello).unwrap()).unwrap();
    let file = site.birth_file().unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut running = site.spawn(file.into()).unwrap();
    // From before the fork on, at no moment is it free.
    assert!(site.is_locked().unwrap());
    let (_, status) = site.ready().await.unwrap();
    let process = rustix::process::getsid(Pid::from_raw(status.pid.cast_signed())).unwrap();
    assert_eq!(
        process.as_raw_nonzero().get(),
        status.pid.cast_signed(),
        "its own session"
    );
    assert!(site.is_locked().unwrap());

    running.0.kill().unwrap();
    running.0.wait().unwrap();
    assert!(!site.is_locked().unwrap());
    assert!(site.exit_record().is_err(), "who is killed says nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_why_it_cannot_serve() {
    let other = |_| Digest::of(b"something else");
    let site = Site::with(&component(Package::Hello).unwrap(), other).unwrap();
    let running = site.spawn(Stdio::null()).unwrap();
    let mut control = site.control().await.unwrap();
    let status = site.begun(&mut control).await.unwrap();
    assert_eq!(status.state, StateName::Failed);
    let failure = status.failure.unwrap();
    assert_eq!(failure.reason, FailureReason::Artifact);
    assert!(site.dial().await.is_err(), "nobody listens");

    control.ask(&Request::Stop).await.unwrap();
    assert_eq!(running.ended().await.unwrap(), Some(1));
    let record = site.exit_record().unwrap();
    assert_eq!((record.code, record.failure), (1, Some(failure)));
    let printed = lines(&site.dir.path().join("logs/1.ndjson")).unwrap();
    assert!(
        printed[0].line.starts_with("tabbify: cannot start: "),
        "{printed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_boot_document_it_says_so_and_ends() {
    let site = Site::new(b"").unwrap();
    std::fs::write(site.home().join(BOOT_FILE), "{").unwrap();
    let running = site.spawn(Stdio::null()).unwrap();
    assert_eq!(running.ended().await.unwrap(), Some(2));
    let record = site.exit_record().unwrap();
    assert_eq!(record.failure.unwrap().reason, FailureReason::Spawn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_it_finishes_what_it_has_begun() {
    let site = Site::new(&component(Package::Stream).unwrap()).unwrap();
    let running = site.spawn(Stdio::null()).unwrap();
    site.ready().await.unwrap();
    let mut node = site.dial().await.unwrap();
    let begun = watched(node.send_request(get("/slow?n=10&ms=30").unwrap())).await;
    let begun = begun.unwrap().unwrap();
    running.signal(Signal::TERM).unwrap();
    let whole = text(begun).await.unwrap();
    assert!(whole.ends_with("10 of 10\n"), "{whole}");
    assert_eq!(running.ended().await.unwrap(), Some(0));
    assert_eq!(site.exit_record().unwrap().code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_it_takes_nothing_new_and_waits_to_be_stopped() {
    let site = Site::new(&component(Package::Stream).unwrap()).unwrap();
    let running = site.spawn(Stdio::null()).unwrap();
    let (mut control, _) = site.ready().await.unwrap();
    let mut node = site.dial().await.unwrap();
    let begun = node.send_request(get("/slow?n=10&ms=30").unwrap());
    let begun = watched(begun).await.unwrap().unwrap();
    let drain = Request::Drain {
        deadline_ms: 20_000,
    };
    let (drained, whole) = tokio::join!(control.ask(&drain), text(begun));
    assert!(whole.unwrap().ends_with("10 of 10\n"));
    let expected = Answer::Drained {
        finished: 1,
        cut: 0,
    };
    assert_eq!(drained.unwrap(), expected);
    assert!(site.dial().await.is_err(), "it takes nothing new");
    let Answer::Status(status) = control.ask(&Request::Status).await.unwrap() else {
        panic!("not a status");
    };
    assert_eq!(status.state, StateName::Draining);
    control.ask(&Request::Stop).await.unwrap();
    assert_eq!(running.ended().await.unwrap(), Some(0));
}

/// Bytes of `field`, such as `VmRSS`, of a process.
fn memory(pid: u32, field: &str) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no such field")?.parse::<usize>()? * 1024)
}

/// Bodies of any size pass in constant memory: those that are read, and those that are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_constant() {
    let site = Site::new(&component(Package::Stream).unwrap()).unwrap();
    let _running = site.spawn(Stdio::null()).unwrap();
    let (_, status) = site.ready().await.unwrap();
    let mut node = site.dial().await.unwrap();
    text(
        node.send_request(get("/slow?n=1&ms=1").unwrap())
            .await
            .unwrap(),
    )
    .await
    .unwrap();
    // Resets the high-water mark, which compiling has set.
    std::fs::write(format!("/proc/{}/clear_refs", status.pid), "5").unwrap();
    let before = memory(status.pid, "VmRSS").unwrap();

    // Six that nobody reads: without back-pressure they would fill 600 MiB.
    let mut unread = Vec::new();
    for _ in 0..6 {
        let mut stalled = site.dial().await.unwrap();
        let path = format!("/download?bytes={}", 100 * MIB);
        let response = watched(stalled.send_request(get(&path).unwrap())).await;
        unread.push((stalled, response.unwrap().unwrap()));
    }
    node.ready().await.unwrap();
    let path = format!("/download?bytes={}", 64 * MIB);
    let response = node.send_request(get(&path).unwrap()).await.unwrap();
    let (mut body, mut len) = (response.into_body(), 0);
    while let Some(frame) = watched(body.frame()).await.unwrap() {
        len += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(len, 64 * MIB);

    node.ready().await.unwrap();
    let (chunks, body) = sent_body();
    let upload = request("POST", "/upload", body).unwrap();
    let sending = async {
        let chunk = Bytes::from(vec![7; MIB]);
        for _ in 0..64 {
            chunks.send(chunk.clone()).await.unwrap();
        }
        drop(chunks);
    };
    let sent = watched(async { tokio::join!(node.send_request(upload), sending) }).await;
    let said = text(sent.unwrap().0.unwrap()).await.unwrap();
    assert!(said.starts_with("67108864 bytes, "), "{said}");

    let grown = memory(status.pid, "VmHWM").unwrap().saturating_sub(before);
    assert!(grown < 32 * MIB, "grew by {} MiB", grown / MIB);
    drop(unread);
}
