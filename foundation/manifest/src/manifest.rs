//! The manifest as its author wrote it: what is absent is `None` or empty, and nothing is defaulted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tabbify_types::event::v1::{Access, RuntimeKind};
use tabbify_types::{AppId, AppName, ByteSize, HostName, Segment, SegmentGlob};

use crate::problem::{ManifestErrors, Note, Problems};
use crate::schema;
use crate::tree::{Place, Table};
use crate::{Cron, Egress, legacy, read, tree};

/// What a text says, and what it takes to say it in today's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest in today's form: the text itself, or its upgrade. This is what is uploaded, so
    /// that the platform reads what the developer was told.
    pub text: String,
    /// What the upgrade changed, in the order of the lines; empty for today's form.
    pub notes: Vec<Note>,
}

/// A valid `tabbify.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `[app]`.
    pub app: App,
    /// `[build]`; `None` means that it is detected.
    pub build: Option<Build>,
    /// `[runtime]`.
    pub runtime: Runtime,
    /// `[env]`: plain variables.
    pub env: BTreeMap<String, String>,
    /// `[secrets]`: variable → secret.
    pub secrets: BTreeMap<String, Secret>,
    /// `[network] egress`: where the app may connect to.
    pub egress: Vec<Egress>,
    /// `[events]`.
    pub events: Events,
    /// `[release] command`: runs once per version, before any switch.
    pub release: Option<Command>,
    /// `[[schedule]]`.
    pub schedules: Vec<Schedule>,
    /// `[[port]]`.
    pub ports: Vec<Port>,
    /// `[[deploy]]`.
    pub deploys: Vec<Deploy>,
    pub(crate) written: Written,
}

impl Manifest {
    /// Reads a `tabbify.toml`, an earlier form of it, or a legacy `manifest.toml`; `file` is the name
    /// that messages and notes carry, and its last part tells a `manifest.toml`.
    ///
    /// # Errors
    ///
    /// Every mistake in the text, if there is one.
    pub fn parse(text: &str, file: &str) -> Result<Parsed, ManifestErrors> {
        let mut out = Problems::new(file);
        let Some(mut table) = tree::parse(text, &mut out) else {
            return Err(out.into_errors());
        };
        let upgrade = legacy::upgrade(&mut table, &mut out);
        schema::check(&table, &mut out);
        let manifest = read::manifest(&table, &mut out);
        let mut manifest = out.finish(manifest)?;
        manifest.written = Written::of(file, &table);
        let text = if upgrade.is_some() {
            legacy::render(&table)
        } else {
            text.to_owned()
        };
        Ok(Parsed {
            manifest,
            text,
            notes: upgrade.unwrap_or_default(),
        })
    }

    /// The line on which a key stands, such as `runtime.memory` or `deploy[0].supervisor`; `None` if
    /// the file does not have it.
    #[must_use]
    pub fn line_of(&self, key: &str) -> Option<u32> {
        self.written.entries.get(key).map(|entry| entry.place.line)
    }

    /// The name of the file, as given to [`Manifest::parse`].
    #[must_use]
    pub fn file(&self) -> &str {
        &self.written.file
    }
}

/// `[app]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Written by [`crate::stamp`] into the uploaded copy.
    pub id: Option<AppId>,
    /// The name, unique in the tenant.
    pub name: AppName,
    /// What it is, for people.
    pub description: Option<String>,
    /// Who may open it without a token.
    pub access: Option<Access>,
}

/// `[build]`: where the thing that runs comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Build {
    /// A Dockerfile, built on the platform.
    Dockerfile {
        /// Path of the Dockerfile, relative to the folder of the manifest.
        dockerfile: String,
        /// The folder that the build sees.
        context: String,
    },
    /// A finished image.
    Image {
        /// Its reference, such as `postgres:17`.
        image: String,
    },
    /// A finished image in a file, `oci-archive:shop.tar` or `docker-archive:shop.tar`.
    Archive {
        /// Its path, relative to the folder of the manifest.
        archive: String,
    },
    /// A component, built on the developer's machine.
    Wasm {
        /// Path of the component, relative to the folder of the manifest.
        wasm: String,
        /// What builds it, run by a shell in `context`; `None` if it is there already.
        command: Option<String>,
        /// The folder in which `command` runs.
        context: String,
    },
}

/// `[runtime]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runtime {
    /// `type`.
    pub kind: Option<RuntimeKind>,
    /// `command`: instead of the image's.
    pub command: Option<Command>,
    /// `port`: `Some(None)` is `port = false`, a worker without HTTP.
    pub port: Option<Option<u16>>,
    /// `health`.
    pub health: Health,
    /// `lifecycle`.
    pub lifecycle: Option<Lifecycle>,
    /// `idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// `stop_timeout`.
    pub stop_timeout: Option<Duration>,
    /// `memory`.
    pub memory: Option<ByteSize>,
    /// `cpus`.
    pub cpus: Option<Cpus>,
    /// `replicas`.
    pub replicas: Option<u16>,
    /// `volume`.
    pub volume: Option<Volume>,
}

/// `runtime.health`: when an instance counts as started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// A path that answers 2xx; without it, accepting a connection is enough.
    pub path: Option<String>,
    /// How long it may take.
    pub within: Option<Duration>,
}

/// `runtime.lifecycle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Stops when idle; the next request wakes it.
    OnRequest,
    /// Runs until it is stopped.
    AlwaysOn,
}

/// Processors, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    /// From thousandths of a processor.
    #[must_use]
    pub const fn from_milli(milli: u32) -> Self {
        Self(milli)
    }

    /// Thousandths of a processor.
    #[must_use]
    pub const fn milli(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / 1000.0).fmt(f)
    }
}

/// `runtime.volume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path in the app.
    pub mount: String,
    /// `size`.
    pub size: Option<ByteSize>,
    /// `snapshots`.
    pub snapshots: Option<Snapshots>,
}

/// How often a volume is copied to the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshots {
    /// Every hour.
    Hourly,
    /// Every day.
    Daily,
    /// Every week.
    Weekly,
    /// Only by hand.
    Never,
}

/// One entry of `[secrets]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The secret's name in the tenant.
    pub name: String,
    /// How the app gets it.
    pub delivery: Delivery,
}

/// How an app gets a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Delivery {
    /// As the value of the variable.
    #[default]
    Env,
    /// As a file whose path is in `<variable>_FILE`.
    File,
}

/// `[events]`: the capability bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events {
    /// What it may read, within its own tenant.
    pub subscribe: Vec<SegmentGlob>,
    /// What it may write, within its own tenant.
    pub emit: Vec<Segment>,
    /// The path to which events are POSTed.
    pub path: Option<String>,
}

/// A program and its arguments, without a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// At least one; the first names the program.
    pub words: Vec<String>,
}

/// One `[[schedule]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// When.
    pub cron: Cron,
    /// What.
    pub command: Command,
}

/// One `[[port]]`: raw TCP on the app's mesh address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The port, on the address and in the app.
    pub number: u16,
}

/// One `[[deploy]]`: a target and what is different there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploy {
    /// Which machines.
    pub supervisor: Supervisor,
    /// Instead of `runtime.type`.
    pub runtime: Option<RuntimeKind>,
    /// Variables that are added to `[env]` or replace those of it.
    pub env: BTreeMap<String, String>,
}

/// Which machines a target may use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Supervisor {
    /// Any that can run it.
    Any,
    /// The one with this name.
    Name(HostName),
    /// Any whose token claims this tag.
    Tag(String),
}

impl fmt::Display for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

/// Everything that the file says, by dotted key: for messages about a manifest that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) file: Arc<str>,
    pub(crate) entries: BTreeMap<String, WrittenEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrittenEntry {
    pub(crate) place: Place,
    /// The value on one line, in full.
    pub(crate) value: String,
}

impl Written {
    pub(crate) fn none() -> Self {
        Self {
            file: "".into(),
            entries: BTreeMap::new(),
        }
    }

    fn of(file: &str, table: &Table) -> Self {
        let mut entries = BTreeMap::new();
        schema::walk(table, &mut |path, node| {
            let entry = WrittenEntry {
                place: node.place,
                value: node.inline(),
            };
            entries.insert(path.to_owned(), entry);
        });
        Self {
            file: file.into(),
            entries,
        }
    }
}
