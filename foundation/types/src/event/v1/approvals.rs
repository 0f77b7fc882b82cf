//! `tenant_*.approvals`: what a person has to decide, and what was decided.

use serde::{Deserialize, Serialize};

use super::{Home, home};
use crate::{AppId, ApprovalId, Digest, EventId, Rev, Segment, Timestamp};

const APPROVALS: Home = home("tenant_*.approvals", "node");

/// What an action would change, as it was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The segment of the entity.
    pub segment: Segment,
    /// Its key.
    pub key: String,
    /// Its revision; at another one the approval is superseded.
    pub rev: Rev,
}

/// A grant for more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The app that it is limited to.
    pub app: AppId,
    /// How often.
    pub uses: u32,
    /// Until when, at most 24 hours ahead.
    pub until: Timestamp,
}

events! {
    /// An action waits for a person.
    ApprovalRequested = "approval_requested" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
        action: String => "The action: a name of the table of commands, such as `deploy`.",
        arguments: Digest => "Digest of its arguments.",
        plan: Digest => "Digest of the plan, which is in the object store for people and programs.",
        target: Target => "What it would change.",
        requester: String => "Who asks: the subject of the token; never the one who decides.",
        #[serde(skip_serializing_if = "Option::is_none")] on_behalf_of: Option<String> =>
            "The person that the requester acts for.",
        why: String => "Why, in the requester's words: at most 4 KiB, and not to be trusted.",
        expires: Timestamp => "When no answer becomes a no.",
    }

    /// A person said yes.
    ApprovalGranted = "approval_granted" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
        by: String => "Who decided.",
        plan: Digest => "Digest of the plan that was shown.",
        #[serde(skip_serializing_if = "Option::is_none")] standing: Option<Standing> =>
            "If the same is granted from here on.",
    }

    /// A person said no.
    ApprovalDenied = "approval_denied" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
        by: String => "Who decided.",
        #[serde(default)] reason: String => "Why, for the requester: at most 4 KiB.",
    }

    /// Nobody answered in time, which is a no.
    ApprovalExpired = "approval_expired" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
    }

    /// What was asked is no longer what would happen.
    ApprovalSuperseded = "approval_superseded" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
        #[serde(skip_serializing_if = "Option::is_none")] by: Option<ApprovalId> =>
            "The approval of the new plan, if one was asked for.",
    }

    /// The granted action is under way; in the same batch as its intent, so that it runs once.
    ApprovalConsumed = "approval_consumed" at [APPROVALS] key "the approval" {
        approval: ApprovalId => "The approval.",
        intent: EventId => "The event that is the intent.",
    }
}
