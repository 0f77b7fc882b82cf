//! With a real coordinator: runners get their leases for tickets of their supervisor, whichever supervisor
//! that is by then.

use std::net::SocketAddrV6;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::artifact::{ARTIFACT_FILE, Artifact, ArtifactFile, file_key};
use tabbify_process::{SystemClock, Tasks};
use tabbify_supervisor::{Certificate, Config, Identity, Supervisor};
use tabbify_types::event::v1::{DeployOutcome, InstanceRef};
use tabbify_types::{
    APP_PORT, AppId, AppUla, DeployId, Digest, Event, HostName, InstanceId, MeshKey, Segment,
    VersionNumber,
};

use crate::platform::{Fallible, Member, Platform, instance};
use crate::support::{Candidates, WATCHDOG, hello, kill, pid_in, runner};

/// A platform, and a machine of it with a supervisor.
struct World {
    platform: Platform,
    box1: Member,
    candidates: Candidates,
    tasks: Tasks,
}

impl World {
    async fn new() -> Fallible<Self> {
        let platform = Platform::start().await?;
        let box1 = platform.join("box1", &[], true).await?;
        Ok(Self {
            platform,
            box1,
            candidates: Candidates::default(),
            tasks: Tasks::new(),
        })
    }

    fn certificate(&self) -> Certificate {
        let signed = self.box1.membership.signed.clone();
        Arc::new(move || signed.clone())
    }

    /// A supervisor of the machine, which reads its orders and writes its reports, and nothing else.
    async fn supervisor(&self, certificate: Certificate) -> Fallible<Supervisor> {
        let host: HostName = "box1".parse()?;
        let log = self.platform.host_log(&host);
        let (signing, at) = (self.box1.signing.clone(), self.platform.at());
        let config = Config {
            host,
            data_dir: self.data(),
            runner: runner().map_err(|error| error.to_string())?,
            engine: None,
            microvms: None,
            store: format!("file://{}", self.platform.objects().display()),
            vault: None,
            underlay: ([127, 0, 0, 1], 0).into(),
            peers: Vec::new(),
            doors: None,
            identity: Some(Identity::new(
                certificate,
                signing,
                Arc::new(move || at.clone()),
            )),
        };
        let (leases, clock) = (Arc::new(self.candidates.clone()), Arc::new(SystemClock));
        Ok(Supervisor::start(config, log, leases, clock, &self.tasks).await?)
    }

    fn data(&self) -> std::path::PathBuf {
        self.platform.dir().join("data")
    }

    fn home(&self, of: InstanceRef) -> std::path::PathBuf {
        let runners = self.data().join("runners");
        runners
            .join(of.app.to_string())
            .join(of.instance.to_string())
    }

    fn pid(&self, of: InstanceRef) -> Fallible<u32> {
        pid_in(&self.home(of)).map_err(|error| error.to_string().into())
    }

    /// The example app, published and wanted; which instance it becomes.
    async fn deploy(&self) -> Fallible<(InstanceRef, DeployId)> {
        let app = AppId::mint();
        let entry = std::fs::read(hello().map_err(|error| error.to_string())?)?;
        let artifact = publish(&self.platform.objects(), app, &entry)?;
        self.platform.register(app, artifact).await?;
        let placed = self.platform.deploy(app).await?;
        Ok((instance(&placed), placed.deploy))
    }

    async fn finished(&self, deploy: DeployId) -> Fallible<DeployOutcome> {
        let finished = self
            .platform
            .wait_for("deploy_finished", |_, event| match event {
                Event::DeployFinished(it) if it.deploy == deploy => Some(it.outcome),
                _ => None,
            });
        finished.await
    }

    /// The key that the instance's supervisor has reported, and how often it was reported to have started.
    async fn started(&self, of: InstanceRef) -> Fallible<MeshKey> {
        let reports = Segment::host_reports(&"box1".parse()?);
        let started = self
            .platform
            .wait_for("app_started", |recorded, event| match event {
                Event::AppStarted(it) if it.of == of && recorded.segment == reports => Some(it.key),
                _ => None,
            });
        started.await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop();
        for pid in crate::support::processes_below(&self.data().join("runners")) {
            kill(pid);
        }
    }
}

/// Version 1 of an app, as the node stores it.
fn publish(store: &Path, app: AppId, entry: &[u8]) -> Fallible<Digest> {
    let version = VersionNumber(1);
    let write = |name: &str, bytes: &[u8]| -> Fallible<()> {
        let path = store.join(file_key(app, version, name));
        std::fs::create_dir_all(path.with_file_name(""))?;
        Ok(std::fs::write(path, bytes)?)
    };
    write("app.wasm", entry)?;
    let list = serde_json::to_vec(&Artifact {
        format: 1,
        app,
        version,
        files: vec![ArtifactFile {
            path: "app.wasm".parse()?,
            size: entry.len().try_into()?,
            digest: Digest::of(entry),
        }],
    })?;
    write(ARTIFACT_FILE, &list)?;
    Ok(Digest::of(&list))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_boots_by_its_supervisors_ticket_and_so_does_the_next() {
    let world = World::new().await.unwrap();
    let edge = world.platform.join("edge", &["role:node"], false);
    let edge = world.platform.present(&edge.await.unwrap()).unwrap();
    let _supervisor = world.supervisor(world.certificate()).await.unwrap();
    let (of, deploy) = world.deploy().await.unwrap();
    let outcome = world.finished(deploy).await.unwrap();
    assert_eq!(outcome, DeployOutcome::Succeeded);
    let key = world.started(of).await.unwrap();
    assert_eq!(world.platform.leased(of).await.unwrap(), key);
    assert_eq!(
        world.candidates.of(key),
        0,
        "the runner says itself where it is"
    );
    let boot = std::fs::read_to_string(world.home(of).join("boot.json")).unwrap();
    assert!(boot.contains("coordinator"), "{boot}");
    assert!(!boot.contains(&world.box1.membership.signed), "{boot}");

    let address = SocketAddrV6::new(AppUla::derive(of.app).addr(), APP_PORT, 0, 0);
    let reached = async |expected: MeshKey| loop {
        match edge.mesh.dial(address).await {
            Ok(stream) if stream.peer() == expected => return,
            _ => tokio::task::yield_now().await,
        }
    };
    tokio::time::timeout(WATCHDOG, reached(key)).await.unwrap();

    // One that takes its place has a key, and a lease, of its own.
    kill(world.pid(of).unwrap());
    let next = InstanceRef {
        instance: InstanceId(of.instance.get() + 1),
        ..of
    };
    let new = world.platform.leased(next).await.unwrap();
    assert_ne!(new, key);
    tokio::time::timeout(WATCHDOG, reached(new)).await.unwrap();
}

/// A certificate that does not come before the gate is opened; says when it is asked for.
fn gated(certificate: String) -> (Certificate, Receiver<()>, std::sync::mpsc::SyncSender<()>) {
    let (asked, is_asked) = sync_channel(1);
    let (open, gate) = sync_channel::<()>(0);
    let gate = Mutex::new(gate);
    let gated: Certificate = Arc::new(move || {
        // Once is enough to know.
        let _ = asked.try_send(());
        let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Opened, or given up: it is all the same to whoever is stuck here.
        let _ = gate.recv();
        certificate.clone()
    });
    (gated, is_asked, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_supervisor_that_ends_before_the_ticket_costs_nothing() {
    let world = World::new().await.unwrap();
    let signed = world.box1.membership.signed.clone();
    let (certificate, asked, gate) = gated(signed);
    let first = world.supervisor(certificate).await.unwrap();
    let (of, deploy) = world.deploy().await.unwrap();
    // The runner lives, has said that it waits for its ticket, and there is none yet.
    let waited = tokio::task::spawn_blocking(move || asked.recv_timeout(WATCHDOG));
    waited.await.unwrap().unwrap();
    let pid = world.pid(of).unwrap();
    first.abort();
    drop((first, gate));

    let mut second = world.supervisor(world.certificate()).await.unwrap();
    assert!(second.until(|now| now.ready == 1).await);
    let outcome = world.finished(deploy).await.unwrap();
    assert_eq!(outcome, DeployOutcome::Succeeded);
    assert_eq!(world.pid(of).unwrap(), pid, "it was adopted");
    let key = world.started(of).await.unwrap();
    assert_eq!(world.platform.leased(of).await.unwrap(), key);
}
