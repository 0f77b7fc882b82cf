//! `tcli init`.

use expect_test::expect;

use crate::person::{COMPONENT, Person};

const CARGO: &str = "[package]\nname = \"My_Shop\"\n[lib]\ncrate-type = [\"cdylib\"]\n";

#[test]
fn a_rust_component() {
    let person = Person::new().unwrap();
    person.put("Cargo.toml", CARGO).unwrap();
    person.tcli(&["init"]).unwrap().check(
        0,
        &expect![[r#"
        Cargo.toml, component My_Shop → tabbify.toml (my-shop, private)
        Next: tcli push
    "#]],
    );
    expect![[r#"
        [app]
        name = "my-shop"
        # access = "public"          # private without this line

        [build]
        wasm = "target/wasm32-wasip2/release/My_Shop.wasm"
        command = "cargo build --release --target wasm32-wasip2"

        [runtime]
        memory = "64MiB"

        # [env]
        # GREETING = "hello"
    "#]]
    .assert_eq(&person.get("tabbify.toml"));
}

#[test]
fn a_finished_component() {
    let person = Person::new().unwrap();
    person.put("shop.wasm", COMPONENT).unwrap();
    person.put("Dockerfile", "FROM scratch\n").unwrap();
    person.tcli(&["init", "--name", "cart"]).unwrap().check(
        0,
        &expect![[r#"
            shop.wasm → tabbify.toml (cart, private)
            Next: tcli push
        "#]],
    );
    person.tcli(&["push", "--plan"]).unwrap().check(
        3,
        &expect![[r#"
            --- stderr
            No Tabbify answers at http://localhost:8090. Start one: tabbify up
        "#]],
    );
}

#[test]
fn a_dockerfile_says_what_is_missing() {
    let person = Person::new().unwrap();
    person
        .put("Dockerfile", "FROM scratch\nEXPOSE 3000\n")
        .unwrap();
    person.tcli(&["init"]).unwrap().check(0, &expect![[r#"
        Dockerfile, EXPOSE 3000 → tabbify.toml (shop, private)
        --- stderr
        note: tabbify.toml:6: [build] dockerfile is not supported yet; build a component and write wasm = "app.wasm"
        note: tabbify.toml:9: [runtime] port = 3000 is not supported yet; remove it
    "#]]);
    person.tcli(&["push"]).unwrap().check(2, &expect![[r#"
        --- stderr
        tabbify.toml:6: [build] dockerfile is not supported yet; build a component and write wasm = "app.wasm"
        tabbify.toml:9: [runtime] port = 3000 is not supported yet; remove it
        Nothing was uploaded.
    "#]]);
}

#[test]
fn nothing_is_found_or_overwritten() {
    let person = Person::new().unwrap();
    person.tcli(&["init"]).unwrap().check(2, &expect![[r#"
        --- stderr
        This folder has none of: Cargo.toml with crate-type = ["cdylib"], one *.wasm, Dockerfile. Run it where the app is, or with -C DIR.
    "#]]);
    // Two components: which one is not for us to say.
    person.put("a.wasm", COMPONENT).unwrap();
    person.put("b.wasm", COMPONENT).unwrap();
    assert_eq!(person.tcli(&["init"]).unwrap().exit, 2);
    person.put("tabbify.toml", "mine").unwrap();
    person.put("Cargo.toml", CARGO).unwrap();
    person.tcli(&["init"]).unwrap().check(
        2,
        &expect![[r#"
        --- stderr
        This folder has a manifest already; it was left as it is. Run: tcli push
    "#]],
    );
    assert_eq!(person.get("tabbify.toml"), "mine");
}

#[test]
fn a_bad_name_writes_nothing() {
    let person = Person::new().unwrap();
    person.put("a.wasm", COMPONENT).unwrap();
    person
        .tcli(&["init", "--name", "My Shop"])
        .unwrap()
        .check(2, &expect![[r#"
            --- stderr
            "My Shop" is not an app name (1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --).
        "#]]);
    assert_eq!(person.files().unwrap(), ["a.wasm"]);
}

#[test]
fn as_json() {
    let person = Person::new().unwrap();
    person.put("Cargo.toml", CARGO).unwrap();
    let run = person.tcli(&["init", "--json"]).unwrap();
    expect![[r#"{"found":"Cargo.toml, component My_Shop","manifest":"tabbify.toml","name":"my-shop","not_supported_yet":[]}"#]].assert_eq(&run.json().to_string());
}
