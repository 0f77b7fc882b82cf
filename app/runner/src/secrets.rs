//! The secrets of an instance: fetched from the vault over the runner's own mesh once it has its lease,
//! held in memory, and given to the app. They touch no disk, no log and no other process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddrV6;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use tabbify_api::runner::Failure;
use tabbify_api::secrets::{RELEASE_LEN_MAX, RELEASE_PATH, Release};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::{Again, Client};
use tabbify_mesh::Mesh;
use tabbify_process::{Tasks, chain};
use tabbify_types::event::v1::{FailureReason, SecretDelivery, SecretUse};
use tabbify_types::{SecretName, SecretVersion};
use zeroize::Zeroizing;

use crate::to_service::Dial;

/// Where secrets are files, in containers and microVMs: memory that is gone with the instance.
pub const SECRETS_DIRECTORY: &str = tabbify_guest_init::enter::SECRETS_DIRECTORY;
/// LIMIT: attempts to fetch them.
const ATTEMPTS_MAX: u32 = 8;
/// The pause before the next attempt, at first and at most; doubles with each.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// LIMIT: how long one attempt may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What an app gets of the vault. Erased from memory when dropped.
#[derive(Clone, Default)]
pub struct Secrets {
    variables: Arc<Vec<(String, Zeroizing<String>)>>,
    files: Arc<Vec<(SecretName, Zeroizing<Vec<u8>>)>>,
    versions: BTreeMap<SecretName, SecretVersion>,
}

impl Secrets {
    /// Variables with their values.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let variables = self.variables.iter();
        variables.map(|(variable, value)| (variable.as_str(), value.as_str()))
    }

    /// What is to be a file in [`SECRETS_DIRECTORY`]: the name of each and its content. The variables that
    /// name them are among [`variables`](Self::variables).
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter();
        files.map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    /// Which version of each secret they are.
    #[must_use]
    pub const fn versions(&self) -> &BTreeMap<SecretName, SecretVersion> {
        &self.versions
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.files.is_empty()
    }

    /// What `uses` asks for, out of what the vault gave.
    ///
    /// # Errors
    /// [`FailureReason::Secret`], if the app cannot have it so.
    pub fn new(uses: &BTreeMap<String, SecretUse>, release: Release) -> Result<Self, Failure> {
        let versions = release.secrets.iter();
        let versions = versions.map(|it| (it.name.clone(), it.version)).collect();
        let given: BTreeMap<_, _> = release
            .secrets
            .into_iter()
            .map(|it| (it.name, it.value))
            .collect();
        let wanted: BTreeSet<&SecretName> = uses.values().map(|used| &used.name).collect();
        if !given.keys().eq(wanted) {
            return Err(failure(
                "the vault has not given what the release names; push it again".to_owned(),
            ));
        }
        let mut variables = Vec::with_capacity(uses.len());
        let mut files = BTreeMap::new();
        for (variable, used) in uses {
            let name = &used.name;
            let value = given.get(name).map(|value| value.reveal());
            if used.delivery == SecretDelivery::File {
                let content = Zeroizing::new(value.unwrap_or_default().to_vec());
                files.insert(name.clone(), content);
                let path = format!("{SECRETS_DIRECTORY}/{name}");
                variables.push((format!("{variable}_FILE"), Zeroizing::new(path)));
                continue;
            }
            let text = value.and_then(|value| std::str::from_utf8(value).ok());
            let text = text.filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| {
                failure(format!(
                    "the value of secret \"{name}\" is no text, and {variable} takes nothing else. \
                     Run: tcli secrets set {name}"
                ))
            })?;
            variables.push((variable.clone(), Zeroizing::new(text.to_owned())));
        }
        Ok(Self {
            variables: Arc::new(variables),
            files: Arc::new(files.into_iter().collect()),
            versions,
        })
    }
}

impl fmt::Debug for Secrets {
    /// Names and versions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

/// Fetches what `uses` names from the vault at `address`; asked for until it comes, unless the vault says
/// that it will not.
///
/// # Errors
/// [`FailureReason::Secret`] with what is missing, and what to do.
pub async fn fetch(
    uses: &BTreeMap<String, SecretUse>,
    address: Option<SocketAddrV6>,
    mesh: &Mesh,
    tasks: &Tasks,
) -> Result<Secrets, Failure> {
    if uses.is_empty() {
        return Ok(Secrets::default());
    }
    let address = address.ok_or_else(|| {
        failure(
            "it uses secrets, and its machine knows no vault (the tag role:api-gateway): run \
             `tabbify up` of this version on the platform's machine, and restart supervisord here"
                .to_owned(),
        )
    })?;
    let mesh = mesh.clone();
    let dial = Arc::new(Dial { mesh, address });
    let client = Client::new("secret client", dial, ANSWER_WITHIN, tasks);
    let (mut attempt, mut pause) = (1, PAUSE);
    loop {
        let asked = tokio::time::timeout(ANSWER_WITHIN, attempt_once(&client)).await;
        let why = match asked {
            Ok(Ok(release)) => return Secrets::new(uses, release),
            Ok(Err(Failed::ForGood(failure))) => return Err(failure),
            Ok(Err(Failed::Now(why))) => why,
            Err(_) => format!("not within {} s", ANSWER_WITHIN.as_secs()),
        };
        if attempt >= ATTEMPTS_MAX {
            return Err(failure(format!(
                "its secrets cannot be fetched from {address} ({attempt} attempts): {why}"
            )));
        }
        tracing::info!(why, attempt, "the secrets are asked for again");
        tokio::time::sleep(pause).await;
        (attempt, pause) = (attempt + 1, (pause * 2).min(PAUSE_MAX));
    }
}

/// Why an attempt gave nothing.
enum Failed {
    /// The next one may.
    Now(String),
    /// None will.
    ForGood(Failure),
}

async fn attempt_once(client: &Client) -> Result<Release, Failed> {
    let request = Request::get(RELEASE_PATH)
        .header(header::HOST, "vault")
        .body(Full::<Bytes>::default())
        .expect("INVARIANT: the path is a constant");
    let answer = client.ask(request, Again::Harmless, RELEASE_LEN_MAX).await;
    let (parts, bytes) = answer.map_err(|error| Failed::Now(chain(&error).to_string()))?;
    let status = parts.status.as_u16();
    if status != 200 {
        return Err(refused(&Problem::of_answer(status, &bytes)));
    }
    // What serde says of it may repeat a part of it.
    serde_json::from_slice(&bytes)
        .map_err(|_| Failed::Now("the vault's answer is not understood".to_owned()))
}

/// What a refusal means: a vault that is starting or busy passes, what is missing stays so.
fn refused(problem: &Problem) -> Failed {
    let (code, detail) = (problem.code, &problem.detail);
    if code == ErrorCode::SecretMissing {
        let fix = problem.fix.as_deref().unwrap_or("Run: tcli secrets set");
        let said = format!("{}. {fix}; then: tcli restart", capitalized(detail));
        return Failed::ForGood(failure(said));
    }
    let why = format!("{detail} ({})", code.as_str());
    if problem.status >= 500 || problem.status == 429 {
        Failed::Now(why)
    } else {
        Failed::ForGood(failure(format!("the vault refuses its secrets: {why}")))
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

fn failure(detail: String) -> Failure {
    Failure {
        reason: FailureReason::Secret,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use tabbify_api::secrets::{Resolved, SecretValue};

    use super::*;

    fn uses(of: &[(&str, &str, SecretDelivery)]) -> BTreeMap<String, SecretUse> {
        let uses = of.iter().map(|(variable, name, delivery)| {
            let name = name.parse().expect("a name");
            let delivery = *delivery;
            ((*variable).to_owned(), SecretUse { name, delivery })
        });
        uses.collect()
    }

    fn release(of: &[(&str, &[u8])]) -> Release {
        let secrets = of.iter().map(|(name, value)| Resolved {
            name: name.parse().expect("a name"),
            version: SecretVersion(3),
            value: SecretValue::new(value.to_vec()),
        });
        Release {
            secrets: secrets.collect(),
        }
    }

    #[test]
    fn variables_with_values_that_are_not_shown() {
        let env = SecretDelivery::Env;
        let two = uses(&[("A", "key", env), ("B", "key", env), ("C", "other", env)]);
        let given = release(&[("key", "sekrit ä".as_bytes()), ("other", b"x")]);
        let secrets = Secrets::new(&two, given).unwrap();
        let variables: Vec<_> = secrets.variables().collect();
        assert_eq!(
            variables,
            [("A", "sekrit ä"), ("B", "sekrit ä"), ("C", "x")]
        );
        assert_eq!(secrets.versions().len(), 2);
        assert!(!format!("{secrets:?}").contains("sekrit"));
    }

    #[test]
    fn what_cannot_be_given_is_said_without_the_value() {
        let env = SecretDelivery::Env;
        let check = |uses: &BTreeMap<String, SecretUse>, given: Release, part: &str| {
            let refused = Secrets::new(uses, given).unwrap_err();
            assert_eq!(refused.reason, FailureReason::Secret);
            let detail = refused.detail;
            assert!(
                detail.contains(part) && !detail.contains("sekrit"),
                "{detail}"
            );
        };
        let one = uses(&[("A", "key", env)]);
        check(&one, release(&[("key", b"sekrit\xff")]), "is no text");
        check(
            &one,
            release(&[("key", b"sekrit\0")]),
            "tcli secrets set key",
        );
        check(&one, release(&[]), "has not given");
        check(&one, release(&[("other", b"sekrit")]), "has not given");
        let more = release(&[("key", b"a"), ("other", b"sekrit")]);
        check(&one, more, "has not given");
    }

    #[test]
    fn files_are_any_bytes_and_their_names_are_variables() {
        let (env, file) = (SecretDelivery::Env, SecretDelivery::File);
        let uses = uses(&[("A", "key", file), ("B", "key", file), ("C", "other", env)]);
        let given = release(&[("key", b"sekrit\0\xff"), ("other", b"x")]);
        let secrets = Secrets::new(&uses, given).unwrap();
        let files: Vec<_> = secrets.files().collect();
        assert_eq!(files, [("key", &b"sekrit\0\xff"[..])]);
        let variables: Vec<_> = secrets.variables().collect();
        let path = "/run/secrets/key";
        assert_eq!(variables, [("A_FILE", path), ("B_FILE", path), ("C", "x")]);
        assert!(!format!("{secrets:?}").contains("sekrit"));
    }

    #[test]
    fn a_missing_secret_says_what_to_run() {
        let problem = Problem::new(
            ErrorCode::SecretMissing,
            "secret \"api-key\" does not exist",
        )
        .with_fix("Run: tcli secrets set api-key");
        let Failed::ForGood(failure) = refused(&problem) else {
            panic!("it stays missing");
        };
        assert_eq!(
            failure.detail,
            "Secret \"api-key\" does not exist. Run: tcli secrets set api-key; then: tcli restart"
        );
        let busy = Problem::new(ErrorCode::Unavailable, "starting");
        assert!(matches!(refused(&busy), Failed::Now(_)));
        let stranger = Problem::new(ErrorCode::Forbidden, "no lease");
        assert!(matches!(refused(&stranger), Failed::ForGood(_)));
    }
}
