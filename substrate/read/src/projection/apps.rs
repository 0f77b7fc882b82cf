//! Apps, their versions and their instances, from `tenant_*.apps`.
//!
//! Rows are keyed by the tenant whose segment speaks, not by what the event says: a tenant that names
//! another one's app in its own segment makes rows that only it can see.

use rusqlite::{OptionalExtension as _, Transaction, params};
use tabbify_types::event::v1::{AppPlaced, InstanceRef, TrafficShifted, VersionPublished};
use tabbify_types::{AppId, Event, Recorded, Segment};

use super::{Claims, FoldError, Projection, Table, json, millis, place, word};

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
        let (Some(event), Some(tenant)) = (recorded.event()?, recorded.segment.tenant()) else {
            return Ok(());
        };
        Fold {
            tx,
            tenant: tenant.as_str(),
            recorded,
        }
        .event(&event)?;
        Ok(())
    }
}

/// One event on its way into the tables.
struct Fold<'a> {
    tx: &'a Transaction<'a>,
    tenant: &'a str,
    recorded: &'a Recorded,
}

type Folded = rusqlite::Result<()>;

impl Fold<'_> {
    fn event(&self, event: &Event) -> Folded {
        match event {
            Event::AppRegistered(event) => self
                .tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO apps (tenant, app, name, address, created, position)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    self.tenant,
                    event.app.to_string(),
                    event.name.as_str(),
                    event.address.to_string(),
                    millis(self.recorded.at),
                    place(self.recorded.position),
                ])
                .map(drop),
            Event::VersionReserved(event) => self
                .tx
                .prepare_cached(
                    "UPDATE apps SET reserved = max(ifnull(reserved, 0), ?3)
                     WHERE tenant = ?1 AND app = ?2",
                )?
                .execute(params![
                    self.tenant,
                    event.app.to_string(),
                    event.version.get()
                ])
                .map(drop),
            Event::VersionPublished(event) => self.published(event),
            Event::AppPlaced(event) => self.placed(event),
            Event::AppStarting(event) => self.state(event.of, "starting"),
            Event::AppStarted(event) => self.state(event.of, "started"),
            Event::AppHealthy(event) => self.state(event.of, "healthy"),
            Event::InstanceDrained(event) => self.state(event.of, "drained"),
            Event::TrafficShifted(event) => self.shifted(event),
            Event::AppIdled(event) => self.state(event.of, "idle"),
            Event::AppWoken(event) => self.state(event.of, "started"),
            Event::AppFailed(event) => {
                self.failure(event.of.app, &event.detail)?;
                self.state(event.of, "failed")
            }
            Event::AppUnavailable(event) => self.failure(event.app, &event.remedy),
            Event::AppDestroyed(event) => self.destroyed(event.app),
            Event::AppStopped(event) => self
                .tx
                .prepare_cached(
                    "DELETE FROM instances WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
                )?
                .execute(params![
                    self.tenant,
                    event.of.app.to_string(),
                    event.of.instance.get()
                ])
                .map(drop),
            _ => Ok(()),
        }
    }

    fn is_registered(&self, app: AppId) -> rusqlite::Result<bool> {
        let found = self
            .tx
            .prepare_cached("SELECT 1 FROM apps WHERE tenant = ?1 AND app = ?2")?
            .query_row(params![self.tenant, app.to_string()], |_| Ok(()))
            .optional()?;
        Ok(found.is_some())
    }

    fn published(&self, event: &VersionPublished) -> Folded {
        if !self.is_registered(event.app)? {
            return Ok(());
        }
        let app = event.app.to_string();
        self.tx
            .prepare_cached(
                "INSERT OR IGNORE INTO versions (tenant, app, version, artifact, config, access,
                     runtime, secrets, published, actor)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                self.tenant,
                app,
                event.version.get(),
                event.artifact.to_string(),
                event.config.to_string(),
                word(&event.access),
                word(&event.run.runtime),
                json(&event.secrets),
                millis(self.recorded.at),
                self.recorded.actor,
            ])?;
        self.tx
            .prepare_cached(
                "UPDATE apps SET latest = max(ifnull(latest, 0), ?3)
                 WHERE tenant = ?1 AND app = ?2",
            )?
            .execute(params![self.tenant, app, event.version.get()])
            .map(drop)
    }

    fn placed(&self, event: &AppPlaced) -> Folded {
        if !self.is_registered(event.app)? {
            return Ok(());
        }
        let (app, slot) = (event.app.to_string(), event.slot.to_string());
        // Whoever failed in this slot is replaced by the newcomer; its history is in the audit.
        self.tx
            .prepare_cached(
                "DELETE FROM instances WHERE tenant = ?1 AND app = ?2 AND slot = ?3 AND epoch < ?4
                 AND state = 'failed'",
            )?
            .execute(params![self.tenant, app, slot, event.epoch.get()])?;
        self.tx
            .prepare_cached(
                "INSERT OR IGNORE INTO instances (tenant, app, instance, version, deploy, host,
                     slot, epoch, state, traffic, placed, changed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'placed', 0, ?9, ?9)",
            )?
            .execute(params![
                self.tenant,
                app,
                event.instance.get(),
                event.version.get(),
                event.deploy.to_string(),
                event.host.as_str(),
                slot,
                event.epoch.get(),
                millis(self.recorded.at),
            ])
            .map(drop)
    }

    fn state(&self, of: InstanceRef, state: &str) -> Folded {
        self.tx
            .prepare_cached(
                "UPDATE instances SET state = ?4, changed = ?5
                 WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
            )?
            .execute(params![
                self.tenant,
                of.app.to_string(),
                of.instance.get(),
                state,
                millis(self.recorded.at),
            ])
            .map(drop)
    }

    fn failure(&self, app: AppId, says: &str) -> Folded {
        self.tx
            .prepare_cached("UPDATE apps SET failure = ?3 WHERE tenant = ?1 AND app = ?2")?
            .execute(params![self.tenant, app.to_string(), says])
            .map(drop)
    }

    fn destroyed(&self, app: AppId) -> Folded {
        let app = app.to_string();
        self.tx
            .prepare_cached(
                "UPDATE apps SET destroyed = ?3, serving = NULL, primary_instance = NULL
                 WHERE tenant = ?1 AND app = ?2 AND destroyed IS NULL",
            )?
            .execute(params![self.tenant, app, millis(self.recorded.at)])?;
        self.tx
            .prepare_cached("DELETE FROM instances WHERE tenant = ?1 AND app = ?2")?
            .execute(params![self.tenant, app])
            .map(drop)
    }

    fn shifted(&self, event: &TrafficShifted) -> Folded {
        let app = event.app.to_string();
        self.tx
            .prepare_cached(
                "UPDATE apps SET serving = ?3, primary_instance = ?4
                 WHERE tenant = ?1 AND app = ?2",
            )?
            .execute(params![
                self.tenant,
                app,
                event.version.get(),
                event.primary.get()
            ])?;
        self.tx
            .prepare_cached("UPDATE instances SET traffic = 0 WHERE tenant = ?1 AND app = ?2")?
            .execute(params![self.tenant, app])?;
        let mut takes = self.tx.prepare_cached(
            "UPDATE instances SET traffic = 1 WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
        )?;
        for instance in &event.instances {
            takes.execute(params![self.tenant, app, instance.get()])?;
        }
        Ok(())
    }
}
