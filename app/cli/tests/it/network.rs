//! Connections that break, servers that are not there or not ours.

use std::net::TcpListener;

use expect_test::expect;
use tabbify_api::{ErrorCode, Problem};

use crate::node::{Fault, Node};
use crate::person::{COMPONENT, Person};

#[test]
fn nobody_there() {
    // Bound and dropped: nothing listens there now.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut person = Person::new().unwrap();
    person.go_to(&format!("http://127.0.0.1:{port}"));
    let run = person.tcli(&["apps"]).unwrap();
    let expected =
        format!("No Tabbify answers at http://127.0.0.1:{port}. Start one: tabbify up\n");
    assert_eq!((run.exit, run.err), (3, expected));
    let document = person.tcli(&["apps", "--json"]).unwrap().json();
    assert_eq!(document["error"]["code"], "unreachable");
}

#[test]
fn a_cut_upload_is_sent_again_from_the_beginning() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let mut large = COMPONENT.to_vec();
    large.resize(3_000_000, 7);
    person.put("shop.wasm", &large).unwrap();
    node.fail("files/app.wasm", 3, Fault::Cut);
    let run = person.tcli(&["push"]).unwrap();
    assert_eq!(run.exit, 0, "{run:?}");
    assert_eq!(node.count("files/app.wasm"), 4);
    assert_eq!(node.state().versions.len(), 1);
    let state = node.state();
    assert!(state.versions.values().next().unwrap().files["app.wasm"] == large);
}

#[test]
fn an_upload_that_is_always_cut_ends_clearly_and_the_next_push_goes_on() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    node.fail("files/app.wasm", 4, Fault::Cut);
    let run = person.tcli(&["push"]).unwrap();
    assert!(run.err.contains("broke during PUT"), "{}", run.err);
    assert_eq!(run.exit, 3);
    assert!(person.get("tabbify.lock").contains("latest_version = 0"));
    assert_eq!(node.state().apps.len(), 1);
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    let state = node.state();
    assert_eq!(
        state.apps.len(),
        1,
        "the app of the first push is continued"
    );
    let committed: Vec<bool> = state
        .versions
        .values()
        .map(|version| version.committed)
        .collect();
    assert_eq!(committed, [false, true]);
}

#[test]
fn a_reservation_is_never_repeated() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    node.fail("/versions", 1, Fault::Cut);
    let run = person.tcli(&["push"]).unwrap();
    assert_eq!((run.exit, node.count("/versions")), (3, 1), "{run:?}");
}

#[test]
fn a_refused_upload_is_told_without_being_sent() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let problem = Problem::new(
        ErrorCode::TooLarge,
        "app.wasm has 8 bytes, and 4 are allowed",
    );
    node.fail(
        "files/app.wasm",
        1,
        Fault::Refuse(problem.with_fix("Make it smaller.")),
    );
    let run = person.tcli(&["push"]).unwrap();
    run.check(
        2,
        &expect![[r#"
        --- stderr
        Too large: app.wasm has 8 bytes, and 4 are allowed. Make it smaller.
    "#]],
    );
}

#[test]
fn a_platform_that_is_starting_is_waited_for() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    let starting = || Fault::Refuse(Problem::new(ErrorCode::Unavailable, "it is starting"));
    node.fail("GET /v1/apps", 2, starting());
    assert_eq!(person.tcli(&["apps"]).unwrap().exit, 0);
    node.fail("GET /v1/apps", 4, starting());
    let run = person.tcli(&["apps"]).unwrap();
    run.check(
        3,
        &expect![[r#"
        --- stderr
        Try again: it is starting.
    "#]],
    );
}

#[test]
fn what_is_not_a_tabbify() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    let raw = |bytes| node.fail("GET /v1/apps", 1, Fault::Raw(bytes));
    raw("HTTP/1.1 404 x\r\ncontent-length: 4\r\n\r\n<p>?");
    person.tcli(&["apps"]).unwrap().check(3, &expect![[r#"
        --- stderr
        <server> answers 404 to GET /v1/apps, and not as a Tabbify does. Name the right platform with --server, or start one: tabbify up
    "#]]);
    raw("HTTP/1.1 200 x\r\ncontent-length: 4\r\n\r\n<p>?");
    person.tcli(&["apps"]).unwrap().check(3, &expect![[r#"
        --- stderr
        <server> answers GET /v1/apps in a form that is not ours (expected value at line 1 column 1). Is it a Tabbify of another release? Compare: tcli --version
    "#]]);
    raw("HTTP/1.1 302 x\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n");
    person.tcli(&["apps"]).unwrap().check(3, &expect![[r#"
        --- stderr
        <server> answers 302 to GET /v1/apps, and not as a Tabbify does. Name the right platform with --server, or start one: tabbify up
    "#]]);
    raw("SSH-2.0-OpenSSH_9.2\r\n");
    let run = person.tcli(&["apps"]).unwrap();
    assert!(run.err.contains("is not a Tabbify"), "{}", run.err);
    assert_eq!(run.exit, 3);
    // A later release may have codes that this one does not know.
    raw("HTTP/1.1 409 x\r\ncontent-length: 68\r\n\r\n\
         {\"code\":\"brand_new\",\"title\":\"New\",\"detail\":\"why\",\"fix\":\"do it\"}     ");
    let document = person.tcli(&["apps", "--json"]).unwrap().json();
    expect![[r#"{"code":"brand_new","exit":2,"fix":"do it","what":"New: why."}"#]]
        .assert_eq(&document["error"].to_string());
}

#[test]
fn other_machines_are_not_told_the_token() {
    let mut person = Person::new().unwrap();
    person.go_to("http://203.0.113.7:8090");
    person.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        "http://203.0.113.7:8090" is http to another machine, which would show your token ($TABBIFY_SERVER). Reach the platform on its own machine, or through an SSH tunnel to it.
    "#]]);
    person.go_to("https://apps.example.com");
    person.tcli(&["apps"]).unwrap().check(2, &expect![[r#"
        --- stderr
        "https://apps.example.com" is https, which this tcli cannot speak yet ($TABBIFY_SERVER). Reach the platform on its own machine, or through an SSH tunnel to it.
    "#]]);
}
