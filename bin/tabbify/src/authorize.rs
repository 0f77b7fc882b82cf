//! What the bearer of a token may do with the log and see of the read model, decided from the token
//! alone.
//!
//! | kind | reads | appends |
//! |---|---|---|
//! | `service` | what its role needs | what its role decides |
//! | `host` | its own orders and reports | its reports |
//! | `user`, `agent` with `events:read` | its tenant's segments | nothing: facts are written by who decides them |
//!
//! Others have no business here. A token that is bound to a WireGuard key, as every machine's is, counts
//! only where the connection has proven that key: over the mesh.

use std::sync::Arc;

use tabbify_api::auth::issue::{API_AUDIENCE, Revocations, Verified};
use tabbify_api::auth::{AuthError, scope};
use tabbify_api::log::{self, LogScope};
use tabbify_api::read::{self, ReadScope, Reader};
use tabbify_auth::Auth;
use tabbify_coordinator::Coordinator;
use tabbify_types::{HostName, MeshKey, Segment, SegmentGlob};

/// Kinds whose holders may come.
const KINDS: &[&str] = &["service", "host", "user", "agent"];

/// Judges tokens with the issuer keys and revocations that count now.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    checker: Arc<dyn Revocations>,
    /// The WireGuard key that the bearer's connection has proven.
    proven: Option<MeshKey>,
}

impl Tokens {
    /// Of bearers who have proven no key.
    pub(crate) fn new(checker: impl Revocations + 'static) -> Self {
        Self {
            checker: Arc::new(checker),
            proven: None,
        }
    }

    /// Of a bearer who has proven this key.
    pub(crate) fn of_peer(&self, key: MeshKey) -> Self {
        Self {
            checker: Arc::clone(&self.checker),
            proven: Some(key),
        }
    }

    fn verified(&self, token: &str) -> Result<Verified, AuthError> {
        self.checker.check(token, KINDS, API_AUDIENCE, self.proven)
    }
}

impl log::Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<LogScope, AuthError> {
        let verified = self.verified(token)?;
        let nobody = || AuthError::Invalid(format!("{} is no role here", verified.subject));
        let subject = verified.subject.split_once(':');
        match (verified.kind.as_str(), subject) {
            ("service", Some(("service", role))) => role_scope(role).ok_or_else(nobody),
            ("host", Some(("host", host))) => {
                let host = host.parse().map_err(|_| nobody())?;
                Ok(host_scope(&host))
            }
            ("service" | "host", _) => Err(nobody()),
            _ => Ok(person_scope(&verified)),
        }
    }
}

impl read::Authorize for Tokens {
    fn authorize(&self, token: &str) -> Result<Reader, AuthError> {
        let verified = self.verified(token)?;
        let scope = match verified.kind.as_str() {
            "service" => Some(ReadScope::Platform),
            _ if verified.allows(scope::EVENTS_READ) => Some(ReadScope::Tenant(verified.tenant)),
            _ => None,
        };
        Ok(Reader {
            actor: verified.subject,
            scope,
        })
    }
}

/// The roles that reach the log over a socket.
pub(crate) const ROLES: [&str; 3] = ["auth", "coordinator", "read-node"];

/// What a role of the platform may do.
pub(crate) fn role_scope(role: &str) -> Option<LogScope> {
    match role {
        "auth" => Some(Auth::log_scope()),
        "coordinator" => Some(Coordinator::log_scope()),
        "read-node" => Some(read_node_scope()),
        _ => None,
    }
}

fn person_scope(verified: &Verified) -> LogScope {
    let read = match verified.allows(scope::EVENTS_READ) {
        true => vec![SegmentGlob::of_tenant(&verified.tenant)],
        false => Vec::new(),
    };
    LogScope {
        actor: verified.subject.clone(),
        write: Vec::new(),
        read,
    }
}

/// Folds everything, decides nothing.
pub(crate) fn read_node_scope() -> LogScope {
    LogScope {
        actor: "service:read-node".to_owned(),
        write: Vec::new(),
        read: vec![SegmentGlob::all()],
    }
}

/// What checking tokens needs.
pub(crate) fn checker_scope() -> LogScope {
    LogScope {
        actor: "service:transaction-node".to_owned(),
        write: Vec::new(),
        read: tabbify_auth::State::filter().segments,
    }
}

/// Reads what its host must do and says what happened there; no tenant's segment.
pub(crate) fn host_scope(host: &HostName) -> LogScope {
    let (desired, reports) = (Segment::host(host), Segment::host_reports(host));
    LogScope {
        actor: format!("host:{host}"),
        write: vec![SegmentGlob::from(&reports)],
        read: vec![SegmentGlob::from(&desired), SegmentGlob::from(&reports)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_scope_of_its_own() {
        for role in ROLES {
            let scope = role_scope(role).unwrap();
            assert_eq!(scope.actor, format!("service:{role}"));
            assert!(!scope.read.is_empty(), "{role}");
        }
        assert_eq!(role_scope("node"), None);
        assert!(read_node_scope().write.is_empty());
    }
}
