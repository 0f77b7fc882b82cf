//! Raw TCP: what comes to a `[[port]]` of the app's addresses goes to the same port of the app, byte for byte.
//! Who may come is the mesh's to say, by port.

use std::sync::Arc;
use std::time::Duration;

use tabbify_api::runner::Failure;
use tabbify_mesh::{Incoming, Listener, Mesh};
use tabbify_process::{Importance, Tasks, chain};
use tabbify_types::event::v1::FailureReason;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::sync::Semaphore;

use crate::runtime::Runtime;
use crate::traffic::Traffic;

/// LIMIT: connections to all raw ports of an app at a time; more wait in the mesh's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// LIMIT: how long the app may take to accept one.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: bytes of one connection that wait, in each direction.
const BUFFER_LEN: usize = 32 * 1024;

/// What is passed on, and to whom.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) traffic: Traffic,
    pub(crate) tasks: Tasks,
}

impl Ports {
    /// Takes connections to each of `ports` from now on, until the app is drained.
    ///
    /// # Errors
    /// If somebody listens there already.
    pub(crate) fn open(self, mesh: &Mesh, ports: &[u16]) -> Result<(), Failure> {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for port in ports {
            let listener = mesh.listen(*port).map_err(|error| Failure {
                reason: FailureReason::Spawn,
                detail: format!("port {port} of the app: {}", chain(&error)),
            })?;
            let accepting = self.clone().accept(listener, Arc::clone(&places));
            self.tasks
                .spawn("raw port", Importance::Detached, accepting);
        }
        Ok(())
    }

    async fn accept(self, mut listener: Listener, places: Arc<Semaphore>) {
        let port = listener.port();
        let closing = self.traffic.closing().clone();
        let next = async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return; // Nobody closes the semaphore.
                };
                let Ok(incoming) = listener.accept().await else {
                    return;
                };
                let passing = self.clone().pass(incoming, port);
                self.tasks
                    .spawn("raw connection", Importance::Detached, async {
                        passing.await;
                        drop(place);
                    });
            }
        };
        closing.run_until_cancelled(next).await;
    }

    /// The same of a caller that came through the machine's doorbell.
    pub(crate) async fn visit<S>(self, mut caller: S, port: u16)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(_permit) = self.traffic.begin() else {
            return;
        };
        let _counted = self.traffic.connect();
        let dialed = tokio::time::timeout(CONNECT_WITHIN, self.runtime.dial(port)).await;
        let Ok(Ok(mut app)) = dialed else {
            tracing::debug!(port, "the app does not take a visitor's raw connection");
            return;
        };
        tokio::select! {
            _ = copy_bidirectional_with_sizes(&mut caller, &mut app, BUFFER_LEN, BUFFER_LEN) => {}
            () = self.traffic.cut().cancelled() => {}
        }
    }

    /// One connection, to the end of both its directions. It counts as a request that is being served, so that
    /// an app with one is not idle, and is cut off with the last of them.
    async fn pass(self, incoming: Incoming, port: u16) {
        let mut caller = incoming.stream;
        let Some(_permit) = self.traffic.begin() else {
            caller.reset();
            return;
        };
        let _counted = self.traffic.connect();
        let dialed = tokio::time::timeout(CONNECT_WITHIN, self.runtime.dial(port)).await;
        let why = match dialed {
            Ok(Ok(mut app)) => {
                let both =
                    copy_bidirectional_with_sizes(&mut caller, &mut app, BUFFER_LEN, BUFFER_LEN);
                tokio::select! {
                    ended = both => if let Err(error) = ended {
                        tracing::debug!(port, %error, "a raw connection broke");
                        caller.reset();
                    },
                    () = self.traffic.cut().cancelled() => caller.reset(),
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not within {} s", CONNECT_WITHIN.as_secs()),
        };
        // As the app itself would refuse it.
        tracing::debug!(port, why, "the app does not take a raw connection");
        caller.reset();
    }
}
