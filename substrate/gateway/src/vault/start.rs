//! How a vault starts: it learns what the log says, and removes what the log does not name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tabbify_process::fold::{Follow, Link, Start};
use tabbify_process::{Importance, chain};
use tabbify_types::EventId;
use tokio::sync::Mutex;

use super::{Deps, Inner, Vault};
use crate::error::{Error, StartError};
use crate::state::State;
use crate::store::Store;

/// LIMIT: records that are removed at a start. A crash leaves one, and a disk that failed a few: more, or
/// several beside a log that names none, mean that this is not the log that they belong to, and somebody must
/// look before they are lost.
const LEFT_MAX: usize = 4;

impl Vault {
    /// The vault in `dir`, once it knows what the log says; `snapshots` is where it keeps that. While the
    /// log is away it starts with what it knew.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(
        dir: &Path,
        snapshots: Option<&Path>,
        deps: Deps,
    ) -> Result<Self, StartError> {
        let store = Store::open(dir)?;
        let (log, clock) = (Arc::clone(&deps.log), Arc::clone(&deps.clock));
        let mut follow = Follow::open(State::default(), log, snapshots, clock);
        let start = follow.catch_up().await.map_err(StartError::Follow)?;
        let tasks = deps.tasks;
        let known = follow.spawn("vault projection", Importance::Essential, &tasks);
        let vault = Self(Arc::new(Inner {
            log: deps.log,
            writers: deps.writers,
            tokens: deps.tokens,
            master: deps.master,
            store,
            known,
            changing: Mutex::new(()),
            tasks: tasks.clone(),
        }));
        match start {
            Start::CaughtUp => vault.clean().await,
            Start::Snapshot { .. } => {
                let later = vault.clone();
                tasks.spawn("vault cleaning", Importance::Detached, async move {
                    let live = later.0.known.until(|view| view.link == Link::Live);
                    let token = later.0.tasks.token();
                    if token.run_until_cancelled(live).await == Some(true) {
                        later.clean().await;
                    }
                });
            }
        }
        Ok(vault)
    }

    /// Removes the records that the log does not name; what cannot be removed stays, and is said.
    async fn clean(&self) {
        if let Err(error) = self.0.clean().await {
            tracing::error!(role = "api-gateway", error = %chain(&error), "records that nobody names stay");
        }
    }
}

impl Inner {
    async fn clean(&self) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        self.up_to_date().await?;
        let there = self.on_disk(Store::ids).await?;
        let named: BTreeSet<EventId> = self.known.read(|view| view.state.records().collect());
        let lost = named.difference(&there).count();
        if lost > 0 {
            tracing::error!(
                role = "api-gateway",
                lost,
                "values that the log names are not in the vault: set them again"
            );
        }
        let left: Vec<EventId> = there.difference(&named).copied().collect();
        let is_other = named.is_empty() && left.len() > 1;
        if is_other || left.len() > LEFT_MAX {
            let (left, max) = (left.len(), LEFT_MAX);
            tracing::error!(
                role = "api-gateway",
                left,
                max,
                "the log does not name these records, and they are too many to be left behind by crashes: is it the right log? None is removed"
            );
            return Ok(());
        }
        for id in left {
            self.shred(id).await?;
            tracing::info!(role = "api-gateway", %id, "a record that nobody names is removed");
        }
        Ok(())
    }
}
