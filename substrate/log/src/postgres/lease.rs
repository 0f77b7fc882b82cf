//! Who leads: one row {epoch, holder, until}, the fence of the log.
//!
//! ```text
//!   elected:  epoch + 1, once `until` has passed by the database's clock
//!   renewed:  until, where epoch and holder are mine
//!   commit:   locks the row (for share) where epoch is mine; no row, no commit
//! ```
//!
//! An election has to lock the row against commits, so it comes wholly before or wholly after each of
//! them: a writer that was passed over, however long it slept, finds another epoch and cannot commit.
//! The clock decides only how soon a silent leader is replaced.

use std::time::Duration;

use tokio_postgres::Client;

use super::schema::sql;

/// A term of leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) epoch: i64,
    pub(super) holder: String,
}

/// What became of a try to be elected.
pub(super) enum Election {
    Won(Term),
    /// Another leads, for so long at least.
    Lost {
        holder: String,
        remaining: Duration,
    },
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Takes the lead if nobody has it. Its commit waits for the standby like every other, so whatever
/// the winner then reads is there too.
pub(super) async fn elect(
    client: &Client,
    schema: &str,
    holder: &str,
    lease: Duration,
) -> Result<Election, tokio_postgres::Error> {
    let take = "update %.leader set epoch = epoch + 1, holder = $1, \
         until = clock_timestamp() + $2 * interval '1 millisecond' \
         where until <= clock_timestamp() returning epoch";
    let won = client
        .query_opt(&sql(take, schema), &[&holder, &millis(lease)])
        .await?;
    if let Some(row) = won {
        return Ok(Election::Won(Term {
            epoch: row.get(0),
            holder: holder.to_owned(),
        }));
    }
    let look = "select holder, greatest(0, extract(epoch from until - clock_timestamp()))::float8 \
         from %.leader";
    let row = client.query_one(&sql(look, schema), &[]).await?;
    let remaining: f64 = row.get(1);
    Ok(Election::Lost {
        holder: row.get(0),
        remaining: Duration::try_from_secs_f64(remaining).unwrap_or(lease),
    })
}

/// Keeps the lead; `false` if it is lost. Waits for the standby, so on success everything that was
/// committed before is there too.
pub(super) async fn renew(
    client: &Client,
    schema: &str,
    term: &Term,
    lease: Duration,
) -> Result<bool, tokio_postgres::Error> {
    let keep = "update %.leader set until = clock_timestamp() + $3 * interval '1 millisecond' \
         where epoch = $1 and holder = $2";
    let kept = client
        .execute(
            &sql(keep, schema),
            &[&term.epoch, &term.holder, &millis(lease)],
        )
        .await?;
    Ok(kept == 1)
}

/// Gives the lead up, so that the next one need not wait.
pub(super) async fn release(
    client: &Client,
    schema: &str,
    term: &Term,
) -> Result<(), tokio_postgres::Error> {
    let end = "update %.leader set until = 'epoch', holder = '' where epoch = $1 and holder = $2";
    client
        .execute(&sql(end, schema), &[&term.epoch, &term.holder])
        .await?;
    Ok(())
}
