//! Makes runs again from the extents: for one that is found damaged, whoever found it.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use tabbify_types::Position;

use super::build::{self, Draft, Gathered};
use super::pages::RunError;
use super::run::Run;
use super::{ExtentEntry, Index, Over};
use crate::error::OpenError;
use crate::extent;
use crate::scan::{self, Tip};

impl Index {
    /// Puts runs of single extents in the place of one that is damaged; they are merged later.
    pub(super) fn heal(&self, broken: &Arc<Run>, why: &RunError) -> Result<(), OpenError> {
        let _one = self.healing.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = self.runs();
        let Some(at) = runs.iter().position(|run| Arc::ptr_eq(run, broken)) else {
            // Somebody else was faster.
            return Ok(());
        };
        tracing::warn!(error = why as &dyn std::error::Error, run = %broken.path.display(),
            "a part of the log's index is made anew");
        let before = Self::sealed_tip(&runs[..at], self.over.log_id);
        let new = remake(&self.over, before, broken.header.last)?;
        self.replace(&[Arc::clone(broken)], &new);
        self.wake();
        Ok(())
    }
}

/// Runs of the extents after `before` and up to `last`.
fn remake(over: &Over, before: Tip, last: Position) -> Result<Vec<Arc<Run>>, OpenError> {
    let (mut made, mut tip) = (Vec::new(), before);
    while tip.head < last {
        let path = extent::path(&over.dir, tip.head.next());
        let (gathered, extent) = gather(over, &path, tip)?;
        tip = Tip::after(&extent);
        let run = build::of_extent(over, Draft::Healed, &gathered, extent)?;
        made.push(Arc::new(run));
    }
    Ok(made)
}

/// Reads the closed extent after `before` and makes its run. The inner error is of the disk that
/// refuses the run.
pub(crate) fn sealed(
    over: &Over,
    path: &Path,
    before: Tip,
) -> Result<Result<Run, RunError>, OpenError> {
    let (gathered, extent) = gather(over, path, before)?;
    Ok(build::of_extent(over, Draft::Sealed, &gathered, extent))
}

/// Everything that is to be indexed of a closed extent, of which every byte is verified.
pub(super) fn gather(
    over: &Over,
    path: &Path,
    before: Tip,
) -> Result<(Gathered, ExtentEntry), OpenError> {
    let mut gathered = Gathered::new(over.hash);
    let extent = scan::closed(&*over.disk, path, over.log_id, before, &mut gathered)?;
    gathered.sort(path)?;
    Ok((gathered, extent))
}
