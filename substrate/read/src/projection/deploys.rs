//! Deploys with their steps, from `tenant_*.apps`. Keyed by the tenant whose segment speaks.

use rusqlite::{OptionalExtension as _, Transaction, params};
use tabbify_api::read::STEPS_MAX;
use tabbify_types::event::v1::{DeployFinished, DeployOutcome, DeployRequested, InstanceRef};
use tabbify_types::{AppId, DeployId, Event, InstanceId, Recorded, Segment};

use super::{Claims, Entry, FoldError, Folded, Projection, Table, fold_of_tenant, millis, place};

pub(crate) struct Deploys;

const SCHEMA: &str = "
CREATE TABLE deploys (
  tenant TEXT NOT NULL, deploy TEXT NOT NULL, app TEXT NOT NULL, version INTEGER NOT NULL,
  position INTEGER NOT NULL UNIQUE, requested INTEGER NOT NULL, actor TEXT NOT NULL,
  status TEXT NOT NULL, finished INTEGER, detail TEXT, superseded_by TEXT,
  PRIMARY KEY (tenant, deploy)
) STRICT, WITHOUT ROWID;
CREATE INDEX deploys_by_app ON deploys (app, position);
CREATE INDEX deploys_by_tenant ON deploys (tenant, position);
CREATE TABLE deploy_steps (
  tenant TEXT NOT NULL, deploy TEXT NOT NULL, seq INTEGER NOT NULL,
  step TEXT NOT NULL, instance INTEGER, at INTEGER NOT NULL,
  PRIMARY KEY (tenant, deploy, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE deploy_instances (
  tenant TEXT NOT NULL, app TEXT NOT NULL, instance INTEGER NOT NULL, deploy TEXT NOT NULL,
  PRIMARY KEY (tenant, app, instance)
) STRICT, WITHOUT ROWID;
";

impl Projection for Deploys {
    fn name(&self) -> &'static str {
        "deploys"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[
            Table {
                name: "deploys",
                key: "tenant, deploy",
            },
            Table {
                name: "deploy_steps",
                key: "tenant, deploy, seq",
            },
            Table {
                name: "deploy_instances",
                key: "tenant, app, instance",
            },
        ]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "deploy_requested",
            "deploy_superseded",
            "app_placed",
            "app_starting",
            "app_started",
            "app_healthy",
            "traffic_shifted",
            "app_failed",
            "deploy_finished",
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
        Event::DeployRequested(event) => requested(on, event),
        Event::DeploySuperseded(event) => {
            let by = event.by.to_string();
            end(on, event.app, event.deploy, "superseded", None, Some(&by))
        }
        Event::AppPlaced(event) => {
            if !is_running(on, event.app, event.deploy)? {
                return Ok(());
            }
            on.tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO deploy_instances (tenant, app, instance, deploy)
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    on.tenant,
                    event.app.to_string(),
                    event.instance.get(),
                    event.deploy.to_string(),
                ])?;
            let deploy = event.deploy.to_string();
            step(on, event.app, &deploy, "placed", Some(event.instance))
        }
        Event::AppStarting(event) => instance_step(on, event.of, "starting"),
        Event::AppStarted(event) => instance_step(on, event.of, "started"),
        Event::AppHealthy(event) => instance_step(on, event.of, "healthy"),
        Event::AppFailed(event) => instance_step(on, event.of, "failed"),
        Event::TrafficShifted(event) => {
            let deploy = event.deploy.to_string();
            step(on, event.app, &deploy, "shifted", Some(event.primary))
        }
        Event::DeployFinished(event) => finished(on, event),
        _ => Ok(()),
    }
}

fn requested(on: &Entry<'_>, event: &DeployRequested) -> Folded {
    let deploy = event.deploy.to_string();
    let new = on
        .tx
        .prepare_cached(
            "INSERT OR IGNORE INTO deploys (tenant, deploy, app, version, position, requested,
                 actor, status)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'running')",
        )?
        .execute(params![
            on.tenant,
            deploy,
            event.app.to_string(),
            event.version.get(),
            place(on.recorded.position),
            millis(on.recorded.at),
            on.recorded.actor,
        ])?;
    if new == 0 {
        return Ok(());
    }
    step(on, event.app, &deploy, "requested", None)
}

fn finished(on: &Entry<'_>, event: &DeployFinished) -> Folded {
    let deploy = event.deploy.to_string();
    step(on, event.app, &deploy, "finished", None)?;
    let (status, detail) = match event.outcome {
        DeployOutcome::Succeeded => ("succeeded", None),
        DeployOutcome::Failed => ("failed", Some(event.detail.as_str())),
    };
    end(on, event.app, event.deploy, status, detail, None)
}

fn is_running(on: &Entry<'_>, app: AppId, deploy: DeployId) -> rusqlite::Result<bool> {
    let found = on
        .tx
        .prepare_cached(
            "SELECT 1 FROM deploys
             WHERE tenant = ?1 AND deploy = ?2 AND app = ?3 AND status = 'running'",
        )?
        .query_row(
            params![on.tenant, deploy.to_string(), app.to_string()],
            |_| Ok(()),
        )
        .optional()?;
    Ok(found.is_some())
}

fn instance_step(on: &Entry<'_>, of: InstanceRef, what: &str) -> Folded {
    let deploy: Option<String> = on
        .tx
        .prepare_cached(
            "SELECT deploy FROM deploy_instances
             WHERE tenant = ?1 AND app = ?2 AND instance = ?3",
        )?
        .query_row(
            params![on.tenant, of.app.to_string(), of.instance.get()],
            |row| row.get(0),
        )
        .optional()?;
    match deploy {
        Some(deploy) => step(on, of.app, &deploy, what, Some(of.instance)),
        None => Ok(()),
    }
}

/// Adds a step to a running deploy that has room for it.
fn step(
    on: &Entry<'_>,
    app: AppId,
    deploy: &str,
    step: &str,
    instance: Option<InstanceId>,
) -> Folded {
    on.tx
        .prepare_cached(
            "INSERT INTO deploy_steps (tenant, deploy, seq, step, instance, at)
             SELECT tenant, deploy, seq, ?4, ?5, ?6 FROM (
               SELECT d.tenant, d.deploy, (
                 SELECT count(*) FROM deploy_steps s
                 WHERE s.tenant = d.tenant AND s.deploy = d.deploy) AS seq
               FROM deploys d
               WHERE d.tenant = ?1 AND d.deploy = ?2 AND d.app = ?3 AND d.status = 'running')
             WHERE seq < ?7",
        )?
        .execute(params![
            on.tenant,
            deploy,
            app.to_string(),
            step,
            instance.map(InstanceId::get),
            millis(on.recorded.at),
            i64::try_from(STEPS_MAX).unwrap_or(i64::MAX),
        ])
        .map(drop)
}

/// Gives a running deploy its outcome, which is final, and forgets which instances were its.
fn end(
    on: &Entry<'_>,
    app: AppId,
    deploy: DeployId,
    status: &str,
    detail: Option<&str>,
    superseded_by: Option<&str>,
) -> Folded {
    let (app, deploy) = (app.to_string(), deploy.to_string());
    let ended = on
        .tx
        .prepare_cached(
            "UPDATE deploys SET status = ?4, finished = ?5, detail = ?6, superseded_by = ?7
             WHERE tenant = ?1 AND deploy = ?2 AND app = ?3 AND status = 'running'",
        )?
        .execute(params![
            on.tenant,
            deploy,
            app,
            status,
            millis(on.recorded.at),
            detail,
            superseded_by,
        ])?;
    if ended == 0 {
        return Ok(());
    }
    on.tx
        .prepare_cached(
            "DELETE FROM deploy_instances WHERE tenant = ?1 AND app = ?2 AND deploy = ?3",
        )?
        .execute(params![on.tenant, app, deploy])
        .map(drop)
}
