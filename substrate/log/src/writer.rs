//! The one writer: a thread that judges batches against the tip and commits them, one frame for
//! everything that arrived during the previous sync.
//!
//! A group is the batches of one frame. Each is judged against the tip including the batches before
//! it in the same group, and all are answered after the sync: a conflict with a batch that is not
//! on disk yet must not be told earlier than that batch.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use tabbify_api::log::{Append, AppendError, Appended, BATCH_LEN_MAX};
use tabbify_types::{Position, Recorded};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::error::OpenError;
use crate::extent::{self, EXTENT_HEADER_LEN, ExtentHeader, Lock, Spare};
use crate::frame::{FRAME_LEN_MAX, FrameBuilder, FrameHash};
use crate::index::{Frames, Index, Place};
use crate::judge::{Judge, Verdict};
use crate::log::{LogId, Shared};
use crate::options::Options;
use crate::record::BatchPlace;
use crate::scan::{Scanned, Tip};
use crate::spare::{NextSpare, next_len};

/// LIMIT: batches waiting for the writer, and their bytes; the next append waits.
pub(crate) const QUEUE_REQUESTS_MAX: usize = 1024;
pub(crate) const QUEUE_LEN_MAX: usize = 4 * BATCH_LEN_MAX;
/// LIMIT: batches in one group, so that a flood of refused ones cannot hold back its answers.
const GROUP_REQUESTS_MAX: usize = 2 * QUEUE_REQUESTS_MAX;

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
    file: File,
    len: u64,
    end: u64,
}

pub(crate) struct Writer {
    queue: mpsc::Receiver<Request>,
    index: Index,
    tip: Tip,
    frame: FrameBuilder,
    active: Active,
    spare: NextSpare,
    options: Options,
    dir: PathBuf,
    log_id: LogId,
    /// Held until the writer has ended: nobody else opens before.
    _lock: Lock,
    /// Dropped last: its end tells that the directory is free.
    durable: watch::Sender<Position>,
}

impl Writer {
    /// Makes the log on disk ready for writing: creates the first extent or cuts a torn tail.
    pub(crate) fn start(
        shared: &mut Shared,
        queue: mpsc::Receiver<Request>,
        lock: Lock,
        found: Option<Scanned>,
        options: Options,
    ) -> Result<Self, OpenError> {
        let dir = shared.dir.clone();
        let found = match found {
            Some(found) => found,
            None => create(shared, &options)?,
        };
        let (path, len, end) = found.last;
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(OpenError::io("open", &path))?;
        if let Some(torn) = &found.torn {
            tracing::warn!(extent = %path.display(), from = torn.from, to = torn.to,
                "cutting an unfinished commit");
            extent::cut(&file, torn.from, torn.to).map_err(OpenError::io("cut", &path))?;
        }
        let (durable, reading) = watch::channel(found.tip.head);
        shared.log_id = LogId(found.log_id);
        shared.durable = reading;
        *shared
            .frames
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner) = found.frames;
        let mut spare = NextSpare::default();
        spare.request(&dir, next_len(len, &options), &options);
        Ok(Self {
            queue,
            index: found.index,
            // A term begins: frames of this writer are told from those of the one before.
            tip: Tip {
                epoch: found.tip.epoch.saturating_add(1),
                ..found.tip
            },
            frame: FrameBuilder::default(),
            active: Active { file, len, end },
            spare,
            options,
            dir,
            log_id: LogId(found.log_id),
            _lock: lock,
            durable,
        })
    }

    /// Until every sender is gone and the queue is empty, or the disk fails.
    pub(crate) fn run(mut self, shared: &Shared) {
        let mut carried = None;
        while let Some(request) = carried.take().or_else(|| self.queue.blocking_recv()) {
            let done = self.gather(shared, request).and_then(|(group, rest)| {
                carried = rest;
                self.commit(shared, group)
            });
            if let Err(error) = done {
                tracing::error!(%error, dir = %self.dir.display(), "the log's disk has failed");
                (self.options.on_failure)(&error);
                return;
            }
        }
    }

    /// Fills a frame with what is waiting. The second answer did not fit and opens the next frame.
    fn gather(&mut self, shared: &Shared, first: Request) -> io::Result<(Group, Option<Request>)> {
        let mut group = Group::default();
        self.frame.clear();
        let mut waiting = Some(first);
        while let Some(request) = waiting {
            let judge = Judge {
                shared,
                index: &self.index,
                durable: self.tip.head,
                pending: &group.events,
            };
            match judge.verdict(&request.batch) {
                Verdict::Answered(answer) => group.answer(request, answer),
                Verdict::Write if self.fits(request.len) => self.take(&mut group, request),
                Verdict::Write if !self.frame.is_empty() => return Ok((group, Some(request))),
                Verdict::Write => match self.next_extent(shared, request.len)? {
                    Ok(()) => self.take(&mut group, request),
                    Err(full) => group.answer(request, Err(full)),
                },
            }
            let full = group.answers.len() >= GROUP_REQUESTS_MAX;
            waiting = if full {
                None
            } else {
                self.queue.try_recv().ok()
            };
        }
        Ok((group, None))
    }

    const fn pending_head(&self, group: &Group) -> Position {
        Position(self.tip.head.get() + group.events.len() as u64)
    }

    fn fits(&self, more: usize) -> bool {
        let len = self.frame.len_with(more);
        len <= FRAME_LEN_MAX && len as u64 <= self.active.len - self.active.end
    }

    /// Adds a judged batch to the frame and to the tip.
    fn take(&mut self, group: &mut Group, mut request: Request) {
        let at = self.options.clock.now();
        let events = std::mem::take(&mut request.batch.events);
        let first = self.pending_head(group).next();
        let len = u16::try_from(events.len()).expect("INVARIANT: batch::check has bounded it");
        let mut revs = Vec::with_capacity(events.len());
        for (index, event) in (0..len).zip(events) {
            let place = BatchPlace { index, len };
            let position = self.pending_head(group).next();
            let rev = self.index.advance(event.segment.as_str(), &event.key);
            let inserted = self.index.insert(
                event.id,
                Place {
                    position,
                    batch: place,
                },
            );
            inserted.expect("INVARIANT: the id was unknown when the batch was judged");
            revs.push(rev);
            let event = Recorded {
                position,
                segment: event.segment,
                key: event.key,
                rev,
                id: event.id,
                kind: event.kind,
                version: event.version,
                at,
                actor: (*request.actor).to_owned(),
                cause: event.cause,
                trace: event.trace,
                data: event.data,
            };
            self.frame.push(&event, place);
            group.events.push(Arc::new(event));
        }
        let last = self.pending_head(group);
        group.answer(request, Ok(Appended { first, last, revs }));
    }

    /// Writes and syncs the frame, then shows it to readers, then answers.
    fn commit(&mut self, shared: &Shared, group: Group) -> io::Result<()> {
        if !self.frame.is_empty() {
            let first = self.tip.head.next();
            let head = self.pending_head(&group);
            let (bytes, hash) =
                self.frame
                    .seal(self.tip.epoch, first, self.tip.head, self.tip.hash);
            let offset = self.active.end;
            self.active.file.write_all_at(bytes, offset)?;
            (self.options.faults.on_sync)()?;
            self.active.file.sync_data()?;
            self.active.end += bytes.len() as u64;
            let as_u32 =
                |len: u64| u32::try_from(len).expect("INVARIANT: extents are at most 64 MiB");
            let mut frames = shared
                .frames
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            frames.push(first, as_u32(offset), as_u32(bytes.len() as u64));
            drop(frames);
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
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "the log cannot grow");
                return Ok(Err(AppendError::NoSpace {
                    detail: error.to_string(),
                }));
            }
        };
        let len = spare.len;
        // From here on a failure leaves it open which extents there are.
        let (file, path) = spare.publish(&self.dir, first)?;
        shared
            .frames
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push_extent(&path);
        self.active = Active {
            file,
            len,
            end: EXTENT_HEADER_LEN as u64,
        };
        self.spare
            .request(&self.dir, next_len(len, &self.options), &self.options);
        Ok(Ok(()))
    }
}

/// Makes a new log: its id and its first, empty extent.
fn create(shared: &Shared, options: &Options) -> Result<Scanned, OpenError> {
    let dir = &shared.dir;
    let log_id: [u8; 16] = tabbify_process::random();
    let (first, len) = (Position(1), options.extent_len_first);
    let hash: FrameHash = extent::genesis(log_id);
    let header = ExtentHeader {
        len,
        first,
        log_id,
        previous: hash,
    };
    let made = Spare::prepare(dir, len, &options.faults, &AtomicBool::new(false))
        .and_then(|spare| spare.write_header(&header).map(|()| spare))
        .and_then(|spare| spare.publish(dir, first));
    let (_, path) = made.map_err(OpenError::io("create the first extent in", dir))?;
    let mut frames = Frames::default();
    frames.push_extent(&path);
    Ok(Scanned {
        log_id,
        index: Index::default(),
        frames,
        tip: Tip {
            head: Position(0),
            hash,
            epoch: 0,
        },
        last: (path, len, EXTENT_HEADER_LEN as u64),
        torn: None,
    })
}

#[cfg(test)]
mod tests;
