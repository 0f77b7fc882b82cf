//! What the gateway is told, and its limits.

use std::net::SocketAddr;

use tabbify_mesh::PrivateKey;

/// What [`Gateway::start`](crate::Gateway::start) needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients reach the WireGuard socket; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its identity, which clients know: it must last.
    pub key: PrivateKey,
    /// How clients reach it, as `host:port`, if not where it listens: behind a NAT, or by name.
    pub endpoint: Option<String>,
    /// Limits.
    pub limits: Limits,
}

impl Config {
    /// A configuration with the default limits.
    #[must_use]
    pub fn new(listen: SocketAddr, key: PrivateKey) -> Self {
        Self {
            listen,
            key,
            endpoint: None,
            limits: Limits::default(),
        }
    }
}

/// What the gateway spends at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// LIMIT: devices with a session at once.
    pub devices: usize,
    /// LIMIT: connections of one device, opening and closing ones included; more are reset.
    pub connections_per_device: usize,
    /// LIMIT: connections of all devices; more are reset.
    pub connections: usize,
    /// LIMIT: accepted connections that wait to be carried; a SYN beyond it waits for its repetition.
    pub backlog: usize,
    /// LIMIT: bytes of a connection's buffer, one per direction: throughput is at most about this per
    /// round trip.
    pub tcp_buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            devices: 1024,
            connections_per_device: 256,
            connections: 4096,
            backlog: 256,
            tcp_buffer_bytes: 256 * 1024,
        }
    }
}
