//! A person's laptop: a stock WireGuard client with the exported configuration reaches an app of its
//! tenant through the gateway, is refused another tenant's, and loses access when it is removed.
#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tabbify_testing::apart::is_apart;
use tabbify_testing::platform::{binary, build_app};
use tabbify_testing::stock::{File, Stock};
use tabbify_testing::wait::WATCHDOG;
use tabbify_testing::{Platform, wait};
use tabbify_types::{APP_PORT, AppId, AppUla};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

const NAME: &str = "a_laptop_comes_in_is_kept_out_and_is_cut_off";

/// `tabbify mesh …` on the platform's data directory.
async fn mesh(platform: &Platform, line: &[&str]) -> anyhow::Result<Result<String, String>> {
    let mut command = Command::new(binary("tabbify")?);
    command.arg("mesh").args(line);
    command.arg("--data-dir").arg(platform.data());
    let output = command.output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    })
}

/// What an app answers to a request with these headers, as `curl http://[address]:8730/` would see it.
async fn fetch(address: Ipv6Addr, path: &str, headers: &str) -> anyhow::Result<String> {
    let at = SocketAddrV6::new(address, APP_PORT, 0, 0);
    let fetching = async {
        let mut stream = TcpStream::connect(at).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    timeout(WATCHDOG, fetching).await.context("no answer")?
}

async fn address_of(platform: &Platform, folder: &std::path::Path) -> anyhow::Result<Ipv6Addr> {
    let status = platform.status(folder).await?;
    let id: AppId = status["id"].as_str().context("id")?.parse()?;
    Ok(AppUla::derive(id).addr())
}

/// The client, as a person sets it up.
async fn client(platform: &Platform) -> anyhow::Result<Option<Stock>> {
    let exported = mesh(platform, &["export-wg", "laptop"]).await?;
    let exported = exported.map_err(anyhow::Error::msg)?;
    let file = File::parse(&exported)?;
    ensure!(file.peer("AllowedIPs") == Some("fd5a:1f00::/32, fd5a:1f02::/32"));
    let key = file.interface("PrivateKey").context("PrivateKey")?;
    ensure!(!platform.log().contains(key), "the key is in the log");
    let Some(stock) = Stock::start(&format!("te{}", std::process::id()))? else {
        return Ok(None);
    };
    stock.apply(&file)?;
    // A second of the same name is refused, with what to do.
    let Err(again) = mesh(platform, &["export-wg", "laptop"]).await? else {
        bail!("the same name twice");
    };
    ensure!(again.contains("remove-device"), "{again}");
    Ok(Some(stock))
}

async fn story() -> anyhow::Result<()> {
    let platform = Platform::start_with("[gateway]\nlisten = \"127.0.0.1:0\"\n").await?;
    let Some(stock) = client(&platform).await? else {
        eprintln!("NOT RUN: {NAME}: wireguard-go is not installed");
        return Ok(());
    };

    let folder = platform.copy_app("examples/hello-wasm", "hello-wasm")?;
    platform.succeed(&folder, &["push"]).await?;
    let app = address_of(&platform, &folder).await?;
    let answer = fetch(app, "/", "").await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Whoever a device claims to be, the app hears of nobody.
    let forged = "X-Tabbify-User: root\r\nx_tabbify_user: root\r\nX-Mine: kept\r\n";
    let seen = fetch(app, "/headers", forged).await?;
    ensure!(seen.contains("x-mine: kept"), "{seen}");
    ensure!(
        !seen.contains("root") && !seen.contains("tabbify"),
        "{seen}"
    );
    ensure!(stock.get("last_handshake_time_sec")? != "0");

    // Nobody is let to a machine, nor to where nobody is: refused, and not in silence.
    for closed in ["fd5a:1f00:1:1::1", "fd5a:1f02:1:2:3::1"] {
        let began = Instant::now();
        let refused = TcpStream::connect((closed, 8700)).await;
        let kind = refused.map(drop).map_err(|error| error.kind());
        ensure!(
            kind == Err(std::io::ErrorKind::ConnectionRefused),
            "{closed}: {kind:?}"
        );
        ensure!(began.elapsed() < Duration::from_secs(10));
    }

    // A connection that is open when the device is removed ends, and no other begins.
    let at = SocketAddrV6::new(app, APP_PORT, 0, 0);
    let _open = timeout(WATCHDOG, TcpStream::connect(at)).await??;
    let connected = async || {
        let shown = mesh(&platform, &["devices", "--json"]).await.ok()?.ok()?;
        let shown: serde_json::Value = serde_json::from_str(&shown).ok()?;
        shown["gateway"]["connections"].as_u64()
    };
    wait::until("the connection is carried", async || {
        (connected().await? >= 1).then_some(())
    })
    .await?;
    let removing = Instant::now();
    let removed = mesh(&platform, &["remove-device", "laptop"]).await?;
    removed.map_err(anyhow::Error::msg)?;
    let told = removing.elapsed();
    wait::until("the connection is cut", async || {
        (connected().await? == 0).then_some(())
    })
    .await?;
    eprintln!(
        "removed → the command has ended: {told:?}, the connection is seen cut: {:?}",
        removing.elapsed()
    );
    let after = timeout(Duration::from_secs(3), TcpStream::connect(at)).await;
    ensure!(!matches!(after, Ok(Ok(_))), "it is still let in");
    Ok(())
}

#[test]
fn a_laptop_comes_in_is_kept_out_and_is_cut_off() -> anyhow::Result<()> {
    // Where there is still a network to build it from.
    build_app("examples/hello-wasm")?;
    if !is_apart(NAME)? {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(story())
}
