//! Keeps what is known about our own addresses up to date: the task around [`Discovery`].

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use smoltcp::time::{Duration, Instant};
use tabbify_api::BoxFuture;
use tabbify_process::chain;

use crate::endpoint::Endpoint;
use crate::path::discovery::local_addresses;
use crate::path::surroundings::Side;
use crate::path::{CandidateKind, Path};
use crate::{portmap, upnp};

/// The interfaces are looked at this often at most, when somebody looks for a path.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Until the endpoint stops.
pub(crate) async fn survey(endpoint: Arc<Endpoint>) {
    let around = &endpoint.ours.around;
    let mut looked = None::<Instant>;
    let mut is_wanted = true;
    let mut asking = None::<BoxFuture<'static, Answer>>;
    loop {
        let now = endpoint.epoch.now();
        if is_wanted {
            if looked.is_none_or(|looked| now >= looked + LOOK_EVERY) {
                looked = Some(now);
                look(&endpoint, now);
            }
            endpoint.discovery().want(now);
            endpoint.underlay.doubt();
        }
        let (requests, due) = {
            let mut discovery = endpoint.discovery();
            let requests = discovery.poll(now);
            // One at a time: what was asked for before may be about another NAT.
            if let Some(ends) = discovery.take_upnp() {
                asking = Some(Box::pin(ask(ends)));
            }
            (requests, discovery.poll_at())
        };
        for (server, request) in requests {
            let request = [IoSlice::new(&request)];
            // What is not sent is repeated.
            let _ = endpoint
                .send(Path::Direct(server), &request, request[0].len())
                .await;
        }
        let due = due.map(|due| endpoint.epoch.at(due));
        is_wanted = tokio::select! {
            () = around.wanted.notified() => true,
            () = sleep_until(due) => false,
            (ends, external) = answer(&mut asking) => {
                asking = None;
                endpoint.discovery().answered(ends, external, endpoint.epoch.now());
                publish(&endpoint);
                false
            }
            () = endpoint.stop.cancelled() => return,
        };
    }
}

/// The ends between which a NAT was asked over UPnP, and what leads to ours.
type Answer = ((Ipv4Addr, SocketAddrV4), Option<SocketAddr>);

async fn ask(ends: (Ipv4Addr, SocketAddrV4)) -> Answer {
    let (gateway, internal) = ends;
    let asked = upnp::ask(gateway, internal, portmap::LIFETIME).await;
    let external = asked.inspect_err(|error| {
        tracing::debug!(%gateway, error = %chain(error), "no port over UPnP");
    });
    (ends, external.ok())
}

async fn answer(asking: &mut Option<BoxFuture<'static, Answer>>) -> Answer {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// Takes what may be the answer of a STUN server or of the NAT; whether it was.
pub(crate) fn hear(endpoint: &Endpoint, from: SocketAddr, answer: &[u8]) -> bool {
    let now = endpoint.epoch.now();
    let is_answer = endpoint.discovery().receive(from, answer, now);
    if is_answer {
        publish(endpoint);
    }
    is_answer
}

fn look(endpoint: &Endpoint, now: Instant) {
    if let Ok(bound) = endpoint.underlay.local_addr() {
        let mut discovery = endpoint.discovery();
        discovery.set_local(local_addresses(bound), now);
        if endpoint.asks_nat {
            // Where it cannot be read, there is no NAT to be asked.
            let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
            discovery.set_gateway(portmap::gateway(&routes), now);
        }
        drop(discovery);
        publish(endpoint);
    }
}

/// Tells the agents, and whoever reports to the coordinator.
fn publish(endpoint: &Endpoint) {
    let discovery = endpoint.discovery();
    let now = endpoint.epoch.now();
    let describe = |side: &mut Side| discovery.describe(side, now);
    let is_news = endpoint.ours.around.change(describe);
    drop(discovery);
    if !is_news {
        return;
    }
    let mut candidates = endpoint.ours.around.side().candidates.clone();
    // What leads to us from everywhere comes first.
    candidates.sort_by_key(|candidate| candidate.kind == CandidateKind::Local);
    let candidates = candidates.into_iter().map(|candidate| candidate.address);
    endpoint.candidates.send_replace(candidates.collect());
    endpoint.kick_all();
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
