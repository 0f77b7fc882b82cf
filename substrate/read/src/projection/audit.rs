//! Every event on record, with full-text search over type, key, actor and data.
//!
//! The text index holds no copy of the texts (external content); it also indexes the tenant, so that a
//! tenant's search does not walk through everybody's hits.

use rusqlite::{Transaction, params};
use tabbify_types::{Recorded, Segment};

use super::{Claims, FoldError, Projection, Table, millis, place};

pub(crate) struct Audit;

const SCHEMA: &str = "
CREATE TABLE audit (
  position INTEGER PRIMARY KEY, at INTEGER NOT NULL, segment TEXT NOT NULL, key TEXT NOT NULL,
  rev INTEGER NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL, version INTEGER NOT NULL,
  actor TEXT NOT NULL, tenant TEXT, cause INTEGER, trace TEXT, data TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_tenant ON audit (tenant, position);
CREATE VIRTUAL TABLE audit_text USING fts5 (
  type, key, actor, data, tenant, content = 'audit', content_rowid = 'position',
  tokenize = 'unicode61'
);
";

impl Projection for Audit {
    fn name(&self) -> &'static str {
        "audit"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[Table {
            name: "audit",
            key: "position",
        }]
    }

    fn claims(&self) -> Claims {
        Claims::Every
    }

    fn reads(&self, _: &Segment) -> bool {
        true
    }

    /// Never decodes: what this program does not understand is on record all the same.
    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        let tenant = recorded.segment.tenant();
        let tenant = tenant.as_ref().map(tabbify_types::Tenant::as_str);
        tx.prepare_cached(
            "INSERT INTO audit (position, at, segment, key, rev, id, type, version, actor, tenant,
                 cause, trace, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            place(recorded.position),
            millis(recorded.at),
            recorded.segment.as_str(),
            recorded.key,
            super::int(recorded.rev.get()),
            recorded.id.to_string(),
            recorded.kind,
            recorded.version,
            recorded.actor,
            tenant,
            recorded.cause.map(place),
            recorded.trace,
            recorded.data.get(),
        ])?;
        tx.prepare_cached(
            "INSERT INTO audit_text (rowid, type, key, actor, data, tenant)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            place(recorded.position),
            recorded.kind,
            recorded.key,
            recorded.actor,
            recorded.data.get(),
            tenant,
        ])?;
        Ok(())
    }
}
