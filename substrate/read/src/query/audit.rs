//! The search over every event.
//!
//! Words, exact values and the tenant all go to the text index, so that a search walks through its own
//! hits only; exact values and the tenant are then compared once more on the rows themselves.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params_from_iter};
use tabbify_api::read::{AuditFilter, AuditRow, Cursor, Listing, ReadScope, Window};
use tabbify_types::{Position, Rev, SegmentGlob};

use super::search::{self, Search};
use super::select::{
    Room, Select, bounded, cursor_position, json, limit, listing, maybe_parsed, parsed, text, time,
};
use crate::pool::Asked;
use crate::projection::place;

/// LIMIT: rows that one page looks at for a glob of segments; a short page goes on where it ended.
const LOOKED_MAX: usize = 20_000;

pub(crate) fn list(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    filter: &AuditFilter,
    window: &Window,
) -> Result<Listing<AuditRow>, Asked> {
    let before = cursor_position(window)?;
    let Some((select, position)) = select(scope, filter)? else {
        limit(window)?;
        return listing(tx, "audit", (Vec::new(), None));
    };
    let select = select.and_if(&format!("{position} < ?"), before);
    let order = format!("{position} DESC");
    let page = match &filter.segment {
        Some(glob) if glob.as_str().contains('*') => in_glob(tx, select, &order, glob, window)?,
        _ => select.page(tx, &order, window, audit_row, |row| {
            row.position.to_string()
        })?,
    };
    listing(tx, "audit", page)
}

/// Everything but the page, with the column that has the position; none if nothing can be found.
fn select(
    scope: &ReadScope,
    filter: &AuditFilter,
) -> Result<Option<(Select, &'static str)>, Asked> {
    let mut matched = Vec::new();
    match search::words(filter.text.as_deref().unwrap_or_default())? {
        Search::Nothing => return Ok(None),
        Search::Everything => {}
        Search::Match(words) => matched.push(words),
    }
    let exact = [
        ("key", "a.key = ?", &filter.key),
        ("type", "a.type = ?", &filter.kind),
        ("actor", "a.actor = ?", &filter.actor),
    ];
    let mut compared = Vec::new();
    for (column, condition, value) in exact {
        if let Some(value) = value {
            let value = bounded(column, value)?;
            matched.extend(search::exactly(column, value));
            compared.push((condition, Value::Text(value.to_owned())));
        }
    }
    let (mut select, position) = if matched.is_empty() {
        (Select::from("SELECT a.* FROM audit a"), "a.position")
    } else {
        if let ReadScope::Tenant(tenant) = scope {
            matched.extend(search::exactly("tenant", tenant.as_str()));
        }
        // The index first, then the rows it names, in its own order: so a full page ends the search.
        let join = "SELECT a.* FROM audit_text
                    CROSS JOIN audit a ON a.position = audit_text.rowid";
        let query = Value::Text(matched.join(" AND "));
        let select = Select::from(join).and("audit_text MATCH ?", [query]);
        (select, "audit_text.rowid")
    };
    select = select.in_scope(scope, "a.tenant");
    for (condition, value) in compared {
        select = select.and(condition, [value]);
    }
    let at = |position: Option<Position>| position.map(|at| Value::Integer(place(at)));
    select = select
        .and_if(&format!("{position} > ?"), at(filter.after))
        .and_if(&format!("{position} < ?"), at(filter.before));
    if let Some(glob) = &filter.segment {
        // A part of a glob ends at a dot, SQLite's does not: it finds all of them and more.
        let operator = match glob.as_str().contains('*') {
            true => "a.segment GLOB ?",
            false => "a.segment = ?",
        };
        select = select.and(operator, [text(glob)]);
    }
    Ok(Some((select, position)))
}

/// The page of a glob: what SQLite finds too much is left out here.
fn in_glob(
    tx: &Transaction<'_>,
    select: Select,
    order: &str,
    glob: &SegmentGlob,
    window: &Window,
) -> Result<(Vec<AuditRow>, Option<Cursor>), Asked> {
    let mut room = Room::of(window)?;
    let (text, values) = select.ordered(order, LOOKED_MAX);
    let mut statement = tx.prepare_cached(&text)?;
    let mut found = statement.query(params_from_iter(values))?;
    let (mut rows, mut looked, mut last) = (Vec::new(), 0, None);
    while let Some(next) = found.next()? {
        let row = audit_row(next)?;
        let position = row.position;
        if glob.matches(&row.segment) {
            if !room.takes(next)? {
                return Ok((rows, last));
            }
            rows.push(row);
        }
        last = Some(Cursor(position.to_string()));
        looked += 1;
        if looked == LOOKED_MAX {
            return Ok((rows, last));
        }
    }
    Ok((rows, None))
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let cause: Option<u64> = row.get("cause")?;
    Ok(AuditRow {
        position: Position(row.get("position")?),
        at: time(row, "at")?,
        segment: parsed(row, "segment")?,
        key: row.get("key")?,
        rev: Rev(row.get("rev")?),
        id: parsed(row, "id")?,
        kind: row.get("type")?,
        version: row.get("version")?,
        actor: row.get("actor")?,
        tenant: maybe_parsed(row, "tenant")?,
        cause: cause.map(Position),
        trace: row.get("trace")?,
        data: json(row, "data")?,
    })
}
