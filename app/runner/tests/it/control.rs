//! The control socket, over a pipe: who is answered, and who is not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use tabbify_api::coordinator::{Helpers, Spawn};
use tabbify_api::runner::{Answer, CoordinatorAt, LINE_LEN_MAX, Request, StateName, Visitor};
use tabbify_process::{Importance, Tasks};
use tabbify_runner::control::Control;
use tabbify_runner::home::Secret;
use tabbify_runner::peers::Peers;
use tabbify_runner::state::{Identity, State};
use tabbify_runner::traffic::Traffic;
use tabbify_types::event::v1::InstanceRef;
use tabbify_types::{AppId, InstanceId, MeshKey, VerifyingKeyBytes};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::harness::watched;

/// The secret of every runner in these tests.
pub(crate) const SECRET: [u8; 32] = [9; 32];

/// A supervisor's side of the control socket.
pub(crate) struct Caller<S>(BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Caller<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    /// Says hello and checks that the answer comes from one who knows the secret.
    pub(crate) async fn hello(&mut self) -> anyhow::Result<()> {
        let nonce = tabbify_process::random::<32>();
        let answer = self.ask(&hello(&SECRET, &nonce)).await?;
        let expected = proof(&SECRET, b"tabbify-control-runner-v1\0", &nonce);
        anyhow::ensure!(answer == Answer::Hello { proof: expected }, "{answer:?}");
        Ok(())
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        self.say(&serde_json::to_vec(request)?).await?;
        self.hear().await
    }

    async fn say(&mut self, line: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(line).await?;
        self.0.write_all(b"\n").await?;
        Ok(self.0.flush().await?)
    }

    async fn hear(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        let read = watched(self.0.read_line(&mut line)).await??;
        anyhow::ensure!(read > 0, "closed");
        Ok(serde_json::from_str(&line)?)
    }

    /// Whether the other side has closed.
    async fn closed(&mut self) -> bool {
        self.hear().await.is_err()
    }
}

fn hello(secret: &[u8; 32], nonce: &[u8; 32]) -> Request {
    Request::Hello {
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        proof: proof(secret, b"tabbify-control-caller-v1\0", nonce),
    }
}

fn proof(secret: &[u8; 32], context: &[u8], nonce: &[u8; 32]) -> String {
    let text = [context, nonce.as_slice()].concat();
    blake3::keyed_hash(secret, &text).to_hex().to_string()
}

struct Fixture {
    given: mpsc::Receiver<Spawn>,
    control: Arc<Control>,
    tasks: Tasks,
}

fn fixture() -> anyhow::Result<Fixture> {
    let identity = Identity {
        of: InstanceRef {
            app: AppId::mint(),
            instance: InstanceId(7),
        },
        pid: 42,
        key: MeshKey([3; 32]),
        underlay: ([127, 0, 0, 1], 5).into(),
    };
    let traffic = Traffic::new(10);
    let (tickets, given) = mpsc::channel(1);
    let secret = Secret::from_text(&URL_SAFE_NO_PAD.encode(SECRET));
    let control = Control {
        secret: secret.ok_or_else(|| anyhow::anyhow!("the secret is 32 bytes"))?,
        state: Arc::new(State::new(identity, traffic.clone())),
        traffic,
        peers: Arc::new(Peers::default()),
        coordinator: None,
        doors: Mutex::default(),
        tickets: Some(tickets),
        door: Arc::default(),
        stop: CancellationToken::new(),
    };
    Ok(Fixture {
        given,
        control: Arc::new(control),
        tasks: Tasks::new(),
    })
}

impl Fixture {
    fn call(&self) -> Caller<DuplexStream> {
        let (ours, theirs) = duplex(4096);
        let control = Arc::clone(&self.control);
        self.tasks
            .spawn("control connection", Importance::Detached, async move {
                // A broken pipe is how these tests end.
                let _ = control.converse(theirs).await;
            });
        Caller::new(ours)
    }
}

#[tokio::test]
async fn who_knows_the_secret_is_answered() {
    let fixture = fixture().unwrap();
    let mut caller = fixture.call();
    caller.hello().await.unwrap();
    let Answer::Status(status) = caller.ask(&Request::Status).await.unwrap() else {
        panic!("not a status");
    };
    assert_eq!((status.state, status.pid), (StateName::Starting, 42));
    assert_eq!(status.of.instance, InstanceId(7));

    let wait = Request::Wait {
        seen: StateName::Starting,
    };
    let (answer, _) = tokio::join!(caller.ask(&wait), async { fixture.control.state.ready() });
    assert!(matches!(answer.unwrap(), Answer::Status(s) if s.state == StateName::Ready));

    // This one has no coordinator that could be elsewhere.
    let elsewhere = CoordinatorAt {
        doors: Vec::new(),
        root: VerifyingKeyBytes([7; 32]),
        issuers: Vec::new(),
        outage_grace_ms: 0,
        helpers: Helpers::default(),
        ask_nat: false,
    };
    let elsewhere = Request::SetCoordinator { at: elsewhere };
    let refused = caller.ask(&elsewhere).await.unwrap();
    assert!(matches!(refused, Answer::Refused { .. }), "{refused:?}");
    let peers = Request::SetPeers { peers: vec![] };
    assert_eq!(caller.ask(&peers).await.unwrap(), Answer::Done);
    let permit = fixture.control.traffic.begin();
    let drain = Request::Drain { deadline_ms: 0 };
    let drained = Answer::Drained {
        finished: 0,
        cut: 1,
    };
    assert_eq!(caller.ask(&drain).await.unwrap(), drained);
    drop(permit);
    assert_eq!(fixture.control.state.status().state, StateName::Draining);

    assert!(!fixture.control.stop.is_cancelled());
    assert_eq!(caller.ask(&Request::Stop).await.unwrap(), Answer::Done);
    watched(fixture.control.stop.cancelled()).await.unwrap();
}

#[tokio::test]
async fn who_has_something_to_do_does_not_go_to_sleep() {
    let fixture = fixture().unwrap();
    let mut caller = fixture.call();
    caller.hello().await.unwrap();
    let sleep = Request::Sleep { deadline_ms: 1000 };
    let refused = |answer: &Answer| matches!(answer, Answer::Refused { .. });
    let state = Arc::clone(&fixture.control.state);
    assert!(
        refused(&caller.ask(&sleep).await.unwrap()),
        "it is not ready"
    );
    assert!(state.ready());
    assert!(
        refused(&caller.ask(&sleep).await.unwrap()),
        "it is not idle"
    );
    state.idle(0);
    state.busy();
    assert!(
        refused(&caller.ask(&sleep).await.unwrap()),
        "it is not idle any more"
    );
    assert_eq!(state.status().state, StateName::Ready);
    state.idle(0);
    let drained = Answer::Drained {
        finished: 0,
        cut: 0,
    };
    assert_eq!(caller.ask(&sleep).await.unwrap(), drained);
    assert_eq!(state.status().state, StateName::Draining);
}

#[tokio::test]
async fn a_visitor_is_told_if_the_app_cannot_be_reached() {
    let fixture = fixture().unwrap();
    let visit = |port: u16| {
        Request::Door(Visitor {
            port,
            peer: MeshKey([5; 32]),
            remote: "[fd5a:1f00:1:1::1]:4000".parse().unwrap(),
            is_node: true,
        })
    };
    let said = |answer: Answer| match answer {
        Answer::Refused { detail } => detail,
        other => format!("{other:?}"),
    };
    let mut caller = fixture.call();
    caller.hello().await.unwrap();
    let visitor = visit(8730);
    let (told, ()) = tokio::join!(caller.ask(&visitor), async {
        tokio::task::yield_now().await;
        fixture.control.door.shut("it is a picture");
    });
    assert_eq!(said(told.unwrap()), "it is a picture");
    assert!(caller.closed().await);
}

#[tokio::test]
async fn a_spawn_ticket_is_taken_once_when_it_is_wanted() {
    let mut fixture = fixture().unwrap();
    let mut caller = fixture.call();
    caller.hello().await.unwrap();
    let ticket = Request::Spawn(Spawn {
        certificate: "certificate".to_owned(),
        ticket: "ticket".to_owned(),
    });
    let refused = |answer: &Answer| matches!(answer, Answer::Refused { .. });
    let state = Arc::clone(&fixture.control.state);
    assert!(
        refused(&caller.ask(&ticket).await.unwrap()),
        "it wants none"
    );
    state.unleased();
    assert_eq!(caller.ask(&ticket).await.unwrap(), Answer::Done);
    assert_eq!(state.status().state, StateName::Starting);
    assert!(refused(&caller.ask(&ticket).await.unwrap()), "it has one");
    assert_eq!(fixture.given.recv().await.unwrap().ticket, "ticket");
    state.unleased();
    assert_eq!(caller.ask(&ticket).await.unwrap(), Answer::Done, "another");
}

#[tokio::test]
async fn who_does_not_is_told_nothing() {
    let fixture = fixture().unwrap();
    let nonce = [1; 32];
    let short = Request::Hello {
        nonce: "AAAA".into(),
        proof: proof(&SECRET, b"tabbify-control-caller-v1\0", &nonce),
    };
    // The runner's own proof must not do for a caller's.
    let mirrored = Request::Hello {
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        proof: proof(&SECRET, b"tabbify-control-runner-v1\0", &nonce),
    };
    for request in [
        hello(&[8; 32], &nonce),
        short,
        mirrored,
        Request::Status,
        Request::Stop,
    ] {
        let mut caller = fixture.call();
        let answer = caller.ask(&request).await.unwrap();
        assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        assert!(caller.closed().await);
    }
    assert!(!fixture.control.stop.is_cancelled());
}

#[tokio::test]
async fn garbage_is_refused_and_long_lines_end_it() {
    let fixture = fixture().unwrap();
    let mut caller = fixture.call();
    caller.hello().await.unwrap();
    for garbage in [
        "",
        "{}",
        "[]",
        "{\"request\":\"fly\"}",
        "\u{0}",
        "{\"request\":\"hello\"}",
    ] {
        caller.say(garbage.as_bytes()).await.unwrap();
        let answer = caller.hear().await.unwrap();
        assert!(
            matches!(answer, Answer::Refused { .. }),
            "{garbage:?}: {answer:?}"
        );
    }
    // It still listens.
    assert!(matches!(
        caller.ask(&Request::Status).await.unwrap(),
        Answer::Status(_)
    ));
    // The rest of a line that is too long is never read, so its sender may not get rid of it.
    let long = vec![b' '; LINE_LEN_MAX + 1];
    caller.0.write_all(&long).await.unwrap();
    let Answer::Refused { detail } = caller.hear().await.unwrap() else {
        panic!("not refused");
    };
    assert!(detail.contains("longer than 65536 bytes"), "{detail}");
    assert!(caller.closed().await);
}

#[tokio::test(start_paused = true)]
async fn silence_is_not_waited_for() {
    let fixture = fixture().unwrap();
    let mut caller = fixture.call();
    assert!(caller.closed().await);
    let mut greeted = fixture.call();
    greeted.hello().await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;
    greeted.ask(&Request::Status).await.unwrap();
}

proptest! {
    /// Whatever the first line is, its sender gets a refusal and no more.
    #[test]
    fn no_bytes_open_it(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = fixture().unwrap();
            let mut caller = fixture.call();
            caller.say(&line).await.unwrap();
            let answer = caller.hear().await.unwrap();
            assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        });
    }
}
