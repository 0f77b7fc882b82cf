//! What a container is to be: the app's wishes, and what is denied to every app.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions, MountVolumeOptionsDriverConfig,
};
use tabbify_types::event::v1::InstanceRef;

use crate::{Enter, Facts, Image};

/// LIMIT: processes and threads of a container.
pub const PIDS_MAX: u32 = 512;
/// LIMIT: `/tmp`, in bytes; it counts as the app's memory, too.
const TMP_LEN_MAX: u64 = 64 * 1024 * 1024;
/// LIMIT: output that the engine keeps of a container until it is fetched, in its files.
const OUTPUT_FILES: [(&str, &str); 3] =
    [("max-size", "4m"), ("max-file", "2"), ("compress", "false")];
/// What remains of the rights of root: to own and hand over files, to become another user, as entry points
/// do, to signal its own children, and a low port. Of the engine's default this leaves out making devices,
/// raw packets, a root of its own, file capabilities and writing the kernel's audit log.
const CAPABILITIES: [&str; 9] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
];
/// Labels of what we make: the app, the instance, and who made it.
pub(crate) const APP_LABEL: &str = "tabbify.app";
pub(crate) const INSTANCE_LABEL: &str = "tabbify.instance";
pub(crate) const NONCE_LABEL: &str = "tabbify.nonce";

/// A container to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Whose it is.
    pub of: InstanceRef,
    /// Names this start of it, by letters and digits: at least 16 random ones.
    pub nonce: String,
    /// A program and its arguments, instead of the image's; empty for the image's.
    pub command: Vec<String>,
    /// Variables, over the image's.
    pub env: Vec<(String, String)>,
    /// The most memory, in bytes; none of it is swapped out.
    pub memory: u64,
    /// The most processor time, in thousandths of a processor.
    pub cpus_milli: u32,
    /// The most processes and threads.
    pub pids: u32,
    /// Whether nothing but `/tmp`, the image's volumes and its own can be written.
    pub read_only: bool,
    /// What it keeps when it is removed.
    pub volume: Option<Volume>,
    /// Secrets.
    pub enter: Option<Enter>,
}

/// What a container keeps on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// A block device with an ext4, or a directory.
    pub source: PathBuf,
    /// Where the app sees it.
    pub mount: String,
}

impl Volume {
    /// The engine mounts it, and has no name for it: so it forgets it with the container, and nothing has to
    /// be mounted anywhere else. Into an empty one the engine copies what the image has in that place, with
    /// its owner and rights, as it does with every volume.
    fn mount(&self) -> Mount {
        let source = self.source.display().to_string();
        let (kind, how) = match self.source.is_dir() {
            true => ("none", "bind"),
            // What is removed from it is given back to the machine's disk.
            false => ("ext4", "nosuid,nodev,discard"),
        };
        let options = [("type", kind), ("device", &source), ("o", how)];
        let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Mount {
            target: Some(self.mount.clone()),
            typ: Some(MountType::VOLUME),
            volume_options: Some(MountVolumeOptions {
                driver_config: Some(MountVolumeOptionsDriverConfig {
                    name: Some("local".to_owned()),
                    options: Some(options.into()),
                }),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        }
    }
}

impl Spec {
    /// Name of the container, and of its network.
    pub(crate) fn name(&self) -> String {
        format!("tabbify-{}", self.nonce)
    }

    pub(crate) fn labels(&self) -> HashMap<String, String> {
        let labels = [
            (APP_LABEL, self.of.app.to_string()),
            (INSTANCE_LABEL, self.of.instance.to_string()),
            (NONCE_LABEL, self.nonce.clone()),
        ];
        labels.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// The request. What the image says of its user, directory and stop signal stays.
    pub(crate) fn body(&self, image: &Image, facts: &Facts) -> ContainerCreateBody {
        let env = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        // An entrypoint of ours also removes the image's command.
        let command = (!self.command.is_empty()).then_some(&self.command);
        let has_pipe = self.enter.is_some();
        let entrypoint = match has_pipe {
            true => Some(Enter::before(command.unwrap_or(&facts.command))),
            false => command.cloned(),
        };
        ContainerCreateBody {
            image: Some(image.reference()),
            hostname: Some("app".to_owned()),
            entrypoint,
            attach_stdin: Some(has_pipe),
            open_stdin: Some(has_pipe),
            stdin_once: Some(has_pipe),
            env: Some(env.collect()),
            labels: Some(self.labels()),
            // The runner asks for health itself; the image's own question would run outside the app's limits.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            host_config: Some(self.limits()),
            ..ContainerCreateBody::default()
        }
    }

    fn limits(&self) -> HostConfig {
        let memory = i64::try_from(self.memory).unwrap_or(i64::MAX);
        let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let tmp = format!("rw,nosuid,nodev,mode=1777,size={TMP_LEN_MAX}");
        let mut tmpfs = owned(&[("/tmp", &tmp)]);
        tmpfs.extend(self.enter.as_ref().map(|_| Enter::files()));
        let volume = self.volume.iter().map(Volume::mount);
        let mounts = volume.chain(self.enter.iter().map(Enter::mount));
        HostConfig {
            memory: Some(memory),
            memory_swap: Some(memory),
            nano_cpus: Some(i64::from(self.cpus_milli) * 1_000_000),
            pids_limit: Some(i64::from(self.pids)),
            readonly_rootfs: Some(self.read_only),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(CAPABILITIES.map(str::to_owned).into()),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            privileged: Some(false),
            network_mode: Some(self.name()),
            // The engine's resolver would ask the machine's for a container that has no way out itself.
            dns: Some(vec!["127.0.0.1".to_owned()]),
            tmpfs: Some(tmpfs),
            mounts: Some(mounts.collect()),
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".to_owned()),
                config: Some(owned(&OUTPUT_FILES)),
            }),
            ..HostConfig::default()
        }
    }
}
