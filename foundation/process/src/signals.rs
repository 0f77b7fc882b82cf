//! Signals of the operating system: the first asks for an orderly stop, the second exits at once.

use tokio::signal::unix::{SignalKind, signal};

use crate::{Importance, Tasks};

/// Exit code after the second signal: 128 and the number of `SIGINT`, as shells count.
const EXIT_INTERRUPTED: i32 = 130;

/// Stops `tasks` at the first `SIGINT` or `SIGTERM`; exits the process at the second.
///
/// # Errors
/// If the operating system refuses the handlers.
pub fn stop_on_signals(tasks: &Tasks) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = tasks.clone();
    tasks.spawn("signals", Importance::Detached, async move {
        let stopped = stopping.token();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = stopped.cancelled() => {}
        }
        tracing::info!("stopping; a second signal exits at once");
        stopping.stop();
        #[expect(
            clippy::disallowed_methods,
            reason = "outlives the tasks it watches over"
        )]
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            #[expect(clippy::exit, reason = "the second signal means now")]
            std::process::exit(EXIT_INTERRUPTED);
        });
    });
    Ok(())
}
