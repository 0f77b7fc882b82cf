//! `[network] egress`, from the manifest to the wire: a component and a container reach the one host that they name,
//! and each other by name, and nothing else; what is refused stands in the app's log.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tabbify_testing::apart::is_furnished;
use tabbify_testing::dns::Names;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::image::Image;
use tabbify_testing::platform::build_app;
use tabbify_testing::wait::until;
use tabbify_testing::{Platform, role};

const NAME: &str = "what_a_manifest_names_is_reached_and_nothing_else";
const ASK: &str = "testing/fixtures/wasm/ask";
const SHARED: &str = "8.8.8.8";
const RESOLVER: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n";
const EGRESS: &str = "\n[network]\negress = [\"good.example:80\"]\n";

#[test]
fn what_a_manifest_names_is_reached_and_nothing_else() {
    build_app(ASK).unwrap();
    let addresses = ["8.8.8.8/32"];
    if !is_furnished(NAME, &addresses, &[("/etc/resolv.conf", RESOLVER)]).unwrap() {
        return;
    }
    let dockerd = match Dockerd::missing() {
        None => Some(Dockerd::start(&[]).unwrap()),
        Some(why) => {
            eprintln!("NOT RUN: {NAME}, its containers: {why}");
            None
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all(dockerd.as_ref())).unwrap();
}

/// A server of the world, for several names.
fn world() -> anyhow::Result<Names> {
    let names = Names::serve()?;
    for name in ["good.example", "evil.example"] {
        names.set(name, &[&[SHARED]])?;
    }
    let listener = TcpListener::bind((SHARED, 80))?;
    std::thread::Builder::new().spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let len = stream.read(&mut head).unwrap_or(0);
            let asked = String::from_utf8_lossy(&head[..len]).to_ascii_lowercase();
            let host = asked.lines().find_map(|line| line.strip_prefix("host: "));
            let body = format!("this is {}\n", host.unwrap_or("nobody"));
            let answer = format!(
                "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            drop(stream.write_all(answer.as_bytes()));
        }
    })?;
    Ok(names)
}

async fn id(platform: &Platform, folder: &Path) -> anyhow::Result<String> {
    let status = platform.status(folder).await?;
    Ok(status["id"].as_str().context("id")?.to_owned())
}

async fn is_logged(platform: &Platform, folder: &Path, part: &str) -> anyhow::Result<()> {
    until(part, async || {
        let logs = platform.succeed(folder, &["logs"]).await.ok()?;
        logs.contains(part).then_some(())
    })
    .await
}

async fn all(dockerd: Option<&Dockerd>) -> anyhow::Result<()> {
    let names = world()?;
    let address = dockerd.map(Dockerd::address).unwrap_or_default();
    let env: &[(&str, &str)] = match dockerd {
        Some(_) => &[("DOCKER_HOST", &address)],
        None => &[],
    };
    let platform = Platform::start_in("", env).await?;
    let ask = platform.copy_app(ASK, "ask")?;
    let manifest = ask.join("tabbify.toml");
    std::fs::write(&manifest, std::fs::read_to_string(&manifest)? + EGRESS)?;
    platform.succeed(&ask, &["push"]).await?;
    let app = id(&platform, &ask).await?;
    let said = platform.get(&format!("/app/{app}/good.example/x")).await?;
    ensure!(
        said == (200, "this is good.example\n".to_owned()),
        "{said:?}"
    );
    let (status, said) = platform.get(&format!("/app/{app}/evil.example/x")).await?;
    ensure!(
        status == 502 && said.contains("HttpRequestDenied"),
        "{status} {said}"
    );
    is_logged(
        &platform,
        &ask,
        "tabbify: blocked evil.example:80. Add it to [network] egress.",
    )
    .await?;
    if dockerd.is_some() {
        containers(&platform, &names).await?;
    }
    role::done(&["down"], &platform.data()).await?;
    Ok(())
}

async fn containers(platform: &Platform, names: &Names) -> anyhow::Result<()> {
    let folder = platform.scratch("docked");
    std::fs::create_dir(&folder)?;
    let manifest = "[app]\nname = \"docked\"\n\n[build]\nimage = \"oci-archive:docked.tar\"\n\n\
        [runtime]\nmemory = \"64MiB\"\nhealth.path = \"/index.html\"\n";
    std::fs::write(folder.join("tabbify.toml"), manifest.to_owned() + EGRESS)?;
    let asks = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'\n\
        wget -q -O - \"http://$QUERY_STRING\" 2>&1\n";
    Image::script("exec httpd -f -p $PORT -h /data")
        .with("ExposedPorts", json!({ "3000/tcp": {} }))
        .file("data/index.html", 0o644, "hello\n")
        .file("data/cgi-bin/ask", 0o755, asks)
        .save_oci(&folder.join("docked.tar"))?;
    platform.succeed(&folder, &["push"]).await?;
    let app = id(platform, &folder).await?;
    let asked = async |target: &str| {
        let (status, said) = platform
            .get(&format!("/app/{app}/cgi-bin/ask?{target}"))
            .await?;
        ensure!(status == 200, "{target}: {status} {said}");
        Ok(said)
    };
    let said = asked("good.example/x").await?;
    ensure!(said == "this is good.example\n", "{said}");
    // Through the mesh to the component, and out by that one's own rules.
    let said = asked("ask.main.internal/good.example/x").await?;
    ensure!(said == "this is good.example\n", "{said}");
    let _ = names.asked();
    for host in ["evil.example", "169.254.169.254", SHARED] {
        let said = asked(&format!("{host}/x")).await?;
        ensure!(said.contains("403 Forbidden"), "{host}: {said}");
    }
    ensure!(
        names.asked().is_empty(),
        "a name that is not allowed was asked for"
    );
    is_logged(
        platform,
        &folder,
        "tabbify: blocked evil.example:80. Add it to [network] egress.",
    )
    .await?;
    is_logged(
        platform,
        &folder,
        "169.254.169.254 is a metadata address, which no app reaches",
    )
    .await
}
