//! What is asked about apps: `status`, `apps`, `logs`, `open`, `address`, `whoami`, and usage.

use std::io::Read as _;
use std::process::Stdio;

use expect_test::expect;
use tabbify_api::apps::AppStatus;

use crate::node::Node;
use crate::person::Person;

const ID: &str = "0191e7c2-1111-7222-8333-444455556666";

fn log_line(second: u32, line: &str) -> String {
    let at = format!("2026-11-22T14:03:{second:02}.123Z");
    let line = serde_json::json!({ "at": at, "instance": 2, "stream": "stdout", "line": line });
    format!("{line}\n")
}

#[test]
fn status_and_apps() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    person.tcli(&["apps"]).unwrap().check(
        0,
        &expect![[r#"
        <server> has no apps yet. Next: tcli init && tcli push
    "#]],
    );
    person.tcli(&["status"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        This folder has no tabbify.toml, and no app was named. Name one: --app NAME
    "#]],
    );
    node.state().add_app("cart", 0);
    node.state().add_app("shop", 3);
    let mut failed = node.state().apps[1].clone();
    (failed.status, failed.problem) = (AppStatus::Failed, Some("it\x1b[2J exited".to_owned()));
    node.state().apps[1] = failed;
    person.tcli(&["apps"]).unwrap().check(
        0,
        &expect![[r#"
        NAME  STATUS  SERVING  LATEST  URL
        cart  new     -        -       http://cart.localhost:8090
        shop  failed  v3       v3      http://shop.localhost:8090
    "#]],
    );
    person.tcli(&["status", "--app", "shop"]).unwrap().check(
        0,
        &expect![[r#"
            app      shop  <id>
            status   failed
            url      http://shop.localhost:8090  private
            address  <address>
            serving  v3
            latest   v3
            created  2026-11-18T11:06:40.000Z
            problem  it[2J exited
        "#]],
    );
    person.tcli(&["status", "--app", "none"]).unwrap().check(
        2,
        &expect![[r#"
            --- stderr
            <server> has no app "none". Apps there: cart, shop.
        "#]],
    );
    // The folder's app, by the name in its manifest.
    let person = person.with_component().unwrap();
    let document = person.tcli(&["status", "--json"]).unwrap().json();
    assert_eq!(document["app"]["name"], "shop");
    let document = person.tcli(&["apps", "--json"]).unwrap().json();
    assert_eq!(document["apps"].as_array().unwrap().len(), 2);
}

#[test]
fn logs() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    node.state().log = log_line(7, "listening") + "\n" + &log_line(8, "ä");
    person.tcli(&["logs", "--app", "shop"]).unwrap().check(
        0,
        &expect![[r#"
            14:03:07.123 #2 stdout| listening
            14:03:08.123 #2 stdout| ä
        "#]],
    );
    assert_eq!(node.count("logs?follow=false&tail=100"), 1);
    let run = person.tcli(&["logs", "--app", "shop", "--json"]).unwrap();
    let values = |text: &str| -> Vec<serde_json::Value> {
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    assert_eq!(values(&run.out), values(&node.state().log));
    let since = ["logs", "--app", "shop", "--since", "2026-11-22T00:00:00Z"];
    assert_eq!(person.tcli(&since).unwrap().exit, 0);
    assert_eq!(
        node.count("logs?follow=false&since=2026-11-22T00:00:00.000Z"),
        1
    );
    person
        .tcli(&["logs", "--since", "yesterday"])
        .unwrap()
        .check(
            2,
            &expect![[r#"
            --- stderr
            "yesterday" is not a time. Write 90s, 10m, 2h, 3d, or 2026-11-22T14:00:00Z.
        "#]],
        );
}

#[test]
fn a_log_that_breaks_off_says_how_to_go_on() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    node.state().log = log_line(7, "listening");
    person
        .tcli(&["logs", "-f", "--app", "shop"])
        .unwrap()
        .check(3, &expect![[r#"
            14:03:07.123 #2 stdout| listening
            --- stderr
            The log of <server> broke off (the platform closed it). Go on with: tcli logs -f --since 2026-11-22T14:03:07.123Z
        "#]]);
    node.state().log_breaks = true;
    node.state().log = log_line(7, "whole") + "{\"at\":";
    let run = person.tcli(&["logs", "--app", "shop"]).unwrap();
    assert_eq!(run.exit, 3, "{run:?}");
    assert!(run.out.ends_with("whole\n"), "{}", run.out);
    assert!(
        run.err
            .contains("tcli logs --since 2026-11-22T14:03:07.123Z"),
        "{}",
        run.err
    );
    node.state().log_breaks = false;
    node.state().log = "what\n".to_owned();
    let document = person
        .tcli(&["logs", "--app", "shop", "--json"])
        .unwrap()
        .json();
    assert_eq!(document["error"]["code"], "bad_answer");
}

/// As in `tcli logs | head -1`.
#[test]
fn a_reader_who_leaves_is_no_error() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    // More than a pipe holds, so that the writer notices.
    node.state().log = log_line(7, &"x".repeat(1000)).repeat(1000);
    let mut command = person.command(&["logs", "--app", "shop"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let run = person.run_of(&child.wait_with_output().unwrap());
    assert_eq!((run.exit, run.err.as_str()), (0, ""));
}

#[test]
fn links() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    person.tcli(&["open", "--app", "shop"]).unwrap().check(
        0,
        &expect![[r#"
            http://shop.localhost:8090/?ticket=once
        "#]],
    );
    let document = person
        .tcli(&["open", "--print", "--json", "--app", "shop"])
        .unwrap()
        .json();
    assert_eq!(document["expires"], "2026-11-22T10:01:00.000Z");
}

#[test]
fn addresses_are_derived_offline() {
    let person = Person::new().unwrap();
    let run = person.tcli(&["address", ID]).unwrap();
    // DESIGN section 4's golden pair; masked elsewhere, so compared by parts here.
    assert_eq!((run.exit, run.out.as_str()), (0, "<address>\n"));
    let output = person.command(&["address", ID]).output().unwrap();
    assert_eq!(output.stdout, b"fd5a:1f02:44a5:240b:121a::1\n");
    person
        .put(
            "tabbify.lock",
            format!("app_id = \"{ID}\"\nlatest_version = 3\n"),
        )
        .unwrap();
    let output = person.command(&["address"]).output().unwrap();
    assert_eq!(output.stdout, b"fd5a:1f02:44a5:240b:121a::1\n");
    std::fs::remove_file(person.path("shop/tabbify.lock")).unwrap();
    person.tcli(&["address"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        This folder has no tabbify.lock. Name the app: tcli address UUID
    "#]],
    );
    person
        .tcli(&["address", "shop"])
        .unwrap()
        .check(2, &expect![[r#"
            --- stderr
            "shop" is not an app id (a hyphenated UUID such as <id>). An address is derived from the id: see tcli status --app NAME
        "#]]);
}

#[test]
fn whoami() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    person.tcli(&["whoami"]).unwrap().check(
        0,
        &expect![[r#"
        subject   user:owner
        tenant    main
        kind      user
        scopes    *
        until     2026-11-22T10:15:00.000Z
        server    <server>
        platform  <platform>
    "#]],
    );
    let document = person.tcli(&["whoami", "--json"]).unwrap().json();
    assert_eq!(document["identity"]["subject"], "user:owner");
}

#[test]
fn usage() {
    let person = Person::new().unwrap();
    let run = person.tcli(&["psuh"]).unwrap();
    assert_eq!(run.exit, 2);
    assert!(run.err.contains("push"), "{}", run.err);
    let run = person.tcli(&["psuh", "--json"]).unwrap();
    let document: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(document["error"]["code"], "usage");
    assert_eq!(person.tcli(&["--help"]).unwrap().exit, 0);
    assert_eq!(person.tcli(&["--version"]).unwrap().out, "tcli 0.1.0\n");
}
