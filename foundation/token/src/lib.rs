//! Claims, and how they are signed and verified: the crate a security reviewer reads first.
//!
//! Both planes use it; it is pure (no IO, no clock; only [`SecretKey::generate`] asks the system
//! for random bytes) and spawns nothing. Reading order: [`key`] makes and checks Ed25519 keys,
//! [`jws`] is the one compact form with its one algorithm, [`claims`] what a token says,
//! [`verifier`] who may say it, [`revocation`] what was taken back, [`document`] signs what is not a
//! token (leases, owner proofs), [`invitation`] is one of those, [`note`] signs the log's checkpoints.
//!
//! Invariants, each held by `tests/hostile.rs`:
//! - Nothing in a token chooses the algorithm: `alg` must be exactly `EdDSA`, and the signature is
//!   checked with `verify_strict` under a key that the verifier already had.
//! - One text per signed thing: base64url without padding or spare bits, no second signature for
//!   the same bytes (non-canonical S and low-order keys are refused).
//! - A token of one kind, or a document of one type, never passes for another: `typ` is under the
//!   signature and compared.
//! - Unknown header fields and unknown claims are refused: a verifier must not ignore what a later
//!   issuer meant as a restriction. Fields that occur twice are refused.
//! - What was revoked is refused by every verifier that has been told so.

pub mod claims;
pub mod document;
pub mod error;
pub mod invitation;
pub mod jws;
pub mod key;
pub mod note;
pub mod revocation;
pub mod verifier;

pub use claims::{Claims, Confirmation, JoinTerms, Kind, PlatformId, Scope};
pub use document::{DocumentType, OwnerProof, endorse_issuer, verify_endorsement};
pub use error::TokenError;
pub use invitation::Invitation;
pub use jws::TOKEN_LEN_MAX;
pub use key::{KeyError, PublicKey, SecretKey};
pub use note::NoteError;
pub use revocation::Revocations;
pub use verifier::{LEEWAY, Signer, Verifier};
