//! People and the tokens that were issued, from `platform.auth`.

use rusqlite::{Transaction, params};
use tabbify_types::{Event, Recorded, Segment};

use super::{Claims, FoldError, Projection, Table, millis, place};

pub(crate) struct Tokens;

const SCHEMA: &str = "
CREATE TABLE users (
  subject TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, registered INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
  jti TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL,
  position INTEGER NOT NULL UNIQUE, issued INTEGER NOT NULL, expires INTEGER NOT NULL,
  used INTEGER, revoked INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_subject ON tokens (subject, position);
";

impl Projection for Tokens {
    fn name(&self) -> &'static str {
        "tokens"
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn tables(&self) -> &'static [Table] {
        &[
            Table {
                name: "users",
                key: "subject",
            },
            Table {
                name: "tokens",
                key: "jti",
            },
        ]
    }

    fn claims(&self) -> Claims {
        Claims::Types(&[
            "user_registered",
            "token_issued",
            "token_used",
            "token_revoked",
        ])
    }

    fn reads(&self, segment: &Segment) -> bool {
        *segment == Segment::auth()
    }

    fn apply(&self, tx: &Transaction<'_>, recorded: &Recorded) -> Result<(), FoldError> {
        match recorded.event()? {
            // The first registration counts: a subject never moves to another tenant, or its older
            // tokens would be shown there.
            Some(Event::UserRegistered(event)) => {
                tx.prepare_cached(
                    "INSERT OR IGNORE INTO users (subject, tenant, registered) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![
                    event.user,
                    event.tenant.as_str(),
                    millis(recorded.at)
                ])?;
            }
            Some(Event::TokenIssued(event)) => {
                tx.prepare_cached(
                    "INSERT OR IGNORE INTO tokens (jti, kind, subject, position, issued, expires)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    event.jti,
                    event.kind,
                    event.subject,
                    place(recorded.position),
                    millis(recorded.at),
                    millis(event.expires),
                ])?;
            }
            Some(Event::TokenUsed(event)) => {
                tx.prepare_cached("UPDATE tokens SET used = ?2 WHERE jti = ?1 AND used IS NULL")?
                    .execute(params![event.jti, millis(recorded.at)])?;
            }
            Some(Event::TokenRevoked(event)) => {
                tx.prepare_cached(
                    "UPDATE tokens SET revoked = ?2 WHERE jti = ?1 AND revoked IS NULL",
                )?
                .execute(params![event.jti, millis(recorded.at)])?;
            }
            _ => {}
        }
        Ok(())
    }
}
