//! Signing in: keys, tokens, their cache, and what is said when it does not work.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use expect_test::expect;

use crate::node::{Fault, Node};
use crate::person::Person;

fn token_file(node: &Node) -> String {
    format!("cache/tabbify/token-{}.json", node.state().platform)
}

#[test]
fn a_token_is_kept_and_used_until_a_minute_before_its_end() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    for _ in 0..3 {
        assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    }
    assert_eq!(node.count("POST /v1/auth/token"), 1);
    let file = person.path(&token_file(&node));
    assert_eq!(Person::mode(&file).unwrap(), 0o600);
    assert_eq!(Person::mode(file.parent().unwrap()).unwrap(), 0o700);
    // One that lasts less than a minute is not worth keeping.
    fs::remove_file(&file).unwrap();
    node.state().token_life = Duration::from_secs(59);
    for _ in 0..2 {
        assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    }
    assert_eq!(node.count("POST /v1/auth/token"), 3);
}

#[test]
fn a_refused_token_is_renewed_silently() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap().with_component().unwrap();
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    node.state().tokens.clear();
    let run = person.tcli(&["push"]).unwrap();
    assert_eq!(run.exit, 0, "{run:?}");
    assert!(!run.err.contains("token"), "{}", run.err);
    assert_eq!(node.count("POST /v1/auth/token"), 2);
}

#[test]
fn a_cache_that_is_damaged_or_open_to_others_does_not_count() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    let file = person.path(&token_file(&node));
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    fs::write(&file, "{").unwrap();
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    assert_eq!(node.count("POST /v1/auth/token"), 2);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    assert_eq!(node.count("POST /v1/auth/token"), 3);
    assert_eq!(Person::mode(&file).unwrap(), 0o600);
}

#[test]
fn a_home_that_cannot_be_written_works_without_a_cache() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    fs::write(person.path("cache"), "in the way").unwrap();
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
}

#[test]
fn not_signed_in() {
    let node = Node::start().unwrap();
    let with_token = Person::with_token(&node).unwrap();
    node.state().tokens.clear();
    with_token.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        Not signed in to <host>: $TABBIFY_TOKEN: the token expired at 2026-11-22T10:00:00.000Z. Set a new one, or run: unset TABBIFY_TOKEN
    "#]]);
    let mut nobody = Person::new().unwrap();
    nobody.go_to(&node.url());
    let run = nobody.tcli(&["apps"]).unwrap();
    let told = run.err.replace(&node.addr.to_string(), "<host>");
    expect![[r#"
        Not signed in to <host>: no credentials for it in $TABBIFY_TOKEN or contexts.toml. Run: tabbify up (on the platform's machine, it signs you in), or set TABBIFY_TOKEN
    "#]].assert_eq(&told);
    let document = nobody.tcli(&["apps", "--json"]).unwrap().json();
    assert_eq!(document["error"]["code"], "not_signed_in");
}

#[test]
fn another_key_and_another_platform() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    let other = Person::with_key(&node).unwrap();
    // The node now knows the other person's key.
    person.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        Not signed in to <host>: its signature does not hold (context local, key <home>/owner.key). Run: tabbify up
    "#]]);
    let platform = "0123456789abcdef";
    other
        .put_context(&node.url(), platform, &other.path("owner.key"))
        .unwrap();
    other.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        Not signed in to <host>: it is platform <platform>, and context local is for 0123456789abcdef. Was it set up anew? Run: tabbify up (it writes the context)
    "#]]);
}

#[test]
fn keys_and_contexts_that_cannot_be_used() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    let key = person.path("owner.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    person.tcli(&["apps"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        Others can read your key <home>/owner.key (mode 0640). Run: chmod 600 <home>/owner.key
    "#]],
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "not a key").unwrap();
    person.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        Cannot use your key <home>/owner.key: it is not a secret key (32 bytes as 43 characters of base64url).
    "#]]);
    fs::remove_file(&key).unwrap();
    person.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        Your key <home>/owner.key is gone, and contexts.toml names it. Was the platform set up anew? Run: tabbify up
    "#]]);
    person
        .tcli(&["apps", "--context", "work"])
        .unwrap()
        .check(2, &expect![[r#"
            --- stderr
            contexts.toml has no context "work"; it has: local. Use one of these, or --server or $TABBIFY_SERVER.
        "#]]);
    person.put_contexts_text("version = 1\nkey = 3\n").unwrap();
    let run = person.tcli(&["apps"]).unwrap();
    assert!(run.err.contains("unknown field `key`"), "{}", run.err);
    assert_eq!((run.exit, node.count("")), (2, 0), "nothing was sent");
}

#[test]
fn a_context_is_found_by_its_server() {
    let (node, other) = (Node::start().unwrap(), Node::start().unwrap());
    let person = Person::with_key(&node).unwrap();
    assert_eq!(
        person
            .tcli(&["apps", "--server", &node.url()])
            .unwrap()
            .exit,
        0
    );
    // The key of one server is not shown to another that happens to be asked.
    assert_eq!(
        person
            .tcli(&["apps", "--server", &other.url()])
            .unwrap()
            .exit,
        2
    );
    assert_eq!(other.count("POST"), 0);
}

#[test]
fn flags_come_before_the_environment() {
    let (node, other) = (Node::start().unwrap(), Node::start().unwrap());
    let mut person = Person::with_key(&node).unwrap();
    person.go_to(&other.url());
    person.hold("given");
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    assert_eq!((node.count(""), other.count("GET /v1/apps")), (0, 1));
    // A named context counts with its server and its key, whatever the environment says.
    assert_eq!(
        person.tcli(&["apps", "--context", "local"]).unwrap().exit,
        0
    );
    assert_eq!((node.count("POST /v1/auth/token"), other.count("")), (1, 1));
    // And a named server with the environment's token.
    assert_eq!(
        person
            .tcli(&["apps", "--server", &node.url()])
            .unwrap()
            .exit,
        0
    );
    assert_eq!((node.count("GET /v1/apps"), other.count("")), (2, 1));
}

#[test]
fn a_cut_sign_in_is_tried_again_with_a_new_proof() {
    let node = Node::start().unwrap();
    let person = Person::with_key(&node).unwrap();
    node.fail("POST /v1/auth/token", 2, Fault::Cut);
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    assert_eq!(node.count("POST /v1/auth/token"), 3);
}
