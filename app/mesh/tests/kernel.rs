//! The kernel's stack as the system sees it: what it leaves behind, what it costs at rest, and that it
//! needs no privilege. What it does is in `mesh.rs`.
#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver};
use tabbify_mesh::{Config, Mesh, MeshError, PrivateKey, StackChoice, StackInUse};
use tabbify_process::Tasks;
use tabbify_types::{APP_PORT, MeshKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WATCHDOG: Duration = Duration::from_secs(60);

/// Knows one peer, under any name, once it is told.
#[derive(Debug, Default)]
struct Other(OnceLock<PeerRecord>);

impl Other {
    fn answer(&self) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let record = self.0.get().cloned();
        let unknown = || ResolveError::Unreachable("not told yet".to_owned());
        Box::pin(async move { record.ok_or_else(unknown) })
    }
}

impl Resolver for Other {
    fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.answer()
    }

    fn by_key(&self, _: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.answer()
    }
}

fn inner(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd5a, 0x1f02, n, 0, 0, 0, 0, 1)
}

fn bind(n: u16, other: &Arc<Other>, tasks: &Tasks) -> Result<Mesh, MeshError> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::new(PrivateKey::generate(), vec![inner(n)], loopback);
    config.stack = StackChoice::Kernel;
    Mesh::bind(config, Arc::clone(other) as Arc<dyn Resolver>, tasks)
}

fn record(n: u16, mesh: &Mesh) -> Fallible<PeerRecord> {
    Ok(PeerRecord::unrestricted(
        mesh.public_key(),
        vec![inner(n)],
        vec![mesh.underlay_addr()?],
    ))
}

/// Two that know each other; `None`, and a word about it, where the system does not allow it.
fn pair(test: &str, tasks: &Tasks) -> Fallible<Option<[Mesh; 2]>> {
    let resolvers: [Arc<Other>; 2] = Default::default();
    let first = match bind(1, &resolvers[0], tasks) {
        Ok(mesh) => mesh,
        Err(MeshError::Kernel(error)) => {
            eprintln!("NOT RUN: {test}: {}", tabbify_process::chain(&error));
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let second = bind(2, &resolvers[1], tasks)?;
    let told = resolvers[0].0.set(record(2, &second)?).is_ok()
        && resolvers[1].0.set(record(1, &first)?).is_ok();
    assert!(told);
    Ok(Some([first, second]))
}

async fn exchange(node: &Mesh, runner: &Mesh) -> Fallible {
    let mut listener = runner.listen(APP_PORT)?;
    let mut stream = node
        .dial(SocketAddrV6::new(inner(2), APP_PORT, 0, 0))
        .await?;
    let mut incoming = listener.accept().await?;
    assert_eq!(incoming.peer, node.public_key());
    assert_eq!(*incoming.remote.ip(), inner(1));
    stream.write_all(b"question").await?;
    stream.shutdown().await?;
    let mut question = String::new();
    incoming.stream.read_to_string(&mut question).await?;
    assert_eq!(question, "question");
    Ok(())
}

/// Threads of ours and descriptors of TUN devices, in this process.
fn traces() -> Fallible<Vec<String>> {
    let mut traces = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        if name.starts_with("mesh-") {
            traces.push(name.trim().to_owned());
        }
    }
    for descriptor in std::fs::read_dir("/proc/self/fd")? {
        let target = std::fs::read_link(descriptor?.path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        if target.contains("/net/") {
            traces.push(target);
        }
    }
    Ok(traces)
}

async fn until(mut what: impl FnMut() -> Fallible<bool>) -> Fallible {
    tokio::time::timeout(WATCHDOG, async {
        while !what()? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind() -> Fallible {
    let tasks = Tasks::new();
    let Some([node, runner]) = pair("nothing_is_left_behind", &tasks)? else {
        return Ok(());
    };
    tokio::time::timeout(WATCHDOG, exchange(&node, &runner)).await??;
    assert!(!traces()?.is_empty());
    // One ends in order, the other is only dropped, with a listener that is still there.
    assert!(node.close(WATCHDOG).await);
    let listener = runner.listen(1)?;
    drop(runner);
    until(|| Ok(traces()?.is_empty())).await?;
    drop(listener);
    assert!(tasks.failure().is_none(), "{:?}", tasks.failure());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_rest_it_costs_little() -> Fallible {
    const ENDPOINTS: u16 = 50;
    let (tasks, nobody) = (Tasks::new(), Arc::default());
    let Some(_pair) = pair("at_rest_it_costs_little", &tasks)? else {
        return Ok(());
    };
    let resident = || -> Fallible<u64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.ok_or("no VmRSS")?.trim().parse()?)
    };
    let (before, began) = (resident()?, tokio::time::Instant::now());
    let meshes: Result<Vec<Mesh>, MeshError> = (10..10 + ENDPOINTS)
        .map(|n| bind(n, &nobody, &tasks))
        .collect();
    let (meshes, took) = (meshes?, began.elapsed());
    let each = resident()?.saturating_sub(before) / u64::from(ENDPOINTS);
    eprintln!(
        "{each} KiB and {:?} for each of {ENDPOINTS}",
        took / u32::from(ENDPOINTS)
    );
    assert!(each < 512, "{each} KiB");
    assert!(
        meshes
            .iter()
            .all(|mesh| matches!(mesh.stack(), StackInUse::Kernel { .. }))
    );
    Ok(())
}

/// Also run by [`no_capability_is_needed`], which reads what it prints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_how_it_was_made() -> Fallible {
    let tasks = Tasks::new();
    let Some([node, runner]) = pair("says_how_it_was_made", &tasks)? else {
        return Ok(());
    };
    tokio::time::timeout(WATCHDOG, exchange(&node, &runner)).await??;
    println!("stack: {}", runner.stack());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_capability_is_needed() -> Fallible {
    let name = "says_how_it_was_made";
    let program = std::env::current_exe()?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
    command.arg(&program).args([name, "--exact", "--nocapture"]);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("NOT RUN: no_capability_is_needed: setpriv: {error}");
            return Ok(());
        }
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if let Some(line) = said
        .lines()
        .find(|line| line.contains("NOT RUN") || line.starts_with("setpriv:"))
    {
        eprintln!("NOT RUN: no_capability_is_needed: {line}");
        return Ok(());
    }
    assert!(output.status.success(), "{said}");
    assert!(said.contains("stack: kernel (rootless)"), "{said}");
    // The process that made the namespaces has ended, too.
    let program = program.to_string_lossy().into_owned();
    until(|| {
        let left = std::fs::read_dir("/proc")?.flatten().any(|entry| {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.starts_with(&program) && words.contains(&format!("\0{name}\0"))
        });
        Ok(!left)
    })
    .await
}
