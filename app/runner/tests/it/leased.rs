//! The real program with a real coordinator: it boots by a spawn ticket, fetches over its own mesh, is
//! reached by whoever policy lets, and does not outlive its lease.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt as _;
use tabbify_api::coordinator::{PolicyOrder, Spawn};
use tabbify_api::runner::{
    Answer, BOOT_FILE, CONTROL_SOCKET, EXIT_FILE, ExitRecord, Request, StateName, Status,
};
use tabbify_mesh::{Mesh, Stream};
use tabbify_process::{Clock as _, SystemClock, Tasks, unix};
use tabbify_types::event::v1::{AllowRule, AppFailed, AppPlaced, FailureReason};
use tabbify_types::{APP_PORT, AppId, AppUla, InstanceUla, MeshKey, Tenant};
use tokio::net::UnixStream;

use crate::artifact::{boot, publish};
use crate::control::{Caller, SECRET};
use crate::harness::{client, get, text, watched};
use crate::platform::{Fallible, Member, Platform, Present, WATCHDOG, instance};
use crate::wasm::{Package, component};

/// A platform with artifacts, an edge, and a machine that runs apps.
struct World {
    platform: Platform,
    store: String,
    edge: Present,
    box1: Member,
    _artifacts: Present,
}

/// A runner that was spawned, and its supervisor's end of the control socket.
struct Spawned {
    child: Child,
    home: PathBuf,
    control: Caller<UnixStream>,
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // It may have ended, which is what some tests are about.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    async fn new() -> Fallible<Self> {
        let platform = Platform::start().await?;
        let registry = platform.join("store", &["role:registry"], false).await?;
        let artifacts = platform.present(&registry)?;
        let store = platform.serve_artifacts(&registry, &artifacts)?;
        let edge = platform.join("edge", &["role:node"], false).await?;
        let edge = platform.present(&edge)?;
        let box1 = platform.join("box1", &[], true).await?;
        Ok(Self {
            platform,
            store,
            edge,
            box1,
            _artifacts: artifacts,
        })
    }

    /// An app with one version in the store.
    async fn app(&self, package: Package) -> Fallible<AppId> {
        let app = AppId::mint();
        let artifact = publish(&self.platform.objects(), app, &component(package)?)?;
        self.platform.register(app, artifact).await?;
        Ok(app)
    }

    /// Spawns a runner for what was placed, as the machine's supervisor does, but for the ticket.
    async fn spawn(&self, placed: &AppPlaced, folder: &str) -> Fallible<Spawned> {
        let mut boot = boot(self.platform.dir(), placed.app, placed.artifact)?;
        boot.of = instance(placed);
        (boot.deploy, boot.slot, boot.epoch) = (placed.deploy, placed.slot, placed.epoch);
        boot.store.clone_from(&self.store);
        boot.secret = URL_SAFE_NO_PAD.encode(SECRET);
        boot.coordinator = Some(self.platform.at());
        let home = self.platform.dir().join("runners").join(folder);
        boot.logs = home.join("logs");
        std::fs::create_dir_all(&home)?;
        std::fs::write(home.join(BOOT_FILE), serde_json::to_vec(&boot)?)?;
        let mut program = Command::new(env!("CARGO_BIN_EXE_tabbify-runner"));
        program.arg(&home).stdin(Stdio::null());
        program.stdout(Stdio::null()).stderr(Stdio::null());
        let child = program.spawn()?;
        let connected = watched(async {
            loop {
                match unix::connect(&home, CONTROL_SOCKET).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let mut control = Caller::new(connected.await?);
        control.hello().await?;
        Ok(Spawned {
            child,
            home,
            control,
        })
    }

    /// A runner that serves what was placed.
    async fn serving(&self, placed: &AppPlaced, folder: &str) -> Fallible<(Spawned, Status)> {
        let mut runner = self.spawn(placed, folder).await?;
        let ticket = self.box1.fresh_ticket(instance(placed))?;
        assert_eq!(runner.give(ticket).await?, Answer::Done);
        let status = runner.past(StateName::Starting).await?;
        assert_eq!(status.state, StateName::Ready, "{status:?}");
        Ok((runner, status))
    }
}

impl Spawned {
    async fn status(&mut self) -> Fallible<Status> {
        match self.control.ask(&Request::Status).await? {
            Answer::Status(status) => Ok(status),
            other => Err(format!("{other:?}").into()),
        }
    }

    async fn give(&mut self, ticket: Spawn) -> Fallible<Answer> {
        Ok(self.control.ask(&Request::Spawn(ticket)).await?)
    }

    /// Waits until the state is another.
    async fn past(&mut self, seen: StateName) -> Fallible<Status> {
        match self.control.ask(&Request::Wait { seen }).await? {
            Answer::Status(status) => Ok(status),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// Its last word, once it has ended.
    async fn ended(mut self) -> Fallible<ExitRecord> {
        let waiting = async {
            while self.child.try_wait()?.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, std::io::Error>(())
        };
        tokio::time::timeout(WATCHDOG, waiting).await??;
        Ok(serde_json::from_slice(&std::fs::read(
            self.home.join(EXIT_FILE),
        )?)?)
    }
}

async fn dial(mesh: &Mesh, address: Ipv6Addr) -> Result<Stream, tabbify_mesh::DialError> {
    mesh.dial(SocketAddrV6::new(address, APP_PORT, 0, 0)).await
}

/// Dials until somebody answers, and it is `expected`.
async fn reaches(mesh: &Mesh, address: Ipv6Addr, expected: MeshKey) -> Fallible<Stream> {
    let reached = watched(async {
        loop {
            match dial(mesh, address).await {
                Ok(stream) if stream.peer() == expected => return stream,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    Ok(reached.await?)
}

async fn says(stream: Stream, path: &str, tasks: &Tasks) -> Fallible<String> {
    let mut client = client(stream, tasks).await?;
    let answer = watched(client.send_request(get(path)?)).await??;
    Ok(text(answer).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_gives_a_lease_and_the_artifact_comes_over_the_mesh() {
    let world = World::new().await.unwrap();
    let app = world.app(Package::Hello).await.unwrap();
    let placed = world.platform.deploy(app).await.unwrap();
    let of = instance(&placed);
    let mut runner = world.spawn(&placed, "1").await.unwrap();
    let status = runner.status().await.unwrap();
    assert_eq!(status.state, StateName::Unleased);

    let ticket = world.box1.fresh_ticket(of).unwrap();
    assert_eq!(runner.give(ticket.clone()).await.unwrap(), Answer::Done);
    let status = runner.past(StateName::Starting).await.unwrap();
    assert_eq!(status.state, StateName::Ready, "{status:?}");
    assert_eq!(world.platform.leased(of).await.unwrap(), status.key);
    let again = runner.give(ticket.clone()).await.unwrap();
    assert!(matches!(again, Answer::Refused { .. }), "{again:?}");

    // Reached at its own address by the edge, which knows nothing but the address.
    let own = InstanceUla::derive(app, of.instance).addr();
    let stream = reaches(&world.edge.mesh, own, status.key).await.unwrap();
    let tasks = &world.platform.tasks;
    let said = says(stream, "/leased", tasks).await.unwrap();
    assert_eq!(said, "good day from /leased\n");
    // The app's address is nobody's before it gets the traffic.
    let app_address = AppUla::derive(app).addr();
    assert!(dial(&world.edge.mesh, app_address).await.is_err());
    world.platform.report(&placed, status.key).await.unwrap();
    let stream = reaches(&world.edge.mesh, app_address, status.key)
        .await
        .unwrap();
    assert!(
        says(stream, "/", tasks)
            .await
            .unwrap()
            .starts_with("good day")
    );

    // The ticket is nowhere on the disk.
    let mut found = walk(&runner.home).unwrap();
    found.retain(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.contains(&ticket.ticket) || text.contains(&ticket.certificate)
    });
    assert!(found.is_empty(), "{found:?}");
}

/// What the app sees of headers that claim to speak for the owner, in every spelling.
async fn claims(stream: Stream, tasks: &Tasks) -> Fallible<Vec<String>> {
    let mut client = client(stream, tasks).await?;
    let mut request = get("/headers")?;
    for name in [
        "x-tabbify-user",
        "x_tabbify_user",
        "X-Tabbify_User",
        "x-mine",
    ] {
        let value = http::HeaderValue::from_static("user:owner");
        let name: http::HeaderName = name.parse()?;
        request.headers_mut().append(name, value);
    }
    let answer = watched(client.send_request(request)).await??;
    let mut seen: Vec<String> = text(answer).await?.lines().map(str::to_owned).collect();
    seen.sort_unstable();
    Ok(seen)
}

/// Only a machine that the platform calls a node says who opens an app: no other machine that policy lets in
/// does, nor a gateway of people's devices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_node_speaks_for_people() {
    let world = World::new().await.unwrap();
    let (platform, tasks) = (&world.platform, &world.platform.tasks);
    let app = world.app(Package::Hello).await.unwrap();
    let placed = platform.deploy(app).await.unwrap();
    let (_runner, status) = world.serving(&placed, "1").await.unwrap();
    let own = InstanceUla::derive(app, instance(&placed).instance).addr();

    let rule = AllowRule {
        from: "tag:gpu".to_owned(),
        to: "tenant:main".to_owned(),
        ports: vec![APP_PORT],
    };
    let order = PolicyOrder {
        tenant: Tenant::main(),
        allow: vec![rule],
    };
    platform.coordinator.change_policy(order).await.unwrap();
    let nobody = ["x-mine: user:owner"];
    for (host, tag) in [("box2", "gpu"), ("gate", "role:gateway")] {
        let member = platform.join(host, &[tag], false).await.unwrap();
        let present = platform.present(&member).unwrap();
        let stream = reaches(&present.mesh, own, status.key).await.unwrap();
        assert_eq!(claims(stream, tasks).await.unwrap(), nobody, "{tag}");
    }
    let stream = reaches(&world.edge.mesh, own, status.key).await.unwrap();
    let owner = ["x-mine: user:owner", "x-tabbify-user: user:owner"];
    assert_eq!(claims(stream, tasks).await.unwrap(), owner);
}

/// Every file below a folder.
fn walk(folder: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => files.extend(walk(&entry.path())?),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(files)
}

/// Expired, garbage, another machine's, another instance's: each is refused, and the right one after them
/// still counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_that_do_not_count() {
    let world = World::new().await.unwrap();
    let app = world.app(Package::Hello).await.unwrap();
    let placed = world.platform.deploy(app).await.unwrap();
    let of = instance(&placed);
    let box2 = world.platform.join("box2", &[], false).await.unwrap();
    let now = SystemClock.now();
    let garbage = Spawn {
        certificate: world.box1.membership.signed.clone(),
        ticket: "not a ticket".to_owned(),
    };
    let mut elsewhere = world.box1.fresh_ticket(of).unwrap();
    elsewhere.certificate = box2.membership.signed.clone();
    let bad = [
        ("expired", world.box1.ticket(of, now).unwrap()),
        ("garbage", garbage),
        (
            "of a machine that it was not placed on",
            box2.fresh_ticket(of).unwrap(),
        ),
        ("signed by another machine than certified", elsewhere),
    ];
    let mut runner = world.spawn(&placed, "1").await.unwrap();
    for (what, ticket) in bad {
        assert_eq!(runner.give(ticket).await.unwrap(), Answer::Done, "{what}");
        let status = runner.past(StateName::Starting).await.unwrap();
        assert_eq!(status.state, StateName::Unleased, "{what}");
    }
    assert!(world.platform.coordinator.stats().not_granted >= 4);
    let ticket = world.box1.fresh_ticket(of).unwrap();
    assert_eq!(runner.give(ticket.clone()).await.unwrap(), Answer::Done);
    let status = runner.past(StateName::Starting).await.unwrap();
    assert_eq!(status.state, StateName::Ready, "{status:?}");

    // A second process with a key of its own gets nothing for the same ticket, nor for a new one.
    for (folder, ticket) in [("2", ticket), ("3", world.box1.fresh_ticket(of).unwrap())] {
        let mut thief = world.spawn(&placed, folder).await.unwrap();
        assert_eq!(thief.give(ticket).await.unwrap(), Answer::Done);
        let status = thief.past(StateName::Starting).await.unwrap();
        assert_eq!(status.state, StateName::Failed);
        let failure = status.failure.unwrap();
        assert!(
            failure.detail.contains("used by another key"),
            "{failure:?}"
        );
    }
    assert_eq!(world.platform.leased(of).await.unwrap(), status.key);
    assert_eq!(runner.status().await.unwrap().state, StateName::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_whose_word_never_counts_is_told_why() {
    let world = World::new().await.unwrap();
    let app = world.app(Package::Hello).await.unwrap();
    let placed = world.platform.deploy(app).await.unwrap();
    let expired = world
        .box1
        .ticket(instance(&placed), SystemClock.now())
        .unwrap();
    let mut runner = world.spawn(&placed, "1").await.unwrap();
    let mut state = StateName::Unleased;
    let mut given = 0;
    while state == StateName::Unleased {
        assert_eq!(runner.give(expired.clone()).await.unwrap(), Answer::Done);
        given += 1;
        state = runner.past(StateName::Starting).await.unwrap().state;
    }
    assert_eq!((state, given), (StateName::Failed, 6));
    let failure = runner.status().await.unwrap().failure.unwrap();
    assert_eq!(failure.reason, FailureReason::Spawn);
    assert!(
        failure.detail.contains("the spawn ticket has ended"),
        "{failure:?}"
    );
}

/// Old and new are reachable side by side, each at its own address; the app's goes with the traffic, and
/// whoever has lost its lease ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_side_by_side_and_the_end_of_a_lease() {
    let world = World::new().await.unwrap();
    let (platform, edge) = (&world.platform, &world.edge.mesh);
    let app = world.app(Package::Hello).await.unwrap();
    let address = AppUla::derive(app).addr();
    let first = platform.deploy(app).await.unwrap();
    let (old, old_status) = world.serving(&first, "1").await.unwrap();
    platform.report(&first, old_status.key).await.unwrap();
    reaches(edge, address, old_status.key).await.unwrap();

    let second = platform.deploy(app).await.unwrap();
    assert_eq!(second.slot, first.slot);
    let (mut new, new_status) = world.serving(&second, "2").await.unwrap();
    for (placed, key) in [(&first, old_status.key), (&second, new_status.key)] {
        let own = InstanceUla::derive(app, placed.instance).addr();
        let stream = reaches(edge, own, key).await.unwrap();
        let said = says(stream, "/both", &platform.tasks).await.unwrap();
        assert_eq!(said, "good day from /both\n");
    }
    let stream = dial(edge, address).await.unwrap();
    assert_eq!(stream.peer(), old_status.key, "it is not ready yet");
    platform.report(&second, new_status.key).await.unwrap();
    reaches(edge, address, new_status.key).await.unwrap();

    // What the old one was leased for is over: its machine says that it failed.
    let failed = AppFailed {
        of: instance(&first),
        reason: FailureReason::Exited,
        detail: "so the machine says".to_owned(),
        log_tail: String::new(),
    };
    platform.report_event(&first, failed.into()).await.unwrap();
    let record = old.ended().await.unwrap();
    assert_eq!(record.code, 1);
    let detail = record.failure.unwrap().detail;
    assert!(detail.contains("it has no lease any more"), "{detail}");
    assert_eq!(new.status().await.unwrap().state, StateName::Ready);
    let own = InstanceUla::derive(app, first.instance).addr();
    assert!(dial(edge, own).await.is_err());
}

/// With the coordinator away, traffic goes on, over connections that were there and over new ones; a
/// runner that is being spawned waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_coordinator() {
    let mut world = World::new().await.unwrap();
    let app = world.app(Package::Stream).await.unwrap();
    let placed = world.platform.deploy(app).await.unwrap();
    let (mut runner, status) = world.serving(&placed, "1").await.unwrap();
    let later = world.app(Package::Hello).await.unwrap();
    let later = world.platform.deploy(later).await.unwrap();
    let own = InstanceUla::derive(app, placed.instance).addr();
    let stream = reaches(&world.edge.mesh, own, status.key).await.unwrap();
    let mut open = client(stream, &world.platform.tasks).await.unwrap();
    let slow = open.send_request(get("/slow?n=20&ms=50").unwrap());
    let slow = watched(slow).await.unwrap().unwrap();

    world.platform.close_door().await;
    let mut waiting = world.spawn(&later, "2").await.unwrap();
    let ticket = world.box1.fresh_ticket(instance(&later)).unwrap();
    assert_eq!(waiting.give(ticket).await.unwrap(), Answer::Done);
    let whole = text(slow).await.unwrap();
    assert!(whole.ends_with("20 of 20\n"), "{whole}");
    let stream = dial(&world.edge.mesh, own).await.unwrap();
    let said = says(stream, "/slow?n=1&ms=1", &world.platform.tasks).await;
    assert!(said.unwrap().ends_with("1 of 1\n"));
    assert_eq!(runner.status().await.unwrap().state, StateName::Ready);
    assert_eq!(waiting.status().await.unwrap().state, StateName::Starting);

    world.platform.open_door().await.unwrap();
    let status = waiting.past(StateName::Starting).await.unwrap();
    assert_eq!(status.state, StateName::Ready, "{status:?}");
}

/// A machine that is put out of the mesh is cut off by runners that it talks to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_gone_is_cut_off() {
    let world = World::new().await.unwrap();
    let app = world.app(Package::Stream).await.unwrap();
    let placed = world.platform.deploy(app).await.unwrap();
    let (_runner, status) = world.serving(&placed, "1").await.unwrap();
    let own = InstanceUla::derive(app, placed.instance).addr();
    let stream = reaches(&world.edge.mesh, own, status.key).await.unwrap();
    let mut open = client(stream, &world.platform.tasks).await.unwrap();
    let endless = open.send_request(get("/slow?n=100000&ms=20").unwrap());
    let mut body = watched(endless).await.unwrap().unwrap().into_body();
    watched(body.frame()).await.unwrap().unwrap().unwrap();

    let edge = "edge".parse().unwrap();
    world
        .platform
        .coordinator
        .remove_machine(&edge)
        .await
        .unwrap();
    let cut = watched(async { while let Some(Ok(_)) = body.frame().await {} });
    cut.await.unwrap();
    assert!(dial(&world.edge.mesh, own).await.is_err());
}
