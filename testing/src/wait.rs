//! Waiting for a condition, never for a time: the watchdog is generous and only ends a stuck test.

use std::time::Duration;

use anyhow::bail;

/// LIMIT: how long a condition may take on a loaded machine before the test is called stuck.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something.
///
/// # Errors
/// If it does not within [`WATCHDOG`]; the error names `what`.
pub async fn until<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + WATCHDOG;
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("{what}: not within {} s", WATCHDOG.as_secs());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
