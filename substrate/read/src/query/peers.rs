//! Machines and leases.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction};
use tabbify_api::read::{LeaseRow, Listing, PeerRow, ReadScope, SupervisorRow, Window};
use tabbify_types::{AppId, Epoch, HostName, InstanceId};

use super::select::{
    Select, cursor_part, cursor_parts, json, limit, listing, maybe_json, parsed, text, time, word,
};
use crate::pool::Asked;

pub(crate) fn list(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    window: &Window,
) -> Result<Listing<PeerRow>, Asked> {
    let mut after = None;
    if let Some([part]) = cursor_parts(window)? {
        let host: HostName = cursor_part(part)?;
        after = Some(text(&host));
    }
    let page = match scope {
        ReadScope::Tenant(_) => {
            limit(window)?;
            (Vec::new(), None)
        }
        ReadScope::Platform => Select::from(
            "SELECT p.*, s.state, s.capabilities FROM peers p
             LEFT JOIN supervisors s ON s.host = p.host",
        )
        .and_if("p.host > ?", after)
        .page(tx, "p.host", window, peer_row, |peer| peer.host.to_string())?,
    };
    listing(tx, "peers", page)
}

pub(crate) fn leases(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: Option<AppId>,
    window: &Window,
) -> Result<Listing<LeaseRow>, Asked> {
    let mut select = Select::from("SELECT * FROM leases")
        .in_scope(scope, "tenant")
        .and_if("app = ?", app.map(|app| text(&app)));
    if let Some([app, instance]) = cursor_parts(window)? {
        let (app, instance): (AppId, InstanceId) = (cursor_part(app)?, cursor_part(instance)?);
        let instance = Value::Integer(instance.get().into());
        select = select.and("(app, instance) > (?, ?)", [text(&app), instance]);
    }
    let page = select.page(tx, "app, instance", window, lease_row, |lease| {
        format!("{}/{}", lease.app, lease.instance)
    })?;
    listing(tx, "peers", page)
}

fn peer_row(row: &Row<'_>) -> rusqlite::Result<PeerRow> {
    let supervisor = match maybe_json(row, "capabilities")? {
        None => None,
        Some(capabilities) => Some(SupervisorRow {
            state: word(row, "state")?,
            capabilities,
        }),
    };
    Ok(PeerRow {
        host: parsed(row, "host")?,
        network: row.get("network")?,
        address: parsed(row, "address")?,
        key: parsed(row, "key")?,
        tags: json(row, "tags")?,
        joined: time(row, "joined")?,
        supervisor,
    })
}

fn lease_row(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    Ok(LeaseRow {
        app: parsed(row, "app")?,
        tenant: parsed(row, "tenant")?,
        instance: InstanceId(row.get("instance")?),
        slot: parsed(row, "slot")?,
        epoch: Epoch(row.get("epoch")?),
        key: parsed(row, "key")?,
        host: parsed(row, "host")?,
        granted: time(row, "granted")?,
    })
}
