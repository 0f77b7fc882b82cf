//! `tenant_*.secrets`: names and versions of secrets. Their values are never in the log.

use super::{Home, home};
use crate::{SecretName, SecretVersion};

const SECRETS: Home = home("tenant_*.secrets", "api-gateway");

events! {
    /// A secret exists and has its first value.
    SecretRegistered = "secret_registered" at [SECRETS] key "the secret's name" {
        name: SecretName => "Its name in the tenant.",
        version: SecretVersion => "The version of its value.",
    }

    /// A secret has a new value: instances that start from here on get it.
    SecretRotated = "secret_rotated" at [SECRETS] key "the secret's name" {
        name: SecretName => "Its name in the tenant.",
        version: SecretVersion => "The version of its value.",
    }

    /// A secret is gone: the keys of all its values are destroyed.
    SecretRemoved = "secret_removed" at [SECRETS] key "the secret's name" {
        name: SecretName => "Its name in the tenant.",
    }
}
