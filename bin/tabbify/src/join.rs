//! `tabbify join`: makes this machine a member of a platform with the token of `tabbify invite`, and then
//! a supervisor of it.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::ErrorCode;
use tabbify_membership::{Invited, JoinFailed, Membership, RequestFailed, join_platform};
use tabbify_process::{SystemClock, Tasks, chain, env, files};
use tabbify_supervisor::probe_capabilities;
use tabbify_token::PlatformId;
use tabbify_types::event::v1::Capability;

use crate::member::{Kept, Secrets};
use crate::way::{Named, Way};
use crate::{role, supervisord, up};

/// LIMIT: bytes of a join token, with the white space around it.
const TOKEN_LEN_MAX: u64 = 16 * 1024;

/// What the pinned TLS key's refusal says.
const ANOTHER_KEY: &str = "has another key";

/// Flags of `tabbify join`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the coordinator answers: a name or an address, with the port if it is not 8888
    coordinator: String,
    /// A file with the join token; without, it is read from standard input, never from an argument
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Configuration of the supervisor (docs/operating/supervisord.toml); none is needed
    #[arg(long)]
    config: Option<PathBuf>,
    /// This machine's data directory [default: $XDG_DATA_HOME/tabbify]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Join and end, without going on as `tabbify supervisord`
    #[arg(long)]
    no_run: bool,
}

/// Joins, keeps what that gives, and goes on as a supervisor.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments {
        coordinator,
        token_file,
        config,
        data_dir,
        no_run,
    } = arguments;
    let coordinator = Named::read(&coordinator)?;
    let role = role::Arguments::new(config, data_dir);
    let settings = role.config::<supervisord::Config>()?;
    let data = role.data_dir(settings.data_dir())?;
    let token = read_token(token_file)?;
    let invited = Invited::read(&token)
        .context("it has to be what `tabbify invite` wrote, whole: it begins with tbj_")?;
    files::private_dir(data.path()).with_context(|| data.path().display().to_string())?;
    coordinator.look_up().await?;
    let secrets = Secrets::load_or_create(&data)?;
    let capabilities = match no_run {
        true => seen(&settings).await.unwrap_or_default(),
        false => seen(&settings).await?,
    };
    let tasks = Tasks::new();
    let joined = join_platform(
        Arc::new(Way::Remote(coordinator.clone())),
        &token,
        secrets.proof.clone(),
        &secrets.signing,
        capabilities,
        &SystemClock,
        &tasks,
    )
    .await;
    role::stop(&tasks).await?;
    let membership = joined.map_err(|error| explained(error, &invited, coordinator.text()))?;
    say(&membership);
    let pin = invited.pin;
    let kept = Kept {
        coordinator: coordinator.text().to_owned(),
        known: coordinator.known(),
        pin,
        membership,
    };
    kept.write(&data)?;
    match no_run {
        true => Ok(()),
        false => supervisord::serve(data, settings).await,
    }
}

/// What has been seen to work on this machine.
async fn seen(settings: &supervisord::Config) -> anyhow::Result<Vec<Capability>> {
    let (runner, engine) = (up::runner_program()?, env::read(env::DOCKER_HOST));
    let microvms = settings.microvms(&runner);
    Ok(probe_capabilities(&runner, engine.as_deref(), Some(&microvms)).await)
}

fn say(membership: &Membership) {
    let certificate = &membership.certificate;
    role::say(&format!(
        "{} · {} · platform {} · until {}\n",
        certificate.host,
        certificate.address,
        PlatformId::of(&membership.root),
        certificate.not_after
    ));
}

fn read_token(file: Option<PathBuf>) -> anyhow::Result<String> {
    let mut text = String::new();
    match file {
        Some(path) => {
            let bytes = files::read_secret(&path).with_context(|| path.display().to_string())?;
            text = String::from_utf8(bytes).context("the token file is not text")?;
        }
        None => {
            if std::io::stdin().is_terminal() {
                role::say("Paste the join token, then end the line and the input (Ctrl-D):\n");
            }
            std::io::stdin()
                .take(TOKEN_LEN_MAX)
                .read_to_string(&mut text)?;
        }
    }
    Ok(text.trim().to_owned())
}

/// What happened, why, and what to do.
fn explained(error: JoinFailed, invited: &Invited, coordinator: &str) -> anyhow::Error {
    let host = &invited.host;
    let again =
        format!("On the platform's machine run `tabbify invite {host}`, and join with its token");
    let next = match &error {
        JoinFailed::Request(RequestFailed::Refused(problem)) => match problem.code {
            ErrorCode::TokenExpired => format!("A join token lives for minutes. {again}"),
            ErrorCode::TokenInvalid => {
                format!("It was used by another machine, taken back, or is another platform's. {again}")
            }
            ErrorCode::Conflict => {
                "Every machine needs a name and a data directory of its own: invite it by another name, \
                 or give another --data-dir and a new token"
                    .to_owned()
            }
            ErrorCode::RateLimited => "Wait a minute, and try again".to_owned(),
            _ => "Try again; the token is this machine's while it lives".to_owned(),
        },
        JoinFailed::Request(RequestFailed::Unreachable(why)) if why.contains(ANOTHER_KEY) => format!(
            "Whoever answers at {coordinator} is not the coordinator that the token names: check the \
             address; if its key was made anew: {again}"
        ),
        JoinFailed::Request(RequestFailed::Unreachable(_)) => format!(
            "Check that the coordinator runs, that {coordinator} is where it listens ([coordinator] \
             listen), and that no firewall is between. The token can still be used"
        ),
        JoinFailed::Clock(_) => {
            "Set the clock of the one that is wrong (`timedatectl set-ntp true`), and join again with \
             the same token"
                .to_owned()
        }
        JoinFailed::Answer { .. } | JoinFailed::Certificate(_) | JoinFailed::Root => {
            format!("What answers at {coordinator} does not speak for the platform of the token. {again}")
        }
        JoinFailed::Token(_) | JoinFailed::Tls(_) | JoinFailed::Sign(_) => again,
    };
    anyhow::anyhow!(
        "{host} has not joined at {coordinator}: {}. {next}",
        chain(&error)
    )
}

#[cfg(test)]
mod tests {
    use tabbify_api::Problem;
    use tabbify_types::{Digest, Timestamp, VerifyingKeyBytes};

    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let invited = Invited {
            host: "box2".parse().unwrap(),
            root: VerifyingKeyBytes([7; 32]),
            pin: Digest::of(b"tls"),
            expires: Timestamp::from_secs(1),
        };
        let refused = |code| {
            JoinFailed::Request(RequestFailed::Refused(Box::new(Problem::new(
                code, "detail",
            ))))
        };
        let unreachable =
            |why: &str| JoinFailed::Request(RequestFailed::Unreachable(why.to_owned()));
        for (error, expected) in [
            (refused(ErrorCode::TokenExpired), "tabbify invite box2"),
            (refused(ErrorCode::TokenInvalid), "used by another machine"),
            (refused(ErrorCode::Conflict), "--data-dir"),
            (unreachable("connection refused"), "firewall"),
            (
                unreachable("the coordinator has another key than 00"),
                "not the coordinator",
            ),
            (JoinFailed::Clock("an hour apart".to_owned()), "timedatectl"),
            (
                JoinFailed::Certificate("it has another key"),
                "platform of the token",
            ),
        ] {
            let said = explained(error, &invited, "192.0.2.1:8888").to_string();
            assert!(said.contains(expected), "{said}");
            assert!(
                said.starts_with("box2 has not joined at 192.0.2.1:8888: "),
                "{said}"
            );
        }
    }
}
