//! The history of keys: their events alone, where the index says that they are. A record that a run
//! points to is held against the hash in the run, which was taken from a verified frame; where they
//! disagree, and where no run points, the whole frame is read and verified.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tabbify_api::log::ReadError;
use tabbify_types::Position;

use super::frames::Frames;
use super::{Bounds, Wanted, lost};
use crate::disk::DiskFile;
use crate::fields::size;
use crate::index::{Found, KeyHash, Locator};
use crate::log::Shared;
use crate::pass::Looked;
use crate::record::{self, EventRef};

/// LIMIT: events that the index is asked for at once.
const FOUND_MAX: usize = 4096;

/// A pass over the events of these keys after `after`, up to `upto`.
pub(super) fn pass(
    shared: &Shared,
    wanted: &mut Wanted,
    keys: &[KeyHash],
    (after, upto): (Position, Position),
    bounds: Bounds,
) -> Result<Looked, ReadError> {
    let mut looked = Looked::from(after);
    let (mut records, mut read_len) = (Records::new(shared), 0);
    loop {
        let room = bounds.room.events.saturating_sub(looked.events.len());
        let limit = room.clamp(1, FOUND_MAX);
        let found = find(shared, keys, (looked.upto, upto), limit)?;
        let all = found.len() < limit;
        let mut found = found.into_iter().peekable();
        while let Some(next) = found.next() {
            if looked.fills(bounds.room) || read_len >= bounds.read_len {
                return Ok(looked);
            }
            let mut take = |event: &EventRef<'_>| {
                looked.upto = event.position;
                if wanted.wants(event.segment, event.kind, event.key) {
                    looked.add(Arc::new(wanted.recorded(event)?));
                }
                Ok(looked.fills(bounds.room))
            };
            match &next.at {
                Some((extent, at)) if records.read(extent, at, next.position, &mut take)? => {
                    read_len += size(at.len);
                }
                _ => {
                    // All of one frame, while it is in memory.
                    let mut due = Some(next.position);
                    read_len += of_frame(shared, next.position, |event, last| {
                        while due.is_some_and(|due| due < event.position) {
                            due = found
                                .next_if(|it| it.position <= last)
                                .map(|it| it.position);
                        }
                        match due {
                            None => Ok(ControlFlow::Break(())),
                            Some(due) if due == event.position && take(event)? => {
                                Ok(ControlFlow::Break(()))
                            }
                            Some(_) => Ok(ControlFlow::Continue(())),
                        }
                    })?;
                }
            }
        }
        if looked.fills(bounds.room) {
            return Ok(looked);
        }
        if all {
            looked.upto = upto;
            return Ok(looked);
        }
    }
}

/// Events of any of the keys, in position order; as many as `limit`, or all there are.
fn find(
    shared: &Shared,
    keys: &[KeyHash],
    (after, upto): (Position, Position),
    limit: usize,
) -> Result<Vec<Found>, ReadError> {
    let mut found = Vec::new();
    for key in keys {
        let of_key = shared.index.history(*key, after, upto, limit);
        found.extend(of_key.map_err(|error| lost(&error))?);
    }
    if keys.len() > 1 {
        found.sort_by_key(|it| it.position);
        found.dedup_by_key(|it| it.position);
        found.truncate(limit);
    }
    Ok(found)
}

/// Gives the events of the frame that has `position`, from there on, with the last position of it.
fn of_frame(
    shared: &Shared,
    position: Position,
    mut take: impl FnMut(&EventRef<'_>, Position) -> Result<ControlFlow<()>, &'static str>,
) -> Result<usize, ReadError> {
    let (mut frames, mut read_len, mut given) = (Frames::new(shared), 0, false);
    while !given {
        read_len += frames.read(position)?;
        frames.each_of_frame(position, |event, last| {
            given = true;
            take(event, last)
        })?;
    }
    Ok(read_len)
}

/// Reads single records.
struct Records<'a> {
    shared: &'a Shared,
    file: Option<(Arc<Path>, Arc<dyn DiskFile>)>,
    bytes: Vec<u8>,
}

impl<'a> Records<'a> {
    const fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            file: None,
            bytes: Vec::new(),
        }
    }

    /// Gives the record at a place to `take`. False if what is there is not what the run says.
    fn read(
        &mut self,
        extent: &Arc<Path>,
        at: &Locator,
        position: Position,
        take: &mut dyn FnMut(&EventRef<'_>) -> Result<bool, &'static str>,
    ) -> Result<bool, ReadError> {
        if size(at.len) > record::RECORD_LEN_MAX || !self.fill(extent, at) {
            return Ok(false);
        }
        let Ok((event, _)) = record::decode(&self.bytes, position) else {
            return Ok(false);
        };
        let wrong = |what: &str| super::damaged(extent, u64::from(at.offset), what);
        take(&event).map_err(wrong)?;
        Ok(true)
    }

    fn fill(&mut self, extent: &Arc<Path>, at: &Locator) -> bool {
        self.bytes.resize(size(at.len), 0);
        let file = match &self.file {
            Some((path, file)) if path == extent => Ok(Arc::clone(file)),
            _ => self.shared.files.get(extent),
        };
        let Ok(file) = file else {
            return false;
        };
        let read = file.read_exact_at(&mut self.bytes, u64::from(at.offset));
        self.file = Some((Arc::clone(extent), file));
        read.is_ok() && Locator::sum_of(&self.bytes) == at.sum
    }
}
