//! A process that reads while another leads: a notification wakes it, a poll makes up for those that
//! are lost, and only the tables say what is there.

use std::sync::Arc;
use std::time::Duration;

use tabbify_process::chain;
use tabbify_types::Position;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::connection::Connection;
use super::error::OpenError;
use super::past;

/// Between two tries to connect again.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks to be woken, and only then where the log ends, so that nothing is missed in between.
pub(super) async fn listen(connection: &Connection, schema: &str) -> Result<Position, OpenError> {
    let listen = format!("listen {schema}");
    let listening = connection.client.batch_execute(&listen).await;
    listening.map_err(OpenError::database("listen for commits"))?;
    head(connection, schema).await
}

async fn head(connection: &Connection, schema: &str) -> Result<Position, OpenError> {
    let last = past::last_frame(&connection.client, schema).await;
    let last = last.map_err(OpenError::database("find the log's end"))?;
    Ok(last.map_or(Position(0), |(head, _)| head))
}

/// Until the engine is closed, the database is away for too long, or it has lost events.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut connection: Connection,
    durable: watch::Sender<Position>,
) {
    let closing = shared.tasks.token();
    let options = &shared.options;
    let mut seen = Instant::now();
    loop {
        tokio::select! {
            () = connection.notified() => {}
            () = tokio::time::sleep(options.poll_every) => {}
            () = closing.cancelled() => return,
        }
        let found = match head(&connection, &options.schema).await {
            Ok(found) => Ok(found),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "following the log is interrupted");
                again(&shared, &mut connection).await
            }
        };
        match found {
            Ok(found) => {
                let told = *durable.borrow();
                if found < told {
                    tracing::error!(%found, %told, "the log's database has lost events");
                    return;
                }
                seen = Instant::now();
                durable.send_if_modified(|head| {
                    let moved = *head != found;
                    *head = found;
                    moved
                });
            }
            Err(error) if seen.elapsed() < options.outage_max => {
                tracing::debug!(error = %chain(&error), "the log's database is not back yet");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "the log's database stays away");
                return;
            }
        }
    }
}

async fn again(shared: &Shared, connection: &mut Connection) -> Result<Position, OpenError> {
    *connection = Connection::open(&shared.options, &shared.tasks).await?;
    listen(connection, &shared.options.schema).await
}
