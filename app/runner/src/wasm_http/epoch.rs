//! The engine's epoch: a thread that advances it while guests run, so that a guest which never
//! waits is still interrupted, and others get their turn.
//!
//! It must be a thread: guests that loop can occupy every worker of the asynchronous runtime.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::Engine;

/// How long a guest runs before it must yield.
const TICK: Duration = Duration::from_millis(10);

/// Ticks without a guest after which the thread sleeps: waking it for each of many short requests
/// would cost more than ticking through the gaps between them.
const QUIET_TICKS_MAX: u32 = 100;

/// Advances the epoch; dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

/// A guest that may run until this is dropped.
#[derive(Debug)]
pub(super) struct Ticking(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    guests: AtomicUsize,
    parked: AtomicBool,
    ended: AtomicBool,
}

impl Ticker {
    pub(super) fn start(engine: &Engine) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (engine, of_thread) = (engine.weak(), Arc::clone(&shared));
        let handle = std::thread::Builder::new()
            .name("epoch".into())
            .spawn(move || {
                while of_thread.wait() {
                    let Some(engine) = engine.upgrade() else {
                        return;
                    };
                    engine.increment_epoch();
                }
            })?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
        })
    }

    /// A guest is about to run.
    pub(super) fn begin(&self) -> Ticking {
        self.shared.guests.fetch_add(1, Ordering::SeqCst);
        // Either this sees the thread parked and wakes it, or the thread sees the guest and does
        // not park: both sides write before they read, in one total order.
        if self.shared.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking(Arc::clone(&self.shared))
    }
}

impl Shared {
    /// Waits for the next tick, or for the next guest if there has been none for a while. Returns
    /// whether there is more to do.
    fn wait(&self) -> bool {
        for _ in 0..QUIET_TICKS_MAX {
            if self.ended.load(Ordering::SeqCst) {
                return false;
            }
            std::thread::park_timeout(TICK);
            if self.guests.load(Ordering::SeqCst) > 0 {
                return true;
            }
        }
        self.parked.store(true, Ordering::SeqCst);
        while self.guests.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.parked.store(false, Ordering::SeqCst);
        true
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.guests.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}
