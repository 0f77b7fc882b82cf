//! A hundred bodies, heads and paths that nobody should send: each gets a refusal or a closed connection,
//! and the vault is as it was.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::auth::issue::Caller;
use tabbify_api::secrets::{SecretValue, VALUE_LEN_MAX, Vault as _};
use tabbify_gateway::{RemoteVault, Service};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Importance, unix};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::{Fallible, Site, WATCHDOG};

/// What comes back for these bytes until the other end closes, or says nothing for a while.
async fn answer(mut stream: UnixStream, bytes: &[u8]) -> Fallible<String> {
    // A refusal may come before the end of what is sent, and the connection then breaks.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut said = Vec::new();
    let _ = tokio::time::timeout(WATCHDOG, stream.read_to_end(&mut said)).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let token = "authorization: Bearer owner\r\nhost: vault\r\nconnection: close";
    let head = format!("{line} HTTP/1.1\r\n{token}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn hostile() -> Vec<Vec<u8>> {
    let long = "x".repeat(100_000);
    [paths(&long), bodies(&long), no_requests()].concat()
}

fn paths(long: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for path in [
        "/v1/secrets/",
        "/v1/secrets/.",
        "/v1/secrets/..",
        "/v1/secrets/-a",
        "/v1/secrets/a/b",
        "/v1/secrets/a%2fb",
        "/v1/secrets/%00",
        "/v1/secrets/../../etc/passwd",
        "/v1/secrets//a",
        "/v1/secrets/a?b",
        "/v1/secret",
        "/v1/vault/release",
        "/v1/vault",
        "/",
        "*",
        "http://other/v1/secrets/-",
        &format!("/v1/secrets/{}", "a".repeat(64)),
        &format!("/v1/secrets/{long}"),
    ] {
        for method in ["PUT", "GET", "DELETE", "POST"] {
            // These two are good ones.
            if path != "/v1/secrets/a?b" || method == "POST" {
                let line = format!("{method} {path}");
                all.push(request(&line, "content-length: 3\r\n", b"abc"));
            }
        }
    }
    all
}

fn bodies(long: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let line = "PUT /v1/secrets/a";
    let large = vec![b'x'; VALUE_LEN_MAX + 1];
    for (headers, body) in [
        (
            format!("content-length: {}\r\n", large.len()),
            large.as_slice(),
        ),
        (format!("content-length: {}\r\n", u64::MAX), b"x"),
        ("content-length: 10\r\n".to_owned(), b"short"),
        ("content-length: -1\r\n".to_owned(), b"x"),
        (
            "content-length: 1\r\ncontent-length: 2\r\n".to_owned(),
            b"xx",
        ),
        ("content-length: 0\r\n".to_owned(), b""),
        (String::new(), b""),
        ("transfer-encoding: chunked\r\n".to_owned(), b"5\r\nab"),
        ("transfer-encoding: chunked\r\n".to_owned(), b"zz\r\n"),
        (
            "transfer-encoding: chunked\r\n".to_owned(),
            b"ffffffffffffffffff\r\nx",
        ),
        ("transfer-encoding: chunked\r\n".to_owned(), b"0\r\n\r\n"),
        (
            "transfer-encoding: gzip\r\ncontent-length: 1\r\n".to_owned(),
            b"x",
        ),
        (
            "authorization: Bearer acme\r\ncontent-length: 1\r\n".to_owned(),
            b"x",
        ),
        (format!("x-long: {long}\r\n"), b""),
    ] {
        all.push(request(line, &headers, body));
    }
    let chunk = [b"10001\r\n".as_slice(), &large, b"\r\n0\r\n\r\n"].concat();
    all.push(request(line, "transfer-encoding: chunked\r\n", &chunk));
    all
}

fn no_requests() -> Vec<Vec<u8>> {
    let all: [&[u8]; 16] = [
        b"",
        b"\0\0\0\0",
        b"\xff\xfe",
        b"PUT",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"PUT  /v1/secrets/a HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"PUT /v1/secrets/a HTTP/1.1\r\n\r\n",
        b"PUT /v1/secrets/a HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PUT /v1/secrets/a HTTP/1.1\r\nauthorization: Basic owner\r\ncontent-length: 1\r\n\r\nx",
        b"PUT /v1/secrets/a HTTP/1.1\r\nauthorization: Bearer viewer\r\ncontent-length: 1\r\n\r\nx",
        b"PUT /v1/secrets/a HTTP/1.1\r\nauthorization: Bearer \xff\r\ncontent-length: 1\r\n\r\nx",
        b"GET /v1/vault/release HTTP/1.1\r\nx-key: AQEBAQ==\r\nconnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    all.map(<[u8]>::to_vec).to_vec()
}

#[tokio::test]
async fn a_hundred_of_them() -> Fallible<()> {
    let site = Site::new().await?;
    let (directory, name) = (site.dir.path().to_owned(), "vault.sock".to_owned());
    let listener = unix::bind(&directory, &name)?;
    let serving = Service::new(site.vault.clone(), &site.tasks).serve_unix(listener);
    site.tasks.spawn("vault", Importance::Detached, serving);
    let all = hostile();
    assert!(all.len() >= 100, "{}", all.len());
    for bytes in all {
        let stream = unix::connect(&directory, &name).await?;
        let said = answer(stream, &bytes).await?;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert!(
            said.is_empty() || !said.contains("HTTP/1.1 2"),
            "{shown}: {said}"
        );
        assert!(!said.contains("panic") && said.len() < 16 * 1024, "{shown}");
    }
    assert_eq!(site.records()?, 0);
    assert_eq!(site.recorded().await?, Vec::<String>::new());

    // One that sends nothing costs nobody anything.
    let silent = unix::connect(&directory, &name).await?;
    let socket = Arc::new(UnixSocket { directory, name });
    let remote = RemoteVault::new(socket, &site.tasks);
    let value = SecretValue::new(b"good".to_vec());
    let set = remote.set(Caller::bearer("owner"), "a".parse()?, value);
    let view = tokio::time::timeout(Duration::from_secs(10), set).await?;
    assert_eq!(view.map_err(|problem| problem.detail)?.version.0, 1);
    drop(silent);
    Ok(())
}
