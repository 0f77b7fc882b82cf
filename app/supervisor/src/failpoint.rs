//! Moments at which a test ends this process as `kill -9` does: every step of an action that leaves something
//! on disk, in the log or among the processes has one before or after it. Compiled in, so that what is tested
//! is what is shipped; nothing outside the process can arm one, and one that is not armed costs an atomic load.
//!
//! State of the process, not of a supervisor, because what is tested is the end of the process.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// A moment in the life of an instance, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Point {
    /// Nothing is said about the instance yet.
    BeforeIntent = 1,
    /// The intent to spawn is in the log, and there is no directory.
    Intended,
    /// The directory is there, and nothing in it.
    DirectoryMade,
    /// The lock is held, and nobody is to live there yet.
    Locked,
    /// What the runner is told is on disk.
    BootWritten,
    /// Everything is on disk but the names that lead there.
    Prepared,
    /// There is a process, and nobody knows it.
    Spawned,
    /// Its control socket has answered, and nobody was told.
    Met,
    /// Something is about to be said in the log.
    BeforeReport,
    /// It is said, and the fold has not seen it.
    Reported,
    /// It is about to be drained.
    BeforeDrain,
    /// It takes no new requests, and nobody was told.
    Drained,
    /// It is about to be stopped.
    BeforeStop,
    /// It was asked to stop.
    AskedToStop,
    /// It has ended, and nobody was told.
    Ended,
    /// Its directory is about to be removed.
    BeforeRemove,
    /// Its directory is gone, and the app's is there.
    InstanceRemoved,
    /// Everything of it is gone, and nobody was told.
    Removed,
    /// It is idle, and it is about to be asked whether callers are sent to the doorbell.
    BeforeTold,
    /// They are, and nobody was told.
    Told,
    /// It is about to go to sleep.
    BeforeSleep,
    /// It takes no new requests, and nobody was told.
    Asleep,
    /// Somebody rang for it, and nothing was done.
    Rung,
    /// A process of it is to be made, without a word.
    BeforeWake,
    /// The process is there, and nobody knows it.
    Woken,
    /// Somebody who rang is connected with it.
    Visited,
}

impl Point {
    /// Every one.
    pub const ALL: [Self; 26] = [
        Self::BeforeIntent,
        Self::Intended,
        Self::DirectoryMade,
        Self::Locked,
        Self::BootWritten,
        Self::Prepared,
        Self::Spawned,
        Self::Met,
        Self::BeforeReport,
        Self::Reported,
        Self::BeforeDrain,
        Self::Drained,
        Self::BeforeStop,
        Self::AskedToStop,
        Self::Ended,
        Self::BeforeRemove,
        Self::InstanceRemoved,
        Self::Removed,
        Self::BeforeTold,
        Self::Told,
        Self::BeforeSleep,
        Self::Asleep,
        Self::Rung,
        Self::BeforeWake,
        Self::Woken,
        Self::Visited,
    ];
}

/// The armed point in the upper half, and in the lower one how many passings are left.
static ARMED: AtomicU32 = AtomicU32::new(0);

/// From now on the `nth` passing of `point` (from 1) ends this process.
pub fn arm(point: Point, nth: u16) {
    ARMED.store(
        u32::from(point as u8) << 16 | u32::from(nth.max(1)),
        Ordering::Relaxed,
    );
}

/// Passes a point.
pub(crate) fn pass(point: Point) {
    let armed = ARMED.load(Ordering::Relaxed);
    if armed >> 16 == u32::from(point as u8) {
        passed();
    }
}

#[cold]
fn passed() {
    // Others may pass at the same time: one of them is the nth.
    if ARMED.fetch_sub(1, Ordering::Relaxed) & 0xFFFF == 1 {
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            // The signal is on its way, and nothing more may happen here.
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_there_once_and_none_is_armed() {
        let mut all = Point::ALL;
        all.sort_unstable();
        assert_eq!(all, Point::ALL);
        for (number, point) in (1..).zip(all) {
            assert_eq!(point as u8, number, "{point:?}");
            pass(point);
        }
    }
}
