//! Volumes: what apps keep on the machines that run them, beyond instances, versions and restarts.
//!
//! ```text
//! <data>/volumes/<app>/     0700, made by the first runner of an instance that has one
//!   holder.json     the lock: held by the runner that has the volume, for life; says who had it last
//!   volume.img      a file with an ext4 in it, as large as it may become; or, where none can be mounted,
//!   files/          a directory, whose size nothing limits
//! ```
//!
//! At the node:
//!
//! | method and path | answer | scope |
//! |---|---|---|
//! | `GET /v1/apps/{id}/volumes` | [`VolumeList`] | `apps:read` |
//! | `DELETE /v1/apps/{id}/volumes/{machine}` | 204: what was in it is gone | `volumes:write` |
//!
//! At a machine's supervisor, over the mesh, for nodes: `GET` and `DELETE /v1/apps/{id}/volume` of its own, a
//! [`VolumeView`] or 404, and 204.

use std::fmt;

use serde::{Deserialize, Serialize};
use tabbify_types::{AppId, ByteSize, HostName, InstanceId};

use crate::{BoxFuture, Problem};

/// File name of the lock in a volume's directory.
pub const HOLDER_FILE: &str = "holder.json";
/// File name of a volume that is a file system of its own.
pub const IMAGE_FILE: &str = "volume.img";
/// Name of a volume that is a directory.
pub const FILES_DIRECTORY: &str = "files";
/// File name that a volume's parts have while they are made: nothing in them counts.
pub const PART_FILE: &str = "volume.part";

/// An app's volume on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Where it is.
    pub machine: HostName,
    /// The most that it may hold; nothing for a directory, whose size nothing limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// What it takes of the machine's disk.
    pub used: ByteSize,
    /// The instance that has it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<InstanceId>,
}

/// `GET /v1/apps/{id}/volumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// By machine.
    pub volumes: Vec<VolumeView>,
    /// Machines that did not answer, whose volumes are missing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<HostName>,
}

/// The volumes of a machine.
pub trait AppVolumes: Send + Sync + fmt::Debug {
    /// An app's volume, if it has one here.
    fn look(&self, app: AppId) -> BoxFuture<'_, Result<Option<VolumeView>, Problem>>;

    /// Removes an app's volume with all that is in it; refused while somebody has it. One that is not there
    /// is removed.
    fn remove(&self, app: AppId) -> BoxFuture<'_, Result<(), Problem>>;
}

/// Path of an app's volume at its machine's supervisor.
#[must_use]
pub fn path_at_machine(app: AppId) -> String {
    format!("/v1/apps/{app}/volume")
}

/// Which app's volume a path of [`path_at_machine`] means; `None` for anything else.
#[must_use]
pub fn app_of(path: &str) -> Option<AppId> {
    let app = path.strip_prefix("/v1/apps/")?.strip_suffix("/volume")?;
    app.parse().ok()
}

/// Path of an app's volumes; at the node a slash and a machine follow for one of them.
#[must_use]
pub fn path_of(app: AppId) -> String {
    format!("/v1/apps/{app}/volumes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_at_a_machine_names_its_app() {
        let app: AppId = "0191e7c2-1111-7222-8333-444455556666".parse().unwrap();
        assert_eq!(app_of(&path_at_machine(app)), Some(app));
        for path in [
            "",
            "/v1/apps//volume",
            "/v1/apps/x/volume",
            "/v1/apps/volume",
        ] {
            assert_eq!(app_of(path), None, "{path}");
        }
        assert_eq!(app_of(&path_of(app)), None);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let list = VolumeList {
            volumes: vec![VolumeView {
                machine: "box1".parse().unwrap(),
                size: None,
                used: ByteSize(4096),
                held_by: None,
            }],
            silent: Vec::new(),
        };
        let json = serde_json::to_value(&list).unwrap();
        let expected = serde_json::json!({ "volumes": [{ "machine": "box1", "used": "4KiB" }] });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<VolumeList>(json).unwrap(), list);
    }
}
