//! A deploy from its request to its end: each step as it is done, and how the end is told.

use std::time::Duration;

use tabbify_api::apps::{AppView, Operation, OperationStatus, RequestDeploy, Step, StepStatus};
use tabbify_types::{DeployId, VersionNumber};

use crate::client::Client;
use crate::clock::{self, Stopwatch};
use crate::error::{Code, Exit, Failure, Result, exit_of_deploy};
use crate::output::printable;
use crate::progress::Progress;

/// How long the node holds each question.
const WAIT: Duration = Duration::from_secs(30);
/// LIMIT: how long a deploy is watched; longer than any instance may take to become healthy.
const WATCH_MAX: Duration = Duration::from_secs(2 * 3600);
/// LIMIT: how long the platform may be away meanwhile, for a restart.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// Between two questions that brought no news at once.
const PAUSE: Duration = Duration::from_millis(500);

/// Puts a version into service and waits for the end, which is `Ok` if it serves or awaits a person.
pub(crate) fn deploy(
    client: &Client,
    progress: Progress,
    app: &AppView,
    version: VersionNumber,
) -> Result<Operation> {
    let id = DeployId::mint();
    let bar = progress.spinner(&format!("deploying {} v{version}", app.name));
    let mut operation = client.deploy(&RequestDeploy {
        id,
        app: app.id,
        version,
    })?;
    let mut told = Told::default();
    let watch = Stopwatch::start();
    let mut away: Option<Stopwatch> = None;
    loop {
        told.tell(&operation.steps, &mut |line| bar.line(&line));
        if operation.status != OperationStatus::Running {
            break;
        }
        if watch.elapsed() > WATCH_MAX {
            return Err(still_running(client, &operation));
        }
        let asked = Stopwatch::start();
        let seen = operation.steps.len();
        match client.operation(id, seen, WAIT) {
            Ok(next) => {
                away = None;
                if next.steps.len() == seen && asked.elapsed() < PAUSE {
                    clock::pause(PAUSE);
                }
                operation = next;
            }
            Err(failure) if is_away(&failure) => {
                // The deploy goes on without us, and the platform comes back after a restart.
                if away.get_or_insert_with(Stopwatch::start).elapsed() > AWAY_MAX {
                    return Err(Failure {
                        operation: Some(Box::new(operation)),
                        ..failure
                    });
                }
                clock::pause(PAUSE);
            }
            Err(failure) => return Err(failure),
        }
    }
    drop(bar);
    match operation.status {
        OperationStatus::Running
        | OperationStatus::Succeeded
        | OperationStatus::AwaitingApproval => Ok(operation),
        OperationStatus::Failed
        | OperationStatus::Denied
        | OperationStatus::Expired
        | OperationStatus::Superseded
        | OperationStatus::Cancelled => {
            // What still serves is good to know; not knowing it does not change the outcome.
            let now = client.app(app.id).ok();
            Err(failed(&app.name.to_string(), operation, now.as_ref()))
        }
    }
}

fn is_away(failure: &Failure) -> bool {
    [Code::Unreachable, Code::Interrupted]
        .iter()
        .any(|code| failure.code == code.as_str())
        || failure.is(tabbify_api::ErrorCode::Unavailable)
}

/// Which steps a person has been told.
#[derive(Debug, Default)]
struct Told {
    steps: usize,
    ms: u64,
}

impl Told {
    fn tell(&mut self, steps: &[Step], line: &mut dyn FnMut(String)) {
        for step in steps.iter().skip(self.steps) {
            let took = Duration::from_millis(step.ms.saturating_sub(self.ms));
            let mark = match step.status {
                StepStatus::Done => '✓',
                StepStatus::Failed => '✗',
            };
            line(format!(
                "{mark} {}  {}",
                printable(&step.name),
                clock::seconds(took)
            ));
            self.ms = step.ms;
        }
        self.steps = self.steps.max(steps.len());
    }
}

fn still_running(client: &Client, operation: &Operation) -> Failure {
    let what = format!(
        "Deploy {} on {} has not ended in {}.",
        operation.operation,
        client.server(),
        clock::seconds(WATCH_MAX)
    );
    let failure = Failure::new(Code::StillRunning, what).fix("See how it is: tcli status");
    Failure {
        operation: Some(Box::new(operation.clone())),
        ..failure
    }
}

/// Error, last lines, what still serves; the fix comes last.
fn failed(name: &str, operation: Operation, now: Option<&AppView>) -> Failure {
    let version = operation.version;
    let (mut lines, exit, code, fix) = match (&operation.error, operation.status) {
        (Some(error), _) => {
            let title = printable(error.title.trim_end_matches('.'));
            let mut lines = vec![format!("{name} v{version} was not deployed: {title}.")];
            if !error.detail.is_empty() && error.detail != error.title {
                lines.extend(error.detail.lines().map(printable));
            }
            let fix = (!error.fix.is_empty()).then(|| printable(&error.fix));
            (lines, exit_of_deploy(&error.code), error.code.clone(), fix)
        }
        (None, status) => {
            let why = match status {
                OperationStatus::Denied => "a person said no",
                OperationStatus::Expired => "nobody approved it in time",
                OperationStatus::Superseded => "a newer deploy took over",
                OperationStatus::Cancelled => "it was taken back",
                _ => "the platform does not say why",
            };
            let exit = match status {
                OperationStatus::Failed => Exit::Platform,
                _ => Exit::App,
            };
            let line = format!("{name} v{version} was not deployed: {why}.");
            (
                vec![line],
                exit,
                Code::NotDeployed.as_str().to_owned(),
                None,
            )
        }
    };
    if !operation.log_tail.trim().is_empty() {
        lines.push("Last lines:".to_owned());
        lines.extend(
            operation
                .log_tail
                .lines()
                .map(|line| format!("  | {}", printable(line))),
        );
    }
    if let Some(now) = now {
        lines.push(match now.serving {
            Some(serving) if serving == version => format!("v{serving} serves."),
            Some(serving) => format!("v{serving} still serves."),
            None => "Nothing serves yet.".to_owned(),
        });
    }
    Failure {
        exit,
        code,
        what: lines.join("\n"),
        fix,
        operation: Some(Box::new(operation)),
    }
}
