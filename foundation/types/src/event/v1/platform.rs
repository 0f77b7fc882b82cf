//! `platform`: what is true of the platform as a whole.

use super::{Home, home};
use crate::VerifyingKeyBytes;

const PLATFORM_BY_AUTH: Home = home("platform", "auth");
const PLATFORM: Home = home("platform", "coordinator");

events! {
    /// Position 1 of every log.
    PlatformInitialized = "platform_initialized" at [PLATFORM_BY_AUTH] key "`platform`" {
        root_key: VerifyingKeyBytes =>
            "Signs issuer keys and nothing else; pinned by every configuration and join token.",
    }

    /// Every member runs at least this release: shapes that it brought may be written from here on.
    PlatformVersionRaised = "platform_version_raised" at [PLATFORM] key "`platform`" {
        version: String => "The release, such as `0.2.0`.",
    }
}
