//! `tenant_*.webhooks`: what comes in from services outside, and what goes out to them.

use serde::{Deserialize, Serialize};

use super::{Home, home};
use crate::{AppId, CallId, Digest, IntegrationId, Sealed, SecretName};

const GATEWAY: Home = home("tenant_*.webhooks", "api-gateway");
/// For an app that has the platform make a request, with secrets that the app never sees.
const EMITTED: Home = home("tenant_*.webhooks", "supervisord");

/// What is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntegrationKind {
    /// Anything that sends signed HTTP requests.
    Webhook,
    /// A Telegram bot.
    Telegram,
    /// A GitHub App.
    Github,
}

events! {
    /// A service outside is connected.
    IntegrationRegistered = "integration_registered" at [GATEWAY] key "the integration" {
        integration: IntegrationId => "The integration.",
        kind: IntegrationKind => "What is connected.",
        secret: SecretName => "The secret that its requests are checked with.",
    }

    /// A signed request came in.
    ExternalWebhookReceived = "external_webhook_received" at [GATEWAY] key "the integration" {
        integration: IntegrationId => "The integration.",
        delivery: String =>
            "The sender's id of the delivery, at most 128 bytes: one delivery is recorded once.",
        content_type: String => "Its media type.",
        body: Digest => "Digest of its body, which is in the object store.",
    }

    /// Somebody wrote to a bot.
    TelegramMessageReceived = "telegram_message_received" at [GATEWAY] key "the integration" {
        integration: IntegrationId => "The integration.",
        update: u64 => "Telegram's id of the update: one update is recorded once.",
        chat: Sealed => "Where: the chat to answer in.",
        sender: Sealed => "Who: id and name as Telegram gives them.",
        text: Sealed => "What.",
    }

    /// A branch or tag of a repository has moved. Who moved it is not kept.
    GithubPushReceived = "github_push_received" at [GATEWAY] key "the integration" {
        integration: IntegrationId => "The integration.",
        delivery: String => "GitHub's id of the delivery: one delivery is recorded once.",
        repository: String => "The repository, as `owner/name`.",
        reference: String => "The branch or tag, such as `refs/heads/main`.",
        commit: String => "The commit that it is at, 40 or 64 hex digits.",
    }

    /// A request is to go out for an app: the intent.
    HttpRequestRequested = "http_request_requested" at [EMITTED] key "the call" {
        call: CallId => "The call.",
        app: AppId => "The app that asks.",
        method: String => "The method, such as `POST`.",
        url: String => "The URL, without credentials: at most 4 KiB.",
        #[serde(skip_serializing_if = "Option::is_none")] secret: Option<SecretName> =>
            "The secret that authorizes it; the gateway puts its value in.",
        #[serde(skip_serializing_if = "Option::is_none")] body: Option<Digest> =>
            "Digest of its body, which is in the object store.",
    }

    /// A request went out, or could not.
    HttpRequestCompleted = "http_request_completed" at [GATEWAY] key "the call" {
        call: CallId => "The call.",
        #[serde(skip_serializing_if = "Option::is_none")] status: Option<u16> =>
            "The answer's status, if one came.",
        #[serde(skip_serializing_if = "Option::is_none")] body: Option<Digest> =>
            "Digest of the answer's body, which is in the object store.",
        #[serde(skip_serializing_if = "Option::is_none")] error: Option<String> =>
            "Why no answer came: at most 4 KiB.",
    }
}
