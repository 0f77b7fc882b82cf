//! How a deploy's end is told, and `tcli deploy`.

use expect_test::expect;
use tabbify_api::apps::OperationStatus;
use tabbify_api::{ErrorCode, Problem};

use crate::node::{Course, Fault, Node};
use crate::person::Person;

#[test]
fn a_failure_says_what_why_and_what_still_serves() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    node.state().course = Course::bad("unhealthy");
    person.tcli(&["push"]).unwrap().check(
        1,
        &expect![[r#"
        --- stderr
        ✓ 2 files 107 B  <t> s
        ✓ placed  <t> s
        ✗ starting  <t> s
        shop v1 was not deployed: It did not answer in 60 s.
        It printed and ended.
        Last lines:
          | first
          | ]0;ownedlast
        Nothing serves yet.
        Answer sooner.
    "#]],
    );
    node.state().course = Course::good();
    assert_eq!(person.tcli(&["push"]).unwrap().exit, 0);
    node.state().course = Course::bad("unhealthy");
    let run = person.tcli(&["push"]).unwrap();
    assert!(run.err.contains("\nv2 still serves.\n"), "{}", run.err);
}

#[test]
fn whose_fault_it_is() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    let check = |course: Course, exit: i32, code: &str| {
        node.state().course = course;
        let run = person.tcli(&["deploy", "shop", "v1", "--json"]).unwrap();
        assert_eq!(run.exit, exit, "{run:?}");
        let document = run.json();
        assert_eq!(document["error"]["code"], code);
        assert_eq!(document["error"]["exit"], exit);
        assert_eq!(document["operation"]["version"], 1);
    };
    for code in ["not_a_component", "wrong_world", "unhealthy", "exited"] {
        check(Course::bad(code), 1, code);
    }
    for code in ["artifact", "spawn", "internal"] {
        check(Course::bad(code), 3, code);
    }
    let ends = [
        (OperationStatus::Superseded, 1),
        (OperationStatus::Denied, 1),
        (OperationStatus::Cancelled, 1),
        (OperationStatus::Expired, 1),
        (OperationStatus::Failed, 3),
    ];
    for (end, exit) in ends {
        check(
            Course {
                end,
                ..Course::good()
            },
            exit,
            "not_deployed",
        );
    }
}

#[test]
fn one_that_waits_for_a_person() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    let course = Course {
        steps: vec![],
        end: OperationStatus::AwaitingApproval,
        ..Course::good()
    };
    node.state().course = course;
    person.tcli(&["deploy", "shop", "v1"]).unwrap().check(
        4,
        &expect![[r#"
            shop v1 awaits approval; it deploys when a person says yes
        "#]],
    );
}

#[test]
fn an_older_version_by_name_id_or_folder() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap().with_component().unwrap();
    let id = node.state().add_app("shop", 2).to_string();
    person.tcli(&["deploy", "shop", "v1"]).unwrap().check(
        0,
        &expect![[r#"
            shop v2 → v1  http://shop.localhost:8090  private: `tcli open` signs you in
            --- stderr
            ✓ placed  <t> s
            ✓ started  <t> s
            ✓ healthy  <t> s
            ✓ shifted  <t> s
        "#]],
    );
    for args in [
        &["deploy", &id, "1"][..],
        &["deploy", "v1"],
        &["deploy", "v1", "--app", "shop"],
    ] {
        assert_eq!(person.tcli(args).unwrap().exit, 0, "{args:?}");
    }
    person.tcli(&["deploy", "cart", "v1"]).unwrap().check(
        2,
        &expect![[r#"
            --- stderr
            <server> has no app "cart". Apps there: shop.
        "#]],
    );
    person.tcli(&["deploy", "shop", "newest"]).unwrap().check(
        2,
        &expect![[r#"
            --- stderr
            "newest" is not a version. Write it like: tcli deploy v2
        "#]],
    );
}

#[test]
fn the_platform_may_restart_meanwhile() {
    let node = Node::start().unwrap();
    let person = Person::with_token(&node).unwrap();
    node.state().add_app("shop", 1);
    node.fail("GET /v1/deploys/", 2, Fault::Cut);
    let starting = Problem::new(ErrorCode::Unavailable, "the platform is starting");
    node.fail("GET /v1/deploys/", 1, Fault::Refuse(starting));
    let run = person.tcli(&["deploy", "shop", "v1"]).unwrap();
    assert_eq!(run.exit, 0, "{run:?}");
    // A request that was heard and whose answer was lost deploys once.
    node.fail("POST /v1/deploys", 1, Fault::Cut);
    assert_eq!(person.tcli(&["deploy", "shop", "v1"]).unwrap().exit, 0);
    assert_eq!(node.state().deploys.len(), 2);
}
