//! Components and the world outside: real components, real servers at public addresses of a network of the
//! test's own, found by the system's own resolver, with TLS by whom the machine trusts.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tabbify_process::{Importance, Tasks};
use tabbify_runner::wasm_http::Limits;
use tabbify_runner::wasm_http::neighbors::Neighbors;
use tabbify_testing::apart::is_furnished;
use tabbify_testing::dns::Names;
use tabbify_types::AppId;
use tabbify_types::event::v1::RunConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::harness::{App, request, run_config, sent_body, start_among, text, watched};
use crate::wasm::{Package, component};

const NAME: &str = "outside::components_reach_what_they_may";
const SHARED: &str = "8.8.8.8";
const RESOLVER: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n";
/// Whom programs of this machine trust: with the key of the test's own authority behind its certificate.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

#[test]
fn components_reach_what_they_may() {
    if !std::path::Path::new(TRUSTED).exists() {
        eprintln!("NOT RUN: {NAME}: there is no {TRUSTED} (Debian: ca-certificates)");
        return;
    }
    let addresses = ["8.8.8.8/32", "169.254.169.254/32"];
    let trusted = authority().unwrap();
    let files = [("/etc/resolv.conf", RESOLVER), (TRUSTED, trusted.as_str())];
    if !is_furnished(NAME, &addresses, &files).unwrap() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all()).unwrap();
}

fn authority_of(key: &KeyPair) -> anyhow::Result<(CertificateParams, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(key)?.pem();
    Ok((params, pem))
}

fn authority() -> anyhow::Result<String> {
    let key = KeyPair::generate()?;
    Ok(authority_of(&key)?.1 + &key.serialize_pem())
}

/// TLS for `good.example`, by the authority that this network trusts.
fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let trusted = std::fs::read_to_string(TRUSTED)?;
    let at = trusted
        .find("-----BEGIN PRIVATE KEY")
        .context("the authority's key")?;
    let key = KeyPair::from_pem(&trusted[at..])?;
    let (params, _) = authority_of(&key)?;
    let own = KeyPair::generate()?;
    let names = vec!["good.example".to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&own, &Issuer::new(params, key))?;
    let key = PrivateKeyDer::try_from(own.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves at `address`: a body comes back piece by piece, with whom it was for.
async fn serve(
    address: &str,
    port: u16,
    tls: Option<TlsAcceptor>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let address: IpAddr = address.parse()?;
    let listener = TcpListener::bind((address, port)).await?;
    let owner = tasks.clone();
    tasks.spawn("server", Importance::Detached, async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            owner.spawn("served", Importance::Detached, async move {
                match tls {
                    None => connection(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream).await;
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let echo = service_fn(|request: http::Request<hyper::body::Incoming>| async {
        let host = request.headers().get("host").cloned();
        let mut answer = http::Response::new(request.into_body());
        if let Some(host) = host {
            answer.headers_mut().insert("x-host", host);
        }
        Ok::<_, hyper::Error>(answer)
    });
    let serving = hyper::server::conn::http1::Builder::new();
    // Whoever leaves is the test's own.
    drop(serving.serve_connection(TokioIo::new(stream), echo).await);
}

async fn app(egress: &[&str]) -> anyhow::Result<App> {
    let run = RunConfig {
        egress: egress.iter().map(|entry| (*entry).to_owned()).collect(),
        ..run_config()
    };
    let neighbors = Neighbors::none(AppId::mint());
    let app = start_among(neighbors, component(Package::Ask)?, run, Limits::DEFAULT).await?;
    app.map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

async fn all() -> anyhow::Result<()> {
    let (tasks, names) = (Tasks::new(), Names::serve()?);
    for name in ["good.example", "evil.example"] {
        names.set(name, &[&[SHARED]])?;
    }
    names.set("rebind.example", &[&[SHARED], &["127.0.0.1"]])?;
    names.set("inside.example", &[&["169.254.169.254"]])?;
    for address in [SHARED, "127.0.0.1", "169.254.169.254"] {
        serve(address, 80, None, &tasks).await?;
    }
    serve(SHARED, 443, Some(acceptor()?), &tasks).await?;
    for path in ["/good.example/x", "/tls/good.example/x"] {
        streams_both_ways(path).await.context(path)?;
    }
    refused(&names).await.context("refused")?;
    not_reached().await.context("not reached")?;
    tasks.stop();
    Ok(())
}

/// As in a conversation: the answer to each piece is there before the next is sent.
async fn streams_both_ways(path: &str) -> anyhow::Result<()> {
    let app = app(&["good.example"]).await?;
    let (chunks, body) = sent_body();
    let mut client = app.connect().await?;
    chunks.send(Bytes::from_static(b"piece 0")).await?;
    let answer = watched(client.send_request(request("POST", path, body)?)).await??;
    ensure!(answer.status() == 200, "{answer:?}");
    let host = answer.headers().get("x-host");
    ensure!(host.is_some_and(|host| host == "good.example"), "{host:?}");
    let mut body = answer.into_body();
    for n in 0..5 {
        let (mut piece, expected) = (Vec::new(), format!("piece {n}").into_bytes());
        while piece.len() < expected.len() {
            let frame = watched(body.frame()).await?.context("a frame")??;
            piece.extend_from_slice(frame.data_ref().context("data")?);
        }
        ensure!(piece == expected, "{piece:?}");
        if n < 4 {
            chunks.send(format!("piece {}", n + 1).into()).await?;
        }
    }
    drop(chunks);
    ensure!(watched(body.frame()).await?.is_none());
    ensure!(app.lines().await?.is_empty());
    Ok(())
}

async fn refused(names: &Names) -> anyhow::Result<()> {
    let app = app(&[
        "good.example:80",
        "rebind.example",
        "inside.example",
        "169.254.169.254",
    ])
    .await?;
    let check = async |path: &str, line: &str| {
        let answer = app.get(path).await?;
        ensure!(answer.status() == 502, "{path}: {answer:?}");
        let said = text(answer).await?;
        ensure!(said.contains("HttpRequestDenied"), "{path}: {said}");
        let lines = app.lines().await?;
        let last = lines.last().context("a line")?;
        ensure!(last.line.contains(line), "{path}: {}", last.line);
        Ok(())
    };
    names.asked();
    for (path, line) in [
        (
            "/evil.example/",
            "tabbify: blocked evil.example:80. Add it to [network] egress.",
        ),
        (
            "/tls/good.example/",
            "tabbify: blocked good.example:443. Add it to [network] egress.",
        ),
        ("/good.example:81/", "blocked good.example:81"),
        ("/8.8.8.8/", "blocked 8.8.8.8:80"),
        (
            "/169.254.169.254/",
            "metadata address, which no app reaches",
        ),
        ("/[::ffff:169.254.169.254]/", "metadata address"),
        ("/2852039166/", "four decimal numbers"),
    ] {
        check(path, line).await?;
    }
    let asked = names.asked();
    ensure!(asked.is_empty(), "not allowed, and asked for: {asked:?}");
    check("/inside.example/", "metadata address, which no app reaches").await?;
    ensure!(app.get("/rebind.example/").await?.status() == 200);
    check("/rebind.example/", "127.0.0.1 is a loopback address").await
}

/// What is allowed, and not there, or not who it should be.
async fn not_reached() -> anyhow::Result<()> {
    let closed = self::app(&["good.example", "absent.example"]).await?;
    let said = text(closed.get("/good.example:81/").await?).await?;
    ensure!(said.contains("ConnectionRefused"), "{said}");
    let said = text(closed.get("/absent.example/").await?).await?;
    ensure!(said.contains("DestinationNotFound"), "{said}");
    // TLS with somebody else than was asked for.
    let any = self::app(&["any"]).await?;
    let said = text(any.get("/tls/evil.example/").await?).await?;
    ensure!(said.contains("Tls"), "{said}");
    let lines = any.lines().await?;
    ensure!(
        lines
            .iter()
            .any(|line| line.line.contains("evil.example is not reached by TLS")),
        "{lines:?}"
    );
    Ok(())
}
