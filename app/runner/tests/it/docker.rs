//! Images in containers of a real engine, through the runner's own runtime, and the real program killed over
//! one. One engine for all cases, in a network of the test's own.

use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Empty};
use serde_json::json;
use tabbify_api::logs::{LogLine, Stream};
use tabbify_api::runner::{Answer, BOOT_FILE, CONTROL_SOCKET, Failure, Request, StateName};
use tabbify_process::{Importance, SystemClock, Tasks, unix};
use tabbify_runner::output::Output;
use tabbify_runner::runtime::{self, Entry, Runtime, Start};
use tabbify_runner::secrets::Secrets;
use tabbify_runner::traffic::Traffic;
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_testing::apart::is_furnished;
use tabbify_testing::dns::Names;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::wait::WATCHDOG;
use tabbify_types::event::v1::{
    FailureReason, ImageConfig, ImagePort, InstanceRef, RunConfig, RuntimeKind,
};
use tabbify_types::{AppId, ByteSize, InstanceId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::artifact::{boot, publish};
use crate::control::{Caller, SECRET};
use crate::harness::{lines, run_config, watched};

const NAME: &str = "docker::images_in_a_real_engine";

type Case<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

#[test]
fn images_in_a_real_engine() {
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    let addresses = ["8.8.8.8/32", "169.254.169.254/32"];
    let resolver = "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n";
    if !is_furnished(NAME, &addresses, &[("/etc/resolv.conf", resolver)]).unwrap() {
        return;
    }
    let dockerd = Dockerd::start(&[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all(&dockerd)).unwrap();
}

async fn all(dockerd: &Dockerd) -> anyhow::Result<()> {
    let before = dockerd.holds()?;
    let engine = &dockerd.address();
    let cases: Vec<(&str, Case<'_>)> = vec![
        ("serves and stops", Box::pin(serves_and_stops(engine))),
        ("a worker", Box::pin(a_worker(engine))),
        ("its way out", Box::pin(its_way_out(engine))),
        ("ends by itself", Box::pin(ends_by_itself(engine))),
        ("exits at once", Box::pin(exits_at_once(engine))),
        ("out of memory", Box::pin(out_of_memory(engine))),
        ("listens elsewhere", Box::pin(listens_elsewhere(engine))),
        ("unhealthy", Box::pin(unhealthy(engine))),
        ("no image", Box::pin(no_image(engine))),
        ("killed", Box::pin(killed(engine, dockerd))),
    ];
    let running = cases.into_iter().map(|(name, case)| async move {
        let result = case.await;
        result.err().map(|error| format!("{name}: {error:#}"))
    });
    let failed: Vec<String> = futures_util::future::join_all(running)
        .await
        .into_iter()
        .flatten()
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(dockerd.holds()? == before, "left: {:?}", dockerd.holds()?);
    no_engine().await
}

/// An app that was tried.
struct Tried {
    started: Result<Arc<dyn Runtime>, Failure>,
    output: Output,
    dir: TempDir,
    _tasks: Tasks,
}

fn config() -> RunConfig {
    RunConfig {
        runtime: RuntimeKind::Docker,
        healthy_within_ms: 60_000,
        image: Some(ImageConfig {
            command: Vec::new(),
            port: ImagePort::OfImage,
            health_path: None,
            cpus_milli: 1000,
        }),
        ..run_config()
    }
}

fn changed(change: impl FnOnce(&mut RunConfig, &mut ImageConfig)) -> anyhow::Result<RunConfig> {
    let mut run = config();
    let mut image = run.image.take().context("it has an image")?;
    change(&mut run, &mut image);
    run.image = Some(image);
    Ok(run)
}

impl Tried {
    async fn new(engine: &str, image: &Image, run: RunConfig) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        image.save_oci(&dir.path().join("image.tar"))?;
        Self::of(engine, dir, run).await
    }

    async fn of(engine: &str, dir: TempDir, run: RunConfig) -> anyhow::Result<Self> {
        let tasks = Tasks::new();
        let output = Output::open(dir.path(), InstanceId(1), Arc::new(SystemClock), &tasks)?;
        let app = AppId::mint();
        let start = Start {
            run,
            secrets: Secrets::default(),
            of: InstanceRef {
                app,
                instance: InstanceId(1),
            },
            engine: Some(engine.to_owned()),
            microvms: None,
            cache: dir.path().join("cache"),
            directory: dir.path().to_owned(),
            entry: Entry::File(dir.path().join("image.tar")),
            output: output.clone(),
            tasks: tasks.clone(),
            limits: Limits::DEFAULT,
            neighbors: Neighbors::none(app),
            volume: None,
        };
        Ok(Self {
            started: watched(runtime::start(start)).await?,
            output,
            dir,
            _tasks: tasks,
        })
    }

    fn runtime(&self) -> anyhow::Result<&dyn Runtime> {
        match &self.started {
            Ok(runtime) => Ok(&**runtime),
            Err(failure) => anyhow::bail!("{failure:?}"),
        }
    }

    fn failed(&self, reason: FailureReason, part: &str) -> anyhow::Result<()> {
        match &self.started {
            Ok(runtime) => anyhow::bail!("it started: {runtime:?}"),
            Err(failure) => {
                ensure!(
                    failure.reason == reason && failure.detail.contains(part),
                    "{failure:?}"
                );
                Ok(())
            }
        }
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let empty = Empty::new().map_err(|never| match never {});
        let request = http::Request::get(path).header("host", "app.localhost");
        let request = request.body(empty.boxed_unsync())?;
        let permit = Traffic::new(1).begin().context("a permit")?;
        let answer = watched(self.runtime()?.serve(request, permit)).await??;
        let status = answer.status().as_u16();
        let body = watched(answer.into_body().collect()).await??.to_bytes();
        Ok((status, String::from_utf8(body.to_vec())?))
    }

    async fn lines(&self) -> anyhow::Result<Vec<LogLine>> {
        self.output.flush().await;
        lines(&self.dir.path().join("1.ndjson"))
    }
}

fn server() -> Image {
    let script = "trap 'echo bye; exit 0' TERM; echo up on $PORT; echo careful >&2; \
        httpd -f -p $PORT -h /data & wait";
    let image = Image::script(script).with("ExposedPorts", json!({ "3000/tcp": {} }));
    let image = image.file("data/index.html", 0o644, "hello\n");
    let cgi = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'; echo $GREETING\n";
    image.file("data/cgi-bin/greet", 0o755, cgi)
}

async fn serves_and_stops(engine: &str) -> anyhow::Result<()> {
    let app = Tried::new(engine, &server(), config()).await?;
    ensure!(app.get("/").await? == (200, "hello\n".to_owned()));
    ensure!(app.get("/cgi-bin/greet").await? == (200, "good day\n".to_owned()));
    ensure!(app.get("/absent").await?.0 == 404);
    watched(app.runtime()?.stop(WATCHDOG)).await?;
    let lines = app.lines().await?;
    let of = |stream: Stream| -> Vec<&str> {
        let lines = lines.iter().filter(|line| line.stream == stream);
        lines.map(|line| line.line.as_str()).collect()
    };
    ensure!(of(Stream::Stdout) == ["up on 3000", "bye"], "{lines:?}");
    ensure!(of(Stream::Stderr) == ["careful"], "{lines:?}");
    Ok(())
}

async fn a_worker(engine: &str) -> anyhow::Result<()> {
    let run = changed(|_, image| image.port = ImagePort::None)?;
    let app = Tried::new(
        engine,
        &Image::script("echo ${PORT:-none}; exec sleep 1000"),
        run,
    )
    .await?;
    let refused = app.get("/").await.err().context("it answers nobody")?;
    ensure!(
        format!("{refused:#}").contains("is a worker"),
        "{refused:#}"
    );
    watched(app.runtime()?.stop(Duration::from_secs(1))).await?;
    ensure!(app.lines().await?.iter().any(|line| line.line == "none"));
    Ok(())
}

/// Answers with whom it was asked for, at a public address and at those where nobody should get.
async fn world(tasks: &Tasks) -> anyhow::Result<Names> {
    let names = Names::serve()?;
    for name in ["good.example", "evil.example"] {
        names.set(name, &[&["8.8.8.8"]])?;
    }
    for address in ["8.8.8.8", "169.254.169.254"] {
        let listener = TcpListener::bind((address, 80)).await?;
        tasks.spawn("world", Importance::Detached, async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let answer = [&b"HTTP/1.0 200 OK\r\n\r\n"[..], &head].concat();
                drop(stream.write_all(&answer).await);
            }
        });
    }
    Ok(names)
}

/// Programs of the image reach what `[network] egress` names, by the proxy that they are told of, and nothing else,
/// with the proxy or without it.
async fn its_way_out(engine: &str) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let names = world(&tasks).await?;
    let run = changed(|run, _| run.egress = vec!["good.example:80".to_owned()])?;
    let cgi = |command: &str| {
        format!(
            "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'; {command} 2>&1; echo \"code $?\"\n"
        )
    };
    let image = server()
        .file(
            "data/cgi-bin/ask",
            0o755,
            cgi("wget -q -O - \"http://$QUERY_STRING/x\""),
        )
        .file(
            "data/cgi-bin/direct",
            0o755,
            cgi("nc -w 2 \"$QUERY_STRING\" 80 </dev/null"),
        );
    let app = Tried::new(engine, &image, run).await?;
    let asked = async |what: &str, host: &str| {
        let (status, said) = app.get(&format!("/cgi-bin/{what}?{host}")).await?;
        ensure!(status == 200, "{what} {host}: {said}");
        Ok(said)
    };
    let said = asked("ask", "good.example").await?;
    ensure!(
        said.contains("GET /x HTTP/1.1\r\n") && said.ends_with("code 0\n"),
        "{said}"
    );
    let _ = names.asked();
    for host in [
        "evil.example",
        "good.example:81",
        "8.8.8.8",
        "169.254.169.254",
    ] {
        let said = asked("ask", host).await?;
        ensure!(
            said.contains("403 Forbidden") && said.ends_with("code 1\n"),
            "{host}: {said}"
        );
    }
    let said = asked("ask", "nobody.main.internal").await?;
    ensure!(said.contains("502 Bad Gateway"), "{said}");
    for host in ["8.8.8.8", "169.254.169.254", "evil.example"] {
        let said = asked("direct", host).await?;
        ensure!(!said.ends_with("code 0\n"), "{host}: {said}");
    }
    // Nobody was asked for a name on its behalf: not by the engine either.
    let leaked = names.asked();
    ensure!(leaked.is_empty(), "{leaked:?}");
    watched(app.runtime()?.stop(WATCHDOG)).await?;
    let lines = app.lines().await?;
    for part in [
        "tabbify: blocked evil.example:80. Add it to [network] egress.",
        "tabbify: blocked 8.8.8.8:80. Add it to [network] egress.",
        "tabbify: blocked 169.254.169.254:80: 169.254.169.254 is a metadata address",
        "tabbify: nobody.main.internal:80 was not reached: ",
    ] {
        ensure!(
            lines.iter().any(|line| line.line.contains(part)),
            "{part}: {lines:?}"
        );
    }
    tasks.stop();
    Ok(())
}

async fn ends_by_itself(engine: &str) -> anyhow::Result<()> {
    let script =
        "httpd -p $PORT -h /data; while [ ! -e /tmp/end ]; do sleep 0.1; done; echo last; exit 9";
    let cgi = "#!/bin/sh\ntouch /tmp/end; printf 'content-type: text/plain\\r\\n\\r\\n'\n";
    let image = Image::script(script).file("data/cgi-bin/end", 0o755, cgi);
    let app = Tried::new(engine, &image, config()).await?;
    ensure!(app.get("/cgi-bin/end").await?.0 == 200);
    let failure = watched(app.runtime()?.ended()).await?;
    ensure!(failure.reason == FailureReason::Exited, "{failure:?}");
    ensure!(
        failure.detail.starts_with("it ended with exit code 9, "),
        "{failure:?}"
    );
    let lines = app.lines().await?;
    ensure!(
        lines.last().is_some_and(|line| line.line == "last"),
        "{lines:?}"
    );
    let refused = app.get("/").await.err().context("nobody answers")?;
    ensure!(format!("{refused:#}").contains("The app"), "{refused:#}");
    watched(app.runtime()?.stop(Duration::from_secs(1))).await
}

async fn exits_at_once(engine: &str) -> anyhow::Result<()> {
    let image = Image::script("echo no database >&2; exit 3");
    let app = Tried::new(engine, &image, config()).await?;
    app.failed(FailureReason::Exited, "it ended with exit code 3, ")?;
    let lines = app.lines().await?;
    ensure!(
        lines.iter().any(|line| line.line == "no database"),
        "{lines:?}"
    );
    Ok(())
}

async fn out_of_memory(engine: &str) -> anyhow::Result<()> {
    let run = changed(|run, _| run.memory = ByteSize::mib(16))?;
    let app = Tried::new(engine, &Image::script("exec tail /dev/zero"), run).await?;
    app.failed(FailureReason::Memory, "it was killed at 16MiB, ")?;
    app.failed(FailureReason::Memory, "Set memory = \"32MiB\"")
}

async fn listens_elsewhere(engine: &str) -> anyhow::Result<()> {
    let run = changed(|run, _| run.healthy_within_ms = 5000)?;
    let image = Image::script("exec httpd -f -p 127.0.0.1:3000");
    let app = Tried::new(engine, &image, run).await?;
    let expected =
        "it did not answer on :8080 in 5 s; it listens on 127.0.0.1:3000. Listen on 0.0.0.0:$PORT";
    app.failed(FailureReason::Unhealthy, expected)
}

async fn unhealthy(engine: &str) -> anyhow::Result<()> {
    let run = changed(|run, image| {
        run.healthy_within_ms = 10_000;
        image.health_path = Some("/up".to_owned());
    })?;
    let app = Tried::new(engine, &server(), run).await?;
    app.failed(
        FailureReason::Unhealthy,
        "it answered :3000/up with 404 Not Found for 10 s",
    )
}

async fn no_image(engine: &str) -> anyhow::Result<()> {
    let other = Image::default().for_architecture("s390x");
    Tried::new(engine, &other, config()).await?.failed(
        FailureReason::Image,
        "is for linux/s390x, and this machine is linux/",
    )?;
    Tried::new(engine, &Image::default(), config())
        .await?
        .failed(FailureReason::Image, "neither an entrypoint nor a command")?;
    let run = changed(|_, image| image.command = vec!["/no/such".to_owned()])?;
    Tried::new(engine, &Image::default(), run).await?.failed(
        FailureReason::Image,
        "the image's program cannot be started",
    )?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("image.tar"), "not an image")?;
    Tried::of(engine, dir, config())
        .await?
        .failed(FailureReason::Image, "no tar archive")
}

/// Killed; whatever it left is the test's to remove.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, which is what the test is about.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(words: &[&str], home: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tabbify-runner"));
    program.args(words).arg(home);
    program
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    program
}

/// A runner that is killed leaves its container, which another start of the program removes; one that is
/// stopped leaves nothing.
async fn killed(engine: &str, dockerd: &Dockerd) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (app, home) = (AppId::mint(), dir.path().join("home"));
    let archive = dir.path().join("saved.tar");
    server().save_docker(&archive)?;
    let digest = publish(&dir.path().join("objects"), app, &std::fs::read(&archive)?)?;
    let mut boot = boot(dir.path(), app, digest)?;
    boot.secret = URL_SAFE_NO_PAD.encode(SECRET);
    boot.run = RunConfig {
        entry: boot.run.entry,
        ..config()
    };
    boot.engine = Some(engine.to_owned());
    std::fs::create_dir(&home)?;
    std::fs::write(home.join(BOOT_FILE), serde_json::to_vec(&boot)?)?;
    let filter = format!("label=tabbify.app={app}");
    let left = || dockerd.client(&["ps", "--all", "--quiet", "--filter", &filter]);
    // Nothing was made yet: that is known without an engine.
    ensure!(program(&["--clean"], &home).status()?.success());

    let mut running = Running(program(&[], &home).spawn()?);
    ready(&home).await?;
    ensure!(left()?.len() == 1);
    running.0.kill()?;
    running.0.wait()?;
    ensure!(left()?.len() == 1, "it outlives its runner");
    // As a supervisor finds it whose disk has spoilt the boot document: by its name alone.
    let spoilt = dir.path().join(app.to_string());
    let spoilt = spoilt.join(boot.of.instance.to_string());
    std::fs::create_dir_all(&spoilt)?;
    for file in [BOOT_FILE, runtime::OUTSIDE_FILE] {
        std::fs::write(spoilt.join(file), "")?;
    }
    let mut cleaning = program(&["--clean"], &spoilt);
    ensure!(cleaning.arg(engine).status()?.success());
    ensure!(left()?.is_empty(), "{:?}", left()?);
    let cleaning = program(&["--clean"], &home).status();
    ensure!(cleaning?.success());
    ensure!(left()?.is_empty(), "{:?}", left()?);
    ensure!(program(&["--clean"], &home).status()?.success(), "again");

    std::fs::remove_file(home.join(CONTROL_SOCKET))?;
    let mut running = Running(program(&[], &home).spawn()?);
    let mut control = ready(&home).await?;
    ensure!(control.ask(&Request::Stop).await? == Answer::Done);
    let ended = watched(tokio::task::spawn_blocking(move || running.0.wait())).await???;
    ensure!(ended.success(), "{ended}");
    ensure!(left()?.is_empty(), "{:?}", left()?);
    let printed = lines(&dir.path().join("logs/1.ndjson"))?;
    ensure!(
        printed.last().is_some_and(|line| line.line == "bye"),
        "{printed:?}"
    );
    Ok(())
}

async fn ready(home: &Path) -> anyhow::Result<Caller<tokio::net::UnixStream>> {
    let connected = watched(async {
        loop {
            match unix::connect(home, CONTROL_SOCKET).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let mut caller = Caller::new(connected.await?);
    caller.hello().await?;
    let seen = StateName::Starting;
    let answer = caller.ask(&Request::Wait { seen }).await?;
    let is_ready = matches!(&answer, Answer::Status(status) if status.state == StateName::Ready);
    ensure!(is_ready, "{answer:?}");
    Ok(caller)
}

async fn no_engine() -> anyhow::Result<()> {
    let app = Tried::new("unix:///no/engine.sock", &server(), config()).await?;
    app.failed(
        FailureReason::Runtime,
        "/no/engine.sock: no such file: no container engine runs here",
    )
}
