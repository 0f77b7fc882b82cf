//! Tokens that people manage: they are listed, used once, revoked by name. Those of users, instances
//! and registry clients are many and short, and nobody asks for one by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::{TokenIssued, TokenUsed};
use tabbify_types::{MeshKey, Position, Recorded, Tenant, Timestamp};

/// Kinds that are kept.
const KEPT: [&str; 3] = ["agent", "join", "host"];

/// How long after its end a token is kept, by the log's own times: much longer than clocks differ. Who
/// asks for a token that is not kept is refused, so to forget too early opens nothing.
const KEPT_AFTER: Duration = Duration::from_secs(3600);

/// A token as it was issued, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its kind.
    pub kind: String,
    /// Its subject.
    pub subject: String,
    /// Its tenant; none where a release before this one issued it.
    pub tenant: Option<Tenant>,
    /// What its holder may do.
    pub scopes: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Who asked for it.
    pub by: Option<String>,
    /// When the log took it.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// The key that used it up.
    pub used: Option<MeshKey>,
    /// Where it was issued: its use and its revocation are further on, under the same key.
    pub position: Position,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tokens {
    by_id: BTreeMap<String, Issued>,
    by_end: BTreeSet<(Timestamp, String)>,
}

impl Tokens {
    pub(super) fn get(&self, jti: &str) -> Option<&Issued> {
        self.by_id.get(jti)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Issued)> {
        self.by_id
            .iter()
            .map(|(jti, issued)| (jti.as_str(), issued))
    }

    pub(super) fn issued(&mut self, data: TokenIssued, recorded: &Recorded) {
        self.forget(recorded.at);
        if !KEPT.contains(&data.kind.as_str()) || self.by_id.contains_key(&data.jti) {
            return;
        }
        self.by_end.insert((data.expires, data.jti.clone()));
        let issued = Issued {
            kind: data.kind,
            subject: data.subject,
            tenant: data.tenant,
            scopes: data.scopes,
            tags: data.tags,
            by: data.by,
            issued: recorded.at,
            expires: data.expires,
            used: None,
            position: recorded.position,
        };
        self.by_id.insert(data.jti, issued);
    }

    /// The first use counts; the log has no second one.
    pub(super) fn used(&mut self, data: &TokenUsed) {
        if let Some(token) = self.by_id.get_mut(&data.jti) {
            token.used.get_or_insert(data.key);
        }
    }

    fn forget(&mut self, at: Timestamp) {
        while let Some((end, _)) = self.by_end.first()
            && end.plus(KEPT_AFTER) < at
            && let Some((_, jti)) = self.by_end.pop_first()
        {
            self.by_id.remove(&jti);
        }
    }
}
