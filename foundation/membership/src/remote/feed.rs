//! The two that run beside: one hears what changes, one says where keys may be reached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tabbify_api::coordinator::{
    Change, REPORT_KEYS_MAX, REPORT_PATH, Reachable, Report, Told, WATCH_PATH, WatchRequest,
};
use tabbify_http::{Again, Client};
use tabbify_process::chain;
use tabbify_types::{MeshKey, Position};

use super::{RemoteCoordinator, answer, count, request};
use crate::life::REPORT_LIFE;

/// LIMIT: a line of a watch, in bytes.
const LINE_LEN_MAX: usize = 4096;
/// LIMIT: how long a watch may be silent: three signs of life.
const SILENT_MAX: Duration = Duration::from_secs(45);
/// The pause before trying again, at first and at most; doubles with each attempt.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl RemoteCoordinator {
    /// Hears changes for ever, from one coordinator after the other.
    pub(super) async fn watch(&self) {
        let (mut after, mut pause) = (None, PAUSE);
        loop {
            for client in self.clients().iter() {
                let before = after;
                let ended = tokio::select! {
                    ended = self.hear(client, &mut after) => Some(ended),
                    () = self.0.moved.notified() => None,
                };
                if self.0.live.swap(false, Ordering::Relaxed) {
                    self.0.unheard.notify_waiters();
                }
                let Some(ended) = ended else {
                    // Those behind other doors are asked at once, and for everything.
                    (after, pause) = (None, PAUSE);
                    self.0.admitted.notify_one();
                    break;
                };
                tracing::debug!(ended, "changes are not heard");
                if after != before {
                    pause = PAUSE;
                }
            }
            let admitted = tokio::time::timeout(pause, self.0.admitted.notified());
            pause = match admitted.await {
                Ok(()) => PAUSE,
                Err(_) => (pause * 2).min(PAUSE_MAX),
            };
        }
    }

    /// Hears changes until that ends; gives why.
    async fn hear(&self, client: &Client, after: &mut Option<Position>) -> String {
        let body = WatchRequest { after: *after };
        let body = serde_json::to_vec(&body).expect("INVARIANT: our own shapes serialize");
        let request = request(&Method::POST, WATCH_PATH, body.into());
        let answer = match client.send(request, Again::Harmless).await {
            Ok(answer) if answer.status().is_success() => answer,
            Ok(answer) => return format!("status {}", answer.status()),
            Err(error) => return chain(&error).to_string(),
        };
        // The connection is not kept: it ends with what is dropped here.
        let (_, mut incoming, _connection) = answer.into_parts();
        let mut lines = Lines::default();
        loop {
            let read = tokio::time::timeout(SILENT_MAX, lines.next(&mut incoming));
            let told = match read.await {
                Ok(Ok(told)) => told,
                Ok(Err(why)) => return why,
                Err(_) => return "it is silent".to_owned(),
            };
            self.told(&told).await;
            *after = Some(told.position);
            if !self.0.live.swap(true, Ordering::Relaxed) {
                // It may be another, or have started anew: then it knows of nobody where they are.
                self.0.report.notify_one();
            }
        }
    }

    async fn told(&self, told: &Told) {
        if told.change != Change::Alive {
            count(&self.0.counters.heard);
        }
        if told.change == Change::Issuers {
            self.refresh_issuers().await;
        }
        let gone = self.cache().heard(&told.change);
        if let Some(key) = gone {
            // Nobody listens: then nobody has sessions to end.
            let _ = self.0.gone.send(key);
        }
        if let Some(changed) = told.change.of_sessions() {
            let _ = self.0.changed.send(changed);
        }
    }

    /// Reports for ever: when there is something new, and often enough not to be forgotten.
    pub(super) async fn report(&self) {
        let mut pause = PAUSE;
        loop {
            let told = self.reported();
            let (mut all_heard, mut counts_for) = (true, REPORT_LIFE);
            for client in self.clients().iter() {
                match tell(client, &told).await {
                    Ok(heard) => {
                        counts_for = counts_for.min(heard);
                        if told.contains_key(&self.0.own) {
                            self.0.found.send_replace(true);
                        }
                    }
                    Err(why) => {
                        tracing::debug!(why, "a report is not heard");
                        all_heard = false;
                    }
                }
            }
            if all_heard {
                pause = PAUSE;
                // Either way, the next report says everything.
                let again = (counts_for / 3).max(PAUSE);
                let _ = tokio::time::timeout(again, self.0.report.notified()).await;
            } else {
                // Something new may be heard where the same again is not.
                let again = tokio::time::timeout(pause, self.0.report.notified());
                pause = match again.await {
                    Ok(()) => PAUSE,
                    Err(_) => (pause * 2).min(PAUSE_MAX),
                };
            }
        }
    }

    fn reported(&self) -> BTreeMap<MeshKey, Vec<SocketAddr>> {
        let mut reported = self
            .0
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let told = reported.clone();
        // What was taken back needs to be said once; a coordinator that does not hear it forgets it.
        reported.retain(|_, candidates| !candidates.is_empty());
        told
    }
}

/// Tells one coordinator everything, in as many reports as it takes; one that is empty says that we live.
/// For how long that counts.
async fn tell(
    client: &Client,
    told: &BTreeMap<MeshKey, Vec<SocketAddr>>,
) -> Result<Duration, String> {
    let keys: Vec<Reachable> = told
        .iter()
        .map(|(key, candidates)| Reachable {
            key: *key,
            candidates: candidates.clone(),
        })
        .collect();
    let mut reports: Vec<&[Reachable]> = keys.chunks(REPORT_KEYS_MAX).collect();
    if reports.is_empty() {
        reports.push(&[]);
    }
    let mut counts_for = REPORT_LIFE;
    for keys in reports {
        let report = Report {
            keys: keys.to_vec(),
        };
        let body = serde_json::to_vec(&report).expect("INVARIANT: our own shapes serialize");
        let request = request(&Method::POST, REPORT_PATH, body.into());
        let answered = answer::<tabbify_api::coordinator::Heard>(client, request).await;
        let heard = answered.map_err(|error| chain(&error).to_string())?;
        counts_for = counts_for.min(Duration::from_millis(heard.again_within_ms));
    }
    Ok(counts_for)
}

/// Lines out of the pieces of a body.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    async fn next(&mut self, incoming: &mut Incoming) -> Result<Told, String> {
        loop {
            if let Some(line) = self.take()? {
                return serde_json::from_slice(&line).map_err(|error| error.to_string());
            }
            match incoming.frame().await {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(chain(&error).to_string()),
                None => return Err("it has ended".to_owned()),
            }
        }
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, String> {
        match self.rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.rest.len() > LINE_LEN_MAX => Err("a line is too long".to_owned()),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However the bytes are cut, the lines are the same, and what is no line is refused in the end.
        #[test]
        fn lines_are_found_however_they_are_cut(
            texts in proptest::collection::vec("[a-z]{0,20}", 0..20),
            cuts in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\n").into_bytes()).collect();
            let (mut lines, mut found, mut rest) = (Lines::default(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                (rest, _) = (after, lines.rest.extend(piece));
                while let Some(line) = lines.take().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
            }
            proptest::prop_assert_eq!(found, texts);
            lines.rest = vec![b'x'; LINE_LEN_MAX + 1];
            proptest::prop_assert!(lines.take().is_err());
        }
    }
}
