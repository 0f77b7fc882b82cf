//! What a dead runner left, found by its labels and removed.

use std::collections::HashMap;

use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use tabbify_types::event::v1::InstanceRef;

use crate::spec::{APP_LABEL, INSTANCE_LABEL};
use crate::{Engine, Error};

/// What was found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Containers.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
    /// Images that nobody uses now.
    pub images: usize,
}

impl Engine {
    /// Removes all that was ever made for an instance, whoever made it. Its runner must be dead, or be the
    /// caller.
    ///
    /// # Errors
    /// Those of a call; what was removed is removed.
    pub async fn reap(&self, of: InstanceRef) -> Result<Reaped, Error> {
        let labels = vec![
            format!("{APP_LABEL}={}", of.app),
            format!("{INSTANCE_LABEL}={}", of.instance),
        ];
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let mut reaped = Reaped::default();
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self.docker.list_containers(Some(options)).await;
        for container in containers.map_err(Error::call("listing containers"))? {
            let id = container.id.ok_or(Error::Answer("a container's id"))?;
            let names = container.names.unwrap_or_default();
            let name = names.first().map(|name| name.trim_start_matches('/'));
            // Container and network have one name.
            self.remove_parts(&id, name.unwrap_or(&id)).await?;
            reaped.containers += 1;
        }
        let options = ListNetworksOptionsBuilder::default()
            .filters(&filters)
            .build();
        let networks = self.docker.list_networks(Some(options)).await;
        for network in networks.map_err(Error::call("listing networks"))? {
            let id = network.id.ok_or(Error::Answer("a network's id"))?;
            reaped.networks += usize::from(self.remove_network(&id).await?);
        }
        reaped.images = self.remove_unused_images().await?;
        Ok(reaped)
    }
}
