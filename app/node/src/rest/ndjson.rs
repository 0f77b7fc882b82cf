//! Answers of one JSON object a line, as long as the caller listens and their token counts.

use std::time::Duration;

use tabbify_http::ndjson;
pub(crate) use tabbify_http::ndjson::{Line, Source};

use crate::answer::{Answer, BodyError};
use crate::leash::Leash;

/// A followed source gives a line at least this often, so that a caller notices a dead connection.
pub(super) const QUIET_MAX: Duration = Duration::from_secs(15);

/// The answer that writes what `source` gives, until the caller's token is revoked.
pub(crate) fn answer(source: impl Source<Error = BodyError>, leash: Leash) -> Answer {
    ndjson::answer(Leashed { source, leash })
}

struct Leashed<S> {
    source: S,
    leash: Leash,
}

impl<S: Source<Error = BodyError>> Source for Leashed<S> {
    type Item = S::Item;
    type Error = BodyError;

    async fn next(&mut self) -> Result<Option<Line<S::Item>>, BodyError> {
        self.leash.hold(self.source.next()).await?
    }
}
