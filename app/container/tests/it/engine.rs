//! Every case against one real engine: starting one takes longer than most of them. They run at the same
//! time, as apps do, but for those that need the engine for themselves.

use std::net::SocketAddr;
use std::pin::Pin;
use tokio::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tabbify_container::{End, Engine, Error, PORT, Reaped, Seen, healthy};
use tabbify_testing::apart::is_apart;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::long;
use tabbify_testing::wait::{WATCHDOG, until};
use tabbify_types::InstanceId;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UdpSocket};

use crate::site::{SOON, Site, ended, get, printed, spec, up};

const NAME: &str = "engine::containers_of_a_real_engine";

type Case<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

#[test]
fn containers_of_a_real_engine() {
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    if !is_apart(NAME).unwrap() {
        return;
    }
    let mut dockerd = Dockerd::start(&[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all(&mut dockerd)).unwrap();
}

async fn all(dockerd: &mut Dockerd) -> anyhow::Result<()> {
    let before = dockerd.holds()?;
    let site = &Site::new(&dockerd.address()).await?;
    let cases: Vec<(&str, Case<'_>)> = vec![
        ("serves and obeys", Box::pin(serves_and_obeys(site))),
        ("oci archive", Box::pin(oci_archive(site))),
        ("what it may", Box::pin(what_it_may(site))),
        ("has no way out", Box::pin(has_no_way_out(site))),
        ("its runner's port", Box::pin(its_runners_port(site))),
        ("output", Box::pin(output(site))),
        ("exits at once", Box::pin(exits_at_once(site))),
        ("never healthy", Box::pin(never_healthy(site))),
        ("ignores SIGTERM", Box::pin(ignores_sigterm(site))),
        ("forks without end", Box::pin(forks_without_end(site))),
        ("fills its memory", Box::pin(fills_its_memory(site))),
        ("nothing to run", Box::pin(nothing_to_run(site))),
        ("reaped", Box::pin(reaped(site))),
    ];
    if long() {
        beside_docker_run(site, dockerd)
            .await
            .context("beside docker run")?;
    }
    let mut failed = Vec::new();
    let running = cases.into_iter().map(|(name, case)| async move {
        let began = Instant::now();
        let result = case.await;
        #[expect(clippy::print_stderr, reason = "which case takes how long")]
        {
            eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
        }
        result.err().map(|error| format!("{name}: {error:#}"))
    });
    failed.extend(
        futures_util::future::join_all(running)
            .await
            .into_iter()
            .flatten(),
    );
    site.engine.remove_unused_images().await?;
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(dockerd.holds()? == before, "left: {:?}", dockerd.holds()?);
    engine_restarted(site, dockerd)
        .await
        .context("engine restarted")?;
    ensure!(dockerd.holds()? == before, "left: {:?}", dockerd.holds()?);
    engine_down(site, dockerd).await.context("engine down")?;
    containers_left_running()
        .await
        .context("containers left running")
}

fn server() -> Image {
    Image::script("exec httpd -f -p 8080 -h /data").file("data/index.html", 0o644, "hello\n")
}

async fn serves_and_obeys(site: &Site) -> anyhow::Result<()> {
    let script = "trap 'echo bye; exit 7' TERM; httpd -f -p 8080 -h /data & echo up; wait";
    let image = Image::script(script).file("data/index.html", 0o644, "hello\n");
    let container = site.start(&image).await?;
    let address = up(&container, 8080).await?;
    let seen = healthy(address, Some("/index.html"), WATCHDOG).await;
    ensure!(seen.is_ok(), "{seen:?}");
    let absent = healthy(address, Some("/absent"), SOON).await;
    ensure!(
        matches!(absent, Err(Seen::Status(status)) if status == 404),
        "{absent:?}"
    );
    ensure!(get(address, "/").await?.ends_with("\r\n\r\nhello\n"));
    let listening = container.listening();
    let everywhere = |at: &SocketAddr| at.port() == 8080 && at.ip().is_unspecified();
    ensure!(
        !listening.is_empty() && listening.iter().all(everywhere),
        "{listening:?}"
    );

    let command = ["sh", "-c", "echo out; echo err >&2; exit 5"].map(str::to_owned);
    let executed = container.exec(&command).await?;
    ensure!((executed.code, executed.cut) == (5, false), "{executed:?}");
    ensure!(
        executed.stdout == b"out\n" && executed.stderr == b"err\n",
        "{executed:?}"
    );
    let many = ["head", "-c", "3000000", "/dev/zero"].map(str::to_owned);
    let executed = container.exec(&many).await?;
    ensure!(executed.cut && executed.stdout.len() == 1 << 20);

    let usage = container.usage().await?;
    ensure!(usage.memory > 0 && usage.memory <= 64 << 20, "{usage:?}");
    ensure!(
        usage.pids >= 2 && !usage.cpu.is_zero() && usage.received > 0,
        "{usage:?}"
    );

    container.stop(WATCHDOG).await?;
    let end = ended(&container).await?;
    ensure!((end.code, end.out_of_memory) == (7, false), "{end:?}");
    let (out, _) = printed(&container).await?;
    ensure!(out == "up\nbye\n", "{out:?}");
    Ok(container.remove().await?)
}

/// The same image is loaded once, however its file is made.
async fn oci_archive(site: &Site) -> anyhow::Result<()> {
    let image = server()
        .with("WorkingDir", json!("/data"))
        .with("User", json!("1234:99"));
    let image = image.with("Env", json!(["PATH=/bin", "A=image", "B=image"]));
    let archive = site.oci_archive(&image).await?;
    let loaded = site.engine.load(&archive).await?;
    ensure!(site.engine.load(&archive).await? == loaded);
    ensure!(site.engine.load(&site.archive(&image).await?).await? == loaded);
    let mut spec = spec();
    let script = "pwd; id -u; env | grep -E '^(A|B|PATH|PORT)='; exec httpd -f -p $PORT";
    spec.command = ["sh", "-c", script].map(str::to_owned).into();
    spec.env = [("A", "own"), ("PORT", "3000")]
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .into();
    let container = site.engine.start(&archive, &spec).await?;
    let address = up(&container, 3000).await?;
    ensure!(get(address, "/").await?.ends_with("hello\n"));
    container.kill().await?;
    let (out, _) = printed(&container).await?;
    let mut lines: Vec<&str> = out.lines().collect();
    lines[2..].sort_unstable();
    ensure!(
        lines
            == [
                "/data",
                "1234",
                "A=own",
                "B=image",
                "PATH=/bin",
                "PORT=3000"
            ],
        "{out}"
    );
    Ok(container.remove().await?)
}

async fn what_it_may(site: &Site) -> anyhow::Result<()> {
    let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
        touch /tmp/x && echo tmp; touch /data/x || echo no; cat /proc/self/cgroup | head -1";
    let container = site
        .start_with(&Image::script(script), |spec| spec.read_only = true)
        .await?;
    let end = ended(&container).await?;
    let (out, err) = printed(&container).await?;
    let said = format!("{out}{err}");
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7, SETPCAP 8, NET_BIND_SERVICE 10.
    for line in [
        "CapEff:\t00000000000005fb\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
        "tmp\n",
        "no\n",
    ] {
        ensure!(out.contains(line), "{line:?} is not in {said}");
    }
    ensure!(err.contains("Read-only file system"), "{said}");
    ensure!(end.code == 0, "{end:?}");
    Ok(container.remove().await?)
}

async fn has_no_way_out(site: &Site) -> anyhow::Result<()> {
    // On every address of this machine, as careless services are.
    let open = TcpListener::bind(("0.0.0.0", 0)).await?;
    let port = open.local_addr()?.port();
    let neighbor = site.start(&server()).await?;
    up(&neighbor, 8080).await?;
    let container = site.start(&Image::script("exec sleep 1000")).await?;
    let try_out = async |host: String, port: u16| {
        let line = ["nc", "-w", "1", &host, &port.to_string()].map(str::to_owned);
        let tried = container.exec(&line).await?;
        ensure!(tried.code != 0, "{host}:{port} is reached: {tried:?}");
        Ok(String::from_utf8(tried.stderr)?)
    };
    try_out(container.host().to_string(), port).await?;
    try_out(neighbor.address().to_string(), 8080).await?;
    try_out(neighbor.host().to_string(), port).await?;
    try_out("192.0.2.1".to_owned(), 443).await?;
    // Nor by asking for names: nobody who answers for this machine hears of it.
    let resolver = UdpSocket::bind(("0.0.0.0", 53)).await?;
    try_out("a-secret.example.com".to_owned(), 443).await?;
    let asked = resolver.try_recv(&mut [0; 512]);
    ensure!(asked.is_err(), "a name was asked for: {asked:?}");
    // And yet this machine reaches it: that is what the rule is careful about.
    ensure!(
        tokio::net::TcpStream::connect((container.host(), port))
            .await
            .is_ok()
    );
    neighbor.remove().await?;
    Ok(container.remove().await?)
}

/// What listens for a container hears it and nobody else, the machine itself included.
async fn its_runners_port(site: &Site) -> anyhow::Result<()> {
    let archive = site.archive(&Image::script("exec sleep 1000")).await?;
    let spec = spec();
    let network = site.engine.network(&spec).await?;
    let listener = network.listen()?;
    let container = site.engine.start_in(network, &archive, &spec).await?;
    ensure!(listener.address().ip() == container.host());
    let neighbor = site.start(&Image::script("exec sleep 1000")).await?;
    let port = PORT.to_string();
    let line = ["nc", "-w", "2", &container.host().to_string(), &port].map(str::to_owned);
    let tried = neighbor.exec(&line).await?;
    ensure!(tried.code != 0, "a neighbor reaches it: {tried:?}");
    // Nobody listens at the neighbor's own end: that is said at once, and not to it alone.
    let own = ["nc", "-w", "2", &neighbor.host().to_string(), &port].map(str::to_owned);
    ensure!(neighbor.exec(&own).await?.code != 0);
    let machine = async {
        let mut stream = tokio::net::TcpStream::connect(listener.address()).await?;
        let read = stream.read(&mut [0]).await;
        ensure!(!matches!(read, Ok(1..)), "the machine is heard");
        Ok(())
    };
    tokio::select! {
        accepted = listener.accept() => anyhow::bail!("the machine is taken for it: {accepted:?}"),
        heard = machine => heard?,
    }
    // The program goes on until the connection ends.
    let taken = async { listener.accept().await.map(|(_, from)| from) };
    let (taken, tried) = tokio::join!(taken, container.exec(&line));
    let from = taken?;
    ensure!(from.ip() == container.address(), "{from}");
    tried?;
    neighbor.remove().await?;
    Ok(container.remove().await?)
}

async fn output(site: &Site) -> anyhow::Result<()> {
    let script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; \
        head -c 100000 /dev/zero; printf end";
    let container = site.start(&Image::script(script)).await?;
    let (out, err) = printed(&container).await?;
    let expected =
        |what: &str| (0..3000).fold(String::new(), |all, n| all + &format!("{what} {n}\n"));
    ensure!(err == expected("err"), "{} bytes of errors", err.len());
    let rest = out
        .strip_prefix(&expected("out"))
        .context("all lines, in order")?;
    ensure!(
        rest.len() == 100_003 && rest.ends_with("\0end"),
        "{} bytes",
        rest.len()
    );
    Ok(container.remove().await?)
}

async fn exits_at_once(site: &Site) -> anyhow::Result<()> {
    let container = site
        .start(&Image::script("echo no database >&2; exit 3"))
        .await?;
    let end = ended(&container).await?;
    ensure!(end.code == 3 && !end.out_of_memory, "{end:?}");
    ensure!(
        end.to_string().starts_with("ended with exit code 3, "),
        "{end}"
    );
    ensure!(printed(&container).await?.1 == "no database\n");
    Ok(container.remove().await?)
}

async fn never_healthy(site: &Site) -> anyhow::Result<()> {
    let image = Image::script("exec httpd -f -p 127.0.0.1:3000 -h /data");
    let container = site.start(&image).await?;
    let expected: SocketAddr = "127.0.0.1:3000".parse()?;
    until("it listens", async || {
        (container.listening() == [expected]).then_some(())
    })
    .await?;
    let address = SocketAddr::new(container.address().into(), 8080);
    let seen = healthy(address, None, SOON).await;
    ensure!(seen == Err(Seen::Nobody), "{seen:?}");
    Ok(container.remove().await?)
}

async fn ignores_sigterm(site: &Site) -> anyhow::Result<()> {
    let image = Image::script("trap '' TERM; echo up; while true; do sleep 1; done");
    let container = site.start(&image).await?;
    container.stop(SOON).await?;
    let end = ended(&container).await?;
    ensure!(end.code == 137 && !end.out_of_memory, "{end:?}");
    ensure!(end.to_string().starts_with("was ended by SIGKILL"), "{end}");
    Ok(container.remove().await?)
}

async fn forks_without_end(site: &Site) -> anyhow::Result<()> {
    let image = Image::script("while true; do sleep 1000 & done");
    let container = site.start_with(&image, |spec| spec.pids = 32).await?;
    until("it has all that it may", async || {
        // It may also have ended by then: the shell gives up at a fork that fails.
        match container.usage().await {
            Ok(usage) => (usage.pids >= 30 || usage.pids == 0).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await?;
    let pids = container.usage().await.unwrap_or_default().pids;
    ensure!(pids <= 32, "{pids} processes");
    container.kill().await?;
    ended(&container).await?;
    Ok(container.remove().await?)
}

async fn fills_its_memory(site: &Site) -> anyhow::Result<()> {
    // Reads a line without an end.
    let image = Image::script("exec tail /dev/zero");
    let container = site
        .start_with(&image, |spec| spec.memory = 16 << 20)
        .await?;
    let end = ended(&container).await?;
    let End {
        code,
        out_of_memory,
        ..
    } = end;
    ensure!((code, out_of_memory) == (137, true), "{end:?}");
    Ok(container.remove().await?)
}

async fn nothing_to_run(site: &Site) -> anyhow::Result<()> {
    let start = async |image: Image, command: &[&str]| {
        let archive = site.archive(&image).await?;
        let mut spec = spec();
        spec.command = command.iter().map(|word| (*word).to_owned()).collect();
        match site.engine.start(&archive, &spec).await {
            Ok(container) => anyhow::bail!("it started: {container:?}"),
            Err(error) => Ok(error),
        }
    };
    let nothing = start(Image::default(), &[]).await?;
    ensure!(
        nothing.is_image() && nothing.to_string().contains("neither an entrypoint nor"),
        "{nothing}"
    );
    for (image, command) in [
        (Image::script("true").empty(), &[][..]),
        (Image::default(), &["/no/such/program"]),
    ] {
        let error = start(image, command).await?;
        ensure!(
            matches!(&error, Error::Program(why) if why.contains("no such file")
            || why.contains("not found")),
            "{error:?}"
        );
    }
    let denied = Image::default().file("run", 0o644, "#!/bin/sh\n");
    let error = start(denied, &["/run"]).await?;
    ensure!(
        matches!(&error, Error::Program(why) if why.contains("permission denied")),
        "{error:?}"
    );
    Ok(())
}

/// What is left of an instance whose runner died goes; what others have stays.
async fn reaped(site: &Site) -> anyhow::Result<()> {
    let archive = site.archive(&server()).await?;
    let (left, mut other) = (spec(), spec());
    other.of.app = left.of.app;
    other.of.instance = InstanceId(2);
    let first = site.engine.start(&archive, &left).await?;
    let second = site.engine.start(&archive, &other).await?;
    // A network without its container, as a death in the middle leaves it.
    drop(first);
    let found = site.engine.reap(left.of).await?;
    ensure!((found.containers, found.networks) == (1, 0), "{found:?}");
    let again = site.engine.reap(left.of).await?;
    ensure!(
        Reaped { images: 0, ..again } == Reaped::default(),
        "{again:?}"
    );
    let address = up(&second, 8080).await?;
    ensure!(get(address, "/").await?.ends_with("hello\n"));
    Ok(second.remove().await?)
}

/// An engine that crashes takes its containers along when it comes back: that is their end, and no output
/// is lost or told twice.
async fn engine_restarted(site: &Site, dockerd: &mut Dockerd) -> anyhow::Result<()> {
    let script = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done";
    let container = site.start(&Image::script(script)).await?;
    let before = {
        let mut printed = std::pin::pin!(printed(&container));
        let mut waited = std::pin::pin!(ended(&container));
        tokio::select! {
            _ = &mut printed => anyhow::bail!("its output has ended"),
            _ = &mut waited => anyhow::bail!("it has ended"),
            () = tokio::time::sleep(SOON) => {}
        }
        dockerd.crash()?;
        tokio::select! {
            _ = &mut printed => anyhow::bail!("its output has ended with the engine"),
            _ = &mut waited => anyhow::bail!("it has ended with the engine"),
            () = tokio::time::sleep(SOON) => {}
        }
        dockerd.up()?;
        let (printed, end) = tokio::join!(printed, waited);
        let end = end?;
        ensure!(end.code != 0, "{end:?}");
        printed?.0
    };
    for (number, line) in before.lines().enumerate() {
        ensure!(line == number.to_string(), "line {number} is {line:?}");
    }
    ensure!(before.lines().count() > 10, "{before}");
    Ok(container.remove().await?)
}

/// One that leaves its containers alone when it goes: nobody notices, and it knows them when it is back.
async fn containers_left_running() -> anyhow::Result<()> {
    let mut dockerd = Dockerd::start(&["--live-restore"])?;
    let site = Site::new(&dockerd.address()).await?;
    let before = dockerd.holds()?;
    let container = site.start(&server()).await?;
    let address = up(&container, 8080).await?;
    dockerd.crash()?;
    ensure!(get(address, "/").await?.ends_with("hello\n"));
    tokio::select! {
        end = ended(&container) => anyhow::bail!("it has ended with the engine: {end:?}"),
        () = tokio::time::sleep(SOON) => {}
    }
    dockerd.up()?;
    ensure!(get(address, "/").await?.ends_with("hello\n"));
    ensure!(container.usage().await?.pids > 0);
    container.stop(SOON).await?;
    ended(&container).await?;
    container.remove().await?;
    ensure!(dockerd.holds()? == before, "left: {:?}", dockerd.holds()?);
    Ok(())
}

/// From an image's file to the first byte of its app, beside `docker run` of the same image with the same
/// limits; in turns, medians.
async fn beside_docker_run(site: &Site, dockerd: &Dockerd) -> anyhow::Result<()> {
    const ROUNDS: usize = 9;
    let image = server();
    let path = site.save(&image)?;
    // Keeps the image in the engine.
    let kept = site.start(&image).await?;
    let name = dockerd.client(&["inspect", "--format", "{{.Config.Image}}", kept.id()])?;
    let name = name.first().context("a name")?;
    dockerd.client(&["network", "create", "--subnet", "172.30.0.0/24", "peer"])?;
    let run = [
        "run",
        "--detach",
        "--name",
        "peer",
        "--network",
        "peer",
        "--ip",
        "172.30.0.9",
    ];
    let limits = [
        "--memory=64m",
        "--cpus=1",
        "--pids-limit=512",
        "--security-opt=no-new-privileges",
    ];
    let line = [&run[..], &limits, &[name]].concat();
    let theirs_at: SocketAddr = "172.30.0.9:8080".parse()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let archive = site.open(path.clone()).await?;
        let container = site.engine.start(&archive, &spec()).await?;
        get(up(&container, 8080).await?, "/").await?;
        ours.push(began.elapsed());
        container.remove().await?;
        let began = Instant::now();
        dockerd.client(&line)?;
        let seen = healthy(theirs_at, None, WATCHDOG).await;
        ensure!(seen.is_ok(), "{seen:?}");
        get(theirs_at, "/").await?;
        theirs.push(began.elapsed());
        dockerd.client(&["rm", "--force", "peer"])?;
    }
    dockerd.client(&["network", "rm", "peer"])?;
    kept.remove().await?;
    ours.sort_unstable();
    theirs.sort_unstable();
    let (ours, theirs) = (ours[ROUNDS / 2], theirs[ROUNDS / 2]);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    #[expect(clippy::print_stderr, reason = "the figure is what this is for")]
    {
        eprintln!("start to first byte: ours {ours:?}, docker run {theirs:?}, ratio {ratio:.2}");
    }
    Ok(())
}

async fn engine_down(site: &Site, dockerd: &mut Dockerd) -> anyhow::Result<()> {
    let archive = site.archive(&server()).await?;
    let address = dockerd.address();
    dockerd.crash()?;
    let silent = Engine::connect(Some(&address)).await;
    ensure!(matches!(silent, Err(Error::Silent { .. })), "{silent:?}");
    let started = site.engine.start(&archive, &spec()).await;
    ensure!(matches!(started, Err(Error::Call { .. })), "{started:?}");
    std::fs::remove_file(dockerd.socket())?;
    let missing = Engine::connect(Some(&address)).await;
    ensure!(matches!(missing, Err(Error::Missing(_))), "{missing:?}");
    for bad in ["tcp://127.0.0.1:2375", "unix://relative", ""] {
        ensure!(
            matches!(Engine::connect(Some(bad)).await, Err(Error::Address(_))),
            "{bad}"
        );
    }
    dockerd.up()
}
