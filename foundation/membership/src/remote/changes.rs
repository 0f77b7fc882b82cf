//! What changes, for whoever has sessions.

use tabbify_api::BoxFuture;
use tabbify_api::mesh::{Changed, Changes};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Hears what the watch of a [`RemoteCoordinator`](super::RemoteCoordinator) hears.
#[derive(Debug)]
pub(super) struct Heard(pub(super) Receiver<Changed>);

impl Changes for Heard {
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
        Box::pin(async move {
            match self.0.recv().await {
                Ok(changed) => Some(changed),
                Err(RecvError::Lagged(_)) => Some(Changed::Everything),
                Err(RecvError::Closed) => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tabbify_types::MeshKey;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn who_falls_behind_looks_at_everything() {
        let sender = broadcast::Sender::new(2);
        let mut heard = Heard(sender.subscribe());
        let gone = |n| Changed::Gone(MeshKey([n; 32]));
        for n in 1..=3 {
            sender.send(gone(n)).unwrap();
        }
        assert_eq!(heard.next().await, Some(Changed::Everything));
        assert_eq!(heard.next().await, Some(gone(2)));
        assert_eq!(heard.next().await, Some(gone(3)));
        drop(sender);
        assert_eq!(heard.next().await, None);
    }
}
