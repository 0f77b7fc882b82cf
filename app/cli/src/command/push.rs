//! `push`: manifest → build → upload → publish → deploy → wait.
//!
//! Whatever can be refused is refused before the first byte is sent, and the lock file is written as
//! soon as the app exists, so that a push that fails later is continued by the next one.

mod build;
pub(crate) mod identity;
mod plan;

use tabbify_api::ErrorCode;
use tabbify_api::apps::{AppView, CommitVersion, RegisterApp, ReserveVersion};
use tabbify_api::artifact::MANIFEST_FILE;
use tabbify_manifest::{
    Build, IMAGE_ENTRY, LockEntry, Parsed, Resolved, WASM_ENTRY, not_supported_yet, stamp,
};
use tabbify_types::{AppId, VersionNumber};

use self::identity::{Identity, identify};
use crate::args::PushArgs;
use crate::artifact::{Content, Item};
use crate::client::Client;
use crate::clock::{self, Stopwatch};
use crate::command::{Tool, deploy, secrets};
use crate::error::{Code, Exit, Failure, Result};
use crate::folder::{self, Folder};
use crate::http::Payload;
use crate::output;

/// LIMIT: ids minted for one app until one has an address that nobody ever had. One collision in
/// 2^48 is a wonder; five are a fault of the platform.
const MINTS_MAX: u32 = 5;

pub(crate) fn run(tool: &Tool, args: &PushArgs) -> Result<Exit> {
    let parsed = tool.folder.manifest().map_err(nothing_uploaded)?;
    for note in &parsed.notes {
        tool.progress.say(&note.to_string());
    }
    let resolved = resolve(&tool.folder, &parsed).map_err(nothing_uploaded)?;
    let source = Source::of(&resolved)?;
    let client = tool.client()?;
    let pusher = Pusher {
        tool,
        client: &client,
        parsed: &parsed,
        source: &source,
    };
    let apps = client.apps()?;
    let identity = pusher.identify(&apps)?;
    if args.plan {
        return plan::show(&pusher, &identity, args.no_deploy);
    }
    secrets::check(&client, &parsed.manifest)?;
    if let Some(command) = &source.command {
        build::run(tool.progress, command, &tool.folder.join(&source.context))?;
    }
    let entry = pusher.entry()?;
    let app = pusher.claim()?;
    let version = pusher.upload(&app, entry)?;
    if args.no_deploy {
        return deploy::published(tool, &app, version);
    }
    deploy::activate(tool, &client, &app, version)
}

/// What is run: a file, and what builds it.
pub(crate) struct Source {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) command: Option<String>,
    pub(crate) context: String,
}

/// What kind of file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Component,
    Image,
}

impl Kind {
    /// What it is called in every version.
    pub(crate) const fn entry(self) -> &'static str {
        match self {
            Self::Component => WASM_ENTRY,
            Self::Image => IMAGE_ENTRY,
        }
    }

    /// The key that names it.
    const fn key(self) -> &'static str {
        match self {
            Self::Component => "build.wasm",
            Self::Image => "build.image",
        }
    }
}

impl Source {
    fn of(resolved: &Resolved) -> Result<Self> {
        match resolved.build.clone() {
            Build::Wasm {
                wasm,
                command,
                context,
            } => Ok(Self {
                kind: Kind::Component,
                path: wasm,
                command,
                context,
            }),
            Build::Archive { archive } => Ok(Self {
                kind: Kind::Image,
                path: archive,
                command: None,
                context: ".".to_owned(),
            }),
            // `resolve` has refused these; said again, since a feature may come there first.
            Build::Dockerfile { .. } | Build::Image { .. } => {
                let what = "This tcli can push WebAssembly components and images in files only.";
                Err(Failure::new(Code::NotSupportedYet, what).fix("Nothing was uploaded."))
            }
        }
    }
}

/// One push under way.
pub(crate) struct Pusher<'a> {
    pub(crate) tool: &'a Tool,
    pub(crate) client: &'a Client,
    pub(crate) parsed: &'a Parsed,
    pub(crate) source: &'a Source,
}

impl Pusher<'_> {
    fn identify(&self, apps: &[AppView]) -> Result<Identity> {
        let app = &self.parsed.manifest.app;
        let lock = self.tool.folder.lock(self.client.platform()?)?;
        let wanted = identity::Wanted {
            name: &app.name,
            declared: app.id,
            flag: self.tool.global.app.as_deref(),
            lock: lock.map(|entry| entry.app_id),
        };
        identify(&wanted, apps, self.client.server())
    }

    /// The file that is run.
    pub(crate) fn entry(&self) -> Result<Item> {
        let manifest = &self.parsed.manifest;
        let kind = self.source.kind;
        let key = kind.key();
        let named = match manifest.line_of(key) {
            Some(line) => format!("{key}, {}:{line}", manifest.file()),
            None => "found in the folder".to_owned(),
        };
        let file = self.tool.folder.join(&self.source.path);
        if kind == Kind::Image {
            return Item::image(kind.entry(), &file, &named);
        }
        let built = self.source.command.is_some();
        Item::component(kind.entry(), &file, &named).map_err(|failure| {
            match failure.code == Code::NoComponent.as_str() && built {
                true => failure.fix(
                    "The build did not put it there; in a cargo workspace, add --target-dir target \
                     to build.command.",
                ),
                false => failure,
            }
        })
    }

    /// The app on the platform: registered if it is new, adopted or known otherwise, and in the
    /// lock file before this returns.
    fn claim(&self) -> Result<AppView> {
        let platform = self.client.platform()?;
        let _guard = self.tool.folder.guard();
        // Asked again under the guard: another push may have registered it while this one built.
        let app = match self.identify(&self.client.apps()?)? {
            Identity::New(id) => self.register(id)?,
            Identity::Known(app) => return Ok(app),
            Identity::Adopted(app) => app,
        };
        let latest_version = app.latest.unwrap_or_default();
        self.tool.folder.save_lock(
            platform,
            LockEntry {
                app_id: app.id,
                latest_version,
            },
        )?;
        Ok(app)
    }

    fn register(&self, declared: Option<AppId>) -> Result<AppView> {
        let name = &self.parsed.manifest.app.name;
        let mut minted = 1;
        loop {
            let id = declared.unwrap_or_else(AppId::mint);
            let failure = match self.client.register(&RegisterApp {
                id,
                name: name.clone(),
            }) {
                Ok(app) => return Ok(app),
                Err(failure) => failure,
            };
            if failure.is(ErrorCode::NameTaken) {
                return Err(identity::name_taken(name));
            }
            if !failure.is(ErrorCode::AddressTaken) || declared.is_some() || minted == MINTS_MAX {
                return Err(failure);
            }
            minted += 1;
        }
    }

    /// Uploads and publishes; the lock file then has the new number.
    fn upload(&self, app: &AppView, entry: Item) -> Result<VersionNumber> {
        let stamped = stamp(&self.parsed.text, app.id).map_err(|error| {
            Failure::new(Code::InvalidManifest, format!("{error}.")).fix("Nothing was uploaded.")
        })?;
        let mut items = vec![entry, Item::bytes(MANIFEST_FILE, stamped.into_bytes())];
        items.sort_by(|a, b| a.listed.path.cmp(&b.listed.path));
        let files: Vec<_> = items.iter().map(|item| item.listed.clone()).collect();
        let total = files.iter().map(|file| file.size).sum();
        let watch = Stopwatch::start();
        let reserve = ReserveVersion {
            files: files.clone(),
        };
        let version = self.client.reserve(app.id, &reserve)?.version;
        let bar = self
            .tool
            .progress
            .transfer(&format!("uploading v{version}"), total);
        let mut before = 0;
        for item in &items {
            let at = |bytes: u64| bar.at(before + bytes);
            let payload = match &item.content {
                Content::Bytes(bytes) => Payload::Bytes(bytes),
                Content::File(file) => Payload::File {
                    file,
                    len: item.listed.size,
                    at: &at,
                },
            };
            self.client
                .put_file(app.id, version, &item.listed.path, payload)?;
            before += item.listed.size;
            bar.at(before);
        }
        self.client
            .commit(app.id, version, &CommitVersion { files })?;
        drop(bar);
        let (count, total, took) = (items.len(), output::size(total), watch.elapsed());
        let done = format!("{count} files {total}  {}", clock::seconds(took));
        self.tool.progress.done(&done);
        self.remember(app, version)?;
        Ok(version)
    }

    /// Notes the number in the lock file, unless a push that ran beside this one has a newer one.
    fn remember(&self, app: &AppView, version: VersionNumber) -> Result<()> {
        let platform = self.client.platform()?;
        let _guard = self.tool.folder.guard();
        let newest = self.tool.folder.lock(platform)?.map_or(version, |entry| {
            if entry.app_id == app.id {
                entry.latest_version.max(version)
            } else {
                version
            }
        });
        let entry = LockEntry {
            app_id: app.id,
            latest_version: newest,
        };
        self.tool.folder.save_lock(platform, entry)
    }
}

fn resolve(folder: &Folder, parsed: &Parsed) -> Result<Resolved> {
    let detected = folder.detect()?;
    parsed.manifest.resolve(&detected).map_err(|errors| {
        let missing = !not_supported_yet(&parsed.manifest).is_empty();
        let code = if missing {
            Code::NotSupportedYet
        } else {
            Code::InvalidManifest
        };
        folder::mistakes(code, &errors)
    })
}

fn nothing_uploaded(failure: Failure) -> Failure {
    if failure.fix.is_some() {
        failure
    } else {
        failure.fix("Nothing was uploaded.")
    }
}
