//! Deploys with their steps, and builds.

use rusqlite::{Row, Transaction, params};
use tabbify_api::read::{BuildRow, DeployRow, Listing, ReadScope, StepRow, Window};
use tabbify_types::{AppId, InstanceId, VersionNumber};

use super::select::{
    Select, json, listing, maybe_json, maybe_parsed, maybe_time, parsed, text, time, word,
};
use crate::pool::Asked;

pub(crate) fn list(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: Option<AppId>,
    window: &Window,
) -> Result<Listing<DeployRow>, Asked> {
    let select = of_app("SELECT * FROM deploys", scope, app);
    let (mut rows, next) = select.newest(tx, "position", window, deploy_row)?;
    for row in &mut rows {
        row.steps = steps(tx, row)?;
    }
    listing(tx, "deploys", (rows, next))
}

pub(crate) fn builds(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: Option<AppId>,
    window: &Window,
) -> Result<Listing<BuildRow>, Asked> {
    let select = of_app("SELECT * FROM builds", scope, app);
    let page = select.newest(tx, "position", window, build_row)?;
    listing(tx, "builds", page)
}

/// Of one app or of all that the scope shows.
fn of_app(text_of: &str, scope: &ReadScope, app: Option<AppId>) -> Select {
    Select::from(text_of)
        .in_scope(scope, "tenant")
        .and_if("app = ?", app.map(|app| text(&app)))
}

fn deploy_row(row: &Row<'_>) -> rusqlite::Result<DeployRow> {
    Ok(DeployRow {
        deploy: parsed(row, "deploy")?,
        app: parsed(row, "app")?,
        tenant: parsed(row, "tenant")?,
        version: VersionNumber(row.get("version")?),
        status: word(row, "status")?,
        requested: time(row, "requested")?,
        actor: row.get("actor")?,
        finished: maybe_time(row, "finished")?,
        detail: row.get("detail")?,
        superseded_by: maybe_parsed(row, "superseded_by")?,
        steps: Vec::new(),
    })
}

fn steps(tx: &Transaction<'_>, deploy: &DeployRow) -> rusqlite::Result<Vec<StepRow>> {
    let mut statement = tx.prepare_cached(
        "SELECT step, instance, at FROM deploy_steps WHERE tenant = ?1 AND deploy = ?2
         ORDER BY seq",
    )?;
    let key = params![deploy.tenant.as_str(), deploy.deploy.to_string()];
    let rows = statement.query_map(key, |row| {
        let instance: Option<u32> = row.get("instance")?;
        Ok(StepRow {
            step: row.get("step")?,
            instance: instance.map(InstanceId),
            at: time(row, "at")?,
        })
    })?;
    rows.collect()
}

fn build_row(row: &Row<'_>) -> rusqlite::Result<BuildRow> {
    Ok(BuildRow {
        build: parsed(row, "build")?,
        app: parsed(row, "app")?,
        tenant: parsed(row, "tenant")?,
        source: json(row, "source")?,
        status: word(row, "status")?,
        requested: time(row, "requested")?,
        actor: row.get("actor")?,
        host: maybe_parsed(row, "host")?,
        finished: maybe_time(row, "finished")?,
        artifact: maybe_parsed(row, "artifact")?,
        failure: maybe_json(row, "failure")?,
    })
}
