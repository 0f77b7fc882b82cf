//! Export and import of a log in PostgreSQL.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use tabbify_process::Tasks;
use tokio_postgres::types::ToSql;

use super::Engine;
use super::connection::Connection;
use super::error::OpenError;
use super::options::Options;
use super::rows::{ARRAYS, COLUMNS, Columns, signed};
use super::schema::{self, sql};
use super::verify::{check_keys, found, snapshot, walk};
use crate::frame::Frame;
use crate::transfer::{Content, Export, ExportFile, Import, TransferError};

impl Engine {
    /// Writes the log as it is at one moment, verified, to a new file. Whoever leads goes on.
    ///
    /// # Errors
    /// [`TransferError`]; there is no file then.
    pub async fn export(options: Options, to: &Path) -> Result<Content, TransferError> {
        let tasks = Tasks::new();
        let failed = TransferError::Postgres;
        let mut connection = Connection::open(&options, &tasks).await.map_err(failed)?;
        let transaction = snapshot(&mut connection).await.map_err(failed)?;
        let log_id = found(&transaction, &options.schema).await.map_err(failed)?;
        let file = ExportFile::create(to)?;
        let write = |source| TransferError::io("write", to)(source);
        let mut export = Export::start(file, log_id).map_err(write)?;
        let mut unwritten = None;
        let walked = walk(&transaction, &options.schema, log_id, |records| {
            export.commit(records).map_err(|error| {
                unwritten = Some(error);
                OpenError::Aborted
            })
        });
        let walked = walked.await;
        if let Some(error) = unwritten {
            return Err(write(error));
        }
        walked.map_err(failed)?;
        let (file, content) = export.finish().map_err(write)?;
        file.finish()?;
        Ok(content)
    }

    /// Fills a schema that holds no log from an export: all of it, or nothing.
    ///
    /// # Errors
    /// [`TransferError`]; the database is unchanged then.
    pub async fn import(options: Options, from: &Path) -> Result<Content, TransferError> {
        let file = File::open(from).map_err(TransferError::io("open", from))?;
        let mut import = Import::start(BufReader::with_capacity(1 << 20, file))?;
        let tasks = Tasks::new();
        let failed = TransferError::Postgres;
        let database = |action| move |error| failed(OpenError::database(action)(error));
        let mut connection = Connection::open(&options, &tasks).await.map_err(failed)?;
        connection
            .check_server(options.standby)
            .await
            .map_err(failed)?;
        let schema = &options.schema;
        let taken = schema::find(&connection.client, schema).await;
        if taken.map_err(failed)?.is_some() {
            return Err(failed(OpenError::Taken {
                schema: schema.clone(),
            }));
        }
        let transaction = connection.client.transaction().await;
        let transaction = transaction.map_err(database("begin to import"))?;
        let made = schema::create(&transaction, schema, import.log_id()).await;
        if made.map_err(failed)? != import.log_id() {
            // Somebody made one in between.
            return Err(failed(OpenError::Taken {
                schema: schema.clone(),
            }));
        }
        while let Some((frame, _)) = import.frame()? {
            insert(&transaction, schema, &frame).await.map_err(failed)?;
        }
        check_keys(&transaction, schema).await.map_err(failed)?;
        transaction
            .commit()
            .await
            .map_err(database("commit the import"))?;
        if connection.warned() {
            return Err(failed(OpenError::Unreplicated));
        }
        Ok(import.content())
    }
}

/// Writes one frame of an export as one commit.
async fn insert(
    transaction: &tokio_postgres::Transaction<'_>,
    schema: &str,
    frame: &Frame<'_>,
) -> Result<(), OpenError> {
    let first = frame.header.first;
    let mut events = Vec::new();
    for event in frame.events() {
        let wrong = |what: &'static str| OpenError::damaged(first, what);
        let event = event.map_err(wrong)?;
        events.push((event.to_recorded().map_err(wrong)?, event.place));
    }
    let mut columns = Columns::default();
    for (event, place) in &events {
        columns.push(event, *place);
    }
    let commit =
        "insert into %.frames (first, last, epoch, previous, hash) values ($1, $2, 0, $3, $4)";
    let (from, last) = (signed(first.get()), signed(frame.header.last().get()));
    let (previous, hash) = (frame.header.previous.0.as_slice(), frame.hash.0.as_slice());
    let values: [&(dyn ToSql + Sync); 4] = [&from, &last, &previous, &hash];
    let failed = || OpenError::database("write an imported commit");
    transaction
        .execute(&sql(commit, schema), &values)
        .await
        .map_err(failed())?;
    let arrays: Vec<String> = ARRAYS
        .iter()
        .enumerate()
        .map(|(index, of)| format!("${}::{}[]", index + 1, of.name().trim_start_matches('_')))
        .collect();
    let rows = format!(
        "insert into %.events ({COLUMNS}) select * from unnest({})",
        arrays.join(", ")
    );
    transaction
        .execute(&sql(&rows, schema), &columns.arrays())
        .await
        .map_err(failed())?;
    Ok(())
}
