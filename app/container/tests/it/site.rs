//! An engine with images, and what a case needs of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tabbify_container::{Archive, Container, End, Engine, PIDS_MAX, Spec, Stream};
use tabbify_testing::image::Image;
use tabbify_testing::wait::WATCHDOG;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppId, InstanceId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What every case shares.
pub(crate) struct Site {
    pub(crate) engine: Engine,
    images: tempfile::TempDir,
    count: AtomicU32,
}

impl Site {
    pub(crate) async fn new(address: &str) -> anyhow::Result<Self> {
        Ok(Self {
            engine: Engine::connect(Some(address)).await?,
            images: tempfile::tempdir()?,
            count: AtomicU32::new(0),
        })
    }

    fn path(&self) -> PathBuf {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        self.images.path().join(format!("{number}.tar"))
    }

    /// Saves an image to a file.
    pub(crate) fn save(&self, image: &Image) -> anyhow::Result<PathBuf> {
        let path = self.path();
        image.save_docker(&path)?;
        Ok(path)
    }

    pub(crate) async fn archive(&self, image: &Image) -> anyhow::Result<Archive> {
        self.open(self.save(image)?).await
    }

    pub(crate) async fn oci_archive(&self, image: &Image) -> anyhow::Result<Archive> {
        let path = self.path();
        image.save_oci(&path)?;
        self.open(path).await
    }

    pub(crate) async fn open(&self, path: PathBuf) -> anyhow::Result<Archive> {
        let architecture = self.engine.about().architecture;
        let opened = move || Archive::open(&path, architecture);
        Ok(tokio::task::spawn_blocking(opened).await??)
    }

    /// Starts an image as most cases want it.
    pub(crate) async fn start(&self, image: &Image) -> anyhow::Result<Container> {
        self.start_with(image, |_| {}).await
    }

    pub(crate) async fn start_with(
        &self,
        image: &Image,
        change: impl FnOnce(&mut Spec),
    ) -> anyhow::Result<Container> {
        let mut spec = spec();
        change(&mut spec);
        let archive = self.archive(image).await?;
        Ok(self.engine.start(&archive, &spec).await?)
    }
}

pub(crate) fn spec() -> Spec {
    let app = AppId::mint();
    let random = app.to_string().replace('-', "");
    Spec {
        of: InstanceRef {
            app,
            instance: InstanceId(1),
        },
        nonce: random.chars().rev().collect(),
        command: Vec::new(),
        env: Vec::new(),
        memory: 64 << 20,
        cpus_milli: 1000,
        pids: PIDS_MAX,
        read_only: false,
        volume: None,
        enter: None,
    }
}

/// Waits for the end, under the watchdog.
pub(crate) async fn ended(container: &Container) -> anyhow::Result<End> {
    let ended = tokio::time::timeout(WATCHDOG, container.wait()).await;
    Ok(ended.context("it does not end")??)
}

/// All that it prints until it ends, by stream.
pub(crate) async fn printed(container: &Container) -> anyhow::Result<(String, String)> {
    let kept = std::sync::Mutex::new((Vec::new(), Vec::new()));
    let following = container.follow(|stream, piece| {
        if let Ok(mut kept) = kept.lock() {
            match stream {
                Stream::Stdout => kept.0.extend_from_slice(&piece),
                Stream::Stderr => kept.1.extend_from_slice(&piece),
            }
        }
        std::future::ready(())
    });
    tokio::time::timeout(WATCHDOG, following)
        .await
        .context("its output does not end")?;
    let (out, err) = kept.into_inner()?;
    Ok((String::from_utf8(out)?, String::from_utf8(err)?))
}

/// One `GET`, on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    tokio::time::timeout(WATCHDOG, asked).await?
}

/// Waits until the app takes connections.
pub(crate) async fn up(container: &Container, port: u16) -> anyhow::Result<SocketAddr> {
    let address = SocketAddr::new(container.address().into(), port);
    let seen = tabbify_container::healthy(address, None, WATCHDOG).await;
    ensure!(seen.is_ok(), "{address}: {seen:?}");
    Ok(address)
}

/// Short enough for a test, long enough for a loaded machine to have started a process.
pub(crate) const SOON: Duration = Duration::from_secs(2);
