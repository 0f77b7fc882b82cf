//! The fold takes what is signed, in any order of replay, and nothing else.

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use tabbify_token::{SecretKey, endorse_issuer};
use tabbify_types::event::v1::{
    RoleChanged, SessionsEnded, TenantCreated, TokenIssued, TokenRevoked, TokenUsed,
};
use tabbify_types::{EventId, MeshKey, NewEvent, Timestamp};

use super::*;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn root() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n.saturating_add(2); 32])
}

fn recorded(position: u64, segment: Segment, event: impl Into<Event>) -> Fallible<Recorded> {
    let new = NewEvent::new(segment, "key", &event.into())?;
    Ok(Recorded {
        position: Position(position),
        segment: new.segment,
        key: new.key,
        rev: Rev(position),
        id: EventId::mint(),
        kind: new.kind,
        version: new.version,
        at: Timestamp::from_secs(position),
        actor: "test".to_owned(),
        cause: None,
        trace: None,
        data: new.data,
    })
}

fn rotated(n: u8, by: &SecretKey) -> IssuerKeyRotated {
    let public = key(n).public();
    IssuerKeyRotated {
        kid: public.id(),
        public,
        signature: endorse_issuer(by, &public),
    }
}

fn registered(user: &str, n: u8) -> UserRegistered {
    let key = Some(key(n).public());
    UserRegistered {
        user: user.to_owned(),
        tenant: Tenant::main(),
        key,
    }
}

fn begun() -> Fallible<State> {
    let mut state = State::default();
    let first = PlatformInitialized {
        root_key: root().public(),
    };
    state.apply(&recorded(1, Segment::platform(), first)?)?;
    Ok(state)
}

#[test]
fn only_what_the_root_key_signed_is_an_issuer_key() {
    let mut state = begun().unwrap();
    let refuse = |state: &mut State, data: IssuerKeyRotated| {
        let before = state.clone();
        let error = state
            .apply(&recorded(2, Segment::auth(), data).unwrap())
            .unwrap_err();
        assert!(matches!(error, FoldError::Endorsement(_)), "{error}");
        assert_eq!(*state, before);
    };
    refuse(&mut state, rotated(1, &key(1)));
    refuse(
        &mut state,
        IssuerKeyRotated {
            public: key(2).public(),
            ..rotated(1, &root())
        },
    );
    refuse(
        &mut state,
        IssuerKeyRotated {
            kid: key(2).id(),
            ..rotated(1, &root())
        },
    );
    refuse(
        &mut state,
        IssuerKeyRotated {
            signature: String::new(),
            ..rotated(1, &root())
        },
    );
    state
        .apply(&recorded(2, Segment::auth(), rotated(1, &root())).unwrap())
        .unwrap();
    assert!(state.verifier().unwrap().keys().contains_key(&key(1).id()));
}

#[test]
fn a_platform_begins_once_and_first() {
    let first = PlatformInitialized {
        root_key: root().public(),
    };
    let mut state = State::default();
    let late = recorded(2, Segment::platform(), first.clone()).unwrap();
    assert!(matches!(state.apply(&late), Err(FoldError::Initialization)));
    let early = recorded(1, Segment::auth(), rotated(1, &root())).unwrap();
    assert!(matches!(
        state.apply(&early),
        Err(FoldError::Initialization)
    ));
    let mut state = begun().unwrap();
    let again = recorded(2, Segment::platform(), first).unwrap();
    assert!(matches!(
        state.apply(&again),
        Err(FoldError::Initialization)
    ));
    let weak = PlatformInitialized {
        root_key: tabbify_types::VerifyingKeyBytes([0; 32]),
    };
    let weak = recorded(1, Segment::platform(), weak).unwrap();
    assert!(matches!(
        State::default().apply(&weak),
        Err(FoldError::Key(_))
    ));
}

#[test]
fn other_segments_count_for_nothing() {
    let mut state = begun().unwrap();
    let before = state.clone();
    for segment in [Segment::apps(&Tenant::main()), Segment::peers()] {
        let forged = recorded(2, segment, registered("user:owner", 3)).unwrap();
        assert_eq!(state.apply(&forged).unwrap(), Revoked::Nothing);
    }
    assert_eq!(state, before);
}

#[test]
fn unknown_types_are_skipped_and_unknown_versions_stop() {
    let mut state = begun().unwrap();
    let mut later = recorded(2, Segment::auth(), registered("user:a", 3)).unwrap();
    later.version = 2;
    let before = state.clone();
    assert!(matches!(state.apply(&later), Err(FoldError::Event(_))));
    later.kind = "user_promoted".to_owned();
    assert_eq!(state.apply(&later).unwrap(), Revoked::Nothing);
    assert_eq!(state, before);
}

/// One event, and what it does to a model of the fold.
#[derive(Debug, Clone)]
enum Step {
    Rotate(u8),
    Register(u8, u8),
    Tenant(u8),
    Issue(u8),
    Use(u8, u8),
    Revoke(u8),
    End(u8, u64),
    Role(u8, bool),
    Foreign(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u8..5).prop_map(Step::Rotate),
        (0_u8..4, 0_u8..5).prop_map(|(user, key)| Step::Register(user, key)),
        (0_u8..3).prop_map(Step::Tenant),
        (0_u8..4).prop_map(Step::Issue),
        (0_u8..4, 1_u8..4).prop_map(|(token, key)| Step::Use(token, key)),
        (0_u8..4).prop_map(Step::Revoke),
        (0_u8..4, 0_u64..9).prop_map(|(user, upto)| Step::End(user, upto)),
        (0_u8..4, any::<bool>()).prop_map(|(user, is)| Step::Role(user, is)),
        (0_u8..4).prop_map(Step::Foreign),
    ]
}

fn event(position: u64, step: &Step) -> Fallible<Recorded> {
    let auth = Segment::auth();
    match step {
        Step::Rotate(n) => recorded(position, auth, rotated(*n, &root())),
        Step::Register(user, key) => {
            recorded(position, auth, registered(&format!("user:{user}"), *key))
        }
        Step::Tenant(n) => recorded(
            position,
            auth,
            TenantCreated {
                tenant: tenant(*n)?,
            },
        ),
        Step::Issue(n) => {
            let issued = TokenIssued {
                jti: format!("j{n}"),
                kind: "join".to_owned(),
                subject: format!("host:{n}"),
                expires: Timestamp::from_secs(1000),
                tenant: Some(Tenant::main()),
                scopes: Vec::new(),
                tags: Vec::new(),
                by: None,
            };
            recorded(position, auth, issued)
        }
        Step::Use(n, key) => {
            let (jti, key) = (format!("j{n}"), MeshKey([*key; 32]));
            recorded(position, auth, TokenUsed { jti, key })
        }
        Step::Revoke(n) => {
            let (jti, expires) = (format!("j{n}"), Timestamp::from_secs(1000));
            recorded(position, auth, TokenRevoked { jti, expires })
        }
        Step::End(user, upto) => {
            let (subject, upto) = (format!("user:{user}"), Timestamp::from_secs(*upto));
            recorded(position, auth, SessionsEnded { subject, upto })
        }
        Step::Role(user, is) => {
            let (user, role) = (format!("user:{user}"), is.then(|| "viewer".to_owned()));
            let tenant = Tenant::main();
            recorded(position, auth, RoleChanged { user, tenant, role })
        }
        Step::Foreign(user) => {
            let segment = Segment::apps(&Tenant::main());
            recorded(position, segment, registered(&format!("user:{user}"), 0))
        }
    }
}

fn tenant(n: u8) -> Fallible<Tenant> {
    Ok(format!("t{n}").parse()?)
}

#[test]
fn tokens_are_forgotten_after_their_end_and_revocations_never() {
    let mut state = begun().unwrap();
    let apply = |state: &mut State, position: u64, step: &Step| {
        state.apply(&event(position, step).unwrap()).unwrap();
    };
    apply(&mut state, 2, &Step::Issue(1));
    apply(&mut state, 3, &Step::Revoke(1));
    // The events' own time is their position, in seconds; the tokens end at 1000.
    apply(&mut state, 1000 + 3600, &Step::Issue(2));
    assert!(state.token("j1").is_some());
    apply(&mut state, 1000 + 3601, &Step::Issue(3));
    assert!(state.token("j1").is_none() && state.token("j3").is_some());
    assert!(state.revocations().contain("j1"));
}

#[test]
fn only_revocations_are_told() {
    let mut state = begun().unwrap();
    let told = |state: &mut State, position: u64, step: &Step| {
        state.apply(&event(position, step).unwrap()).unwrap()
    };
    for (position, step) in (2..).zip([Step::Issue(1), Step::Use(1, 1), Step::Role(1, true)]) {
        assert_eq!(told(&mut state, position, &step), Revoked::Nothing);
    }
    for (position, step) in (5..).zip([Step::Revoke(1), Step::End(1, 9)]) {
        assert_eq!(told(&mut state, position, &step), Revoked::Something);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_is_the_same_however_it_is_cut(
        steps in proptest::collection::vec(step(), 0..40),
        cut in any::<proptest::sample::Index>(),
    ) {
        let events: Vec<Recorded> = (2..)
            .zip(&steps)
            .map(|(position, step)| event(position, step))
            .collect::<Fallible<_>>()
            .unwrap();
        let mut whole = begun().unwrap();
        for event in &events {
            whole.apply(event).unwrap();
        }
        let (prefix, suffix) = events.split_at(cut.index(events.len() + 1));
        let mut part = begun().unwrap();
        for event in prefix {
            part.apply(event).unwrap();
        }
        // As from a snapshot.
        let stored = serde_json::to_vec(&part).unwrap();
        let mut resumed: State = serde_json::from_slice(&stored).unwrap();
        prop_assert_eq!(&resumed, &part);
        for event in suffix {
            resumed.apply(event).unwrap();
        }
        prop_assert_eq!(&resumed, &whole);

        // The two newest distinct issuer keys, and each key's latest holder.
        let mut newest: Vec<u8> = Vec::new();
        let mut holders = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Rotate(n) => {
                    newest.retain(|known| known != n);
                    newest.push(*n);
                }
                Step::Register(user, n) => {
                    holders.retain(|_, holder| holder != user);
                    holders.insert(*n, *user);
                }
                _ => {}
            }
        }
        let newest = &newest[newest.len().saturating_sub(ISSUER_KEYS_MAX)..];
        let kids: Vec<_> = whole.issuers().iter().map(|key| key.bytes().id()).collect();
        prop_assert_eq!(kids, newest.iter().map(|n| key(*n).id()).collect::<Vec<_>>());
        // A token's first use after it was issued, what was ever revoked, the latest end and role.
        let (mut used, mut revoked) = (BTreeMap::new(), BTreeSet::new());
        let (mut ended, mut roles) = (BTreeMap::new(), BTreeMap::new());
        for step in &steps {
            match step {
                Step::Issue(n) => {
                    used.entry(*n).or_insert(None);
                }
                Step::Use(n, key) => {
                    if let Some(first) = used.get_mut(n) {
                        first.get_or_insert(MeshKey([*key; 32]));
                    }
                }
                Step::Revoke(n) => {
                    revoked.insert(*n);
                }
                Step::End(user, upto) => {
                    let latest = ended.entry(*user).or_insert(*upto);
                    *latest = (*upto).max(*latest);
                }
                Step::Role(user, is) => {
                    roles.insert(*user, *is);
                }
                _ => {}
            }
        }
        for n in 0..4_u8 {
            let token = whole.token(&format!("j{n}")).map(|token| token.used);
            prop_assert_eq!(token, used.get(&n).copied());
            prop_assert_eq!(whole.revocations().contain(&format!("j{n}")), revoked.contains(&n));
            let upto = whole.revocations().ended(&format!("user:{n}")).map(Timestamp::secs);
            prop_assert_eq!(upto.unwrap_or(0), ended.get(&n).copied().unwrap_or(0));
            let role = whole.person(&format!("user:{n}")).and_then(|person| person.role(&Tenant::main()));
            let expected = roles.get(&n).map(|is| is.then_some(tabbify_api::auth::people::Role::Viewer));
            prop_assert_eq!(role, expected);
        }
        for n in 0..5 {
            let holder = whole.user_by_key(&key(n).id()).map(|user| user.subject.clone());
            prop_assert_eq!(holder, holders.get(&n).map(|user| format!("user:{user}")));
        }
    }
}
