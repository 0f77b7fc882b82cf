//! Apps, their versions and their instances, from `tenant_*.apps`.
//!
//! Rows are keyed by the tenant whose segment speaks, not by what the event says: a tenant that names
//! another one's app in its own segment makes rows that only it can see.

use rusqlite::{OptionalExtension as _, Transaction, params};
use tabbify_types::event::v1::{AppPlaced, InstanceRef, TrafficShifted, VersionPublished};
use tabbify_types::{AppId, Event, Recorded, Segment};

use super::{
    Claims, Entry, FoldError, Folded, Projection, Table, fold_of_tenant, json, millis, place, word,
};

pub(crate) struct Apps;

const SCHEMA: &str = "
CREATE TABLE apps (
  tenant TEXT NOT NULL, app TEXT NOT NULL, name TEXT NOT NULL, address TEXT NOT NULL,
  created INTEGER NOT NULL, position INTEGER NOT NULL,
  reserved INTEGER, latest INTEGER, serving INTEGER, primary_instance INTEGER, failure TEXT,
  destroyed INTEGER,
  PRIMARY KEY (tenant, app)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX apps_by_name ON apps (tenant, name, app);
CREATE INDEX apps_by_id ON apps (app, position);
CREATE TABLE versions (
  tenant TEXT NOT NULL, app TEXT NOT NULL, version INTEGER NOT NULL,
  artifact TEXT NOT NULL, config TEXT NOT NULL, access TEXT NOT NULL, runtime TEXT NOT NULL,
  secrets TEXT NOT NULL, published INTEGER NOT NULL, actor TEXT NOT NULL,
  PRIMARY KEY (tenant, app, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
  tenant TEXT NOT NULL, app TEXT NOT NULL, instance INTEGER NOT NULL,
  version INTEGER NOT NULL, deploy TEXT NOT NULL, host TEXT NOT NULL, slot TEXT NOT NULL,
  epoch INTEGER NOT NULL, state TEXT NOT NULL, traffic INTEGER NOT NULL,
  placed INTEGER NOT NULL, changed INTEGER NOT NULL,
  PRIMARY KEY (tenant, app, instance)
) STRICT, WITHOUT ROWID;
";

impl Projection for Apps {
    fn name(&self) -> &'static str {
        "apps"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[
            Table {
                name: "apps",
                key: "tenant, app",
            },
            Table {
                name: "versions",
                key: "tenant, app, version",
            },
            Table {
                name: "instances",
                key: "tenant, app, instance",
            },
        ]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "app_registered",
            "version_reserved",
            "version_published",
            "app_placed",
            "app_starting",
            "app_started",
            "app_healthy",
            "traffic_shifted",
            "instance_drained",
            "app_failed",
            "app_idled",
            "app_woken",
            "app_unavailable",
            "app_stopped",
            "app_destroyed",
        ])
    }

    fn reads(&self, segment: &Segment) -> bool {
        super::is_of_tenant(segment, "apps")
    }

    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        fold_of_tenant(tx, recorded, event)
    }
}

fn event(on: &Entry<'_>, event: &Event) -> Folded {
    match event {
        Event::AppRegistered(event) => on
            .tx
            .prepare_cached(
                "INSERT OR IGNORE INTO apps (tenant, app, name, address, created, position)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                on.tenant,
                event.app.to_string(),
                event.name.as_str(),
                event.address.to_string(),
                millis(on.recorded.at),
                place(on.recorded.position),
            ])
            .map(drop),
        Event::VersionReserved(event) => on
            .tx
            .prepare_cached(
                "UPDATE apps SET reserved = max(ifnull(reserved, 0), ?3)
                 WHERE tenant = ?1 AND app = ?2",
            )?
            .execute(params![
                on.tenant,
                event.app.to_string(),
                event.version.get()
            ])
            .map(drop),
        Event::VersionPublished(event) => published(on, event),
        Event::AppPlaced(event) => placed(on, event),
        Event::AppStarting(event) => state(on, event.of, "starting"),
        Event::AppStarted(event) => state(on, event.of, "started"),
        Event::AppHealthy(event) => state(on, event.of, "healthy"),
        Event::InstanceDrained(event) => state(on, event.of, "drained"),
        Event::TrafficShifted(event) => shifted(on, event),
        Event::AppIdled(event) => state(on, event.of, "idle"),
        Event::AppWoken(event) => state(on, event.of, "started"),
        Event::AppFailed(event) => {
            failure(on, event.of.app, &event.detail)?;
            state(on, event.of, "failed")
        }
        Event::AppUnavailable(event) => failure(on, event.app, &event.remedy),
        Event::AppDestroyed(event) => destroyed(on, event.app),
        Event::AppStopped(event) => on
            .tx
            .prepare_cached(
                "DELETE FROM instances WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
            )?
            .execute(params![
                on.tenant,
                event.of.app.to_string(),
                event.of.instance.get()
            ])
            .map(drop),
        _ => Ok(()),
    }
}

fn is_registered(on: &Entry<'_>, app: AppId) -> rusqlite::Result<bool> {
    let found = on
        .tx
        .prepare_cached("SELECT 1 FROM apps WHERE tenant = ?1 AND app = ?2")?
        .query_row(params![on.tenant, app.to_string()], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

fn published(on: &Entry<'_>, event: &VersionPublished) -> Folded {
    if !is_registered(on, event.app)? {
        return Ok(());
    }
    let app = event.app.to_string();
    on.tx
        .prepare_cached(
            "INSERT OR IGNORE INTO versions (tenant, app, version, artifact, config, access,
                 runtime, secrets, published, actor)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            on.tenant,
            app,
            event.version.get(),
            event.artifact.to_string(),
            event.config.to_string(),
            word(&event.access),
            word(&event.run.runtime),
            json(&event.secrets),
            millis(on.recorded.at),
            on.recorded.actor,
        ])?;
    on.tx
        .prepare_cached(
            "UPDATE apps SET latest = max(ifnull(latest, 0), ?3)
             WHERE tenant = ?1 AND app = ?2",
        )?
        .execute(params![on.tenant, app, event.version.get()])
        .map(drop)
}

fn placed(on: &Entry<'_>, event: &AppPlaced) -> Folded {
    if !is_registered(on, event.app)? {
        return Ok(());
    }
    let (app, slot) = (event.app.to_string(), event.slot.to_string());
    // Whoever failed in this slot is replaced by the newcomer; its history is in the audit.
    on.tx
        .prepare_cached(
            "DELETE FROM instances WHERE tenant = ?1 AND app = ?2 AND slot = ?3 AND epoch < ?4
             AND state = 'failed'",
        )?
        .execute(params![on.tenant, app, slot, event.epoch.get()])?;
    on.tx
        .prepare_cached(
            "INSERT OR IGNORE INTO instances (tenant, app, instance, version, deploy, host,
                 slot, epoch, state, traffic, placed, changed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'placed', 0, ?9, ?9)",
        )?
        .execute(params![
            on.tenant,
            app,
            event.instance.get(),
            event.version.get(),
            event.deploy.to_string(),
            event.host.as_str(),
            slot,
            event.epoch.get(),
            millis(on.recorded.at),
        ])
        .map(drop)
}

fn state(on: &Entry<'_>, of: InstanceRef, state: &str) -> Folded {
    on.tx
        .prepare_cached(
            "UPDATE instances SET state = ?4, changed = ?5
             WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
        )?
        .execute(params![
            on.tenant,
            of.app.to_string(),
            of.instance.get(),
            state,
            millis(on.recorded.at),
        ])
        .map(drop)
}

fn failure(on: &Entry<'_>, app: AppId, says: &str) -> Folded {
    on.tx
        .prepare_cached("UPDATE apps SET failure = ?3 WHERE tenant = ?1 AND app = ?2")?
        .execute(params![on.tenant, app.to_string(), says])
        .map(drop)
}

fn destroyed(on: &Entry<'_>, app: AppId) -> Folded {
    let app = app.to_string();
    on.tx
        .prepare_cached(
            "UPDATE apps SET destroyed = ?3, serving = NULL, primary_instance = NULL
             WHERE tenant = ?1 AND app = ?2 AND destroyed IS NULL",
        )?
        .execute(params![on.tenant, app, millis(on.recorded.at)])?;
    on.tx
        .prepare_cached("DELETE FROM instances WHERE tenant = ?1 AND app = ?2")?
        .execute(params![on.tenant, app])
        .map(drop)
}

fn shifted(on: &Entry<'_>, event: &TrafficShifted) -> Folded {
    let app = event.app.to_string();
    on.tx
        .prepare_cached(
            "UPDATE apps SET serving = ?3, primary_instance = ?4
             WHERE tenant = ?1 AND app = ?2",
        )?
        .execute(params![
            on.tenant,
            app,
            event.version.get(),
            event.primary.get()
        ])?;
    on.tx
        .prepare_cached("UPDATE instances SET traffic = 0 WHERE tenant = ?1 AND app = ?2")?
        .execute(params![on.tenant, app])?;
    let mut takes = on.tx.prepare_cached(
        "UPDATE instances SET traffic = 1 WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
    )?;
    for instance in &event.instances {
        takes.execute(params![on.tenant, app, instance.get()])?;
    }
    Ok(())
}
