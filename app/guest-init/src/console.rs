//! The last way to say something: the console that the kernel gave to process 1.

use std::io::Write as _;

/// Says a line. Whoever cannot hear it is not told.
pub(crate) fn say(text: &str) {
    let line = format!("tabbify-init: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
