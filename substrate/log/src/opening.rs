//! Makes the index of a log that is being opened. What runs cover is not read again: of a sealed
//! extent the header, the length and the link of the chain are looked at, and `scrub` reads the rest
//! while the log is in use. Everything else is read whole, and becomes a run if its extent is closed.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tabbify_types::Position;

use crate::error::{OpenError, TornTail};
use crate::extent;
use crate::index::{self, FoundRuns, Index, Over, Part, Run};
use crate::options::Options;
use crate::scan::{self, Depth, LastExtent, Tip};

/// A log that is ready to go on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) log_id: [u8; 16],
    pub(crate) index: Index,
    pub(crate) tip: Tip,
    pub(crate) last: LastExtent,
    pub(crate) torn: Option<TornTail>,
}

/// Opens the log in `dir`; `None` if it has no extent.
pub(crate) fn open(dir: &Path, options: &Options) -> Result<Option<Opened>, OpenError> {
    let disk = &*options.disk;
    if options.verify_whole {
        scan::scan(disk, dir, Depth::Bytes)?;
    }
    let extents = extent::list(disk, dir)?;
    let Some((_, first)) = extents.first() else {
        return Ok(None);
    };
    let over = over(dir, scan::header(disk, first)?.log_id, options);
    let mut found = FoundRuns::list(&over)?;
    let mut walk = Walk::new(over, extents);
    loop {
        // What is in memory comes behind all runs.
        let run = match walk.closed.is_empty() {
            true => found.take(walk.tip.head.next()),
            false => None,
        };
        if let Some(run) = run {
            if let Err(why) = walk.believe(&run)? {
                found.discard(&run, &why);
            }
        } else if !walk.close_next()? {
            break;
        }
    }
    let opened = walk.finish()?;
    found.clear(&opened.index);
    Ok(Some(opened))
}

/// What an index of the log is over.
pub(crate) fn over(dir: &Path, log_id: [u8; 16], options: &Options) -> Over {
    Over {
        disk: Arc::clone(&options.disk),
        dir: dir.to_owned(),
        log_id,
        hash: options.hash_key,
        cache_len: options.index_cache_len,
        seal_len: options.seal_len,
        stop: Arc::clone(&options.stop),
    }
}

/// Goes through the extents from the first to the last.
struct Walk {
    over: Over,
    extents: Vec<(Position, PathBuf)>,
    /// The extent that is next.
    at: usize,
    tip: Tip,
    runs: Vec<Arc<Run>>,
    /// Extents whose runs cannot be written.
    closed: VecDeque<Arc<Part>>,
}

impl Walk {
    fn new(over: Over, extents: Vec<(Position, PathBuf)>) -> Self {
        Self {
            tip: Tip::genesis(over.log_id),
            over,
            extents,
            at: 0,
            runs: Vec::new(),
            closed: VecDeque::new(),
        }
    }

    /// Takes a run that starts here, if the extents are those that it was made of. The inner error
    /// says why it is not taken; then the extents are read, and what is wrong with them shows.
    fn believe(&mut self, run: &Arc<Run>) -> Result<Result<(), String>, OpenError> {
        let covered = match run.extents() {
            Ok(covered) => covered,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (mut tip, mut at) = (self.tip, self.at);
        for entry in &covered {
            let Some((first, path)) = self.extents.get(at) else {
                return Err(self.missing(entry.first, run));
            };
            if *first != entry.first || entry.first != tip.head.next() {
                return Ok(Err(format!("no extent starts at {}", entry.first)));
            }
            let header = scan::header(&*self.over.disk, path)?;
            let fits = header.len == entry.len
                && header.log_id == self.over.log_id
                && header.first == entry.first
                && header.previous == tip.hash;
            if !fits {
                return Ok(Err(format!("{} is another extent", path.display())));
            }
            (tip, at) = (Tip::after(entry), at + 1);
        }
        if tip != run.tip() {
            return Ok(Err("its extents end elsewhere".to_owned()));
        }
        // An extent is sealed when the next one is there for good.
        let Some((_, next)) = self.extents.get(at) else {
            return Err(self.missing(tip.head.next(), run));
        };
        if scan::header(&*self.over.disk, next)?.previous != tip.hash {
            return Ok(Err(format!("{} follows another log", next.display())));
        }
        self.runs.push(Arc::clone(run));
        (self.tip, self.at) = (tip, at);
        Ok(Ok(()))
    }

    /// The log has been longer than its extents are.
    fn missing(&self, first: Position, run: &Run) -> OpenError {
        let what = format!(
            "it is missing, and the log had it: {} was made of it; restore it, or if the log was \
             put back to an earlier state on purpose, remove the .run files",
            run.path.display()
        );
        OpenError::damaged(&extent::path(&self.over.dir, first), 0, what)
    }

    /// Reads the next extent and makes its run. False if it is the last one, which is left.
    fn close_next(&mut self) -> Result<bool, OpenError> {
        let (path, later) = match self.extents.get(self.at..) {
            Some([(_, path), _, ..]) => (path.clone(), true),
            _ => (PathBuf::new(), false),
        };
        if !later {
            return Ok(false);
        }
        let refused = if !self.closed.is_empty() {
            Some("as the one before".to_owned())
        } else if self.rest_is_short()? {
            None
        } else {
            match index::sealed(&self.over, &path, self.tip)? {
                Ok(run) => {
                    self.tip = run.tip();
                    self.runs.push(Arc::new(run));
                    self.at += 1;
                    return Ok(true);
                }
                Err(refused) => Some(refused.to_string()),
            }
        };
        if let Some(why) = refused {
            tracing::debug!(why, extent = %path.display(), "its index stays in memory");
        }
        let (part, tip) = Part::read(&self.over, &path, self.tip)?;
        self.closed.push_back(Arc::new(part));
        (self.tip, self.at) = (tip, self.at + 1);
        Ok(true)
    }

    /// Whether the closed extents that are left are too short for runs.
    fn rest_is_short(&self) -> Result<bool, OpenError> {
        let mut left = 0;
        for (_, path) in &self.extents[self.at..self.extents.len() - 1] {
            let file = self.over.disk.open(path);
            let len = file.and_then(|file| file.len());
            left += len.map_err(OpenError::io("open", path))?;
            if left >= self.over.seal_len {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn finish(self) -> Result<Opened, OpenError> {
        let (_, path) = &self.extents[self.at];
        let (over, before) = (self.over, self.tip);
        let mut active = Part::new(before.head.next(), path);
        let mut collect = active.collect(over.hash);
        let (last, tip, torn) = scan::last(&*over.disk, path, over.log_id, before, &mut collect)?;
        Ok(Opened {
            log_id: over.log_id,
            index: Index::new(over, self.runs, self.closed, active),
            tip,
            last,
            torn,
        })
    }
}
