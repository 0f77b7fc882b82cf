//! Apps, one app, and its versions.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction};
use tabbify_api::read::{
    AppDetail, AppRow, InstanceRow, Listing, ROWS_MAX, ReadScope, VersionRow, Window,
};
use tabbify_types::{AppId, AppName, Epoch, InstanceId, Tenant, VersionNumber};

use super::select::{
    Select, bounded, cursor_part, cursor_parts, listing, maybe_time, owner, parsed, position_of,
    text, time, word,
};
use crate::pool::Asked;

const APPS: &str = "
SELECT a.*, EXISTS (
  SELECT 1 FROM instances i
  WHERE i.tenant = a.tenant AND i.app = a.app AND i.traffic = 1 AND i.state <> 'failed') AS live
FROM apps a";

pub(crate) fn list(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    name: Option<&str>,
    window: &Window,
) -> Result<Listing<AppRow>, Asked> {
    let mut select = Select::from(APPS)
        .and("a.destroyed IS NULL", [])
        .in_scope(scope, "a.tenant");
    if let Some(name) = name {
        // Names are lower case.
        let name = bounded("name", name)?.to_lowercase();
        select = select.and("instr(a.name, ?) > 0", [Value::Text(name)]);
    }
    if let Some([tenant, name, app]) = cursor_parts(window)? {
        let after: (Tenant, AppName, AppId) =
            (cursor_part(tenant)?, cursor_part(name)?, cursor_part(app)?);
        select = select.and(
            "(a.tenant, a.name, a.app) > (?, ?, ?)",
            [text(&after.0), text(&after.1), text(&after.2)],
        );
    }
    let page = select.page(tx, "a.tenant, a.name, a.app", window, app_row, |app| {
        format!("{}/{}/{}", app.tenant, app.name, app.app)
    })?;
    listing(tx, "apps", page)
}

pub(crate) fn one(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: AppId,
) -> Result<Option<AppDetail>, Asked> {
    let Some(tenant) = owner(tx, scope, app)? else {
        return Ok(None);
    };
    let found = Select::from(APPS)
        .and("a.tenant = ? AND a.app = ?", [text(&tenant), text(&app)])
        .first(tx, app_row)?;
    let Some(row) = found else {
        return Ok(None);
    };
    let (instances, _) = Select::from("SELECT * FROM instances")
        .and("tenant = ? AND app = ?", [text(&tenant), text(&app)])
        .page(
            tx,
            "instance DESC",
            &Window::first(ROWS_MAX),
            instance_row,
            |_| String::new(),
        )?;
    Ok(Some(AppDetail {
        app: row,
        instances,
        position: position_of(tx, "apps")?,
    }))
}

pub(crate) fn versions(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: AppId,
    window: &Window,
) -> Result<Listing<VersionRow>, Asked> {
    let mut before = None;
    if let Some([part]) = cursor_parts(window)? {
        let version: VersionNumber = cursor_part(part)?;
        before = Some(Value::Integer(version.get().into()));
    }
    let tenant = owner(tx, scope, app)?.map(|tenant| text(&tenant));
    let page = Select::from("SELECT * FROM versions")
        .and(
            "tenant = ? AND app = ?",
            [tenant.unwrap_or(Value::Null), text(&app)],
        )
        .and_if("version < ?", before)
        .page(tx, "version DESC", window, version_row, |row| {
            row.version.to_string()
        })?;
    listing(tx, "apps", page)
}

fn app_row(row: &Row<'_>) -> rusqlite::Result<AppRow> {
    let live: bool = row.get("live")?;
    let number = |column: &str| -> rusqlite::Result<Option<u32>> { row.get(column) };
    Ok(AppRow {
        app: parsed(row, "app")?,
        tenant: parsed(row, "tenant")?,
        name: parsed(row, "name")?,
        address: parsed(row, "address")?,
        created: time(row, "created")?,
        reserved: number("reserved")?.map(VersionNumber),
        latest: number("latest")?.map(VersionNumber),
        serving: number("serving")?.filter(|_| live).map(VersionNumber),
        primary: number("primary_instance")?.filter(|_| live).map(InstanceId),
        failure: row.get("failure")?,
        destroyed: maybe_time(row, "destroyed")?,
    })
}

fn instance_row(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    Ok(InstanceRow {
        instance: InstanceId(row.get("instance")?),
        version: VersionNumber(row.get("version")?),
        deploy: parsed(row, "deploy")?,
        host: parsed(row, "host")?,
        slot: parsed(row, "slot")?,
        epoch: Epoch(row.get("epoch")?),
        state: word(row, "state")?,
        traffic: row.get("traffic")?,
        placed: time(row, "placed")?,
        changed: time(row, "changed")?,
    })
}

fn version_row(row: &Row<'_>) -> rusqlite::Result<VersionRow> {
    Ok(VersionRow {
        version: VersionNumber(row.get("version")?),
        artifact: parsed(row, "artifact")?,
        config: parsed(row, "config")?,
        access: word(row, "access")?,
        runtime: word(row, "runtime")?,
        secrets: super::select::json(row, "secrets")?,
        published: time(row, "published")?,
        actor: row.get("actor")?,
    })
}
