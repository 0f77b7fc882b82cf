//! Registry tokens: for the repositories of the asker's own tenant, and the platform's to pull.

use tabbify_api::auth::issue::{REGISTRY_AUDIENCE, RepositoryAccess, RequestError};
use tabbify_api::auth::scope;
use tabbify_token::{Claims, Kind, Scope};
use tabbify_types::{EventId, Tenant};

use super::bad;
use crate::asker::allows;
use crate::authority::{Draft, Inner};

/// LIMIT: repositories of one registry token; each gives at most two scopes.
const REPOSITORIES_MAX: usize = 16;

impl Inner {
    pub(super) fn registry(
        &self,
        asker: &Claims,
        access: &[RepositoryAccess],
    ) -> Result<Claims, RequestError> {
        if access.is_empty() || access.len() > REPOSITORIES_MAX {
            return Err(bad("a registry token is for 1 to 16 repositories"));
        }
        let mut scopes = Vec::new();
        for RepositoryAccess { repository, push } in access {
            let namespace = namespace_of(repository);
            let namespace = namespace.ok_or_else(|| {
                bad("a repository is <tenant>/<name>, of a-z 0-9 and . _ - inside")
            })?;
            let scope = |what: &str| {
                let scope = format!("registry:{what}:{repository}").parse::<Scope>();
                scope.map_err(|_| bad("a repository's name has at most 100 bytes"))
            };
            let own = namespace == asker.tenant.as_str();
            let machine = matches!(asker.kind, Kind::Host | Kind::Runner | Kind::Service);
            let sees = machine || allows(asker, scope::APPS_READ);
            if !(namespace == "platform" || own && sees) {
                return Err(RequestError::Forbidden(format!(
                    "{repository} is not yours to pull"
                )));
            }
            scopes.push(scope("pull")?);
            if *push {
                let platforms_own = asker.kind == Kind::Service && asker.tenant == Tenant::system();
                let makes = own && allows(asker, scope::APPS_WRITE);
                if !(makes || namespace == "platform" && platforms_own) {
                    return Err(RequestError::Forbidden(format!(
                        "{repository} is not yours to push"
                    )));
                }
                scopes.push(scope("push")?);
            }
        }
        let draft = Draft {
            kind: Kind::Registry,
            sub: asker.sub.clone(),
            tenant: asker.tenant.clone(),
            aud: REGISTRY_AUDIENCE.to_owned(),
            life: Kind::Registry.life_max(),
        };
        Ok(Claims {
            scopes,
            ..self.claims(draft, EventId::mint())
        })
    }
}

/// Whose a repository is, if its name is one (OCI distribution specification, "pulling manifests"): no
/// part of it may lead elsewhere where it becomes a path.
fn namespace_of(repository: &str) -> Option<&str> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().last()];
        ends.into_iter().all(|end| end.is_some_and(plain))
            && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
            && !part.contains("..")
    };
    let (namespace, _) = repository.split_once('/')?;
    repository.split('/').all(part).then_some(namespace)
}
