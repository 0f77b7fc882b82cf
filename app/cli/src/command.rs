//! One module per command; what they share is [`Tool`].

mod address;
mod apps;
mod deploy;
mod events;
mod exec;
mod forward;
mod init;
mod lines;
mod logs;
mod machines;
mod node;
mod open;
mod push;
mod secrets;
mod status;
mod token;
mod volumes;
mod whoami;

use tabbify_api::apps::AppView;
use tabbify_types::{AppId, AppName};

use crate::args::{
    Cli, Command, Global, MachinesCommand, NodeCommand, SecretsCommand, VolumesCommand,
};
use crate::client::Client;
use crate::env::Environment;
use crate::error::{Code, Exit, Failure, Result};
use crate::folder::Folder;
use crate::output::Output;
use crate::progress::Progress;
use crate::signin::Session;

/// Does what was asked.
pub(crate) fn run(cli: Cli) -> Result<Exit> {
    let tool = Tool {
        env: Environment::read(),
        output: Output::new(cli.global.json),
        progress: Progress::new(cli.global.json),
        folder: Folder::new(cli.global.directory.clone()),
        global: cli.global,
    };
    match &cli.command {
        Command::Init(args) => init::run(&tool, args),
        Command::Push(args) => push::run(&tool, args),
        Command::Deploy(args) => deploy::run(&tool, args),
        Command::Restart(args) => deploy::again(&tool, args),
        Command::Secrets(SecretsCommand::Set(args)) => secrets::set(&tool, args),
        Command::Secrets(SecretsCommand::List) => secrets::list(&tool),
        Command::Secrets(SecretsCommand::Rm(args)) => secrets::remove(&tool, args),
        Command::Status => status::run(&tool),
        Command::Apps => apps::run(&tool),
        Command::Logs(args) => logs::run(&tool, args),
        Command::Exec(args) => exec::run(&tool, args),
        Command::Forward(args) => forward::run(&tool, args),
        Command::Volumes(VolumesCommand::List(args)) => volumes::list(&tool, args),
        Command::Volumes(VolumesCommand::Rm(args)) => volumes::remove(&tool, args),
        Command::Events(args) => events::run(&tool, args),
        Command::Open(args) => open::run(&tool, args),
        Command::Address(args) => address::run(&tool, args),
        Command::Machines(MachinesCommand::List) => machines::list(&tool),
        Command::Node(NodeCommand::Up(args) | NodeCommand::Join(args)) => node::join(args),
        Command::Whoami => whoami::run(&tool),
        Command::Token => token::run(&tool),
    }
}

/// What every command works with.
pub(crate) struct Tool {
    pub(crate) global: Global,
    pub(crate) env: Environment,
    pub(crate) output: Output,
    pub(crate) progress: Progress,
    pub(crate) folder: Folder,
}

impl Tool {
    /// A way to the platform. Chooses server and credentials, and asks nobody yet.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(Session::choose(&self.global, &self.env)?))
    }

    /// The app that the command is about: `named`, else `--app`, else the folder's.
    pub(crate) fn app(&self, client: &Client, named: Option<&str>) -> Result<AppView> {
        match named.or(self.global.app.as_deref()) {
            Some(text) => find_app(client, text),
            None => self.folder_app(client),
        }
    }

    fn folder_app(&self, client: &Client) -> Result<AppView> {
        let server = client.server();
        if let Some(entry) = self.folder.lock(client.platform()?)? {
            return client.app(entry.app_id).map_err(|failure| {
                if failure.is(tabbify_api::ErrorCode::UnknownApp) {
                    push::identity::unknown_lock(server, entry.app_id)
                } else {
                    failure
                }
            });
        }
        let Some(parsed) = self.folder.manifest_if_any()? else {
            let what = format!("{} has no tabbify.toml, and no app was named.", self.folder);
            return Err(Failure::new(Code::NoManifest, what).fix("Name one: --app NAME"));
        };
        let name = &parsed.manifest.app.name;
        let found = client.apps()?.into_iter().find(|app| app.name == *name);
        found.ok_or_else(|| {
            let what = format!("App \"{name}\" was never pushed to {server}.");
            Failure::new(Code::UnknownApp, what).fix("Run: tcli push")
        })
    }
}

/// An app by its name or its id.
fn find_app(client: &Client, text: &str) -> Result<AppView> {
    if let Ok(id) = text.parse::<AppId>() {
        return client.app(id);
    }
    let name: AppName = text
        .parse()
        .map_err(|error| Failure::new(Code::Usage, format!("{error}.")))?;
    let apps = client.apps()?;
    let Some(found) = apps.iter().find(|app| app.name == name) else {
        return Err(no_such_app(client, &name, &apps));
    };
    Ok(found.clone())
}

fn no_such_app(client: &Client, name: &AppName, apps: &[AppView]) -> Failure {
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    let there = if names.is_empty() {
        "none yet".to_owned()
    } else {
        names.join(", ")
    };
    let what = format!(
        "{} has no app \"{name}\". Apps there: {there}.",
        client.server()
    );
    Failure::new(Code::UnknownApp, what)
}
