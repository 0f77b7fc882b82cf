//! Reads, once after every start, what the start has not: the sealed extents, in order, every byte,
//! slowly and with the lowest priority. What it finds damaged ends the log.

use std::time::Duration;

use tabbify_process::chain;

use crate::error::OpenError;
use crate::extent;
use crate::log::Shared;
use crate::scan::{self, Tip};

/// LIMIT: after so many bytes the scrub rests for so long: at most 100 MiB a second.
const BYTES: u64 = 1024 * 1024;
const REST: Duration = Duration::from_millis(10);
/// Pause before an extent that cannot be read is tried again; doubles up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(600);

/// Verifies the extents that were sealed when the log was opened; an error is damage.
pub(crate) fn scrub(shared: &Shared) -> Result<(), OpenError> {
    let index = &shared.index;
    let (until, over) = (index.sealed_at_start(), index.over());
    let (mut tip, mut retry) = (Tip::genesis(over.log_id), RETRY_FIRST);
    while tip.head < until {
        let path = extent::path(&over.dir, tip.head.next());
        let rest = match scan::closed(&*over.disk, &path, over.log_id, tip, &mut ()) {
            Ok(extent) => {
                tip = Tip::after(&extent);
                retry = RETRY_FIRST;
                let pieces = u32::try_from(extent.len.div_ceil(BYTES)).unwrap_or(u32::MAX);
                REST.saturating_mul(pieces)
            }
            // A disk that cannot read is failing.
            Err(OpenError::Io { source, .. }) if source.raw_os_error().is_none() => {
                tracing::warn!(error = %source, extent = %path.display(), "cannot be verified now");
                let pause = retry;
                retry = (retry * 2).min(RETRY_LAST);
                pause
            }
            // What is stored and damaged or missing is out of reach, and the log goes on without it.
            Err(error @ OpenError::Stored { .. }) => {
                tracing::error!(error = %chain(&error), "a stored extent cannot be verified");
                let pause = retry;
                retry = (retry * 2).min(RETRY_LAST);
                pause
            }
            Err(damage) => return Err(damage),
        };
        if !index.pause(rest) {
            return Ok(());
        }
    }
    index.scrubbed();
    Ok(())
}
