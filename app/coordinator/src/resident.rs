//! A part of this process that is a member of the mesh by itself, beside the machine that it runs on: to apps
//! it must not be that machine, whose word about people they believe.

use tabbify_api::policy::GATEWAY_TAG;
use tabbify_types::{Digest, HostName, HostUla, MeshKey};

use crate::Config;
use crate::coordinator::Coordinator;
use crate::join::join;
use crate::refusal::Refusal;

/// Digits of a resident's name that are of its key: enough that no two meet.
const NAME_DIGITS: usize = 16;

impl Coordinator {
    /// Makes the gateway for people's devices a member, with a key and an address of its own; it is one that
    /// sees every app and speaks for nobody. The same key is the same member again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn settle_gateway(&self, key: MeshKey) -> Result<HostUla, Refusal> {
        let config = Config {
            host: name("gateway", &key)?,
            key,
            tags: vec![GATEWAY_TAG.to_owned()],
            capabilities: Vec::new(),
            memory: None,
        };
        self.settle(|state| join(state, &config)).await?;
        let address = self.read(|state| state.hosts.get(&config.host).map(|peer| peer.address))?;
        address.ok_or(Refusal::NotAMember)
    }
}

/// A name that no machine has by accident.
fn name(what: &str, key: &MeshKey) -> Result<HostName, Refusal> {
    let digits = Digest::of(&key.0).to_string();
    let name = format!("{what}-{}", &digits[..NAME_DIGITS]);
    let name = name.parse();
    name.map_err(|error| Refusal::Unavailable(format!("a resident has no name: {error}")))
}
