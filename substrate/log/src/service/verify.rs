//! Verifies the log while it is in use: everything up to where it was when the verification began,
//! piece by piece, one verification at a time and with as long a pause after each piece as it took.

use std::sync::{Arc, Mutex, PoisonError};

use tabbify_api::log::{LogEngine, ReadError, Verification, VerificationState};
use tabbify_process::{Importance, Tasks};
use tabbify_types::Position;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The verification that runs or ran last.
#[derive(Debug)]
pub(super) struct Verifier {
    engine: Arc<dyn LogEngine>,
    last: Mutex<Option<Verification>>,
}

impl Verifier {
    pub(super) const fn new(engine: Arc<dyn LogEngine>) -> Self {
        Self {
            engine,
            last: Mutex::new(None),
        }
    }

    pub(super) fn last(&self) -> Option<Verification> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Begins a verification, unless one is running, which then is the answer.
    pub(super) fn start(self: &Arc<Self>, tasks: &Tasks) -> Verification {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*last
            && running.state == VerificationState::Running
        {
            return running.clone();
        }
        let begun = Verification {
            upto: self.engine.head(),
            verified: Position(0),
            state: VerificationState::Running,
        };
        *last = Some(begun.clone());
        let (this, closing) = (Arc::clone(self), tasks.token());
        let upto = begun.upto;
        tasks.spawn("log verification", Importance::Detached, async move {
            let state = this.run(upto, &closing).await;
            this.tell(|verification| verification.state = state);
        });
        begun
    }

    async fn run(&self, upto: Position, closing: &CancellationToken) -> VerificationState {
        let mut verified = Position(0);
        while verified < upto {
            let began = Instant::now();
            match self.engine.verify(verified, upto).await {
                Ok(position) if position > verified => verified = position,
                Ok(_) => {
                    let detail =
                        format!("nothing is behind position {verified}, and {upto} is due");
                    return VerificationState::Damaged { detail };
                }
                Err(ReadError::Damaged { detail }) => {
                    tracing::error!(detail, "the log is damaged");
                    return VerificationState::Damaged { detail };
                }
                Err(error) => {
                    tracing::warn!(%error, "a verification broke off");
                    return VerificationState::Stopped;
                }
            }
            self.tell(|verification| verification.verified = verified);
            tokio::select! {
                () = closing.cancelled() => return VerificationState::Stopped,
                () = tokio::time::sleep(began.elapsed()) => {}
            }
        }
        VerificationState::Intact
    }

    fn tell(&self, what: impl FnOnce(&mut Verification)) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verification) = &mut *last {
            what(verification);
        }
    }
}
