//! The digest of the content: equal for two files that hold the same rows, whatever their pages.

use rusqlite::Transaction;
use rusqlite::types::ValueRef;
use tabbify_types::Digest;

use crate::projection::{self, Table};

/// Where each projection stands is content too.
const STANDING: Table = Table {
    name: "projections",
    key: "name",
};

/// Every row of every table: tables in the order of [`projection::ALL`], rows in the order of their
/// key, columns as they were created.
pub(crate) fn of(tx: &Transaction<'_>) -> rusqlite::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hash_table(tx, STANDING, &mut hasher)?;
    for projection in projection::ALL {
        for table in projection.tables() {
            hash_table(tx, *table, &mut hasher)?;
        }
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn hash_table(
    tx: &Transaction<'_>,
    table: Table,
    hasher: &mut blake3::Hasher,
) -> rusqlite::Result<()> {
    let text = format!("SELECT * FROM {} ORDER BY {}", table.name, table.key);
    let mut statement = tx.prepare(&text)?;
    let columns = statement.column_count();
    hash_bytes(hasher, b'T', table.name.as_bytes());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        hasher.update(b"R");
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => {
                    hasher.update(b"0");
                }
                ValueRef::Integer(number) => hash_bytes(hasher, b'i', &number.to_le_bytes()),
                ValueRef::Real(number) => hash_bytes(hasher, b'f', &number.to_le_bytes()),
                ValueRef::Text(text) => hash_bytes(hasher, b't', text),
                ValueRef::Blob(bytes) => hash_bytes(hasher, b'b', bytes),
            }
        }
    }
    Ok(())
}

/// With kind and length, so that no two rows have the same bytes by accident.
fn hash_bytes(hasher: &mut blake3::Hasher, kind: u8, bytes: &[u8]) {
    hasher.update(&[kind]);
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
