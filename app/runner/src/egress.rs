//! The way out of an app whose programs make connections themselves, in a container or a virtual machine: the
//! proxy of `tabbify-egress`, with the mesh behind `.internal` and the app's log behind what is refused.
//!
//! A runtime makes a listener that only the app's programs reach, and tells them of it by [`variables`].

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use tabbify_api::BoxFuture;
use tabbify_api::names::MeshName;
use tabbify_api::runner::Failure;
use tabbify_egress::{Guard, Inside, Proxy, Rules, Tell};
use tabbify_http::Accept;
use tabbify_process::connect::Stream;
use tabbify_process::{Importance, Tasks};
use tabbify_types::APP_PORT;
use tabbify_types::event::v1::FailureReason;

use crate::output::Output;
use crate::wasm_http::neighbors::Neighbors;

/// The port of HTTP, at which apps answer by their names as well.
const HTTP_PORT: u16 = 80;
/// What is in the program's own network: no proxy reaches that.
const OWN: &str = "localhost,127.0.0.1,::1";

/// The way out of one app. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Egress {
    proxy: Proxy,
    tasks: Tasks,
}

/// What keeps the rules of `[network] egress`.
///
/// # Errors
/// If they are none.
pub fn guard(entries: &[String]) -> Result<Guard, Failure> {
    let rules = Rules::parse(entries).map_err(|error| Failure {
        reason: FailureReason::Spawn,
        detail: error.to_string(),
    })?;
    Ok(Guard::new(rules))
}

impl Egress {
    /// The way out by these entries of `[network] egress`, and to `neighbors`.
    ///
    /// # Errors
    /// If the entries are none.
    pub fn new(
        entries: &[String],
        neighbors: &Neighbors,
        output: &Output,
        tasks: &Tasks,
    ) -> Result<Self, Failure> {
        let inside: Arc<dyn Inside> = Arc::new(ByMesh(neighbors.clone()));
        let tell: Arc<dyn Tell> = Arc::new(Lines(output.clone()));
        let proxy = Proxy::new(guard(entries)?, inside, tell, tasks);
        let tasks = tasks.clone();
        Ok(Self { proxy, tasks })
    }

    /// Serves what comes to `listener`, for as long as the runner lives.
    pub fn serve(&self, listener: impl Accept) {
        let serving = self.proxy.clone().serve(listener);
        self.tasks.spawn("egress", Importance::Detached, serving);
    }

    /// Serves one connection of a program, whatever it is made of.
    pub fn connection<S>(&self, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let serving = self.proxy.clone().connection(stream);
        self.tasks.spawn("egress", Importance::Detached, serving);
    }
}

/// The variables by which programs find a proxy at `address`. Some know them in one case of letters alone.
#[must_use]
pub fn variables(address: SocketAddr) -> Vec<(String, String)> {
    let url = format!("http://{address}");
    let mut all = Vec::new();
    for (name, value) in [
        ("HTTP_PROXY", url.as_str()),
        ("HTTPS_PROXY", &url),
        ("ALL_PROXY", &url),
        ("NO_PROXY", OWN),
    ] {
        all.push((name.to_owned(), value.to_owned()));
        all.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    all
}

/// Other apps, over the runner's mesh.
#[derive(Debug)]
struct ByMesh(Neighbors);

impl Inside for ByMesh {
    fn dial<'a>(
        &'a self,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>> {
        Box::pin(async move {
            let name: MeshName = name.parse().map_err(|error| format!("{error}"))?;
            let port = match port {
                HTTP_PORT => APP_PORT,
                other => other,
            };
            match self.0.dial(&name, port).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn mark(&self, headers: &mut HeaderMap) {
        self.0.sign(headers);
    }
}

/// The app's log.
#[derive(Debug)]
struct Lines(Output);

impl Tell for Lines {
    fn tell<'a>(&'a self, line: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.0.platform(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cases_of_letters() {
        let all = variables(([10, 213, 0, 1], 731).into());
        let value = |name: &str| {
            let found = all.iter().find(|(variable, _)| variable == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        for name in [
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            assert_eq!(value(name), "http://10.213.0.1:731", "{name}");
        }
        assert_eq!(value("no_proxy"), OWN);
    }

    #[test]
    fn rules_that_are_none_are_a_failure_to_start() {
        let failure = guard(&["https://example.com".to_owned()]).unwrap_err();
        assert!(
            failure.detail.contains("is no entry of [network] egress"),
            "{failure:?}"
        );
    }
}
