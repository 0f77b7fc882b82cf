//! One deploy, from its events to the Operation that callers wait on.

use serde::{Deserialize, Serialize};
use tabbify_api::ErrorCode;
use tabbify_api::apps::{Operation, OperationError, OperationStatus, Step, StepStatus};
use tabbify_types::event::v1::{
    AppFailed, DeployFinished, DeployOutcome, DeployRequested, FailureReason,
};
use tabbify_types::{AppId, DeployId, Timestamp, VersionNumber};

use crate::config::STEPS_MAX;

/// What a deploy has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Requested,
    Placed,
    Starting,
    Started,
    Healthy,
    Shifted,
    Finished,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Placed => "placed",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Healthy => "healthy",
            Self::Shifted => "shifted",
            Self::Finished => "finished",
        }
    }
}

/// A deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deploy {
    pub(super) id: DeployId,
    version: VersionNumber,
    requested: Timestamp,
    status: OperationStatus,
    steps: Vec<Step>,
    error: Option<OperationError>,
    log_tail: String,
}

impl Deploy {
    pub(super) fn requested(event: &DeployRequested, at: Timestamp) -> Self {
        let mut this = Self {
            id: event.deploy,
            version: event.version,
            requested: at,
            status: OperationStatus::Running,
            steps: Vec::new(),
            error: None,
            log_tail: String::new(),
        };
        this.reached(Stage::Requested, at);
        this
    }

    pub(super) const fn status(&self) -> OperationStatus {
        self.status
    }

    /// Why it failed, in one text.
    pub(super) fn problem(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(if error.detail.is_empty() {
            error.title.clone()
        } else {
            format!("{}: {}", error.title, error.detail)
        })
    }

    pub(super) fn reached(&mut self, stage: Stage, at: Timestamp) {
        self.step(stage, StepStatus::Done, at);
    }

    /// After the end nothing is added: an instance that dies later is not the deploy's failure.
    fn step(&mut self, stage: Stage, status: StepStatus, at: Timestamp) {
        if self.status.is_final() || self.steps.len() >= STEPS_MAX {
            return;
        }
        let ms = at.millis().saturating_sub(self.requested.millis());
        let name = stage.name().to_owned();
        // Of several instances, one after the other takes it: told once.
        let last = self.steps.last();
        if last.is_some_and(|last| last.name == name && last.status == status) {
            return;
        }
        self.steps.push(Step { name, ms, status });
    }

    pub(super) fn superseded(&mut self) {
        if !self.status.is_final() {
            self.status = OperationStatus::Superseded;
        }
    }

    /// An instance of it failed; whether the deploy has, says [`DeployFinished`].
    pub(super) fn instance_failed(&mut self, event: &AppFailed, at: Timestamp) {
        if self.status.is_final() {
            return;
        }
        let stage = match event.reason {
            FailureReason::Artifact
            | FailureReason::NotAComponent
            | FailureReason::WrongWorld
            | FailureReason::Spawn
            | FailureReason::Image
            | FailureReason::Runtime
            | FailureReason::Secret
            | FailureReason::Volume => Stage::Started,
            FailureReason::Unhealthy | FailureReason::Exited | FailureReason::Memory => {
                Stage::Healthy
            }
        };
        self.step(stage, StepStatus::Failed, at);
        let (code, title) = reason(event.reason);
        self.error = Some(OperationError {
            code: code.to_owned(),
            title: title.to_owned(),
            detail: event.detail.clone(),
            fix: String::new(),
        });
        self.log_tail.clone_from(&event.log_tail);
    }

    pub(super) fn finished(&mut self, event: &DeployFinished, at: Timestamp) {
        if self.status.is_final() {
            return;
        }
        match event.outcome {
            DeployOutcome::Succeeded => {
                self.step(Stage::Finished, StepStatus::Done, at);
                self.status = OperationStatus::Succeeded;
                // An instance that failed on the way was replaced.
                self.error = None;
                self.log_tail = String::new();
            }
            DeployOutcome::Failed => {
                self.step(Stage::Finished, StepStatus::Failed, at);
                self.status = OperationStatus::Failed;
                let error = self.error.get_or_insert_with(|| OperationError {
                    code: ErrorCode::Unavailable.as_str().to_owned(),
                    title: String::new(),
                    detail: String::new(),
                    fix: String::new(),
                });
                if !event.detail.is_empty() {
                    error.title.clone_from(&event.detail);
                } else if error.title.is_empty() {
                    "The deploy failed".clone_into(&mut error.title);
                }
            }
        }
    }

    /// As callers see it. `url` is the app's.
    pub(super) fn operation(&self, app: AppId, url: &str) -> Operation {
        let failed = self.status == OperationStatus::Failed;
        Operation {
            operation: self.id,
            app,
            status: self.status,
            steps: self.steps.clone(),
            version: self.version,
            url: (self.status == OperationStatus::Succeeded).then(|| url.to_owned()),
            error: self.error.clone().filter(|_| failed),
            log_tail: if failed {
                self.log_tail.clone()
            } else {
                String::new()
            },
        }
    }
}

/// A failure's code, as in the event, and what it means.
const fn reason(reason: FailureReason) -> (&'static str, &'static str) {
    match reason {
        FailureReason::Artifact => ("artifact", "The uploaded files are not what was published"),
        FailureReason::NotAComponent => ("not_a_component", "Not a WebAssembly component"),
        FailureReason::WrongWorld => ("wrong_world", "The component is not a wasi:http app"),
        FailureReason::Unhealthy => ("unhealthy", "The app did not answer in time"),
        FailureReason::Exited => ("exited", "The app ended"),
        FailureReason::Spawn => ("spawn", "The app could not be started"),
        FailureReason::Image => ("image", "The image cannot be run"),
        FailureReason::Runtime => ("runtime", "The machine cannot run it"),
        FailureReason::Secret => ("secret", "A secret that it needs cannot be had"),
        FailureReason::Volume => ("volume", "Its volume cannot be had, or is full"),
        FailureReason::Memory => ("memory", "The app used more memory than it may"),
    }
}
