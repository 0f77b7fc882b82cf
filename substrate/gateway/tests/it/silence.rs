//! No value in a log line, an error or a debug text, whatever happens.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::auth::issue::Caller;
use tabbify_api::secrets::{SecretValue, Vault as _};
use tabbify_gateway::{RemoteVault, Service};
use tabbify_process::connect::UnixSocket;
use tabbify_process::{Importance, unix};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{Fallible, Fate, Site};

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        captured.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything runs on this test's own thread, so its subscriber sees everything.
#[tokio::test]
async fn no_value_is_logged() -> Fallible<()> {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(captured.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let site = Site::new().await?;
    let (directory, name) = (site.dir.path().to_owned(), "vault.sock".to_owned());
    let listener = unix::bind(&directory, &name)?;
    let serving = Service::new(site.vault.clone(), &site.tasks).serve_unix(listener);
    site.tasks.spawn("vault", Importance::Detached, serving);
    let socket = Arc::new(UnixSocket { directory, name });
    let remote = RemoteVault::new(socket, &site.tasks);
    let value = || SecretValue::new(b"hunter2-in-the-body".to_vec());
    let owner = Caller::bearer("owner");
    let mut said = String::new();
    let view = remote.set(owner, "api-key".parse()?, value()).await;
    said += &format!("{view:?} {:?}", value());
    assert_eq!(view.map_err(|problem| problem.detail)?.version.0, 1);
    site.fate(Fate::Refused);
    for token in ["owner", "agent", "forged-hunter2"] {
        let refused = remote.set(Caller::bearer(token), "api-key".parse()?, value());
        said += &format!("{:?}", refused.await.unwrap_err());
    }
    site.fate(Fate::Answered);
    let instance = site.instance("main", &["api-key"]).await?;
    let release = site.vault.release(&instance.peer()).await?;
    said += &format!("{release:?} {:?} {remote:?}", site.vault);
    let list = remote.list(owner).await;
    said += &format!("{list:?}");
    remote
        .remove(owner, "api-key".parse()?)
        .await
        .map_err(|problem| problem.detail)?;

    let log = captured.text();
    assert!(
        log.contains("a secret is set") && log.contains("a secret is removed"),
        "{log}"
    );
    assert!(log.contains("an instance has its secrets"), "{log}");
    for text in [log.as_str(), &said] {
        let line = text.lines().find(|line| line.contains("hunter2"));
        assert_eq!(line, None);
        // As base64, in which values travel.
        assert!(!text.contains("aHVudGVy"));
    }
    Ok(())
}
