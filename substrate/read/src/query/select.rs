//! What every question is made of: conditions, a page, and cells that become the vocabulary's types.

use std::str::FromStr;

use rusqlite::types::{Type, Value, ValueRef};
use rusqlite::{OptionalExtension as _, Row, Transaction, params_from_iter};
use serde::de::DeserializeOwned;
use tabbify_api::read::{
    CURSOR_LEN_MAX, Cursor, Listing, PAGE_LEN_MAX, QueryError, ROWS_MAX, ReadScope, TEXT_LEN_MAX,
    Window,
};
use tabbify_types::{AppId, Position, Tenant, Timestamp};

use crate::pool::Asked;
use crate::projection::place;

/// A statement that grows: every value is bound, none is ever part of the text.
#[derive(Debug)]
pub(crate) struct Select {
    text: String,
    glue: &'static str,
    values: Vec<Value>,
}

impl Select {
    /// `SELECT … FROM …` without conditions.
    pub(crate) fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            glue: " WHERE ",
            values: Vec::new(),
        }
    }

    /// And this must hold; `?` stands for each value in turn.
    pub(crate) fn and(mut self, condition: &str, values: impl IntoIterator<Item = Value>) -> Self {
        self.text.push_str(self.glue);
        self.text.push_str(condition);
        self.glue = " AND ";
        self.values.extend(values);
        self
    }

    /// And this must hold, if there is a value for it.
    pub(crate) fn and_if(self, condition: &str, value: Option<Value>) -> Self {
        match value {
            Some(value) => self.and(condition, [value]),
            None => self,
        }
    }

    /// Only rows of the scope; `column` is the one with the row's tenant.
    pub(crate) fn in_scope(self, scope: &ReadScope, column: &str) -> Self {
        match scope {
            ReadScope::Platform => self,
            ReadScope::Tenant(tenant) => self.and(&format!("{column} = ?"), [text(tenant)]),
        }
    }

    /// The page that begins here, in the order that the cursor follows.
    pub(crate) fn page<T>(
        self,
        tx: &Transaction<'_>,
        order: &str,
        window: &Window,
        mut row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
        cursor: impl FnOnce(&T) -> String,
    ) -> Result<(Vec<T>, Option<Cursor>), Asked> {
        let mut room = Room::of(window)?;
        // One more than asked for tells whether there is a next page.
        let (text, values) = self.ordered(order, room.rows + 1);
        let mut statement = tx.prepare_cached(&text)?;
        let mut found = statement.query(params_from_iter(values))?;
        let (mut rows, mut more) = (Vec::new(), false);
        while let Some(next) = found.next()? {
            if !room.takes(next)? {
                more = true;
                break;
            }
            rows.push(row(next)?);
        }
        let next = rows.last().filter(|_| more).map(cursor).map(Cursor);
        Ok((rows, next))
    }

    /// The page of a list that goes from the newest row to the oldest, by its position in the log;
    /// `position` is the column with it.
    pub(crate) fn newest<T>(
        self,
        tx: &Transaction<'_>,
        position: &str,
        window: &Window,
        mut row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<(Vec<T>, Option<Cursor>), Asked> {
        let (found, next) = self
            .and_if(&format!("{position} < ?"), cursor_position(window)?)
            .page(
                tx,
                &format!("{position} DESC"),
                window,
                |found| Ok((found.get::<_, u64>("position")?, row(found)?)),
                |(position, _)| position.to_string(),
            )?;
        Ok((found.into_iter().map(|(_, row)| row).collect(), next))
    }

    /// The statement with its values, in this order, and no more rows than that.
    pub(crate) fn ordered(mut self, order: &str, limit: usize) -> (String, Vec<Value>) {
        self.text
            .push_str(&format!(" ORDER BY {order} LIMIT {limit}"));
        (self.text, self.values)
    }

    /// The first row, if there is one.
    pub(crate) fn first<T>(
        self,
        tx: &Transaction<'_>,
        row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        let mut statement = tx.prepare_cached(&self.text)?;
        statement
            .query_row(params_from_iter(self.values), row)
            .optional()
    }
}

/// What a page still takes.
#[derive(Debug)]
pub(crate) struct Room {
    rows: usize,
    len: usize,
    is_empty: bool,
}

impl Room {
    pub(crate) fn of(window: &Window) -> Result<Self, Asked> {
        Ok(Self {
            rows: limit(window)?,
            len: PAGE_LEN_MAX,
            is_empty: true,
        })
    }

    /// Whether the page takes this row too. It takes the first one, however long.
    pub(crate) fn takes(&mut self, row: &Row<'_>) -> rusqlite::Result<bool> {
        let len = len(row)?;
        if self.rows == 0 || (len > self.len && !self.is_empty) {
            return Ok(false);
        }
        self.rows -= 1;
        self.len = self.len.saturating_sub(len);
        self.is_empty = false;
        Ok(true)
    }
}

/// Bytes of a row, as it is stored.
fn len(row: &Row<'_>) -> rusqlite::Result<usize> {
    let mut len = 0;
    for column in 0..row.as_ref().column_count() {
        len += match row.get_ref(column)? {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => size_of::<u64>(),
        };
    }
    Ok(len)
}

/// A page as it is answered, with how far these projections are.
pub(crate) fn listing<T>(
    tx: &Transaction<'_>,
    projection: &str,
    (rows, next): (Vec<T>, Option<Cursor>),
) -> Result<Listing<T>, Asked> {
    Ok(Listing {
        rows,
        next,
        position: position_of(tx, projection)?,
    })
}

/// How far a projection is.
pub(crate) fn position_of(tx: &Transaction<'_>, projection: &str) -> rusqlite::Result<Position> {
    tx.prepare_cached("SELECT position FROM projections WHERE name = ?1")?
        .query_row([projection], |row| Ok(Position(row.get(0)?)))
}

/// The tenant whose rows of `app` the scope shows: for the platform, of who registered it first.
pub(crate) fn owner(
    tx: &Transaction<'_>,
    scope: &ReadScope,
    app: AppId,
) -> rusqlite::Result<Option<Tenant>> {
    if let ReadScope::Tenant(tenant) = scope {
        return Ok(Some(tenant.clone()));
    }
    tx.prepare_cached("SELECT tenant FROM apps WHERE app = ?1 ORDER BY position LIMIT 1")?
        .query_row([app.to_string()], |row| parsed(row, "tenant"))
        .optional()
}

pub(crate) fn refused(what: &'static str, detail: impl Into<String>) -> Asked {
    Asked::Refused(QueryError::Invalid {
        what,
        detail: detail.into(),
    })
}

pub(crate) fn limit(window: &Window) -> Result<usize, Asked> {
    match window.limit {
        limit @ 1..=ROWS_MAX => Ok(limit),
        other => Err(refused(
            "limit",
            format!("{other} rows; from 1 to {ROWS_MAX}"),
        )),
    }
}

/// The parts of the cursor, if there is one.
pub(crate) fn cursor_parts<const N: usize>(window: &Window) -> Result<Option<[&str; N]>, Asked> {
    let Some(Cursor(text)) = &window.cursor else {
        return Ok(None);
    };
    if text.len() > CURSOR_LEN_MAX {
        let detail = format!("{} bytes, at most {CURSOR_LEN_MAX}", text.len());
        return Err(refused("cursor", detail));
    }
    let parts: Vec<&str> = text.split('/').collect();
    parts
        .try_into()
        .map(Some)
        .map_err(|_| refused("cursor", "it is not one of this list"))
}

/// A part of a cursor.
pub(crate) fn cursor_part<T: FromStr>(part: &str) -> Result<T, Asked> {
    part.parse()
        .map_err(|_| refused("cursor", "it is not one of this list"))
}

/// The cursor of a list that is ordered by position.
pub(crate) fn cursor_position(window: &Window) -> Result<Option<Value>, Asked> {
    let Some([part]) = cursor_parts(window)? else {
        return Ok(None);
    };
    let position: Position = cursor_part(part)?;
    Ok(Some(Value::Integer(place(position))))
}

/// A text of the caller's, within its limit.
pub(crate) fn bounded<'a>(what: &'static str, text: &'a str) -> Result<&'a str, Asked> {
    if text.len() > TEXT_LEN_MAX {
        let detail = format!("{} bytes, at most {TEXT_LEN_MAX}", text.len());
        return Err(refused(what, detail));
    }
    Ok(text)
}

pub(crate) fn text(value: &impl ToString) -> Value {
    Value::Text(value.to_string())
}

/// A cell that is one of the vocabulary's texts.
pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let index = row.as_ref().column_index(column)?;
    let wrong = |error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    };
    row.get_ref(index)?.as_str()?.parse().map_err(wrong)
}

/// A cell that is one of the vocabulary's texts, or nothing.
pub(crate) fn maybe_parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => parsed(row, column).map(Some),
    }
}

/// A cell that is a word of an enum.
pub(crate) fn word<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let word: String = row.get(column)?;
    from_json(row, column, serde_json::from_value(word.into()))
}

/// A cell that is JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let made = serde_json::from_str(row.get_ref(column)?.as_str()?);
    from_json(row, column, made)
}

/// A cell that is JSON, or nothing.
pub(crate) fn maybe_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => json(row, column).map(Some),
    }
}

fn from_json<T>(row: &Row<'_>, column: &str, made: serde_json::Result<T>) -> rusqlite::Result<T> {
    let index = row.as_ref().column_index(column)?;
    made.map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}

/// A cell that is a time.
pub(crate) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp::from_millis)
}

/// A cell that is a time, or nothing.
pub(crate) fn maybe_time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    let millis: Option<u64> = row.get(column)?;
    Ok(millis.map(Timestamp::from_millis))
}
