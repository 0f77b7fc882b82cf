//! Tokens and approvals: who may, and who said so.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction};
use tabbify_api::read::{ApprovalRow, ApprovalStatus, Listing, ReadScope, TokenRow, Window};

use super::select::{
    Select, json, listing, maybe_json, maybe_parsed, maybe_time, parsed, time, word,
};
use crate::pool::Asked;
use crate::projection;

pub(crate) fn list(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    window: &Window,
) -> Result<Listing<TokenRow>, Asked> {
    let text = "SELECT t.*, u.tenant FROM tokens t LEFT JOIN users u ON u.subject = t.subject";
    let select = Select::from(text).in_scope(scope, "u.tenant");
    let page = select.newest(tx, "t.position", window, token_row)?;
    listing(tx, "tokens", page)
}

pub(crate) fn approvals(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    status: Option<ApprovalStatus>,
    window: &Window,
) -> Result<Listing<ApprovalRow>, Asked> {
    let status = status.map(|status| Value::Text(projection::word(&status)));
    let page = Select::from("SELECT * FROM approvals")
        .in_scope(scope, "tenant")
        .and_if("status = ?", status)
        .newest(tx, "position", window, approval_row)?;
    listing(tx, "approvals", page)
}

fn token_row(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        jti: row.get("jti")?,
        kind: row.get("kind")?,
        subject: row.get("subject")?,
        tenant: maybe_parsed(row, "tenant")?,
        issued: time(row, "issued")?,
        expires: time(row, "expires")?,
        used: maybe_time(row, "used")?,
        revoked: maybe_time(row, "revoked")?,
    })
}

fn approval_row(row: &Row<'_>) -> rusqlite::Result<ApprovalRow> {
    Ok(ApprovalRow {
        request: json(row, "request")?,
        tenant: parsed(row, "tenant")?,
        status: word(row, "status")?,
        requested: time(row, "requested")?,
        decided: maybe_time(row, "decided")?,
        by: row.get("decided_by")?,
        reason: row.get("reason")?,
        standing: maybe_json(row, "standing")?,
    })
}
