//! Every case in one world: making one takes longer than most of them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use http::uri::Scheme;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tabbify_egress::{Client, Guard, Rules};
use tabbify_process::{Importance, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::world::{OTHER, SHARED, WATCHDOG, World, ask, echo, is_in_world, say};

const NAME: &str = "outside::programs_reach_what_they_may";
/// What PostgreSQL's clients begin with: SSLRequest and GSSENCRequest.
const ASK_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const ASK_GSSAPI: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

#[test]
fn programs_reach_what_they_may() {
    if !is_in_world(NAME).unwrap() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all()).unwrap();
}

async fn all() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (address, who) in [
        (SHARED, "shared"),
        (OTHER, "other"),
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "metadata"),
        ("10.1.2.3", "private"),
        ("2606:4700::1111", "six"),
    ] {
        echo(TcpListener::bind((address, 80)).await?, who, &world.tasks);
    }
    for name in [
        "good.example",
        "evil.example",
        "a.wild.example",
        "a.b.wild.example",
        "wild.example",
    ] {
        world.names.set(name, &[&[SHARED]])?;
    }
    requests(&world).await.context("requests")?;
    names(&world).await.context("names")?;
    addresses(&world).await.context("addresses")?;
    rebinding(&world).await.context("rebinding")?;
    inside_of_connections(&world)
        .await
        .context("inside of connections")?;
    let roots = tls_server(&world.tasks).await?;
    tls(&world, &roots).await.context("TLS")?;
    questions(&world, &roots).await.context("PostgreSQL")?;
    servers_that_speak_first(&world)
        .await
        .context("servers that speak first")?;
    neighbors(&world).await.context("neighbors")?;
    other_requests(&world).await.context("other requests")?;
    world.tasks.stop();
    Ok(())
}

async fn requests(world: &World) -> anyhow::Result<()> {
    let proxy = world.proxy(&["good.example:80"]).await?;
    let mut stream = TcpStream::connect(proxy).await?;
    let head = "GET http://good.example/x?y HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: s\r\n\
        Connection: x-mine\r\nX-Mine: 1\r\nX-Kept: 1\r\n\r\n";
    let said = say(&mut stream, head, "x-kept: 1\r\n\r\n").await?;
    ensure!(
        said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("shared\nGET /x?y HTTP/1.1\r\n"),
        "{said}"
    );
    // What was checked is what the server reads, and what is ours stays here.
    ensure!(
        said.contains("host: good.example\r\n") && !said.contains("evil"),
        "{said}"
    );
    ensure!(
        !said.contains("x-mine") && !said.contains("proxy-"),
        "{said}"
    );
    // The connection is kept, and each request on it is one of its own.
    let said = say(
        &mut stream,
        "GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "egress.\n",
    )
    .await?;
    ensure!(said.starts_with("HTTP/1.1 403 "), "{said}");
    ensure!(
        said.ends_with("tabbify: blocked evil.example:80. Add it to [network] egress.\n"),
        "{said}"
    );
    ensure!(world.lines.take() == "tabbify: blocked evil.example:80. Add it to [network] egress.");

    // Another protocol on a request's connection.
    let mut stream = TcpStream::connect(proxy).await?;
    let head = "GET http://good.example/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    let said = say(&mut stream, head, "\r\n\r\n").await?;
    ensure!(
        said.starts_with("HTTP/1.1 101 ") && said.contains("upgrade: echo"),
        "{said}"
    );
    ensure!(say(&mut stream, "back and forth", "forth").await? == "back and forth");

    // One in which a server would be asked for others is not passed on: the request is answered as it is.
    for protocol in [
        "h2c",
        "H2C",
        "echo, h2c",
        "HTTP/2.0",
        "TLS/1.0",
        "tls/1.2, echo",
        "echo, TLS/1.0",
    ] {
        let head = format!(
            "GET http://good.example/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
            Upgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n"
        );
        let said = ask(proxy, &head).await?.to_ascii_lowercase();
        ensure!(
            said.starts_with("http/1.1 200 ") && said.contains("host: good.example\r\n"),
            "{protocol}: {said}"
        );
        ensure!(
            !said.contains("upgrade") && !said.contains("http2-settings"),
            "{protocol}: {said}"
        );
    }
    // Nor are its settings, by whoever asks for them.
    let head = "GET http://good.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nHTTP2-Settings: AA\r\n\r\n";
    let said = ask(proxy, head).await?;
    ensure!(!said.contains("http2-settings"), "{said}");
    Ok(())
}

async fn refused(world: &World, proxy: SocketAddr, host: &str, why: &str) -> anyhow::Result<()> {
    for request in [
        format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    ] {
        let said = ask(proxy, &request).await?;
        ensure!(
            said.starts_with("HTTP/1.1 403 ") && said.contains(why),
            "{host}: {said}"
        );
        let line = world.lines.take();
        ensure!(
            line.starts_with("tabbify: blocked ") && line.contains(why),
            "{host}: {line}"
        );
    }
    Ok(())
}

async fn served(proxy: SocketAddr, host: &str, who: &str) -> anyhow::Result<()> {
    let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let said = ask(proxy, &request).await?;
    ensure!(
        said.starts_with("HTTP/1.1 200 ") && said.contains(&format!("{who}\n")),
        "{host}: {said}"
    );
    Ok(())
}

async fn names(world: &World) -> anyhow::Result<()> {
    let proxy = world
        .proxy(&[
            "good.example",
            "*.wild.example:80",
            "xn--mnchen-3ya.example",
        ])
        .await?;
    world.names.set("xn--mnchen-3ya.example", &[&[SHARED]])?;
    for host in [
        "good.example",
        "GOOD.Example",
        "good.example.",
        "a.wild.example",
        "A.b.WILD.example.",
        "XN--mnchen-3ya.example",
    ] {
        served(proxy, host, "shared").await?;
    }
    world.names.asked();
    for host in [
        "wild.example",
        "evil.example",
        "good.example.evil.example",
        "notgood.example",
        "agood.example",
    ] {
        refused(world, proxy, host, "Add it to [network] egress").await?;
    }
    ensure!(
        world.names.asked().is_empty(),
        "a name that is not allowed was asked for"
    );
    let said = ask(
        proxy,
        "GET http://a.wild.example:81/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(said.contains("blocked a.wild.example:81."), "{said}");
    // Without its dot, the system would try its own domains as well.
    let any = world.proxy(&["any"]).await?;
    let said = ask(
        any,
        "GET http://absent.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(
        said.starts_with("HTTP/1.1 502 ") && said.contains("absent.example is not found"),
        "{said}"
    );
    let asked = world.names.asked();
    ensure!(
        asked.iter().all(|name| name == "absent.example") && !asked.is_empty(),
        "{asked:?}"
    );
    world.lines.take();
    Ok(())
}

async fn addresses(world: &World) -> anyhow::Result<()> {
    let any = world.proxy(&["any"]).await?;
    served(any, SHARED, "shared").await?;
    served(any, "[2606:4700::1111]", "six").await?;
    served(any, "[::ffff:8.8.8.8]", "shared").await?;
    for (host, why) in [
        ("127.0.0.1", "loopback"),
        ("[::1]", "loopback"),
        ("[::ffff:127.0.0.1]", "loopback"),
        ("[::ffff:7f00:1]", "loopback"),
        ("169.254.169.254", "metadata"),
        ("[::ffff:169.254.169.254]", "metadata"),
        ("[64:ff9b::a9fe:a9fe]", "metadata"),
        ("[fd00:ec2::254]", "metadata"),
        ("10.1.2.3", "private"),
        ("[::10.1.2.3]", "reserved"),
        ("0.0.0.0", "this network"),
        ("[::]", "reserved"),
        ("[fd5a:1f00:1:1::1]", "platform"),
        ("127.1", "decimal"),
        ("2130706433", "decimal"),
        ("0x7f000001", "decimal"),
        ("0x7f.0.0.1", "decimal"),
        ("0251.0376.0251.0376", "decimal"),
        ("2852039166", "decimal"),
        ("169.254.169.254.", "decimal"),
        ("127.0.0.1.", "decimal"),
    ] {
        refused(world, any, host, why).await?;
    }
    // A rule that names it does not help.
    let named = world
        .proxy(&["10.1.2.3:80", "169.254.169.254", "8.8.8.8:80"])
        .await?;
    refused(world, named, "10.1.2.3", "private").await?;
    refused(world, named, "169.254.169.254", "metadata").await?;
    served(named, SHARED, "shared").await?;
    refused(world, named, OTHER, "Add it").await
}

async fn rebinding(world: &World) -> anyhow::Result<()> {
    let proxy = world
        .proxy(&["rebind.example", "mixed.example", "inside.example"])
        .await?;
    world.names.set(
        "rebind.example",
        &[&[SHARED], &["127.0.0.1"], &["169.254.169.254"]],
    )?;
    served(proxy, "rebind.example", "shared").await?;
    for why in ["loopback", "metadata", "metadata"] {
        let said = ask(
            proxy,
            "GET http://rebind.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .await?;
        ensure!(
            said.starts_with("HTTP/1.1 403 ") && said.contains(why),
            "{said}"
        );
    }
    world.lines.take();
    // Asked for once for each connection: what was checked is what is connected to.
    world
        .names
        .set("rebind.example", &[&[SHARED], &["127.0.0.1"]])?;
    let mut stream = TcpStream::connect(proxy).await?;
    let said = say(
        &mut stream,
        "CONNECT rebind.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "\r\n\r\n",
    )
    .await?;
    ensure!(said.starts_with("HTTP/1.1 200 "), "{said}");
    drop(stream);
    // Of several addresses, those that lead inside are not even tried.
    world.names.set(
        "mixed.example",
        &[&["127.0.0.1", "10.1.2.3", SHARED, "::1"]],
    )?;
    served(proxy, "mixed.example", "shared").await?;
    world.names.set(
        "inside.example",
        &[&["10.1.2.3", "fd5a:1f02:1:2:3::1", "::ffff:10.1.2.3"]],
    )?;
    refused(world, proxy, "inside.example", "which no app reaches").await
}

async fn connected(proxy: SocketAddr, host: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    let head = format!("CONNECT {host} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    // Not a byte more than the head: a server that speaks first may have spoken.
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(timeout(WATCHDOG, stream.read_u8()).await??);
    }
    let said = String::from_utf8_lossy(&said);
    ensure!(said.starts_with("HTTP/1.1 200 "), "{said}");
    Ok(stream)
}

/// Plain HTTP in a connection: each request is for whom it says, and not for whom the connection was made.
async fn inside_of_connections(world: &World) -> anyhow::Result<()> {
    let proxy = world.proxy(&["good.example:80"]).await?;
    let mut stream = connected(proxy, "good.example:80").await?;
    let said = say(
        &mut stream,
        "\r\nGET /1 HTTP/1.1\r\nHost: GOOD.example\r\nX-End: 1\r\n\r\n",
        "x-end: 1\r\n\r\n",
    )
    .await?;
    ensure!(
        said.contains("shared\nGET /1 HTTP/1.1\r\n") && said.contains("host: good.example\r\n"),
        "{said}"
    );
    let said = say(
        &mut stream,
        "GET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "egress.\n",
    )
    .await?;
    ensure!(
        said.starts_with("HTTP/1.1 403 ") && said.contains("blocked evil.example:80"),
        "{said}"
    );
    for bad in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "CONNECT good.example:80 HTTP/1.1\r\nHost: good.example\r\n\r\n",
    ] {
        let mut stream = connected(proxy, "good.example:80").await?;
        let said = say(&mut stream, bad, ".\n").await?;
        ensure!(
            said.starts_with("HTTP/1.1 400 ") || said.starts_with("HTTP/1.0 400 "),
            "{bad:?}: {said}"
        );
    }
    world.lines.take();
    let mut stream = connected(proxy, "good.example:80").await?;
    let said = say(&mut stream, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0never").await?;
    ensure!(
        said.is_empty() && world.lines.take().contains("HTTP/2 without TLS"),
        "{said}"
    );
    // Whoever may reach everybody is not read.
    let any = world.proxy(&["any"]).await?;
    let mut stream = connected(any, "good.example:80").await?;
    let said = say(
        &mut stream,
        "GET / HTTP/1.1\r\nHost: evil.example\r\nX-End: 1\r\n\r\n",
        "X-End: 1\r\n\r\n",
    )
    .await?;
    ensure!(
        said.contains("shared\nGET / HTTP/1.1\r\nHost: evil.example\r\n"),
        "{said}"
    );
    Ok(())
}

/// A TLS server for several names on one address, which says who was asked for.
async fn tls_server(tasks: &Tasks) -> anyhow::Result<RootCertStore> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key)?;
    let issuer = Issuer::new(authority, key);
    let server_key = KeyPair::generate()?;
    let names = ["good.example", "evil.example"].map(str::to_owned);
    let certificate = CertificateParams::new(names)?.signed_by(&server_key, &issuer)?;
    let key = PrivateKeyDer::try_from(server_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    for port in [443, 5432] {
        let listener = TcpListener::bind((SHARED, port)).await?;
        let acceptor = acceptor.clone();
        tasks.spawn("tls", Importance::Detached, async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Whom it serves is the test's to judge.
                drop(tls_served(&acceptor, stream, port == 5432).await);
            }
        });
    }
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone())?;
    Ok(roots)
}

/// Says who was asked for; after a question for GSSAPI and one for TLS where that is the server's way.
async fn tls_served(
    acceptor: &TlsAcceptor,
    mut stream: TcpStream,
    is_asked: bool,
) -> anyhow::Result<()> {
    let mut question = [0; 8];
    while is_asked && question != ASK_TLS {
        stream.read_exact(&mut question).await?;
        let answer = if question == ASK_TLS { b"S" } else { b"N" };
        stream.write_all(answer).await?;
    }
    let mut stream = acceptor.accept(stream).await?;
    let asked = stream.get_ref().1.server_name().unwrap_or("nobody");
    let said = format!("asked for {asked}\n");
    stream.write_all(said.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

fn connector(roots: &RootCertStore) -> anyhow::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// PostgreSQL: whom a connection is for is said after a question that every server is asked alike.
async fn questions(world: &World, roots: &RootCertStore) -> anyhow::Result<()> {
    let proxy = world.proxy(&["good.example:5432"]).await?;
    let connector = connector(roots)?;
    let through = async |name: &'static str, first: &[[u8; 8]]| {
        let mut stream = connected(proxy, "good.example:5432").await?;
        for question in first {
            stream.write_all(question).await?;
            let answer = timeout(WATCHDOG, stream.read_u8()).await??;
            let expected = if *question == ASK_TLS { b'S' } else { b'N' };
            ensure!(answer == expected, "{answer}");
        }
        let mut stream = connector
            .connect(ServerName::try_from(name)?, stream)
            .await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        anyhow::Ok(said)
    };
    for first in [&[ASK_TLS][..], &[ASK_GSSAPI, ASK_TLS]] {
        ensure!(through("good.example", first).await? == "asked for good.example\n");
        ensure!(world.lines.take().is_empty());
        ensure!(through("evil.example", first).await.is_err());
        let line = world.lines.take();
        let expected =
            "blocked \"evil.example\", asked for inside of a connection to good.example:5432";
        ensure!(line.contains(expected), "{line}");
    }
    // There is an end to it.
    let again = [ASK_GSSAPI, ASK_GSSAPI, ASK_GSSAPI, ASK_TLS];
    ensure!(through("good.example", &again).await.is_err());
    let line = world.lines.take();
    ensure!(line.contains("ask for TLS again and again"), "{line}");
    Ok(())
}

async fn tls(world: &World, roots: &RootCertStore) -> anyhow::Result<()> {
    let connector = connector(roots)?;
    let proxy = world.proxy(&["good.example:443"]).await?;
    let through = async |name: &'static str| {
        let stream = connected(proxy, "good.example:443").await?;
        let mut stream = connector
            .connect(ServerName::try_from(name)?, stream)
            .await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        anyhow::Ok(said)
    };
    ensure!(through("good.example").await? == "asked for good.example\n");
    ensure!(through("evil.example").await.is_err());
    let line = world.lines.take();
    ensure!(
        line.contains(
            "blocked \"evil.example\", asked for inside of a connection to good.example:443"
        ),
        "{line}"
    );

    // The same for requests whose TLS is ours.
    let client = |entries: &[&str], roots: &RootCertStore| -> anyhow::Result<Client> {
        Ok(Client::trusting(
            Guard::new(Rules::parse(entries)?),
            roots.clone(),
        )?)
    };
    let good = "good.example".parse()?;
    let mut stream = client(&["good.example"], roots)?
        .open(&Scheme::HTTPS, &good, 443)
        .await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    ensure!(said == "asked for good.example\n", "{said}");
    let failed = async |entries: &[&str], roots: &RootCertStore, host: &str, part: &str| {
        match client(entries, roots)?
            .open(&Scheme::HTTPS, &host.parse()?, 443)
            .await
        {
            Ok(_) => anyhow::bail!("{host} is reached"),
            Err(error) => ensure!(error.line().contains(part), "{}", error.line()),
        }
        Ok(())
    };
    failed(
        &["good.example"],
        roots,
        "evil.example",
        "blocked evil.example:443",
    )
    .await?;
    failed(&["any"], roots, "a.wild.example", "not reached by TLS").await?;
    failed(
        &["any"],
        &RootCertStore::empty(),
        "good.example",
        "not reached by TLS",
    )
    .await
}

/// Mail, databases: no bytes of the client choose a server there, and none are waited for.
async fn servers_that_speak_first(world: &World) -> anyhow::Result<()> {
    let listener = TcpListener::bind((SHARED, 25)).await?;
    world.tasks.spawn("mail", Importance::Detached, async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(b"220 mail\r\n").await);
            let mut line = [0; 9];
            drop(stream.read_exact(&mut line).await);
            drop(stream.write_all(&line).await);
        }
    });
    let proxy = world.proxy(&["good.example:25"]).await?;
    let mut stream = connected(proxy, "good.example:25").await?;
    ensure!(say(&mut stream, "", "220 mail\r\n").await? == "220 mail\r\n");
    ensure!(say(&mut stream, "EHLO me\r\n", "\0never").await? == "EHLO me\r\n");
    Ok(())
}

async fn neighbors(world: &World) -> anyhow::Result<()> {
    let proxy = world.proxy(&[]).await?;
    let said = ask(
        proxy,
        "GET http://Shop.main.internal/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(
        said.contains("neighbor\nGET /x HTTP/1.1\r\n") && said.contains("x-tabbify-app: me\r\n"),
        "{said}"
    );
    let mut stream = connected(proxy, "shop.main.internal:80").await?;
    let expected = "neighbor\nGET /y HTTP/1.1\r\n\r\n";
    let said = say(&mut stream, "GET /y HTTP/1.1\r\n\r\n", expected).await?;
    ensure!(said.contains(expected), "{said}");
    let said = ask(
        proxy,
        "GET http://nobody.main.internal/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(
        said.starts_with("HTTP/1.1 502 ") && said.contains("there is no such app"),
        "{said}"
    );
    world.names.asked();
    let any = world.proxy(&["any"]).await?;
    ask(
        any,
        "GET http://nobody.internal/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await?;
    ensure!(
        world.names.asked().is_empty(),
        "a name of the mesh was asked for in the world"
    );
    world.lines.take();
    Ok(())
}

/// What a proxy does not do is refused with words.
async fn other_requests(world: &World) -> anyhow::Result<()> {
    let proxy = world.proxy(&["any"]).await?;
    for (line, part) in [
        ("GET / HTTP/1.1", "ask for a whole URL"),
        ("GET https://good.example/ HTTP/1.1", "asked for by CONNECT"),
        ("CONNECT good.example HTTP/1.1", "a host and a port"),
        ("CONNECT good.example:0 HTTP/1.1", "a host and a port"),
        (
            "GET http://me:secret@good.example/ HTTP/1.1",
            "not passed on",
        ),
    ] {
        let said = ask(
            proxy,
            &format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n"),
        )
        .await?;
        ensure!(
            said.starts_with("HTTP/1.1 400 ") && said.contains(part),
            "{line}: {said}"
        );
    }
    ensure!(world.lines.take().is_empty());
    let long = format!(
        "GET http://good.example/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "a".repeat(100_000)
    );
    let said = ask(proxy, &long).await?;
    ensure!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    Ok(())
}
