//! What a token is bound to: its kind's prefix, its place in time, the key of its holder, its terms,
//! what was revoked since, and every one of its bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use tabbify_token::invitation::{INVITATION_LIFE_MAX, INVITATION_PREFIX};
use tabbify_token::{
    Claims, Confirmation, DocumentType, Invitation, JoinTerms, Kind, PlatformId, PublicKey,
    Revocations, SecretKey, Signer, TokenError, Verifier,
};
use tabbify_types::{InviteId, MeshKey, Tenant, Timestamp};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const AUD: &str = "tabbify";
const HOUR: u64 = 3600;

fn platform() -> PlatformId {
    PlatformId::of(&SecretKey::from_seed(&[1; 32]).public())
}

fn signer() -> Signer {
    Signer::new(SecretKey::from_seed(&[5; 32]), platform())
}

fn verifier() -> Fallible<Verifier> {
    Ok(Verifier::new(platform()).with_key(PublicKey::try_from(signer().public())?))
}

fn claims(kind: Kind) -> Claims {
    let join = (kind == Kind::Join).then(|| JoinTerms {
        root: SecretKey::from_seed(&[1; 32]).public(),
        coordinator: "sha256-of-a-key".to_owned(),
        capabilities: vec!["docker".to_owned()],
    });
    let cnf = kind.must_be_bound().then_some(Confirmation {
        wg: MeshKey([8; 32]),
    });
    Claims {
        iss: platform(),
        sub: "host:box2".to_owned(),
        aud: AUD.to_owned(),
        kind,
        tenant: Tenant::main(),
        tags: vec!["gpu".to_owned()],
        scopes: Vec::new(),
        ulas: Vec::new(),
        cnf,
        join,
        iat: NOW,
        nbf: NOW,
        exp: NOW.plus(Duration::from_secs(60)),
        jti: "0191e7c2-1111-7222-8333-444455556666".to_owned(),
    }
}

fn check(token: &str, secs: u64) -> Result<Claims, TokenError> {
    let verifier = verifier().map_err(|_| TokenError::UnknownKey)?;
    verifier.verify(token, &Kind::ALL, AUD, Timestamp::from_secs(secs))
}

#[test]
fn a_kind_has_its_prefix_and_no_other() {
    for kind in Kind::ALL {
        let token = signer().sign(&claims(kind)).unwrap();
        assert!(token.starts_with(kind.prefix()));
        assert_eq!(check(&token, NOW.secs()), Ok(claims(kind)));
        let bare = token.strip_prefix(kind.prefix()).unwrap();
        for prefix in [
            "", "tba_", "tbj_", "tbi_", "TBA_", "tba", "tba_tba_", "tba_tbj_",
        ] {
            let spelled = format!("{prefix}{bare}");
            if spelled != token {
                let refused = check(&spelled, NOW.secs()).unwrap_err();
                assert_eq!(refused.code(), "token_malformed", "{kind} as {prefix:?}");
            }
        }
    }
}

#[test]
fn a_clock_an_hour_off_is_refused_either_way() {
    let now = NOW.secs();
    for kind in Kind::ALL {
        let token = signer().sign(&claims(kind)).unwrap();
        assert_eq!(check(&token, now - HOUR), Err(TokenError::NotYet), "{kind}");
        let exp = claims(kind).exp;
        let late = check(&token, now + HOUR);
        assert_eq!(late, Err(TokenError::Expired { at: exp }), "{kind}");
    }
}

#[test]
fn cut_anywhere_it_is_refused() {
    for kind in [Kind::User, Kind::Agent, Kind::Join, Kind::Host] {
        let token = signer().sign(&claims(kind)).unwrap();
        for len in 0..token.len() {
            let refused = check(&token[..len], NOW.secs()).unwrap_err();
            let shortened = len > token.rfind('.').unwrap();
            let expected: &[&str] = match shortened {
                // The signature is there in part: too short, or no base64url at all.
                true => &["token_signature", "token_malformed"],
                false => &["token_malformed"],
            };
            assert!(
                expected.contains(&refused.code()),
                "{kind} at {len}: {refused}"
            );
            assert!(check(&token[token.len() - len..], NOW.secs()).is_err());
        }
    }
}

/// The public key used as a shared secret: what a reader that lets tokens choose would accept.
#[test]
fn a_mac_under_the_public_key_is_no_signature() {
    let kid = signer().kid();
    for alg in ["HS256", "HS512", "EdDSA"] {
        let header = format!(r#"{{"alg":"{alg}","kid":"{kid}","typ":"tabbify-user+jwt"}}"#);
        let payload = serde_json::to_string(&claims(Kind::User)).unwrap();
        let signed = [header, payload]
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .join(".");
        let mac = blake3::keyed_hash(&signer().public().0, signed.as_bytes());
        for mac in [&mac.as_bytes()[..], &[*mac.as_bytes(); 2].concat()] {
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac));
            let expected = match alg {
                "EdDSA" => TokenError::Signature,
                _ => TokenError::Algorithm,
            };
            assert_eq!(check(&token, NOW.secs()), Err(expected), "{alg}");
        }
    }
}

#[test]
fn terms_stand_in_join_tokens_and_only_there() {
    let join = claims(Kind::Join).join;
    for kind in Kind::ALL {
        let wrong = Claims {
            join: (kind != Kind::Join).then(|| join.clone()).flatten(),
            ..claims(kind)
        };
        let refused = signer().sign(&wrong).unwrap_err();
        assert_eq!(refused.code(), "token_malformed", "{kind}");
    }
    let terms = |change: fn(&mut JoinTerms)| {
        let mut claims = claims(Kind::Join);
        claims.join.as_mut().map(change);
        signer()
            .sign(&claims)
            .map(drop)
            .map_err(|error| error.code())
    };
    assert_eq!(terms(|_| {}), Ok(()));
    for change in [
        |terms: &mut JoinTerms| terms.coordinator.clear(),
        |terms: &mut JoinTerms| terms.coordinator = "two words".to_owned(),
        |terms: &mut JoinTerms| terms.coordinator = "ключ".to_owned(),
        |terms: &mut JoinTerms| terms.capabilities = vec!["docker".to_owned(); 65],
        |terms: &mut JoinTerms| terms.capabilities.push("a\nb".to_owned()),
        |terms: &mut JoinTerms| terms.capabilities.push(String::new()),
    ] {
        assert_eq!(terms(change), Err("token_malformed"));
    }
    // Longer than an hour it may not live, whoever asks.
    let long = Claims {
        exp: NOW.plus(Duration::from_secs(HOUR + 1)),
        ..claims(Kind::Join)
    };
    let refused = signer().sign(&long).unwrap_err();
    assert_eq!(refused, TokenError::Lifetime { kind: Kind::Join });
}

#[test]
fn a_bound_token_needs_its_key() {
    let (mine, other) = (MeshKey([8; 32]), MeshKey([9; 32]));
    for kind in Kind::ALL {
        let claims = claims(kind);
        let expected = if kind.must_be_bound() {
            Err(TokenError::Holder)
        } else {
            Ok(())
        };
        assert_eq!(claims.check_holder(Some(&mine)), Ok(()), "{kind}");
        assert_eq!(claims.check_holder(Some(&other)), expected, "{kind}");
        assert_eq!(claims.check_holder(None), expected, "{kind}");
    }
}

#[test]
fn revoked_is_refused_and_nothing_else_is() {
    let token = signer().sign(&claims(Kind::Host)).unwrap();
    let with = |change: fn(&mut Revocations) -> bool| {
        let mut revoked = Revocations::default();
        change(&mut revoked);
        let verifier = verifier().unwrap().with_revocations(Arc::new(revoked));
        verifier.verify(&token, &[Kind::Host], AUD, NOW).map(drop)
    };
    let jti = "0191e7c2-1111-7222-8333-444455556666";
    assert_eq!(claims(Kind::Host).jti, jti);
    assert_eq!(with(|_| false), Ok(()));
    assert_eq!(with(|all| all.revoke("another")), Ok(()));
    assert_eq!(with(|all| all.end_sessions("host:box3", NOW)), Ok(()));
    let before = |all: &mut Revocations| all.end_sessions("host:box2", NOW.before(1));
    assert_eq!(with(before), Ok(()));
    let revoked = Err(TokenError::Revoked);
    assert_eq!(
        with(|all| all.revoke("0191e7c2-1111-7222-8333-444455556666")),
        revoked
    );
    assert_eq!(with(|all| all.end_sessions("host:box2", NOW)), revoked);
}

trait Before {
    fn before(self, secs: u64) -> Self;
}

impl Before for Timestamp {
    fn before(self, secs: u64) -> Self {
        Self::from_secs(self.secs() - secs)
    }
}

fn invitation() -> Invitation {
    Invitation {
        iss: platform(),
        sub: "user:anna".to_owned(),
        tenant: Tenant::main(),
        jti: InviteId::mint(),
        iat: NOW,
        exp: NOW.plus(Duration::from_secs(HOUR)),
    }
}

#[test]
fn invitations() {
    let good = invitation();
    let text = good.sign(&signer()).unwrap();
    let at = |text: &str, secs: u64| {
        Invitation::verify(text, &verifier().unwrap(), Timestamp::from_secs(secs))
    };
    let now = NOW.secs();
    assert_eq!(at(&text, now), Ok(good.clone()));
    assert_eq!(at(&text, now - HOUR), Err(TokenError::NotYet));
    assert_eq!(
        at(&text, now + 2 * HOUR),
        Err(TokenError::Expired { at: good.exp })
    );
    let code = |text: &str| at(text, now).map(drop).map_err(|error| error.code());
    assert_eq!(
        code(text.strip_prefix(INVITATION_PREFIX).unwrap()),
        Err("token_malformed")
    );
    assert_eq!(
        code(&text.replacen("tbi_", "tba_", 1)),
        Err("token_malformed")
    );
    assert_eq!(code(&format!("{text} ")), Err("token_malformed"));
    // Neither passes for the other, whatever is put before it.
    let token = signer().sign(&claims(Kind::User)).unwrap();
    assert_eq!(
        code(&format!("{INVITATION_PREFIX}{token}")),
        Err("token_kind")
    );
    let bare = text.strip_prefix(INVITATION_PREFIX).unwrap();
    assert_eq!(check(bare, now), Err(TokenError::Kind));
    let lease = signer().sign_document(DocumentType::Lease, &good).unwrap();
    assert_eq!(
        code(&format!("{INVITATION_PREFIX}{lease}")),
        Err("token_kind")
    );
    let stranger = Signer::new(SecretKey::from_seed(&[6; 32]), platform());
    assert_eq!(
        code(&good.sign(&stranger).unwrap()),
        Err("token_unknown_key")
    );

    for wrong in [
        Invitation {
            exp: good.iat,
            ..good.clone()
        },
        Invitation {
            exp: NOW.plus(INVITATION_LIFE_MAX + Duration::from_secs(1)),
            ..good.clone()
        },
        Invitation {
            sub: "user:an na".to_owned(),
            ..good.clone()
        },
        Invitation {
            sub: String::new(),
            ..good.clone()
        },
        Invitation {
            iss: PlatformId::of(&signer().public()),
            ..good
        },
    ] {
        assert!(wrong.sign(&signer()).is_err());
        let text = signer()
            .sign_document(DocumentType::Invitation, &wrong)
            .unwrap();
        assert!(at(&format!("{INVITATION_PREFIX}{text}"), now).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_behind_any_prefix_are_refused(
        prefix in proptest::sample::select(vec!["", "tba_", "tbj_", "tbi_", "tb"]),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let text = format!("{prefix}{}", String::from_utf8_lossy(&bytes));
        prop_assert!(check(&text, NOW.secs()).is_err());
        prop_assert!(Invitation::verify(&text, &verifier().unwrap(), NOW).is_err());
    }
}
