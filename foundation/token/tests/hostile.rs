//! What must be refused, and why: one table of hostile tokens, then random bytes and single flips.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use tabbify_token::{
    Claims, Confirmation, DocumentType, JoinTerms, Kind, OwnerProof, PlatformId, PublicKey, Scope,
    SecretKey, Signer, TOKEN_LEN_MAX, TokenError, Verifier, endorse_issuer, verify_endorsement,
};
use tabbify_types::{MeshKey, Tenant, Timestamp, VerifyingKeyBytes};

const SEED: [u8; 32] = [5; 32];
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const USERS: &[Kind] = &[Kind::User];
const AUD: &str = "tabbify";

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn platform() -> PlatformId {
    PlatformId::of(&SecretKey::from_seed(&[1; 32]).public())
}

fn signer() -> Signer {
    Signer::new(SecretKey::from_seed(&SEED), platform())
}

fn verifier() -> Fallible<Verifier> {
    Ok(Verifier::new(platform()).with_key(PublicKey::try_from(signer().public())?))
}

fn claims() -> Claims {
    Claims {
        iss: platform(),
        sub: "user:owner".to_owned(),
        aud: AUD.to_owned(),
        kind: Kind::User,
        tenant: Tenant::main(),
        tags: Vec::new(),
        scopes: vec![Scope::all()],
        ulas: Vec::new(),
        cnf: None,
        join: None,
        iat: NOW,
        nbf: NOW,
        exp: NOW.plus(Duration::from_secs(900)),
        jti: "0191e7c2-1111-7222-8333-444455556666".to_owned(),
    }
}

fn encode(part: &str) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// Signs any two texts with the real issuer key: the signature holds, so that what is tested is
/// the rule behind it.
fn forge(header: &str, payload: &str) -> String {
    forge_parts(&encode(header), &encode(payload))
}

fn forge_parts(header: &str, payload: &str) -> String {
    let signed = format!("{header}.{payload}");
    let signature = SigningKey::from_bytes(&SEED)
        .sign(signed.as_bytes())
        .to_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header() -> String {
    format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"tabbify-user+jwt"}}"#,
        signer().kid()
    )
}

fn payload() -> String {
    serde_json::to_string(&claims()).unwrap_or_default()
}

fn with(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Fallible<String> {
    let mut json: serde_json::Map<_, _> = serde_json::from_str(&payload())?;
    change(&mut json);
    Ok(forge(&header(), &serde_json::to_string(&json)?))
}

fn set(key: &str, value: impl Into<serde_json::Value>) -> Fallible<String> {
    let value = value.into();
    with(|json| {
        json.insert(key.to_owned(), value);
    })
}

/// The signature with the group order added to its S: the plain equation still holds.
fn malleated(token: &str) -> Fallible<String> {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let (signed, signature) = token.rsplit_once('.').ok_or("no signature")?;
    let mut bytes = URL_SAFE_NO_PAD.decode(signature)?;
    let mut carry = 0_u16;
    for (s, order) in bytes[32..].iter_mut().zip(ORDER) {
        carry += u16::from(*s) + u16::from(order);
        *s = u8::try_from(carry & 0xff)?;
        carry >>= 8;
    }
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// The other spellings of one base64url text that differ only in its unused last bits.
fn spare_bits(part: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = ALPHABET
        .iter()
        .position(|b| part.as_bytes().last() == Some(b))?;
    let next = char::from(*ALPHABET.get(last + 1)?);
    Some(format!("{}{next}", &part[..part.len() - 1]))
}

type Case = (&'static str, String, &'static str);

#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
fn form_cases() -> Fallible<Vec<Case>> {
    let good = signer().sign(&claims())?;
    let (h, p) = (encode(&header()), encode(&payload()));
    let signature = good.rsplit('.').next().ok_or("no signature")?.to_owned();
    let flipped = spare_bits(&signature).ok_or("no other spelling")?;
    let bad = "token_malformed";
    Ok(vec![
        ("empty", String::new(), bad),
        ("one dot", ".".to_owned(), bad),
        ("two dots", "..".to_owned(), bad),
        ("no dots", good.replace('.', ""), bad),
        ("two parts", format!("{h}.{p}"), bad),
        ("four parts", format!("{good}.AAAA"), bad),
        ("five parts, as JWE", format!("{good}.AAAA.AAAA"), bad),
        ("leading dot", format!(".{good}"), bad),
        ("trailing dot", format!("{good}."), bad),
        ("leading space", format!(" {good}"), bad),
        ("trailing newline", format!("{good}\n"), bad),
        ("NUL inside", good.replacen('.', "\0.", 1), bad),
        ("NUL after", format!("{good}\0"), bad),
        ("not ASCII", format!("{good}é"), bad),
        ("bearer prefix kept", format!("Bearer {good}"), bad),
        (
            "padded payload",
            forge_parts(&h, &URL_SAFE.encode(format!("{} ", payload()))),
            bad,
        ),
        (
            "padding appended to header",
            forge_parts(&format!("{h}="), &p),
            bad,
        ),
        (
            "padding appended to payload",
            forge_parts(&h, &format!("{p}==")),
            bad,
        ),
        ("padding appended to signature", format!("{good}=="), bad),
        ("spare bits in signature", format!("{h}.{p}.{flipped}"), bad),
        (
            "standard alphabet",
            forge_parts(&h, &STANDARD.encode([0xfb, 0xff, 0xbf])),
            bad,
        ),
        ("percent-encoded", good.replace('.', "%2E"), bad),
        (
            "signature of 63 bytes",
            format!("{h}.{p}.{}", URL_SAFE_NO_PAD.encode([1; 63])),
            "token_signature",
        ),
        (
            "signature of 65 bytes",
            format!("{h}.{p}.{}", URL_SAFE_NO_PAD.encode([1; 65])),
            "token_signature",
        ),
        (
            "signature of zeros",
            format!("{h}.{p}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
            "token_signature",
        ),
        ("no signature", format!("{h}.{p}."), "token_signature"),
        ("S beyond the order", malleated(&good)?, "token_signature"),
        ("huge", "A".repeat(TOKEN_LEN_MAX + 1), "token_too_long"),
        (
            "huge and signed",
            forge(&header(), &" ".repeat(TOKEN_LEN_MAX)),
            "token_too_long",
        ),
        ("many dots", ".".repeat(TOKEN_LEN_MAX), bad),
        (
            "JSON serialization",
            r#"{"payload":"e30","signatures":[]}"#.to_owned(),
            bad,
        ),
    ])
}

#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
fn header_cases() -> Vec<Case> {
    let kid = signer().kid();
    let of = |header: &str| forge(header, &payload());
    let alg = |alg: &str| {
        of(&format!(
            r#"{{"alg":{alg},"kid":"{kid}","typ":"tabbify-user+jwt"}}"#
        ))
    };
    let typ = |typ: &str| of(&format!(r#"{{"alg":"EdDSA","kid":"{kid}","typ":{typ}}}"#));
    let key = |kid: &str| {
        of(&format!(
            r#"{{"alg":"EdDSA","kid":{kid},"typ":"tabbify-user+jwt"}}"#
        ))
    };
    let extra = |field: &str| {
        of(&format!(
            r#"{{"alg":"EdDSA","kid":"{kid}","typ":"tabbify-user+jwt",{field}}}"#
        ))
    };
    let unsigned = format!(
        "{}.{}.",
        encode(&format!(
            r#"{{"alg":"none","kid":"{kid}","typ":"tabbify-user+jwt"}}"#
        )),
        encode(&payload())
    );
    let bad = "token_malformed";
    vec![
        ("alg none, unsigned", unsigned, "token_algorithm"),
        ("alg none", alg(r#""none""#), "token_algorithm"),
        ("alg None", alg(r#""None""#), "token_algorithm"),
        ("alg HS256", alg(r#""HS256""#), "token_algorithm"),
        ("alg ES256", alg(r#""ES256""#), "token_algorithm"),
        ("alg RS256", alg(r#""RS256""#), "token_algorithm"),
        ("alg Ed25519", alg(r#""Ed25519""#), "token_algorithm"),
        ("alg eddsa", alg(r#""eddsa""#), "token_algorithm"),
        ("alg EDDSA", alg(r#""EDDSA""#), "token_algorithm"),
        ("alg with space", alg(r#""EdDSA ""#), "token_algorithm"),
        ("alg with NUL", alg(r#""EdDSA\u0000""#), "token_algorithm"),
        ("alg empty", alg(r#""""#), "token_algorithm"),
        ("alg null", alg("null"), "token_algorithm"),
        ("alg number", alg("8"), bad),
        ("alg list", alg(r#"["EdDSA"]"#), bad),
        (
            "alg missing",
            of(&format!(r#"{{"kid":"{kid}","typ":"tabbify-user+jwt"}}"#)),
            "token_algorithm",
        ),
        (
            "kid missing",
            of(r#"{"alg":"EdDSA","typ":"tabbify-user+jwt"}"#),
            "token_unknown_key",
        ),
        ("kid null", key("null"), "token_unknown_key"),
        ("kid empty", key(r#""""#), "token_unknown_key"),
        (
            "kid path",
            key(r#""../../etc/passwd""#),
            "token_unknown_key",
        ),
        (
            "kid of no key",
            key(r#""0000000000000000""#),
            "token_unknown_key",
        ),
        (
            "kid upper case",
            key(&format!("\"{}\"", kid.to_string().to_uppercase())),
            "token_unknown_key",
        ),
        (
            "kid with space",
            key(&format!("\"{kid} \"")),
            "token_unknown_key",
        ),
        ("kid number", key("7"), bad),
        (
            "typ missing",
            of(&format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#)),
            "token_kind",
        ),
        ("typ null", typ("null"), "token_kind"),
        ("typ JWT", typ(r#""JWT""#), "token_kind"),
        ("typ upper case", typ(r#""TABBIFY-USER+JWT""#), "token_kind"),
        (
            "typ with media prefix",
            typ(r#""application/tabbify-user+jwt""#),
            "token_kind",
        ),
        (
            "typ of an agent",
            typ(r#""tabbify-agent+jwt""#),
            "token_kind",
        ),
        (
            "typ of a lease",
            typ(r#""tabbify-lease+jwt""#),
            "token_kind",
        ),
        (
            "typ of an owner proof",
            typ(r#""tabbify-owner-proof+jwt""#),
            "token_kind",
        ),
        ("crit", extra(r#""crit":["exp"],"exp":1"#), bad),
        ("crit empty", extra(r#""crit":[]"#), bad),
        ("b64 false", extra(r#""b64":false"#), bad),
        (
            "jwk of the attacker",
            extra(r#""jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"}"#),
            bad,
        ),
        ("jku", extra(r#""jku":"https://evil.example/jwks""#), bad),
        ("x5u", extra(r#""x5u":"https://evil.example/x5u""#), bad),
        ("zip", extra(r#""zip":"DEF""#), bad),
        ("cty nested", extra(r#""cty":"JWT""#), bad),
        ("alg twice", extra(r#""alg":"none""#), bad),
        ("kid twice", extra(r#""kid":"0000000000000000""#), bad),
        ("typ twice", extra(r#""typ":"JWT""#), bad),
        ("alg twice, escaped", extra(r#""\u0061lg":"none""#), bad),
        ("header empty", of(""), bad),
        ("header not JSON", of("EdDSA"), bad),
        (
            "header list",
            of(&format!(r#"["EdDSA","{kid}","tabbify-user+jwt"]"#)),
            bad,
        ),
        ("header string", of(r#""EdDSA""#), bad),
        ("header null", of("null"), bad),
        ("header with tail", of(&format!("{}{{}}", header())), bad),
        ("header with comma", of(&header().replace('}', ",}")), bad),
        ("header after space", of(&format!(" {}", header())), bad),
        ("header with BOM", of(&format!("\u{feff}{}", header())), bad),
        (
            "header not UTF-8",
            forge_parts(&URL_SAFE_NO_PAD.encode(b"{\"alg\":\"\xff\"}"), "e30"),
            bad,
        ),
        ("header nested deep", of(&"[".repeat(4000)), bad),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
fn claim_cases() -> Fallible<Vec<Case>> {
    let now = NOW.secs();
    let without = |key: &str| {
        with(|json| {
            json.remove(key);
        })
    };
    let bad = "token_malformed";
    let doubled = payload().replacen('{', r#"{"sub":"user:other","#, 1);
    let list = |n: usize| vec!["a"; n];
    Ok(vec![
        ("payload empty", forge(&header(), ""), bad),
        ("payload not JSON", forge(&header(), "user:owner"), bad),
        ("payload list", forge(&header(), "[]"), bad),
        ("payload null", forge(&header(), "null"), bad),
        ("payload {}", forge(&header(), "{}"), bad),
        (
            "payload nested deep",
            forge(&header(), &"{\"a\":".repeat(800)),
            bad,
        ),
        ("claim twice", forge(&header(), &doubled), bad),
        ("unknown claim", set("only_on_mondays", true)?, bad),
        ("sub missing", without("sub")?, bad),
        ("sub empty", set("sub", "")?, bad),
        ("sub with NUL", set("sub", "user:\0owner")?, bad),
        (
            "sub with newline",
            set("sub", "user:owner\nforged log line")?,
            bad,
        ),
        ("sub not ASCII", set("sub", "usеr:owner")?, bad),
        ("sub long", set("sub", "a".repeat(129))?, bad),
        ("sub number", set("sub", 1)?, bad),
        ("jti missing", without("jti")?, bad),
        ("jti empty", set("jti", "")?, bad),
        ("kind missing", without("kind")?, bad),
        ("kind unknown", set("kind", "root")?, bad),
        ("kind of another typ", set("kind", "agent")?, "token_kind"),
        ("tenant missing", without("tenant")?, bad),
        ("tenant malformed", set("tenant", "../main")?, bad),
        ("iss missing", without("iss")?, bad),
        ("iss malformed", set("iss", "https://issuer.example")?, bad),
        (
            "iss of another platform",
            set("iss", "0123456789abcdef")?,
            "token_issuer",
        ),
        ("aud missing", without("aud")?, bad),
        ("aud of another", set("aud", "registry")?, "token_audience"),
        ("aud case", set("aud", "Tabbify")?, "token_audience"),
        ("aud list", set("aud", vec!["tabbify", "registry"])?, bad),
        ("aud null", set("aud", serde_json::Value::Null)?, bad),
        ("scope malformed", set("scopes", vec!["apps:*"])?, bad),
        ("scopes as text", set("scopes", "deploy apps:read")?, bad),
        ("scopes too many", set("scopes", list(65))?, bad),
        ("tags too many", set("tags", list(65))?, bad),
        ("tag with space", set("tags", vec!["a b"])?, bad),
        ("ula malformed", set("ulas", vec!["::g"])?, bad),
        (
            "cnf malformed",
            set("cnf", serde_json::json!({"wg": "AAAA"}))?,
            bad,
        ),
        (
            "terms of a join token",
            set(
                "join",
                serde_json::json!({"root": SecretKey::from_seed(&[1; 32]).public(), "coordinator": "a"}),
            )?,
            bad,
        ),
        (
            "cnf of another sort",
            set("cnf", serde_json::json!({"jkt": "AAAA"}))?,
            bad,
        ),
        ("exp missing", without("exp")?, bad),
        ("exp null", set("exp", serde_json::Value::Null)?, bad),
        ("exp text", set("exp", "1800000900")?, bad),
        ("exp fraction", set("exp", 1_800_000_900.5)?, bad),
        ("exp negative", set("exp", -1)?, bad),
        (
            "exp beyond u64",
            forge(&header(), &payload().replace("1800000900", "1e30")),
            bad,
        ),
        ("exp for ever", set("exp", u64::MAX)?, "token_lifetime"),
        (
            "exp beyond the kind's life",
            set("exp", now + 24 * 3600 + 1)?,
            "token_lifetime",
        ),
        ("exp before nbf", set("exp", now - 1)?, "token_lifetime"),
        ("exp equal to nbf", set("exp", now)?, "token_lifetime"),
        (
            "iat beyond the kind's life",
            set("iat", now - 24 * 3600)?,
            "token_lifetime",
        ),
        ("iat missing", without("iat")?, bad),
        ("nbf missing", without("nbf")?, bad),
        (
            "nbf in the future",
            set("nbf", now + 31)?,
            "token_not_yet_valid",
        ),
        (
            "iat in the future",
            set("iat", now + 31)?,
            "token_not_yet_valid",
        ),
        (
            "expired",
            with(|json| {
                for (key, at) in [("iat", now - 930), ("nbf", now - 930), ("exp", now - 30)] {
                    json.insert(key.to_owned(), at.into());
                }
            })?,
            "token_expired",
        ),
    ])
}

fn swapped_cases() -> Fallible<Vec<Case>> {
    let good = signer().sign(&claims())?;
    let mut other = claims();
    other.sub = "user:other".to_owned();
    let other = signer().sign(&other)?;
    let (a, b): (Vec<_>, Vec<_>) = (good.split('.').collect(), other.split('.').collect());
    let stranger = Signer::new(SecretKey::from_seed(&[6; 32]), platform());
    let mine = stranger.sign(&claims())?.replacen(
        &encode(&header().replace(signer().kid().as_str(), stranger.kid().as_str())),
        &encode(&header()),
        1,
    );
    Ok(vec![
        (
            "payload of another",
            format!("{}.{}.{}", a[0], b[1], a[2]),
            "token_signature",
        ),
        (
            "signature of another",
            format!("{}.{}.{}", a[0], a[1], b[2]),
            "token_signature",
        ),
        (
            "parts reordered",
            format!("{}.{}.{}", a[1], a[0], a[2]),
            "token_malformed",
        ),
        (
            "a stranger's key",
            stranger.sign(&claims())?,
            "token_unknown_key",
        ),
        (
            "a stranger's signature under our kid",
            mine,
            "token_signature",
        ),
        (
            "a lease",
            signer().sign_document(DocumentType::Lease, &claims())?,
            "token_kind",
        ),
    ])
}

#[test]
fn every_hostile_token_is_refused_with_its_reason() {
    let verifier = verifier().unwrap();
    let mut cases = form_cases().unwrap();
    cases.extend(header_cases());
    cases.extend(claim_cases().unwrap());
    cases.extend(swapped_cases().unwrap());
    assert!(cases.len() >= 140, "{}", cases.len());
    for (name, token, code) in cases {
        let refused = verifier.verify(&token, USERS, AUD, NOW).expect_err(name);
        assert_eq!(refused.code(), code, "{name}");
        assert!(TokenError::CODES.contains(&refused.code()), "{name}");
    }
    // The table tests the rules only if the same construction, unchanged, is accepted.
    assert_eq!(
        verifier.verify(&forge(&header(), &payload()), USERS, AUD, NOW),
        Ok(claims())
    );
}

#[test]
fn round_trip_for_every_kind() {
    let verifier = verifier().unwrap();
    for kind in Kind::ALL {
        let cnf = kind.must_be_bound().then_some(Confirmation {
            wg: MeshKey([8; 32]),
        });
        let join = (kind == Kind::Join).then(|| JoinTerms {
            root: SecretKey::from_seed(&[1; 32]).public(),
            coordinator: "digest".to_owned(),
            capabilities: Vec::new(),
        });
        let exp = NOW.plus(Duration::from_secs(60));
        let ulas = vec!["fd5a:1f00:1:1::1".parse().unwrap()];
        let tags = vec!["gpu".to_owned()];
        let claims = Claims {
            kind,
            cnf,
            join,
            exp,
            ulas,
            tags,
            ..claims()
        };
        let token = signer().sign(&claims).unwrap();
        assert_eq!(verifier.verify(&token, &Kind::ALL, AUD, NOW), Ok(claims));
        for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
            assert_eq!(
                verifier.verify(&token, &[other], AUD, NOW),
                Err(TokenError::Kind)
            );
        }
        assert_eq!(
            verifier.verify(&token, &[], AUD, NOW),
            Err(TokenError::Kind)
        );
    }
}

#[test]
fn time_has_a_leeway_and_an_end() {
    let token = signer().sign(&claims()).unwrap();
    let at = |secs: u64| {
        verifier()
            .unwrap()
            .verify(&token, USERS, AUD, Timestamp::from_secs(secs))
    };
    let now = NOW.secs();
    assert_eq!(at(now - 31), Err(TokenError::NotYet));
    assert!(at(now - 30).is_ok());
    assert!(at(now + 900 + 29).is_ok());
    let expired = Err(TokenError::Expired { at: claims().exp });
    assert_eq!(at(now + 900 + 30), expired);
    assert_eq!(at(u64::MAX), expired);
    assert_eq!(at(0), Err(TokenError::NotYet));
}

#[test]
fn a_signer_refuses_what_no_verifier_would_take() {
    let lifetime = Claims {
        exp: NOW.plus(Duration::from_secs(86_401)),
        ..claims()
    };
    assert!(matches!(
        signer().sign(&lifetime),
        Err(TokenError::Lifetime { kind: Kind::User })
    ));
    let exp = NOW.plus(Duration::from_secs(60));
    let unbound = Claims {
        kind: Kind::Runner,
        exp,
        ..claims()
    };
    assert!(matches!(
        signer().sign(&unbound),
        Err(TokenError::Unbound { kind: Kind::Runner })
    ));
    let foreign = Claims {
        iss: PlatformId::of(&VerifyingKeyBytes([9; 32])),
        ..claims()
    };
    assert_eq!(signer().sign(&foreign), Err(TokenError::Issuer));
}

#[test]
fn documents_do_not_pass_for_tokens_or_each_other() {
    let verifier = verifier().unwrap();
    let lease = serde_json::json!({"app": "x"});
    let signed = signer().sign_document(DocumentType::Lease, &lease).unwrap();
    let read = verifier.verify_document::<serde_json::Value>(DocumentType::Lease, &signed);
    assert_eq!(read, Ok(lease));
    let token = signer().sign(&claims()).unwrap();
    let read = verifier.verify_document::<serde_json::Value>(DocumentType::Lease, &token);
    assert_eq!(read, Err(TokenError::Kind));
    let list = signer().sign_document(DocumentType::Lease, &[1]).unwrap();
    let read = verifier.verify_document::<serde_json::Value>(DocumentType::Lease, &list);
    assert!(matches!(read, Err(TokenError::Malformed(_))));
}

#[test]
fn owner_proofs() {
    let key = SecretKey::from_seed(&[4; 32]);
    let public = PublicKey::try_from(key.public()).unwrap();
    let proof = OwnerProof::new(platform(), "user:owner", "abc", NOW);
    let text = proof.sign(&key).unwrap();
    let at = |text: &str, secs: u64| {
        OwnerProof::verify(text, &platform(), Timestamp::from_secs(secs), |kid| {
            (*kid == key.id()).then_some(&public)
        })
    };
    let now = NOW.secs();
    assert_eq!(at(&text, now), Ok((proof.clone(), key.id())));
    assert_eq!(
        at(&text, now + 90),
        Err(TokenError::Expired { at: proof.exp })
    );
    assert_eq!(at(&text, now - 31), Err(TokenError::NotYet));
    let elsewhere = PlatformId::of(&key.public());
    let foreign = OwnerProof {
        aud: elsewhere,
        ..proof.clone()
    }
    .sign(&key)
    .unwrap();
    assert_eq!(at(&foreign, now), Err(TokenError::Audience));
    let long = OwnerProof {
        exp: NOW.plus(Duration::from_secs(61)),
        ..proof.clone()
    };
    assert!(matches!(long.sign(&key), Err(TokenError::Lifetime { .. })));
    let stranger = proof.sign(&SecretKey::from_seed(&SEED)).unwrap();
    assert_eq!(at(&stranger, now), Err(TokenError::UnknownKey));
    assert_eq!(
        at(&signer().sign(&claims()).unwrap(), now),
        Err(TokenError::Kind)
    );
}

#[test]
fn endorsements_hold_for_one_key_and_one_root() {
    let root = SecretKey::from_seed(&[1; 32]);
    let public = PublicKey::try_from(root.public()).unwrap();
    let issuer = signer().public();
    let word = endorse_issuer(&root, &issuer);
    assert_eq!(verify_endorsement(&public, &issuer, &word), Ok(()));
    let other = PublicKey::try_from(issuer).unwrap();
    let refused = Err(TokenError::Signature);
    assert_eq!(verify_endorsement(&other, &issuer, &word), refused);
    assert_eq!(verify_endorsement(&public, &root.public(), &word), refused);
    for bad in [
        "",
        "AAAA",
        &format!("{word}="),
        &word[1..],
        &format!("{word}A"),
    ] {
        assert_eq!(verify_endorsement(&public, &issuer, bad), refused, "{bad}");
    }
}

#[test]
fn any_single_change_to_a_good_token_is_refused() {
    let verifier = verifier().unwrap();
    let good = signer().sign(&claims()).unwrap();
    for at in 0..good.len() {
        for flip in [0x01, 0x02, 0x04, 0x20, 0x40] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= flip;
            let Ok(text) = String::from_utf8(bytes) else {
                continue;
            };
            assert!(
                verifier.verify(&text, USERS, AUD, NOW).is_err(),
                "byte {at} ^ {flip}"
            );
        }
        let cut = format!("{}{}", &good[..at], &good[at + 1..]);
        assert!(
            verifier.verify(&cut, USERS, AUD, NOW).is_err(),
            "byte {at} cut"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let text = String::from_utf8_lossy(&bytes);
        let verifier = verifier().unwrap();
        prop_assert!(verifier.verify(&text, &Kind::ALL, AUD, NOW).is_err());
        prop_assert!(SecretKey::from_text(&text).is_err());
        prop_assert!(text.parse::<PlatformId>().is_err() || text.len() == 16);
        // Signed garbage reaches the parsers behind the signature.
        let forged = forge_parts(&encode(&header()), &URL_SAFE_NO_PAD.encode(&bytes));
        prop_assert!(verifier.verify(&forged, USERS, AUD, NOW).is_err());
        let forged = forge_parts(&URL_SAFE_NO_PAD.encode(&bytes), &encode(&payload()));
        prop_assert!(verifier.verify(&forged, USERS, AUD, NOW).is_err());
    }

    #[test]
    fn any_claims_that_can_be_signed_are_read_back(
        sub in "[!-~]{1,128}",
        scopes in proptest::collection::vec("[a-z0-9-]{1,9}(:[a-z0-9-]{1,9}){0,3}", 0..20),
        life in 1_u64..86_400,
    ) {
        let scopes = scopes.iter().map(|s| s.parse()).collect::<Result<_, _>>().unwrap();
        let claims = Claims { sub, scopes, exp: NOW.plus(Duration::from_secs(life)), ..claims() };
        let token = signer().sign(&claims).unwrap();
        prop_assert_eq!(verifier().unwrap().verify(&token, USERS, AUD, NOW), Ok(claims));
    }
}
