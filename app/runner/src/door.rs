//! Connections that come through the machine's doorbell: they wait until the app can be reached, and are served
//! like those of the mesh, of the caller that the doorbell names.

use std::sync::Arc;

use tabbify_api::attach::ATTACH_PORT;
use tabbify_api::runner::Visitor;
use tabbify_types::APP_PORT;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::attach::Attach;
use crate::ports::Ports;
use crate::server::{Caller, Server};

/// What visitors are served by, once there is something.
#[derive(Debug)]
pub struct Door(watch::Sender<Standing>);

#[derive(Debug, Clone)]
enum Standing {
    /// The app is being started.
    Waiting,
    /// The app can be reached.
    Open(Arc<Open>),
    /// It cannot, and will not be: why.
    Shut(String),
}

/// What serves visitors.
#[derive(Debug)]
struct Open {
    server: Server,
    raw: Ports,
    /// Raw ports that the app has.
    ports: Vec<u16>,
    attach: Attach,
}

impl Open {
    /// What serves this one.
    fn host(&self, visitor: &Visitor) -> Result<Host, String> {
        match visitor.port {
            APP_PORT => {
                let server = self.server.clone().called_by(Caller::visitor(visitor));
                Ok(Host::Http(server.once()))
            }
            // Apps of the tenant may reach every port of each other, and are no nodes.
            ATTACH_PORT if visitor.is_node => Ok(Host::Attach(self.attach.clone())),
            port if self.ports.contains(&port) => Ok(Host::Raw(self.raw.clone(), port)),
            port => Err(format!("port {port} is not the app's")),
        }
    }
}

/// What serves one visitor.
pub(crate) enum Host {
    Http(Server),
    Raw(Ports, u16),
    Attach(Attach),
}

impl Host {
    /// Serves its connection to its end.
    pub(crate) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self {
            Self::Http(server) => server.connection(stream).await,
            Self::Raw(raw, port) => raw.visit(stream, port).await,
            Self::Attach(attach) => attach.visit(stream).await,
        }
    }
}

impl Default for Door {
    fn default() -> Self {
        Self(watch::Sender::new(Standing::Waiting))
    }
}

impl Door {
    /// Visitors are served from here on: by HTTP, at these raw ports, and nodes with commands.
    pub(crate) fn open(&self, server: Server, raw: Ports, ports: Vec<u16>, attach: Attach) {
        let open = Open {
            server,
            raw,
            ports,
            attach,
        };
        self.0.send_replace(Standing::Open(Arc::new(open)));
    }

    /// Visitors are told why they are not served.
    pub fn shut(&self, why: &str) {
        self.0.send_replace(Standing::Shut(why.to_owned()));
    }

    /// What serves a visitor, as soon as anything does.
    ///
    /// # Errors
    /// Why nothing will, for people.
    pub(crate) async fn admit(&self, visitor: &Visitor) -> Result<Host, String> {
        let mut standing = self.0.subscribe();
        let known = standing.wait_for(|standing| !matches!(standing, Standing::Waiting));
        match known.await.as_deref() {
            Ok(Standing::Open(open)) => open.host(visitor),
            Ok(Standing::Shut(why)) => Err(why.clone()),
            Ok(Standing::Waiting) | Err(_) => Err("the runner ends".to_owned()),
        }
    }
}
