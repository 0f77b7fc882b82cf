//! Approvals, from `tenant_*.approvals`. Keyed by the tenant whose segment speaks.
//!
//! ```text
//!   pending ─▶ granted ─▶ consumed        denied, expired and superseded are final;
//!      │          └─▶ expired, superseded  a late answer changes nothing
//!      └─▶ denied, expired, superseded
//! ```

use rusqlite::{Transaction, params};
use tabbify_types::{ApprovalId, Event, Recorded, Segment};

use super::{
    Claims, Entry, FoldError, Folded, Projection, Table, fold_of_tenant, json, millis, place,
};

pub(crate) struct Approvals;

const SCHEMA: &str = "
CREATE TABLE approvals (
  tenant TEXT NOT NULL, approval TEXT NOT NULL, request TEXT NOT NULL,
  position INTEGER NOT NULL UNIQUE, requested INTEGER NOT NULL, status TEXT NOT NULL,
  decided INTEGER, decided_by TEXT, reason TEXT, standing TEXT,
  PRIMARY KEY (tenant, approval)
) STRICT, WITHOUT ROWID;
CREATE INDEX approvals_by_status ON approvals (tenant, status, position);
";

impl Projection for Approvals {
    fn name(&self) -> &'static str {
        "approvals"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[Table {
            name: "approvals",
            key: "tenant, approval",
        }]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "approval_requested",
            "approval_granted",
            "approval_denied",
            "approval_expired",
            "approval_superseded",
            "approval_consumed",
        ])
    }

    fn reads(&self, segment: &Segment) -> bool {
        super::is_of_tenant(segment, "approvals")
    }

    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        fold_of_tenant(tx, recorded, event)
    }
}

fn event(on: &Entry<'_>, event: &Event) -> Folded {
    match event {
        Event::ApprovalRequested(event) => on
            .tx
            .prepare_cached(
                "INSERT OR IGNORE INTO approvals (tenant, approval, request, position, requested,
                     status)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'pending')",
            )?
            .execute(params![
                on.tenant,
                event.approval.to_string(),
                json(event),
                place(on.recorded.position),
                millis(on.recorded.at),
            ])
            .map(drop),
        Event::ApprovalGranted(event) => {
            let standing = event.standing.as_ref().map(json);
            answered(on, event.approval, "granted", &event.by, None, standing)
        }
        Event::ApprovalDenied(event) => {
            let reason = Some(&*event.reason);
            answered(on, event.approval, "denied", &event.by, reason, None)
        }
        Event::ApprovalExpired(event) => lapsed(on, event.approval, "expired"),
        Event::ApprovalSuperseded(event) => lapsed(on, event.approval, "superseded"),
        Event::ApprovalConsumed(event) => on
            .tx
            .prepare_cached(
                "UPDATE approvals SET status = 'consumed'
                 WHERE tenant = ?1 AND approval = ?2 AND status = 'granted'",
            )?
            .execute(params![on.tenant, event.approval.to_string()])
            .map(drop),
        _ => Ok(()),
    }
}

fn answered(
    on: &Entry<'_>,
    approval: ApprovalId,
    status: &str,
    by: &str,
    reason: Option<&str>,
    standing: Option<String>,
) -> Folded {
    on.tx
        .prepare_cached(
            "UPDATE approvals SET status = ?3, decided = ?4, decided_by = ?5, reason = ?6, standing = ?7
             WHERE tenant = ?1 AND approval = ?2 AND status = 'pending'",
        )?
        .execute(params![
            on.tenant,
            approval.to_string(),
            status,
            millis(on.recorded.at),
            by,
            reason,
            standing,
        ])
        .map(drop)
}

fn lapsed(on: &Entry<'_>, approval: ApprovalId, status: &str) -> Folded {
    on.tx
        .prepare_cached(
            "UPDATE approvals SET status = ?3, decided = ifnull(decided, ?4)
             WHERE tenant = ?1 AND approval = ?2 AND status IN ('pending', 'granted')",
        )?
        .execute(params![
            on.tenant,
            approval.to_string(),
            status,
            millis(on.recorded.at),
        ])
        .map(drop)
}
