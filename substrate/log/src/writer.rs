//! The one writer: a thread that judges batches against the tip and commits them, one frame for
//! everything that arrived during the previous sync.
//!
//! A group is the batches of one frame. Each is judged against the tip including the batches before
//! it in the same group, and all are answered after the sync: a conflict with a batch that is not
//! on disk yet must not be told earlier than that batch.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tabbify_api::log::{Append, AppendError, Appended, BATCH_LEN_MAX};
use tabbify_types::{Position, Recorded, Rev};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::batch;
use crate::disk::{DiskFile, Guard, SyncPoint};
use crate::error::OpenError;
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader, Spare, is_full};
use crate::frame::{FRAME_LEN_MAX, FrameBuilder, FrameHash};
use crate::index::{EXTENT_EVENTS_MAX, Index, Locator, NoRoom, Part, Place};
use crate::judge::{Judge, Verdict};
use crate::keepers::Keepers;
use crate::log::{LogId, Shared};
use crate::opening::{self, Opened};
use crate::options::Options;
use crate::record::BatchPlace;
use crate::scan::{LastExtent, Tip};
use crate::spare::{NextSpare, next_len};

/// LIMIT: batches waiting for the writer, and their bytes; the next append waits.
pub(crate) const QUEUE_REQUESTS_MAX: usize = 1024;
pub(crate) const QUEUE_LEN_MAX: usize = 4 * BATCH_LEN_MAX;
/// LIMIT: batches in one group, so that a flood of refused ones cannot hold back its answers.
const GROUP_REQUESTS_MAX: usize = 2 * QUEUE_REQUESTS_MAX;
/// LIMIT: how often a group gives way to those who are about to append: some 20 µs where nobody is.
const YIELDS_MAX: u32 = 32;

type Answer = Result<Appended, AppendError>;

/// A checked batch on its way to the writer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) batch: Append,
    pub(crate) actor: Arc<str>,
    /// Bytes of its records.
    pub(crate) len: usize,
    pub(crate) answer: oneshot::Sender<Answer>,
    /// Its bytes count as waiting until it is answered.
    pub(crate) room: OwnedSemaphorePermit,
}

/// What one frame will hold, and who waits for it.
#[derive(Debug, Default)]
struct Group {
    events: Vec<Arc<Recorded>>,
    /// Where the record of each is, from the start of the frame.
    records: Vec<Locator>,
    answers: Vec<(oneshot::Sender<Answer>, Answer, OwnedSemaphorePermit)>,
}

impl Group {
    fn answer(&mut self, request: Request, answer: Answer) {
        self.answers.push((request.answer, answer, request.room));
    }
}

/// The extent that takes the next frame.
#[derive(Debug)]
struct Active {
    file: Arc<dyn DiskFile>,
    /// Position of its first event.
    first: Position,
    len: u64,
    end: u64,
}

pub(crate) struct Writer {
    queue: mpsc::Receiver<Request>,
    /// Did not fit into the last frame.
    carried: Option<Request>,
    /// Batches of the last group.
    answered: usize,
    tip: Tip,
    frame: FrameBuilder,
    active: Active,
    spare: NextSpare,
    options: Options,
    dir: PathBuf,
    log_id: LogId,
    /// Ended before another may open the log.
    keepers: Keepers,
    /// Held until the writer has ended: nobody else opens before.
    _lock: Box<dyn Guard>,
    /// Dropped last: its end tells that the directory is free.
    durable: watch::Sender<Position>,
}

impl Writer {
    /// Makes the log on disk ready for writing: creates the first extent or cuts a torn tail.
    pub(crate) fn start(
        dir: &Path,
        queue: mpsc::Receiver<Request>,
        lock: Box<dyn Guard>,
        found: Option<Opened>,
        options: Options,
    ) -> Result<(Self, Index), OpenError> {
        let dir = dir.to_owned();
        let found = match found {
            Some(found) => found,
            None => create(&dir, &options)?,
        };
        let LastExtent {
            path,
            first,
            len,
            end,
            frame,
        } = found.last;
        let file = options.disk.open_to_write(&path);
        let file = file.map_err(OpenError::io("open", &path))?;
        if let Some(torn) = &found.torn {
            tracing::warn!(extent = %path.display(), from = torn.from, to = torn.to,
                "cutting an unfinished commit");
        }
        extent::settle(&*file, frame, end, len)
            .map_err(OpenError::io("write the end of", &path))?;
        let (durable, _) = watch::channel(found.tip.head);
        let mut spare = NextSpare::default();
        spare.request(&dir, next_len(len, &options), &options);
        let writer = Self {
            queue,
            carried: None,
            answered: 0,
            // A term begins: frames of this writer are told from those of the one before.
            tip: Tip {
                epoch: found.tip.epoch.saturating_add(1),
                ..found.tip
            },
            frame: FrameBuilder::default(),
            active: Active {
                file,
                first,
                len,
                end,
            },
            spare,
            options,
            dir,
            log_id: LogId(found.log_id),
            keepers: Keepers::default(),
            _lock: lock,
            durable,
        };
        Ok((writer, found.index))
    }

    /// The log, and its last durable position whenever it moves.
    pub(crate) fn state(&self) -> (LogId, watch::Receiver<Position>) {
        (self.log_id, self.durable.subscribe())
    }

    /// Gives the index its threads; they end with the writer.
    pub(crate) fn keep_index(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        self.keepers.start(shared, self.options.scrub)
    }

    /// Until every sender is gone and the queue is empty, or the disk fails.
    pub(crate) fn run(mut self, shared: &Shared) {
        while let Some(request) = self.carried.take().or_else(|| self.queue.blocking_recv()) {
            if !self.turn(shared, request) {
                return;
            }
        }
    }

    /// One commit, of what is waiting. Whether the disk is well.
    fn turn(&mut self, shared: &Shared, request: Request) -> bool {
        if shared.has_failed() {
            return false;
        }
        let done = self.gather(shared, request).and_then(|(group, rest)| {
            self.carried = rest;
            self.commit(shared, group)
        });
        if let Err(error) = &done {
            shared.fail(error);
        }
        done.is_ok()
    }

    /// One commit of what is waiting, if anything is, as [`Writer::run`] does it.
    #[cfg(test)]
    pub(crate) fn step(&mut self, shared: &Shared) -> Step {
        match self.carried.take().or_else(|| self.queue.try_recv().ok()) {
            None => Step::Idle,
            Some(request) => match self.turn(shared, request) {
                true => Step::Done,
                false => Step::Failed,
            },
        }
    }

    /// Fills a frame with what is waiting. The second answer did not fit and opens the next frame.
    fn gather(&mut self, shared: &Shared, first: Request) -> io::Result<(Group, Option<Request>)> {
        let mut group = Group::default();
        self.frame.clear();
        let mut waiting = Some(first);
        let mut yields = 0;
        while let Some(request) = waiting {
            let judge = Judge {
                shared,
                durable: self.tip.head,
                pending: &group.events,
                failed: OnceCell::new(),
            };
            match judge.verdict(&request.batch).map_err(io::Error::other)? {
                Verdict::Answered(answer) => group.answer(request, answer),
                Verdict::Write(revs) if self.fits(&group, &request) => {
                    self.take(shared, &mut group, request, revs)?;
                }
                Verdict::Write(_) if !self.frame.is_empty() => {
                    self.answered = group.answers.len();
                    return Ok((group, Some(request)));
                }
                Verdict::Write(revs) => match self.next_extent(shared, request.len)? {
                    Ok(()) => self.take(shared, &mut group, request, revs)?,
                    Err(full) => group.answer(request, Err(full)),
                },
            }
            let full = group.answers.len() >= GROUP_REQUESTS_MAX;
            waiting = if full {
                None
            } else {
                self.next_waiting(&group, &mut yields)
            };
        }
        self.answered = group.answers.len();
        Ok((group, None))
    }

    /// The next batch of the group. Whoever was answered last appends again soon, but not all at once:
    /// a sync for the first of them alone would keep the others waiting for it. So while there are
    /// fewer than last time, they get the processor first. A lone writer waits for nobody.
    fn next_waiting(&mut self, group: &Group, yields: &mut u32) -> Option<Request> {
        loop {
            if let Ok(request) = self.queue.try_recv() {
                return Some(request);
            }
            if group.answers.len() >= self.answered || *yields >= YIELDS_MAX {
                return None;
            }
            *yields += 1;
            std::thread::yield_now();
        }
    }

    const fn pending_head(&self, group: &Group) -> Position {
        Position(self.tip.head.get() + group.events.len() as u64)
    }

    fn fits(&self, group: &Group, request: &Request) -> bool {
        let len = self.frame.len_with(request.len);
        let last = self.pending_head(group).get() + request.batch.events.len() as u64;
        len <= FRAME_LEN_MAX
            && len as u64 <= self.active.len - self.active.end
            && last - self.active.first.get() < EXTENT_EVENTS_MAX
    }

    /// Adds a judged batch to the frame and to the tip.
    fn take(
        &mut self,
        shared: &Shared,
        group: &mut Group,
        mut request: Request,
        revs: Vec<Rev>,
    ) -> io::Result<()> {
        let at = self.options.clock.now();
        let events = std::mem::take(&mut request.batch.events);
        let first = self.pending_head(group).next();
        let len = u16::try_from(events.len()).expect("INVARIANT: batch::check has bounded it");
        for ((index, event), rev) in (0..len).zip(events).zip(&revs) {
            let batch = BatchPlace { index, len };
            let position = self.pending_head(group).next();
            let of_key = (event.segment.as_str(), &*event.key);
            let place = Place { position, batch };
            shared.index.insert(of_key, *rev, event.id, place);
            let event = batch::recorded(event, position, *rev, at, &request.actor);
            let (record, start) = self.frame.push(&event, batch);
            let record = Locator::of(record, start as u64).map_err(io::Error::other)?;
            group.records.push(record);
            group.events.push(Arc::new(event));
        }
        let last = self.pending_head(group);
        group.answer(request, Ok(Appended { first, last, revs }));
        Ok(())
    }

    /// Writes and syncs the frame, then shows it to readers, then answers.
    fn commit(&mut self, shared: &Shared, mut group: Group) -> io::Result<()> {
        if !self.frame.is_empty() {
            let first = self.tip.head.next();
            let head = self.pending_head(&group);
            let (bytes, hash) =
                self.frame
                    .seal(self.tip.epoch, first, self.tip.head, self.tip.hash);
            let offset = self.active.end;
            self.active.file.write_all_at(bytes, offset)?;
            self.active.file.sync_data(SyncPoint::Commit)?;
            self.active.end += bytes.len() as u64;
            let len = bytes.len() as u64;
            for record in &mut group.records {
                record.moved(offset).map_err(io::Error::other)?;
            }
            shared.index.committed(first, offset, len, &group.records);
            self.tip = Tip {
                head,
                hash,
                epoch: self.tip.epoch,
            };
            shared.remember(&group.events);
            self.durable.send_replace(head);
        }
        for (sender, answer, room) in group.answers {
            drop(room);
            // Whoever asked may have gone; the batch is written all the same.
            let _ = sender.send(answer);
        }
        Ok(())
    }

    /// Goes on in a new extent with room for a frame of `records_len` bytes of records. The inner
    /// error is a disk without space, known before anything of the log has changed.
    fn next_extent(
        &mut self,
        shared: &Shared,
        records_len: usize,
    ) -> io::Result<Result<(), AppendError>> {
        let first = self.tip.head.next();
        match shared.index.room() {
            Ok(()) => {}
            Err(NoRoom::Refused(detail)) => return Ok(Err(AppendError::NoSpace { detail })),
            Err(NoRoom::Stopping) => return Ok(Err(AppendError::Stopping)),
        }
        let needed = (EXTENT_HEADER_LEN + self.frame.len_with(records_len)) as u64;
        let len = next_len(self.active.len, &self.options).max(needed);
        let header = |len| ExtentHeader {
            len,
            first,
            log_id: self.log_id.0,
            previous: self.tip.hash,
        };
        let ready = self
            .spare
            .take(&self.dir, needed, len, &self.options)
            .and_then(|spare| {
                spare.write_header(&header(spare.len))?;
                Ok(spare)
            });
        let spare = match ready {
            Ok(spare) => spare,
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "the log cannot grow");
                return Ok(Err(AppendError::NoSpace {
                    detail: error.to_string(),
                }));
            }
            Err(error) => return Err(error),
        };
        let len = spare.len;
        // From here on a failure leaves it open which extents there are.
        let (file, path) = spare.publish(&*self.options.disk, &self.dir, first)?;
        shared.index.next_extent(first, &path);
        if !self.options.spare_ahead {
            shared.index.keep_now().map_err(io::Error::other)?;
        }
        self.active = Active {
            file,
            first,
            len,
            end: EXTENT_HEADER_LEN as u64,
        };
        self.spare
            .request(&self.dir, next_len(len, &self.options), &self.options);
        Ok(Ok(()))
    }
}

/// What [`Writer::step`] has done.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: nothing was waiting.
    Idle,
    /// A commit, and its answers.
    Done,
    /// The disk has failed; the writer is to be dropped.
    Failed,
}

/// Makes a new log: its id and its first, empty extent.
fn create(dir: &Path, options: &Options) -> Result<Opened, OpenError> {
    let disk = &*options.disk;
    let log_id = (options.new_log_id)();
    let (first, len) = (Position(1), options.extent_len_first);
    let hash: FrameHash = extent::genesis(log_id);
    let header = ExtentHeader {
        len,
        first,
        log_id,
        previous: hash,
    };
    extent::sync_parents(disk, dir).map_err(OpenError::io("sync the directories above", dir))?;
    let made = Spare::prepare(disk, dir, len, &AtomicBool::new(false))
        .and_then(|spare| spare.write_header(&header).map(|()| spare))
        .and_then(|spare| spare.publish(disk, dir, first));
    let (_, path) = made.map_err(OpenError::io("create the first extent in", dir))?;
    let over = opening::over(dir, log_id, options);
    let active = Part::new(first, &path);
    Ok(Opened {
        log_id,
        index: Index::new(over, Vec::new(), VecDeque::new(), active),
        tip: Tip::genesis(log_id),
        last: LastExtent {
            path,
            first,
            len,
            end: EXTENT_HEADER_LEN as u64,
            frame: None,
        },
        torn: None,
    })
}

#[cfg(test)]
mod tests;
