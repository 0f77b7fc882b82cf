//! The tables, made and versioned by us. Plain SQL.
//!
//! ```text
//!   about    one row: format, log id
//!   leader   one row: epoch, holder, until          the fence: every commit locks and checks it
//!   frames   one row a commit: positions, epoch, hash of the one before, hash
//!   events   one row an event, by position
//! ```
//!
//! Texts that may hold a NUL, which PostgreSQL's do not, are `bytea`. Positions and revisions are the
//! writer's; no sequence is involved, so there is no gap where a transaction was rolled back.

use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::error::OpenError;
use crate::log::LogId;

/// The format that this version makes, and the newest that it knows.
pub(super) const FORMAT_VERSION: i32 = 1;

/// What makes a schema a log, with `%` for its name.
const TABLES: &str = "
create table %.about (
    only_one boolean primary key default true check (only_one),
    format integer not null,
    log_id bytea not null check (octet_length(log_id) = 16)
);
create table %.leader (
    only_one boolean primary key default true check (only_one),
    epoch bigint not null,
    holder text not null,
    until timestamptz not null
);
create table %.frames (
    first bigint primary key check (first > 0),
    last bigint not null unique check (last >= first),
    epoch bigint not null,
    previous bytea not null check (octet_length(previous) = 32),
    hash bytea not null check (octet_length(hash) = 32)
);
create table %.events (
    position bigint primary key check (position > 0),
    segment text collate \"C\" not null,
    key bytea not null,
    rev bigint not null,
    id uuid not null unique,
    kind text collate \"C\" not null,
    version integer not null,
    batch_index integer not null,
    batch_len integer not null,
    at bigint not null,
    actor bytea not null,
    cause bigint not null,
    trace bytea not null,
    data text not null,
    unique (segment, key, rev)
);
insert into %.leader (epoch, holder, until) values (0, '', 'epoch');
";

/// SQL with the schema's name in place of `%`. The name has been checked and needs no quotes.
pub(super) fn sql(text: &str, schema: &str) -> String {
    text.replace('%', schema)
}

/// The log's id, if the schema holds a log that this program knows.
pub(super) async fn find(
    client: &impl GenericClient,
    schema: &str,
) -> Result<Option<LogId>, OpenError> {
    let about = sql("select format, log_id from %.about", schema);
    let row = match client.query_opt(&about, &[]).await {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(None),
        Err(error) => {
            return match error.code() {
                Some(&(SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME)) => Ok(None),
                _ => Err(OpenError::database("look for the log")(error)),
            };
        }
    };
    let version: i32 = row.get(0);
    if version > FORMAT_VERSION {
        return Err(OpenError::Newer { version });
    }
    let log_id = <[u8; 16]>::try_from(row.get::<_, &[u8]>(1));
    Ok(Some(LogId(log_id.expect(
        "INVARIANT: the table checks that an id has 16 bytes",
    ))))
}

/// Makes the log's tables inside the caller's transaction. Of several at once, the others wait and
/// then find the log made.
pub(super) async fn create(
    transaction: &tokio_postgres::Transaction<'_>,
    schema: &str,
    log_id: LogId,
) -> Result<LogId, OpenError> {
    let failed = || OpenError::database("make the log's tables");
    let lock = "select pg_advisory_xact_lock(hashtext($1))";
    transaction
        .query(lock, &[&format!("tabbify log {schema}")])
        .await
        .map_err(failed())?;
    // Looking for a table that is not there would end the transaction.
    let there = "select to_regclass($1) is not null";
    let there = transaction
        .query_one(there, &[&format!("{schema}.about")])
        .await
        .map_err(failed())?;
    if there.get(0)
        && let Some(found) = find(transaction, schema).await?
    {
        return Ok(found);
    }
    let tables = format!("create schema if not exists %;{TABLES}");
    transaction
        .batch_execute(&sql(&tables, schema))
        .await
        .map_err(failed())?;
    let about = sql(
        "insert into %.about (format, log_id) values ($1, $2)",
        schema,
    );
    transaction
        .execute(&about, &[&FORMAT_VERSION, &log_id.0.as_slice()])
        .await
        .map_err(failed())?;
    Ok(log_id)
}
