//! One list of cases for every runtime, from the law of `tabbify_runner::runtime::Runtime`: the same app, built
//! as a component, in a container of a real engine and in a microVM, behind the runner's own server.
//!
//! What one cannot have is said by name with the reason ([`Case::not`]), and a runtime that cannot be had on this
//! machine says that its suite did not run. All that only looks at an app shares one start of it.

mod bad;
mod life;
mod requests;
mod site;
mod streams;

use std::pin::Pin;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use tabbify_testing::apart::is_apart;
use tabbify_testing::dockerd::Dockerd;
use tabbify_testing::guest;

use self::site::{App, Site};

/// A runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WasmHttp,
    Docker,
    Microvm,
}

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Something that every runtime must do.
struct Case<T: ?Sized> {
    name: &'static str,
    run: for<'a> fn(&'a T) -> Running<'a>,
    /// Which runtimes cannot, and why.
    not: &'static [(Kind, &'static str)],
}

/// A case that only looks at a running app.
macro_rules! case {
    ($run:path $(, $kind:ident: $why:expr)*) => {
        Case {
            name: stringify!($run),
            run: |on| Box::pin($run(on)),
            not: &[$((Kind::$kind, $why)),*],
        }
    };
}
/// Apps of their own at the same time: they wait for much.
const AT_ONCE: usize = 2;
/// Why what is of a process is not of a component.
const NO_PROCESS: &str =
    "a component is no process: it lives for a request, and ends with the runner";

/// What looks at one app, one case after the other: what one leaves behind, the next would see.
const SHARED: &[Case<App>] = &[
    case!(requests::answers),
    case!(requests::statuses_pass),
    case!(requests::headers_pass_and_forged_ones_do_not),
    case!(requests::variables),
    case!(requests::secrets),
    case!(requests::what_is_printed_is_in_the_log),
    case!(
        requests::many_at_once,
        Microvm: "QEMU takes new connections from a queue of one: many at the same moment are \
            reset (docs/adr/0025). Pending: connections over the machine's own console"
    ),
    case!(requests::a_failure_before_the_head_is_told),
    case!(requests::a_failure_after_the_head_never_looks_whole),
    case!(requests::one_failure_disturbs_nobody),
    case!(streams::echo_in_lockstep),
    case!(streams::large_bodies_pass_unchanged),
    case!(streams::an_endless_answer_ends_with_its_caller),
    case!(streams::a_caller_that_leaves_ends_its_request),
    case!(streams::nobody_reads_for_a_caller_who_does_not),
    case!(
        streams::another_protocol_passes,
        WasmHttp: "wasi:http 0.2 has no upgrade"
    ),
    case!(
        requests::memory_without_end_fails_its_request,
        Docker: "a process has one memory: life::memory_has_an_end",
        Microvm: "a process has one memory: life::memory_has_an_end"
    ),
    case!(requests::an_endless_loop_holds_nobody_else),
    case!(
        life::a_command_beside_the_app,
        WasmHttp: "a component has no commands beside it"
    ),
    // The last: then there is no app any more.
    case!(life::stops_in_order),
];

/// What starts apps of its own.
const ALONE: &[Case<Site>] = &[
    case!(life::what_ignores_its_signal_is_killed, WasmHttp: NO_PROCESS),
    case!(life::an_end_while_it_serves_is_told, WasmHttp: NO_PROCESS),
    case!(life::an_end_at_once_is_told, WasmHttp: NO_PROCESS),
    case!(life::a_worker_answers_nobody, WasmHttp: "a component is called, and does nothing else"),
    case!(life::memory_has_an_end, WasmHttp: "it has one for each request: \
        requests::memory_without_end_fails_its_request"),
    case!(life::forks_without_end_have_one, WasmHttp: "a component cannot fork"),
    case!(life::a_full_disk_is_the_apps_own, WasmHttp: "a component without a volume has no disk"),
    case!(life::listening_elsewhere_is_said, WasmHttp: "a component does not listen"),
    case!(life::never_healthy_is_said, WasmHttp: "a component has no state to be unhealthy in"),
    case!(bad::no_artifact_of_its_kind),
    case!(bad::no_program, WasmHttp: "a component has one entry: bad::no_artifact_of_its_kind"),
    case!(bad::another_architecture, WasmHttp: "a component is of no architecture"),
    case!(
        bad::a_layer_that_leaves_the_image,
        WasmHttp: "a component has no layers",
        Docker: "an engine unpacks layers in a root of their own, where no name leads out"
    ),
];

/// Whether a runtime can have a case; says it of one that it cannot.
#[expect(clippy::print_stderr, reason = "what does not apply is said by name")]
fn applies<T: ?Sized>(case: &Case<T>, kind: Kind) -> bool {
    match case.not.iter().find(|(not, _)| *not == kind) {
        Some((_, why)) => {
            eprintln!("NOT APPLICABLE: {kind:?} {}: {why}", case.name);
            false
        }
        None => true,
    }
}

/// Runs the whole list, and names every case that failed.
async fn suite(site: &Site) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let app = site.serving().await?;
    for case in SHARED.iter().filter(|case| applies(case, site.kind)) {
        if let Err(error) = (case.run)(&app).await {
            failed.push(format!("{}: {error:#}", case.name));
        }
    }
    drop(app);
    let alone = ALONE.iter().filter(|case| applies(case, site.kind));
    let running = alone.map(|case| async {
        let result = (case.run)(site).await;
        result
            .err()
            .map(|error| format!("{}: {error:#}", case.name))
    });
    let mut running = futures_util::stream::iter(running).buffer_unordered(AT_ONCE);
    while let Some(result) = running.next().await {
        failed.extend(result);
    }
    drop(running);
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    site.nothing_is_left()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wasm_http() {
    let site = Site::wasm_http().unwrap();
    Box::pin(suite(&site)).await.unwrap();
}

#[test]
fn docker() {
    const NAME: &str = "conformance::docker";
    if let Some(why) = Dockerd::missing() {
        eprintln!("NOT RUN: {NAME}: {why}");
        return;
    }
    if !is_apart(NAME).unwrap() {
        return;
    }
    let dockerd = Dockerd::start(&[]).unwrap();
    let before = dockerd.holds().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::docker(&dockerd).unwrap();
    runtime.block_on(Box::pin(suite(&site))).unwrap();
    assert_eq!(dockerd.holds().unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microvm() {
    let made_of = match guest::microvms().unwrap() {
        Ok(made_of) => made_of,
        Err(why) => {
            eprintln!("NOT RUN: conformance::microvm: {why}");
            return;
        }
    };
    let site = Site::microvm(made_of).unwrap();
    Box::pin(suite(&site)).await.unwrap();
}

/// A text that must have a part.
fn has(whole: &str, part: &str) -> anyhow::Result<()> {
    whole
        .contains(part)
        .then_some(())
        .with_context(|| format!("{part:?} is not in {whole:?}"))
}
