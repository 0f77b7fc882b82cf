//! Machines, leases and what machines can run, from `platform.mesh.peers` and
//! `platform.supervisors`.

use rusqlite::{Transaction, params};
use tabbify_types::event::v1::{LeaseGranted, PeerJoined};
use tabbify_types::{Event, Recorded, Segment};

use super::{Claims, FoldError, Projection, Table, json, millis};

pub(crate) struct Peers;

const SCHEMA: &str = "
CREATE TABLE peers (
  host TEXT NOT NULL PRIMARY KEY, network TEXT NOT NULL, address TEXT NOT NULL, key TEXT NOT NULL,
  tags TEXT NOT NULL, joined INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE leases (
  tenant TEXT NOT NULL, app TEXT NOT NULL, instance INTEGER NOT NULL,
  slot TEXT NOT NULL, epoch INTEGER NOT NULL, key TEXT NOT NULL, host TEXT NOT NULL,
  granted INTEGER NOT NULL,
  PRIMARY KEY (app, instance)
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_by_tenant ON leases (tenant, app, instance);
CREATE TABLE supervisors (
  host TEXT NOT NULL PRIMARY KEY, capabilities TEXT NOT NULL, joined INTEGER NOT NULL,
  state TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

impl Projection for Peers {
    fn name(&self) -> &'static str {
        "peers"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[
            Table {
                name: "peers",
                key: "host",
            },
            Table {
                name: "leases",
                key: "app, instance",
            },
            Table {
                name: "supervisors",
                key: "host",
            },
        ]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "peer_joined",
            "peer_left",
            "lease_granted",
            "lease_released",
            "supervisor_joined",
            "supervisor_lost",
            "supervisor_drained",
        ])
    }

    fn reads(&self, segment: &Segment) -> bool {
        *segment == Segment::peers() || *segment == Segment::supervisors()
    }

    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        let Some(event) = recorded.event()? else {
            return Ok(());
        };
        let in_peers = recorded.segment == Segment::peers();
        match event {
            Event::PeerJoined(event) if in_peers => peer(tx, recorded, &event)?,
            Event::PeerLeft(event) if in_peers => {
                tx.prepare_cached("DELETE FROM peers WHERE host = ?1")?
                    .execute([event.host.as_str()])?;
            }
            Event::LeaseGranted(event) if in_peers => lease(tx, recorded, &event)?,
            Event::LeaseReleased(event) if in_peers => {
                tx.prepare_cached("DELETE FROM leases WHERE app = ?1 AND instance = ?2")?
                    .execute(params![event.app.to_string(), event.instance.get()])?;
            }
            Event::SupervisorJoined(event) if !in_peers => {
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO supervisors (host, capabilities, joined, state)
                     VALUES (?1, ?2, ?3, 'ready')",
                )?
                .execute(params![
                    event.host.as_str(),
                    json(&event.capabilities),
                    millis(recorded.at),
                ])?;
            }
            Event::SupervisorLost(event) if !in_peers => {
                supervisor(tx, event.host.as_str(), "lost")?;
            }
            Event::SupervisorDrained(event) if !in_peers => {
                supervisor(tx, event.host.as_str(), "drained")?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn supervisor(tx: &Transaction<'_>, host: &str, state: &str) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE supervisors SET state = ?2 WHERE host = ?1")?
        .execute(params![host, state])
        .map(drop)
}

/// A machine that joins again has a new key or new tags: the last word counts.
fn peer(tx: &Transaction<'_>, recorded: &Recorded, event: &PeerJoined) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO peers (host, network, address, key, tags, joined)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        event.host.as_str(),
        event.network,
        event.address.to_string(),
        event.key.to_string(),
        json(&event.tags),
        millis(recorded.at),
    ])
    .map(drop)
}

fn lease(tx: &Transaction<'_>, recorded: &Recorded, event: &LeaseGranted) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO leases (tenant, app, instance, slot, epoch, key, host, granted)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        event.tenant.as_str(),
        event.app.to_string(),
        event.instance.get(),
        event.slot.to_string(),
        event.epoch.get(),
        event.key.to_string(),
        event.host.as_str(),
        millis(recorded.at),
    ])
    .map(drop)
}
