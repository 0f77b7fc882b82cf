//! `tenant_*.chat`: what people, agents and apps say.

use super::{Home, home};
use crate::{ApprovalId, MessageId, Sealed};

const SAID: Home = home("tenant_*.chat", "node");
/// For an app whose `[events] emit` has `chat`.
const EMITTED: Home = home("tenant_*.chat", "supervisord");

events! {
    /// Somebody has said something.
    MessagePosted = "message_posted" at [SAID, EMITTED] key "the channel" {
        message: MessageId => "The message.",
        channel: String => "Where, such as `general`: at most 64 bytes.",
        author: String => "Who: the subject of a person, an agent or an app.",
        text: Sealed => "What, at most 16 KiB before it is sealed.",
        #[serde(skip_serializing_if = "Option::is_none")] reply_to: Option<MessageId> =>
            "The message that it answers.",
        #[serde(skip_serializing_if = "Option::is_none")] approval: Option<ApprovalId> =>
            "The approval whose card stands with it.",
    }
}
