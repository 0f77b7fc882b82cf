//! A world of the test's own: a network namespace in which public addresses are this machine's, a name server
//! that the system asks, servers, and the proxy of an app.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tabbify_api::BoxFuture;
use tabbify_egress::{Guard, Inside, Proxy, Rules, Tell};
use tabbify_process::connect::Stream;
use tabbify_process::{Importance, Tasks};
use tabbify_testing::apart::is_furnished;
use tabbify_testing::dns::Names;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer for anything.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);
/// Addresses of the world: the first is shared by several names.
pub(crate) const SHARED: &str = "8.8.8.8";
pub(crate) const OTHER: &str = "9.9.9.9";
const ADDRESSES: [&str; 5] = [
    "8.8.8.8/32",
    "9.9.9.9/32",
    "169.254.169.254/32",
    "10.1.2.3/32",
    "2606:4700::1111/128",
];
/// What the system's resolver goes by.
const RESOLVER: &str = "nameserver 127.0.0.1\nsearch wrong.example\noptions timeout:1 attempts:2\n";

/// Whether the caller is in a world of its own, and goes on.
pub(crate) fn is_in_world(name: &str) -> anyhow::Result<bool> {
    is_furnished(name, &ADDRESSES, &[("/etc/resolv.conf", RESOLVER)])
}

/// The app's log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// What was said since this was last asked.
    pub(crate) fn take(&self) -> String {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines).join("\n")
    }
}

impl Tell for Lines {
    fn tell<'a>(&'a self, line: &'a str) -> BoxFuture<'a, ()> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line.to_owned());
        Box::pin(std::future::ready(()))
    }
}

/// Another app at a TCP address.
#[derive(Debug)]
pub(crate) struct Neighbor(pub(crate) SocketAddr);

impl Inside for Neighbor {
    fn dial<'a>(
        &'a self,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>> {
        Box::pin(async move {
            if (name, port) != ("shop.main.internal", 80) {
                return Err("there is no such app".to_owned());
            }
            let stream = TcpStream::connect(self.0)
                .await
                .map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn mark(&self, headers: &mut http::HeaderMap) {
        headers.insert("x-tabbify-app", http::HeaderValue::from_static("me"));
    }
}

/// A proxy by these rules, and the way to it.
pub(crate) struct World {
    pub(crate) names: Names,
    pub(crate) lines: Lines,
    pub(crate) tasks: Tasks,
    neighbor: SocketAddr,
}

impl World {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let tasks = Tasks::new();
        let neighbor = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = neighbor.local_addr()?;
        echo(neighbor, "neighbor", &tasks);
        Ok(Self {
            names: Names::serve()?,
            lines: Lines::default(),
            neighbor: address,
            tasks,
        })
    }

    /// The proxy of an app with these rules.
    pub(crate) async fn proxy(&self, entries: &[&str]) -> anyhow::Result<SocketAddr> {
        let guard = Guard::new(Rules::parse(entries)?);
        let inside = Arc::new(Neighbor(self.neighbor));
        let proxy = Proxy::new(guard, inside, Arc::new(self.lines.clone()), &self.tasks);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        self.tasks
            .spawn("proxy", Importance::Detached, proxy.serve(listener));
        Ok(address)
    }
}

/// Serves requests for ever: says who it is, and what it was sent.
pub(crate) fn echo(listener: TcpListener, who: &'static str, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn("server", Importance::Detached, async move {
        while let Ok((stream, _)) = listener.accept().await {
            owner.spawn("served", Importance::Detached, async move {
                drop(answer(stream, who).await);
            });
        }
    });
}

/// Answers each head with itself; what follows an upgrade comes back as it is.
async fn answer(mut stream: TcpStream, who: &str) -> anyhow::Result<()> {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let asked = String::from_utf8_lossy(&head).into_owned();
        if asked.to_ascii_lowercase().contains("upgrade: echo") {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            return Ok(());
        }
        let body = format!("{who}\n{asked}");
        let head_back = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head_back + &body).as_bytes()).await?;
        head.clear();
    }
}

/// Sends bytes to the proxy and reads what comes until `until` has come, or the end.
pub(crate) async fn say(
    stream: &mut TcpStream,
    bytes: &str,
    until: &str,
) -> anyhow::Result<String> {
    stream.write_all(bytes.as_bytes()).await?;
    let mut said = Vec::new();
    let reading = async {
        let mut piece = [0; 4096];
        while !String::from_utf8_lossy(&said).contains(until) {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(len) => said.extend_from_slice(&piece[..len]),
            }
        }
    };
    tokio::time::timeout(WATCHDOG, reading)
        .await
        .with_context(|| format!("{until:?} does not come"))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// One request on a connection of its own, to its end.
pub(crate) async fn ask(proxy: SocketAddr, bytes: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(proxy).await?;
    say(&mut stream, bytes, "\0never").await
}
