//! Asking the NAT for a port over UPnP (Internet Gateway Device), for home routers that know nothing else.
//!
//! The protocol is a library's, which bounds every answer and follows no address but that of whoever answered.
//! Here is who may answer: the gateway of the default route alone, asked by itself first and by multicast, as
//! the standard has it, only if it does not listen for that. Nothing is asked for that would outlive us: a
//! router that gives ports for ever or not at all gives none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{
    AddAnyPortError, AddPortError, GetExternalIpError, PortMappingProtocol, SearchError,
    SearchOptions,
};

/// LIMIT: how long each of the two searches may take, and all requests to the router.
const SEARCH_WITHIN: Duration = Duration::from_secs(3);
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Where devices listen for searches, alone or as a group (UPnP Device Architecture 2.0, section 1.3).
const PORT: u16 = 1900;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// What people see in their router's list.
const NAME: &str = "tabbify";

/// Why the NAT gives no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpnpError {
    #[error("no router answers a search")]
    Search(#[source] SearchError),
    #[error("{0} answers, which is not the gateway")]
    Stranger(IpAddr),
    #[error("the router does not say its address")]
    Address(#[source] GetExternalIpError),
    #[error("the router does not give our own port")]
    Same(#[source] AddPortError),
    #[error("the router gives no port")]
    Any(#[source] AddAnyPortError),
    #[error("the router takes too long")]
    Late,
}

/// Asks the router at `gateway` to lead a port of its own to `internal` for so many seconds; gives the outer
/// address.
pub(crate) async fn ask(
    gateway: Ipv4Addr,
    internal: SocketAddrV4,
    seconds: u32,
) -> Result<SocketAddr, UpnpError> {
    let router = find(gateway, *internal.ip()).await?;
    let asking = map(&router, internal, seconds);
    let asked = tokio::time::timeout(ASK_WITHIN, asking).await;
    asked.map_err(|_| UpnpError::Late)?
}

/// The router, if it is the gateway.
async fn find(gateway: Ipv4Addr, ours: Ipv4Addr) -> Result<Gateway<Tokio>, UpnpError> {
    let search = async |to: Ipv4Addr| {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::from((ours, 0));
        options.broadcast_address = SocketAddr::from((to, PORT));
        options.timeout = Some(SEARCH_WITHIN);
        options.single_search_timeout = Some(SEARCH_WITHIN);
        search_gateway(options).await
    };
    let found = match search(gateway).await {
        Ok(found) => found,
        Err(_) => search(GROUP).await.map_err(UpnpError::Search)?,
    };
    match found.addr.ip() {
        IpAddr::V4(ip) if ip == gateway => Ok(found),
        stranger => Err(UpnpError::Stranger(stranger)),
    }
}

async fn map(
    router: &Gateway<Tokio>,
    internal: SocketAddrV4,
    seconds: u32,
) -> Result<SocketAddr, UpnpError> {
    let ip = router.get_external_ip().await.map_err(UpnpError::Address)?;
    let (udp, local) = (PortMappingProtocol::UDP, SocketAddr::V4(internal));
    // The same port outside would be best.
    let same = router
        .add_port(udp, internal.port(), local, seconds, NAME)
        .await;
    let port = match same {
        Ok(()) => internal.port(),
        Err(AddPortError::PortInUse) => router
            .add_any_port(udp, local, seconds, NAME)
            .await
            .map_err(UpnpError::Any)?,
        Err(error) => return Err(UpnpError::Same(error)),
    };
    Ok(SocketAddr::new(ip, port))
}
