//! A new issuer key: made, put where every issuer of this machine finds it, signed by the root key,
//! recorded. From the record on it signs, and the one before it counts beside it.
//!
//! | crash after | what is then |
//! |---|---|
//! | the file | a file of a key that nobody knows of |
//! | the event | the next start finds the file and signs with it |

use std::collections::BTreeSet;

use tabbify_api::log::{AppendError, Expect};
use tabbify_process::chain;
use tabbify_token::{PlatformId, SecretKey, endorse_issuer};
use tabbify_types::SigningKeyId;
use tabbify_types::event::v1::IssuerKeyRotated;

use crate::KeysError;
use crate::authority::Auth;
use crate::bootstrap::ISSUER;

/// Why there is no new issuer key. The one before goes on signing.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The root key is another platform's.
    #[error("the root key is of platform {given}, not of {ours}")]
    OtherPlatform {
        /// Whose it is.
        given: PlatformId,
        /// Whose it must be.
        ours: PlatformId,
    },
    /// The key cannot be made or kept.
    #[error("the new key cannot be kept")]
    Keys(#[source] KeysError),
    /// Somebody else has rotated at the same time: there is a new key, and it is another.
    #[error("the issuer key was rotated by somebody else meanwhile")]
    Meanwhile,
    /// The log does not take it. It may have taken it: the next start finds out.
    #[error("the new key is not on record")]
    Append(#[source] AppendError),
}

impl Auth {
    /// Makes a new issuer key with the word of `root`, which is needed for this and nothing else.
    /// Gives its id. The two newest keys count: what the key before the last has signed is worth
    /// nothing from here on.
    ///
    /// # Errors
    /// [`RotateError`].
    pub async fn rotate(&self, root: &SecretKey) -> Result<SigningKeyId, RotateError> {
        let inner = &self.0;
        let given = PlatformId::of(&root.public());
        if given != *inner.platform() {
            let ours = inner.platform().clone();
            return Err(RotateError::OtherPlatform { given, ours });
        }
        let (rev, before) = inner.checker.with_state(|state| {
            let kids = state.issuers().iter().map(|key| key.bytes().id());
            (state.issuer_rev(), kids.collect::<BTreeSet<_>>())
        });
        let key = inner.issuers.make().map_err(RotateError::Keys)?;
        let (kid, public) = (key.id(), key.public());
        let rotated = IssuerKeyRotated {
            kid: kid.clone(),
            public,
            signature: endorse_issuer(root, &public),
        };
        let expect = Some(Expect::Rev(rev));
        match inner.record(ISSUER, vec![rotated.into()], expect).await {
            Ok(_) => {}
            Err(AppendError::Conflict { .. }) => {
                self.forget(BTreeSet::from([kid]));
                return Err(RotateError::Meanwhile);
            }
            Err(error) => return Err(RotateError::Append(error)),
        }
        let counting = inner.checker.with_state(|state| {
            let kids = state.issuers().iter().map(|key| key.bytes().id());
            kids.collect::<BTreeSet<_>>()
        });
        self.forget(before.difference(&counting).cloned().collect());
        tracing::info!(role = "auth", %kid, "the issuer key was rotated");
        Ok(kid)
    }

    /// What cannot be removed is worth nothing to whoever finds it.
    fn forget(&self, kids: BTreeSet<SigningKeyId>) {
        if let Err(error) = self.0.issuers.tidy(&kids) {
            tracing::warn!(role = "auth", error = %chain(&error), "an old issuer key is still there");
        }
    }
}
