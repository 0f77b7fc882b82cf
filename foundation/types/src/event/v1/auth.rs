//! `platform.auth`: tenants, people, keys, tokens.

use super::{Home, home};
use crate::{InviteId, MeshKey, Sealed, SigningKeyId, Tenant, Timestamp, VerifyingKeyBytes};

const AUTH: Home = home("platform.auth", "auth");

events! {
    /// A tenant exists.
    TenantCreated = "tenant_created" at [AUTH] key "the tenant" {
        tenant: Tenant => "The new tenant.",
    }

    /// An issuer key is valid from here; the one before stays valid beside it.
    IssuerKeyRotated = "issuer_key_rotated" at [AUTH] key "`issuer`" {
        kid: SigningKeyId => "The id under which tokens name the key.",
        public: VerifyingKeyBytes => "The key.",
        signature: String =>
            "Base64url of the root key's signature over `tabbify-issuer-key-v1\\0` and the key's bytes.",
    }

    /// A person may become a user.
    UserInvited = "user_invited" at [AUTH] key "the user" {
        invite: InviteId => "The invitation; what it is accepted with is nowhere.",
        user: String => "The subject that the person will be.",
        tenant: Tenant => "The tenant that the user will belong to.",
        email: Sealed => "Where the invitation went.",
        expires: Timestamp => "When it ends.",
    }

    /// A person can sign in.
    UserRegistered = "user_registered" at [AUTH] key "the user" {
        user: String => "The subject of the user's tokens, such as `user:owner`.",
        tenant: Tenant => "The tenant the user belongs to.",
        #[serde(skip_serializing_if = "Option::is_none")] key: Option<VerifyingKeyBytes> =>
            "The key whose proofs sign the user in, if that is how.",
    }

    /// Somebody may do other things in a tenant than before.
    RoleChanged = "role_changed" at [AUTH] key "the user" {
        user: String => "Who.",
        tenant: Tenant => "In which tenant.",
        #[serde(skip_serializing_if = "Option::is_none")] role: Option<String> =>
            "What they are there now: `owner`, `developer` or `viewer`; nothing if they do not belong to it any more.",
    }

    /// A person signs in with another password from here on.
    PasswordChanged = "password_changed" at [AUTH] key "the user" {
        user: String => "Whose.",
        verifier: Sealed => "What the password is checked with (argon2id, as a PHC string), sealed: never in clear.",
    }

    /// A token was issued (its id, never the token).
    TokenIssued = "token_issued" at [AUTH] key "the token's id" {
        jti: String => "The token's id; the token itself is nowhere.",
        kind: String => "Its kind, such as `agent`.",
        subject: String => "Its subject.",
        expires: Timestamp => "When it ends.",
        #[serde(skip_serializing_if = "Option::is_none")] tenant: Option<Tenant> => "The tenant that it counts in.",
        #[serde(default, skip_serializing_if = "Vec::is_empty")] scopes: Vec<String> => "What its holder may do.",
        #[serde(default, skip_serializing_if = "Vec::is_empty")] tags: Vec<String> => "The tags that it claims.",
        #[serde(skip_serializing_if = "Option::is_none")] by: Option<String> =>
            "Who asked for it, if not the subject.",
    }

    /// A token for single use is used up.
    TokenUsed = "token_used" at [AUTH] key "the token's id" {
        jti: String => "The token's id.",
        key: MeshKey =>
            "The key that it is bound to from here on; with the same one it may be used again.",
    }

    /// A token is worth nothing from here on.
    TokenRevoked = "token_revoked" at [AUTH] key "the token's id" {
        jti: String => "The token's id.",
        expires: Timestamp => "When it would have ended: nobody has to remember it any longer.",
    }

    /// Whatever a subject was given until then is worth nothing from here on.
    SessionsEnded = "sessions_ended" at [AUTH] key "the subject" {
        subject: String => "Whose tokens, tickets and sessions.",
        upto: Timestamp => "Those that were issued in this second or before.",
    }

    /// Attempts to sign in were refused: counted, so that a flood of them is one event.
    SignInsRefused = "sign_ins_refused" at [AUTH] key "`sign-ins`" {
        how: String => "What was tried, such as `password`.",
        #[serde(skip_serializing_if = "Option::is_none")] subject: Option<String> =>
            "As whom, if there is such a subject; names that nobody has are counted together.",
        count: u64 => "How many.",
        limited: u64 => "How many of them were not even looked at, being too many.",
        from: Timestamp => "When the first came.",
        upto: Timestamp => "When the last came.",
    }

    /// The keys of a subject are destroyed: what was sealed under them cannot be read any more.
    SubjectErased = "subject_erased" at [AUTH] key "the subject" {
        subject: String => "The subject of the sealed fields.",
    }
}
