//! `tenant_*.builds`, `.secrets`, `.sandboxes`, `.chat`, `.approvals`, `.webhooks`.

use tabbify_types::event::v1::{
    ApprovalConsumed, ApprovalDenied, ApprovalExpired, ApprovalGranted, ApprovalRequested,
    ApprovalSuperseded, BuildFailed, BuildRequested, BuildStage, BuildStarted, BuildSucceeded,
    ExternalWebhookReceived, Fault, GithubPushReceived, HttpRequestCompleted, HttpRequestRequested,
    IntegrationKind, IntegrationRegistered, MessagePosted, RuntimeKind, SandboxEnd, SandboxExited,
    SandboxLimits, SandboxLog, SandboxSpawnRequested, SandboxStarted, SecretRegistered,
    SecretRemoved, SecretRotated, Source, Standing, Stream, Target, TelegramMessageReceived,
};
use tabbify_types::{
    ApprovalId, BuildId, ByteSize, CallId, Event, IntegrationId, Rev, SandboxId, SecretName,
    SecretVersion, Segment, Tenant,
};

use super::{app, digest, host, sealed, the, time};

pub(super) fn all() -> Vec<Event> {
    let mut all = builds();
    all.extend(secrets());
    all.extend(sandboxes());
    all.push(
        MessagePosted {
            message: the("0191e7c5-0000-7000-8000-000000000001"),
            channel: "general".to_owned(),
            author: "agent:claude".to_owned(),
            text: sealed("agent:claude"),
            reply_to: Some(the("0191e7c5-0000-7000-8000-000000000000")),
            approval: Some(approval()),
        }
        .into(),
    );
    all.extend(approvals());
    all.extend(webhooks());
    all.extend(calls());
    all
}

fn commit() -> String {
    "d670460b4b4aece5915caf5c68d12f560a9fe3e4".to_owned()
}

fn builds() -> Vec<Event> {
    let build: BuildId = the("0191e7c6-0000-7000-8000-000000000001");
    vec![
        BuildRequested {
            build,
            app: app(),
            source: Source::Git {
                repository: "https://github.com/acme/shop".to_owned(),
                commit: commit(),
            },
        }
        .into(),
        BuildStarted {
            build,
            host: host(),
        }
        .into(),
        BuildSucceeded {
            build,
            artifact: digest("artifact.json"),
            commit: Some(commit()),
        }
        .into(),
        BuildFailed {
            build,
            stage: BuildStage::Build,
            fault: Fault::User,
            detail: "cargo build failed. Fix the error in src/main.rs and push again.".to_owned(),
            log_tail: "error[E0425]: cannot find value `x` in this scope\n".to_owned(),
        }
        .into(),
    ]
}

fn secrets() -> Vec<Event> {
    let name: SecretName = the("api-key");
    vec![
        SecretRegistered {
            name: name.clone(),
            version: SecretVersion(1),
        }
        .into(),
        SecretRotated {
            name: name.clone(),
            version: SecretVersion(2),
        }
        .into(),
        SecretRemoved { name }.into(),
    ]
}

fn sandboxes() -> Vec<Event> {
    let sandbox: SandboxId = the("0191e7c7-0000-7000-8000-000000000001");
    vec![
        SandboxSpawnRequested {
            sandbox,
            runtime: RuntimeKind::Docker,
            image: "python:3.13".to_owned(),
            command: vec!["python".to_owned(), "main.py".to_owned()],
            files: Some(digest("in.tar")),
            limits: SandboxLimits {
                memory: ByteSize::mib(256),
                files: ByteSize::mib(16),
                timeout_ms: 60_000,
            },
        }
        .into(),
        SandboxStarted {
            sandbox,
            host: host(),
        }
        .into(),
        SandboxLog {
            sandbox,
            stream: Stream::Stdout,
            offset: 0,
            text: "42\n".to_owned(),
        }
        .into(),
        SandboxExited {
            sandbox,
            end: SandboxEnd::Exited,
            status: Some(0),
            files: Some(digest("out.tar")),
            output: Some(digest("42\n")),
        }
        .into(),
    ]
}

fn approval() -> ApprovalId {
    the("0191e7c8-0000-7000-8000-000000000001")
}

fn approvals() -> Vec<Event> {
    let by = || "user:anna".to_owned();
    let approval = approval();
    let mut all = vec![
        ApprovalRequested {
            approval,
            action: "deploy".to_owned(),
            arguments: digest("arguments"),
            plan: digest("plan"),
            target: Target {
                segment: Segment::apps(&Tenant::main()),
                key: app().to_string(),
                rev: Rev(41),
            },
            requester: "agent:claude".to_owned(),
            on_behalf_of: Some(by()),
            why: "The checkout button is broken on phones.".to_owned(),
            expires: time(),
        }
        .into(),
    ];
    all.extend([
        ApprovalGranted {
            approval,
            by: by(),
            plan: digest("plan"),
            standing: Some(Standing {
                app: app(),
                uses: 5,
                until: time(),
            }),
        }
        .into(),
        ApprovalDenied {
            approval,
            by: by(),
            reason: "Not on a Friday.".to_owned(),
        }
        .into(),
        ApprovalExpired { approval }.into(),
        ApprovalSuperseded {
            approval,
            by: Some(the("0191e7c8-0000-7000-8000-000000000002")),
        }
        .into(),
        ApprovalConsumed {
            approval,
            intent: the("0191e7c8-0000-7000-8000-000000000003"),
        }
        .into(),
    ]);
    all
}

fn webhooks() -> Vec<Event> {
    let integration: IntegrationId = the("0191e7c9-0000-7000-8000-000000000001");
    let delivery = || "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned();
    vec![
        IntegrationRegistered {
            integration,
            kind: IntegrationKind::Telegram,
            secret: the("telegram-bot"),
        }
        .into(),
        ExternalWebhookReceived {
            integration,
            delivery: delivery(),
            content_type: "application/json".to_owned(),
            body: digest("{}"),
        }
        .into(),
        TelegramMessageReceived {
            integration,
            update: 271_828,
            chat: sealed("guest:0191e7cb"),
            sender: sealed("guest:0191e7cb"),
            text: sealed("guest:0191e7cb"),
        }
        .into(),
        GithubPushReceived {
            integration,
            delivery: delivery(),
            repository: "acme/shop".to_owned(),
            reference: "refs/heads/main".to_owned(),
            commit: commit(),
        }
        .into(),
    ]
}

fn calls() -> Vec<Event> {
    let call: CallId = the("0191e7ca-0000-7000-8000-000000000001");
    vec![
        HttpRequestRequested {
            call,
            app: app(),
            method: "POST".to_owned(),
            url: "https://api.example.com/v1/charges".to_owned(),
            secret: Some(the("api-key")),
            body: Some(digest("{}")),
        }
        .into(),
        HttpRequestCompleted {
            call,
            status: Some(502),
            body: Some(digest("bad gateway")),
            error: Some("the answer was cut off after 11 bytes".to_owned()),
        }
        .into(),
    ]
}
