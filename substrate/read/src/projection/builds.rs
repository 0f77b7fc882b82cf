//! Builds, from `tenant_*.builds`. Keyed by the tenant whose segment speaks.

use rusqlite::{Transaction, params};
use tabbify_types::{Event, Recorded, Segment};

use super::{
    Claims, Entry, FoldError, Folded, Projection, Table, fold_of_tenant, json, millis, place,
};

pub(crate) struct Builds;

const SCHEMA: &str = "
CREATE TABLE builds (
  tenant TEXT NOT NULL, build TEXT NOT NULL, app TEXT NOT NULL, source TEXT NOT NULL,
  position INTEGER NOT NULL UNIQUE, requested INTEGER NOT NULL, actor TEXT NOT NULL,
  status TEXT NOT NULL, host TEXT, finished INTEGER, artifact TEXT, failure TEXT,
  PRIMARY KEY (tenant, build)
) STRICT, WITHOUT ROWID;
CREATE INDEX builds_by_app ON builds (app, position);
CREATE INDEX builds_by_tenant ON builds (tenant, position);
";

impl Projection for Builds {
    fn name(&self) -> &'static str {
        "builds"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[Table {
            name: "builds",
            key: "tenant, build",
        }]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "build_requested",
            "build_started",
            "build_succeeded",
            "build_failed",
        ])
    }

    fn reads(&self, segment: &Segment) -> bool {
        super::is_of_tenant(segment, "builds")
    }

    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        fold_of_tenant(tx, recorded, event)
    }
}

fn event(on: &Entry<'_>, event: &Event) -> Folded {
    let at = millis(on.recorded.at);
    match event {
        Event::BuildRequested(event) => on
            .tx
            .prepare_cached(
                "INSERT OR IGNORE INTO builds (tenant, build, app, source, position, requested,
                     actor, status)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'requested')",
            )?
            .execute(params![
                on.tenant,
                event.build.to_string(),
                event.app.to_string(),
                json(&event.source),
                place(on.recorded.position),
                at,
                on.recorded.actor,
            ])?,
        // A machine may be lost and another one begin again; an outcome is final.
        Event::BuildStarted(event) => on
            .tx
            .prepare_cached(
                "UPDATE builds SET status = 'started', host = ?3
                 WHERE tenant = ?1 AND build = ?2 AND finished IS NULL",
            )?
            .execute(params![
                on.tenant,
                event.build.to_string(),
                event.host.as_str()
            ])?,
        Event::BuildSucceeded(event) => on
            .tx
            .prepare_cached(
                "UPDATE builds SET status = 'succeeded', finished = ?3, artifact = ?4
                 WHERE tenant = ?1 AND build = ?2 AND finished IS NULL",
            )?
            .execute(params![
                on.tenant,
                event.build.to_string(),
                at,
                event.artifact.to_string()
            ])?,
        Event::BuildFailed(event) => on
            .tx
            .prepare_cached(
                "UPDATE builds SET status = 'failed', finished = ?3, failure = ?4
                 WHERE tenant = ?1 AND build = ?2 AND finished IS NULL",
            )?
            .execute(params![on.tenant, event.build.to_string(), at, json(event)])?,
        _ => 0,
    };
    Ok(())
}
