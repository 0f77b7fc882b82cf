//! What can be asked of `tcli`: its commands and options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Push an app, reach it at its URL, see how it is.
#[derive(Debug, Parser)]
#[command(name = "tcli", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 fine, 1 the app's fault, 2 usage, 3 the platform's fault, \
                        4 awaiting approval."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The app, by name or id [default: the folder's]
    #[arg(long, global = true, value_name = "APP")]
    pub(crate) app: Option<String>,
    /// URL of the platform [default: $TABBIFY_SERVER, else the context's]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Context of contexts.toml to use [default: the server's, else the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Folder of the app
    #[arg(
        short = 'C',
        long,
        global = true,
        value_name = "DIR",
        default_value = "."
    )]
    #[arg(hide_default_value = true)]
    pub(crate) directory: PathBuf,
    /// Print one JSON document (docs/operating/tcli-json.md)
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a tabbify.toml for what is in the folder
    Init(InitArgs),
    /// Build, upload, publish and deploy the folder's app, and wait until it serves
    Push(PushArgs),
    /// Put a published version into service: tcli deploy [APP] vN
    Deploy(DeployArgs),
    /// Start the app anew in the version that serves, beside the instance that serves until then:
    /// it gets its secrets as they are now
    Restart(RestartArgs),
    /// Values that apps need and nobody may see
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// How the app is
    Status,
    /// Every app of the tenant
    Apps,
    /// What the app prints
    Logs(LogsArgs),
    /// Run a command in the app, as its user: tcli exec [APP] -- COMMAND. It ends as the command does
    Exec(ExecArgs),
    /// Reach a raw port of the app on this machine: tcli forward [APP] [LOCAL:]PORT
    Forward(ForwardArgs),
    /// What apps keep on the machines that run them
    #[command(subcommand)]
    Volumes(VolumesCommand),
    /// What has happened in the tenant, from the log
    Events(EventsArgs),
    /// Print a link that signs a browser in to the app, and open it
    Open(OpenArgs),
    /// The mesh address of an app, derived from its id without asking anybody
    Address(AddressArgs),
    /// The machines of the platform
    #[command(subcommand)]
    Machines(MachinesCommand),
    /// Make this machine a part of a platform
    #[command(subcommand)]
    Node(NodeCommand),
    /// Who the platform takes you for
    Whoami,
    /// Print a bearer token for programs such as curl; it lasts 15 minutes
    Token,
}

/// Of `restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// The app, by name or id [default: the folder's]
    #[arg(value_name = "APP")]
    pub(crate) name: Option<String>,
}

/// Of `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The app, by name or id [default: the folder's]
    #[arg(value_name = "APP")]
    pub(crate) name: Option<String>,
    /// The program and its arguments. Its name is recorded, and its arguments are not
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Of `forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The app, by name or id, and the number of one of its [[port]] blocks; the app may be left out. Before
    /// the port and a colon the local one, if it is to be another; 0 takes any
    #[arg(required = true, num_args = 1..=2, value_names = ["APP", "PORT"])]
    pub(crate) what: Vec<String>,
}

/// Of `volumes`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumesCommand {
    /// The app's volumes: where they are, how large, who has them
    List(VolumeArgs),
    /// Remove a volume of the app, with all that is in it: there is no way back
    Rm(RemoveVolumeArgs),
}

/// Of `volumes list`.
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    /// The app, by name or id [default: the folder's]
    #[arg(value_name = "APP")]
    pub(crate) name: Option<String>,
}

/// Of `volumes rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveVolumeArgs {
    /// The app, by name or id
    #[arg(value_name = "APP")]
    pub(crate) name: String,
    /// The machine that has it, as `tcli volumes list` says
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// The app's name once more: what is in the volume is lost
    #[arg(long, value_name = "APP")]
    pub(crate) confirm: String,
}

/// Of `secrets`.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// Give a secret its value, from a prompt or from standard input
    Set(SetSecretArgs),
    /// The tenant's secrets: names, versions and who uses them, never values
    List,
    /// Forget a secret; its value is destroyed
    Rm(RemoveSecretArgs),
}

/// Of `secrets set`.
#[derive(Debug, Args)]
pub(crate) struct SetSecretArgs {
    /// Its name; the value is no argument
    pub(crate) name: String,
    /// Take standard input as it is; otherwise one line ending at its end is left out
    #[arg(long)]
    pub(crate) exact: bool,
}

/// Of `secrets rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveSecretArgs {
    /// Its name
    pub(crate) name: String,
}

/// Of `machines`.
#[derive(Debug, Subcommand)]
pub(crate) enum MachinesCommand {
    /// Every machine that you may see, and whether it gets work
    List,
}

/// Of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// The same as `tcli node join`
    Up(NodeArgs),
    /// Join a platform and run apps for it: tabbify join, with its flags
    Join(NodeArgs),
}

/// What goes on to `tabbify join`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct NodeArgs {
    /// As for `tabbify join`: HOST:PORT of the coordinator, and its flags
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub(crate) rest: Vec<OsString>,
}

/// Of `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The app's name [default: the crate's or the folder's]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// Of `push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Publish the version and leave what serves as it is
    #[arg(long)]
    pub(crate) no_deploy: bool,
    /// Show what would happen and change nothing at all
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) plan: bool,
}

/// Of `deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The app, by name or id, and the version, such as v2; the app may be left out
    #[arg(required = true, num_args = 1..=2, value_names = ["APP", "VERSION"])]
    pub(crate) what: Vec<String>,
}

/// Of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Wait for more, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only lines from then on: 90s, 10m, 2h, 3d ago, or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// At most the newest N lines that are there [default: 100, or all with --since]
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
}

/// Of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Wait for more, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events behind this position
    #[arg(
        long,
        value_name = "POSITION",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) after: u64,
    /// Only in these segments of the tenant, such as apps or a glob
    #[arg(long, value_name = "GLOB")]
    pub(crate) segment: Option<String>,
    /// Only of this type, such as deploy_requested
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
}

/// Of `open`.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Print the link and start no browser
    #[arg(long)]
    pub(crate) print: bool,
}

/// Of `address`.
#[derive(Debug, Args)]
pub(crate) struct AddressArgs {
    /// The app's id [default: from the folder's tabbify.lock]
    pub(crate) uuid: Option<String>,
}
