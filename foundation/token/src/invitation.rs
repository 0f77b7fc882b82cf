//! An invitation: what a person registers with, once. It is signed, so that nothing that could be
//! stolen has to be kept; whether it is still good is in the log.

use serde::{Deserialize, Serialize};
use tabbify_types::{InviteId, Tenant, Timestamp};

use std::time::Duration;

use crate::claims::{is_name, numeric_date};
use crate::verifier::check_time;
use crate::{DocumentType, PlatformId, Signer, TokenError, Verifier};

/// LIMIT: the longest life of an invitation.
pub const INVITATION_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Stands before an invitation as people handle it.
pub const INVITATION_PREFIX: &str = "tbi_";

/// Its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The platform that invites.
    pub iss: PlatformId,
    /// The subject that the person will be, such as `user:anna`.
    pub sub: String,
    /// The tenant that the person will belong to.
    pub tenant: Tenant,
    /// The invitation's id.
    pub jti: InviteId,
    /// When it was made.
    #[serde(with = "numeric_date")]
    pub iat: Timestamp,
    /// When it ends; at most [`INVITATION_LIFE_MAX`] after `iat`.
    #[serde(with = "numeric_date")]
    pub exp: Timestamp,
}

impl Invitation {
    /// The invitation as text, signed.
    ///
    /// # Errors
    /// [`TokenError`] for an invitation that nobody would accept.
    pub fn sign(&self, signer: &Signer) -> Result<String, TokenError> {
        self.check_shape(signer.platform())?;
        let text = signer.sign_document(DocumentType::Invitation, self)?;
        Ok(format!("{INVITATION_PREFIX}{text}"))
    }

    /// The invitation that this text is, if its time is now. Whether it was used or withdrawn is the
    /// caller's to check.
    ///
    /// # Errors
    /// [`TokenError`], the first rule that it breaks.
    pub fn verify(text: &str, verifier: &Verifier, now: Timestamp) -> Result<Self, TokenError> {
        let text = text
            .strip_prefix(INVITATION_PREFIX)
            .ok_or(TokenError::Malformed(
                "it does not begin like an invitation",
            ))?;
        let invitation: Self = verifier.verify_document(DocumentType::Invitation, text)?;
        invitation.check_shape(verifier.platform())?;
        check_time(invitation.iat, invitation.iat, invitation.exp, now)?;
        Ok(invitation)
    }

    fn check_shape(&self, platform: &PlatformId) -> Result<(), TokenError> {
        if self.iss != *platform {
            return Err(TokenError::Issuer);
        }
        if !is_name(&self.sub) {
            return Err(TokenError::Malformed(
                "a claim is empty, too long or not plain ASCII",
            ));
        }
        let life = self.exp.secs().saturating_sub(self.iat.secs());
        if life == 0 || life > INVITATION_LIFE_MAX.as_secs() {
            return Err(TokenError::Lifetime {
                kind: crate::Kind::User,
            });
        }
        Ok(())
    }
}
