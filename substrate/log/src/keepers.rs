//! The threads beside the writer: one seals closed extents, one merges their runs, one stores the
//! extents in an object store, one reads again what a start has not read. They end with the writer; damage that one of them finds ends the log.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::cold;
use crate::error::OpenError;
use crate::index::Duty;
use crate::log::Shared;
use crate::scrub;

/// How much the writer and the readers come first: merging has to keep up, reading again does not.
const NICE_MERGE: i32 = 10;
const NICE_SCRUB: i32 = 19;

/// Running threads. Dropped, they are stopped and waited for.
#[derive(Debug, Default)]
pub(crate) struct Keepers {
    threads: Vec<JoinHandle<()>>,
    shared: Option<Arc<Shared>>,
}

type Job = fn(&Shared) -> Result<(), OpenError>;

impl Keepers {
    pub(crate) fn start(&mut self, shared: &Arc<Shared>, scrub: bool) -> io::Result<()> {
        self.shared = Some(Arc::clone(shared));
        self.spawn("log-seal", 0, |shared| shared.index.keep(Duty::Seal))?;
        self.spawn("log-merge", NICE_MERGE, |shared| {
            shared.index.keep(Duty::Merge)
        })?;
        if shared.cold.is_some() {
            self.spawn("log-cold", NICE_SCRUB, cold::keep)?;
        }
        if scrub {
            self.spawn("log-scrub", NICE_SCRUB, scrub::scrub)?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, nice: i32, job: Job) -> io::Result<()> {
        let Some(shared) = self.shared.clone() else {
            return Ok(());
        };
        let run = move || {
            if nice > 0 {
                // Of this thread alone, on Linux. Without it the work is done all the same.
                let _ = rustix::process::nice(nice);
            }
            if let Err(damage) = job(&shared) {
                shared.fail(&io::Error::other(damage));
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.index.stop();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the log's index has panicked");
            }
        }
    }
}
