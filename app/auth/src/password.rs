//! Passwords: argon2id with stated parameters, on the blocking pool, a few at a time.
//!
//! What a password is checked with is written as a PHC string, so that the parameters can be raised:
//! each is checked with its own.
//!
//! ```text
//!   $argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>      base64 without padding
//! ```

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use subtle::ConstantTimeEq as _;
use tabbify_api::auth::people::{PASSWORD_CHARS_MIN, PASSWORD_LEN_MAX, Secret};
use tokio::sync::Semaphore;

/// LIMIT: passwords that are hashed at one time: each takes [`Cost::memory_kib`].
const HASHES_MAX: usize = 2;
/// LIMIT: passwords that wait to be hashed; more are refused, which a flood notices and nobody else.
const WAITING_MAX: usize = 16;
/// LIMIT: what a stored string may make us spend.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// What a hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// The second recommended option of RFC 9106 section 4: 64 MiB, three passes, four lanes.
    pub const RECOMMENDED: Self = Self {
        memory_kib: 64 * 1024,
        passes: 3,
        lanes: 4,
    };
}

/// Why a password is not taken or not checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordError {
    /// It is too short, too long or too plain.
    #[error("a password {0}")]
    Unfit(&'static str),
    /// Too many wait.
    #[error("too many passwords are being checked")]
    Busy,
    /// The hash cannot be made.
    #[error("the password cannot be hashed: {0}")]
    Failed(String),
}

/// Makes and checks hashes. Clones share the limits.
#[derive(Debug, Clone)]
pub(crate) struct Passwords {
    cost: Cost,
    hashing: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    pub(crate) fn new(cost: Cost) -> Self {
        Self {
            cost,
            hashing: Arc::new(Semaphore::new(HASHES_MAX)),
            waiting: Arc::new(Semaphore::new(HASHES_MAX + WAITING_MAX)),
        }
    }

    /// Whether `password` may be somebody's, who is called `user`.
    pub(crate) fn fit(password: &Secret, user: &str) -> Result<(), PasswordError> {
        let text = password.reveal();
        if text.chars().count() < PASSWORD_CHARS_MIN {
            return Err(PasswordError::Unfit("has at least 12 characters"));
        }
        if text.len() > PASSWORD_LEN_MAX {
            return Err(PasswordError::Unfit("has at most 1024 bytes"));
        }
        let mut chars = text.chars();
        let first = chars.next();
        if chars.all(|char| Some(char) == first) {
            return Err(PasswordError::Unfit("is more than one character repeated"));
        }
        let name = user.strip_prefix("user:").unwrap_or(user).to_lowercase();
        if !name.is_empty() && text.to_lowercase().replace(&name, "").chars().count() < 8 {
            return Err(PasswordError::Unfit("is more than the user's name"));
        }
        Ok(())
    }

    /// What `password` is checked with from here on.
    pub(crate) async fn hash(&self, password: Secret) -> Result<String, PasswordError> {
        let cost = self.cost;
        self.work(move || {
            let salt: [u8; SALT_LEN] = tabbify_process::random();
            let hash = digest(&password, &salt, cost)?;
            Ok(encode(cost, &salt, &hash))
        })
        .await
    }

    /// Whether `password` is the one that `stored` is of. `None` takes as long as any other and is
    /// never right: nobody learns by the time it takes who has a password.
    pub(crate) async fn check(
        &self,
        password: Secret,
        stored: Option<String>,
    ) -> Result<bool, PasswordError> {
        let cost = self.cost;
        self.work(move || {
            let known = stored.as_deref().and_then(decode);
            let (cost, salt, expected) =
                known.unwrap_or_else(|| (cost, vec![0; SALT_LEN], vec![0; HASH_LEN]));
            if password.reveal().len() > PASSWORD_LEN_MAX {
                return Ok(false);
            }
            let hash = digest(&password, &salt, cost)?;
            let same = bool::from(hash.as_slice().ct_eq(&expected));
            Ok(same && stored.is_some())
        })
        .await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _waits = self
            .waiting
            .try_acquire()
            .map_err(|_| PasswordError::Busy)?;
        let hashing = Arc::clone(&self.hashing).acquire_owned().await;
        let hashing = hashing.map_err(|_| PasswordError::Busy)?;
        let worked = tokio::task::spawn_blocking(move || {
            // Held by the work itself: a caller that goes away does not make room for another.
            let _hashing = hashing;
            work()
        });
        let failed = |error: tokio::task::JoinError| PasswordError::Failed(error.to_string());
        worked.await.map_err(failed)?
    }
}

fn digest(password: &Secret, salt: &[u8], cost: Cost) -> Result<Vec<u8>, PasswordError> {
    let failed = |error: argon2::Error| PasswordError::Failed(error.to_string());
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_LEN));
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.map_err(failed)?);
    let mut hash = vec![0; HASH_LEN];
    let made = argon2.hash_password_into(password.reveal().as_bytes(), salt, &mut hash);
    made.map(|()| hash).map_err(failed)
}

fn encode(cost: Cost, salt: &[u8], hash: &[u8]) -> String {
    let [salt, hash] = [salt, hash].map(|bytes| STANDARD_NO_PAD.encode(bytes));
    let Cost {
        memory_kib,
        passes,
        lanes,
    } = cost;
    format!("$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}${hash}")
}

fn decode(text: &str) -> Option<(Cost, Vec<u8>, Vec<u8>)> {
    let mut parts = text.strip_prefix("$argon2id$v=19$")?.split('$');
    let (params, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let mut numbers = params.split(',').zip(["m=", "t=", "p="]);
    let mut number = |max: u32| -> Option<u32> {
        let (param, name) = numbers.next()?;
        let digits = param.strip_prefix(name)?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        let number: u32 = digits.parse().ok()?;
        (plain && (1..=max).contains(&number)).then_some(number)
    };
    let cost = Cost {
        memory_kib: number(MEMORY_KIB_MAX)?,
        passes: number(PASSES_MAX)?,
        lanes: number(LANES_MAX)?,
    };
    let decoded = |part: &str| STANDARD_NO_PAD.decode(part).ok();
    let (salt, hash) = (decoded(salt)?, decoded(hash)?);
    let sound = params.split(',').count() == 3
        && (8..=64).contains(&salt.len())
        && hash.len() == HASH_LEN
        && cost.memory_kib >= 8 * cost.lanes;
    sound.then_some((cost, salt, hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const CHEAP: Cost = Cost {
        memory_kib: 64,
        passes: 1,
        lanes: 1,
    };

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    /// From the tests of the reference implementation (phc-winner-argon2).
    #[test]
    fn the_form_is_the_one_that_others_write() {
        let theirs = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let (cost, salt, hash) = decode(theirs).unwrap();
        assert_eq!((cost.memory_kib, cost.passes, cost.lanes), (65536, 2, 1));
        assert_eq!(salt, b"somesalt");
        assert_eq!(digest(&secret("password"), &salt, cost).unwrap(), hash);
        assert_eq!(encode(cost, &salt, &hash), theirs);
    }

    #[tokio::test]
    async fn the_right_password_and_no_other() {
        let passwords = Passwords::new(CHEAP);
        let good = "correct horse battery";
        let stored = passwords.hash(secret(good)).await.unwrap();
        assert!(!stored.contains(good));
        assert_ne!(
            stored,
            passwords.hash(secret(good)).await.unwrap(),
            "salted"
        );
        let check = |password: String, stored: Option<&str>| {
            let stored = stored.map(str::to_owned);
            let passwords = passwords.clone();
            async move {
                passwords
                    .check(Secret::new(password), stored)
                    .await
                    .unwrap()
            }
        };
        assert!(check(good.to_owned(), Some(&stored)).await);
        for bad in [
            "",
            "correct horse batterz",
            "correct horse battery ",
            "Correct horse battery",
        ] {
            assert!(!check(bad.to_owned(), Some(&stored)).await, "{bad:?}");
        }
        assert!(!check("x".repeat(PASSWORD_LEN_MAX + 1), Some(&stored)).await);
        assert!(!check(good.to_owned(), None).await);
        assert!(!check(good.to_owned(), Some("not a hash")).await);
    }

    #[tokio::test]
    async fn a_flood_waits_in_a_short_queue() {
        let passwords = Passwords::new(CHEAP);
        let all = (0..200).map(|_| passwords.check(secret("a"), None));
        let answers = futures_util::future::join_all(all).await;
        let busy = answers
            .iter()
            .filter(|answer| **answer == Err(PasswordError::Busy))
            .count();
        assert_eq!(busy, 200 - HASHES_MAX - WAITING_MAX);
        assert_eq!(
            passwords.check(secret("a"), None).await,
            Ok(false),
            "and gets through later"
        );
    }

    #[test]
    fn plain_passwords_are_refused() {
        let fit = |text: &str| Passwords::fit(&secret(text), "user:annabell");
        assert!(fit("correct horse battery").is_ok());
        assert!(fit("длинный пароль").is_ok());
        for bad in [
            "",
            "short",
            "eleven char",
            "aaaaaaaaaaaaaaaa",
            "annabellannabell",
            "Annabell-1234",
        ] {
            assert!(matches!(fit(bad), Err(PasswordError::Unfit(_))), "{bad}");
        }
        assert!(fit(&"ab".repeat(PASSWORD_LEN_MAX)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn strings_round_trip(
            salt in proptest::collection::vec(any::<u8>(), 8..64),
            hash in proptest::collection::vec(any::<u8>(), HASH_LEN..=HASH_LEN),
            memory_kib in 128_u32..MEMORY_KIB_MAX,
            passes in 1..=PASSES_MAX,
            lanes in 1..=LANES_MAX,
        ) {
            let cost = Cost { memory_kib, passes, lanes };
            let text = encode(cost, &salt, &hash);
            prop_assert_eq!(decode(&text), Some((cost, salt, hash)));
            prop_assert!((0..text.len()).all(|cut| decode(&text[..cut]).is_none()));
        }

        #[test]
        fn no_string_makes_us_spend_or_panic(text in "\\$argon2id\\$v=19\\$[mtp=,0-9+-]{0,30}\\$.{0,30}\\$.{0,50}") {
            if let Some((cost, _, _)) = decode(&text) {
                prop_assert!(cost.memory_kib <= MEMORY_KIB_MAX && cost.passes <= PASSES_MAX);
            }
        }
    }
}
