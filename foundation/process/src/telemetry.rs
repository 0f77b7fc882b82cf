//! Where log output goes: standard error, as text or JSON, filtered by `TABBIFY_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::env;

/// Filter when nobody says otherwise.
const FILTER_DEFAULT: &str = "info";

/// Starts log output of this process. Does nothing if it has been started.
pub fn init() {
    let filter = env::read(env::LOG).unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new(FILTER_DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(BoxMakeWriter::new(std::io::stderr));
    // A second call in one process, as in tests, finds the first one's and leaves it.
    let _ = match env::read(env::LOG_FORMAT).as_deref() {
        Some("json") => builder.json().try_init(),
        _ => builder.with_ansi(false).try_init(),
    };
}
