//! An example of every event, with every field, in the order of the catalog. What is here is in the
//! golden files: it is extended, never changed.

mod deploys;
mod platform;
mod tenant;

use std::fmt::Debug;
use std::str::FromStr;

use tabbify_types::{
    AppId, AppUla, Base64Url, DeployId, Digest, Event, HostName, MeshKey, Sealed, Timestamp,
};

/// All of them.
pub(crate) fn all() -> Vec<Event> {
    let mut all = platform::all();
    all.extend(deploys::all());
    all.extend(tenant::all());
    all
}

fn the<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("an example is well-formed")
}

fn app() -> AppId {
    the("0191e7c2-1111-7222-8333-444455556666")
}

fn address() -> AppUla {
    AppUla::derive(app())
}

fn deploy() -> DeployId {
    the("0191e7c3-0000-7000-8000-000000000001")
}

fn host() -> HostName {
    the("box1")
}

fn mesh_key() -> MeshKey {
    MeshKey([7; 32])
}

fn digest(of: &str) -> Digest {
    Digest::of(of.as_bytes())
}

fn time() -> Timestamp {
    Timestamp::from_millis(1_795_359_600_000)
}

fn sealed(subject: &str) -> Sealed {
    Sealed {
        subject: subject.to_owned(),
        key_version: 1,
        nonce: Base64Url(vec![1; 24]),
        ciphertext: Base64Url((0..32).collect()),
    }
}
