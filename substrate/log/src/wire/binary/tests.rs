//! What is sent is what is read, and hostile bytes are an error.

use proptest::prelude::*;

use super::super::frames::Frames;
use super::*;

fn one_frame(bytes: &[u8]) -> Frame {
    let mut frames = Frames::default();
    frames.extend(bytes);
    let frame = frames.next().expect("a frame").expect("a whole frame");
    assert!(!frames.has_begun());
    frame
}

fn arbitrary_event() -> impl Strategy<Value = NewEvent> {
    let texts = ("(\\PC|\0){0,20}", "\\PC{0,10}", "[ \t\r\n]{0,4}");
    let options = (
        any::<Option<u64>>(),
        prop::option::of("\\PC{0,8}"),
        any::<u16>(),
    );
    (texts, options).prop_map(|((key, kind, space), (cause, trace, version))| NewEvent {
        id: EventId::mint(),
        segment: "tenant_main.apps".parse().expect("a segment"),
        key,
        kind,
        version,
        cause: cause.map(Position),
        trace,
        data: RawValue::from_string(format!("{{{space}\"a\"{space}:{space}[1, 1.0]}}"))
            .expect("JSON"),
    })
}

fn same(one: &NewEvent, other: &NewEvent) -> bool {
    let json = |event: &NewEvent| serde_json::to_string(event).expect("an event serializes");
    json(one) == json(other) && one.data.get() == other.data.get()
}

proptest! {
    #[test]
    fn a_batch_arrives_as_it_was(
        events in prop::collection::vec(arbitrary_event(), 0..5),
        expect in prop::collection::vec(("\\PC{0,9}", any::<Option<u64>>()), 0..4),
        number: u32,
    ) {
        let mut batch = Append::of(events);
        for (key, rev) in expect {
            let expect = rev.map_or(Expect::None, |rev| Expect::Rev(Rev(rev)));
            batch = batch.expecting(Segment::platform(), key, expect);
        }
        let mut bytes = BytesMut::new();
        let body = batch_body(&batch);
        push_request(&mut bytes, number, &body);
        prop_assert_eq!(bytes.len(), 4 + request_len(&body));
        let frame = one_frame(&bytes);
        let (asked, read) = request(&frame.body).unwrap();
        let read = read.unwrap();
        prop_assert_eq!((frame.kind, asked), (kind::APPEND, number));
        prop_assert_eq!(&read.expect, &batch.expect);
        prop_assert_eq!(read.events.len(), batch.events.len());
        for (one, other) in read.events.iter().zip(&batch.events) {
            prop_assert!(same(one, other));
        }
        // Nothing less and nothing more is the batch.
        for cut in 4..frame.body.len() {
            prop_assert!(request(&frame.body[..cut]).unwrap().1.is_err());
        }
        let longer = [&frame.body[..], b"x"].concat();
        prop_assert!(request(&longer).unwrap().1.is_err());
    }

    #[test]
    fn an_event_arrives_byte_for_byte(new in arbitrary_event(), position: u64, rev: u64) {
        let recorded = Recorded {
            position: Position(position),
            segment: new.segment,
            key: new.key,
            rev: Rev(rev),
            id: new.id,
            kind: new.kind,
            version: new.version,
            at: Timestamp::from_millis(1_795_359_600_123),
            actor: "user:owner".to_owned(),
            cause: new.cause,
            trace: new.trace,
            data: new.data,
        };
        let mut bytes = Vec::new();
        push_event(&mut bytes, &recorded);
        let frame = one_frame(&bytes);
        prop_assert_eq!(frame.kind, kind::EVENT);
        let read = event(&frame.body).unwrap();
        prop_assert_eq!(read.data.get(), recorded.data.get());
        prop_assert_eq!(format!("{read:?}"), format!("{recorded:?}"));
    }

    #[test]
    fn an_answer_arrives(number: u32, first: u64, revs in prop::collection::vec(any::<u64>(), 0..5)) {
        let appended = Appended {
            first: Position(first),
            last: Position(first),
            revs: revs.into_iter().map(Rev).collect(),
        };
        let mut bytes = Vec::new();
        push_appended(&mut bytes, number, &appended);
        match said(&one_frame(&bytes)).unwrap() {
            Said::Answer(asked, Ok(read)) => prop_assert_eq!((asked, read), (number, appended)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_bytes(kind in 0..9u8, body: Vec<u8>) {
        let _ = event(&body);
        let _ = position(&body);
        let _ = request(&body);
        let _ = said(&Frame { kind, body: body.into() });
    }
}

#[test]
fn marks_ends_and_refusals_arrive() {
    let mut bytes = Vec::new();
    push_delivery(&mut bytes, &Delivery::CaughtUp(Position(41)));
    let frame = one_frame(&bytes);
    assert_eq!(frame.kind, kind::CAUGHT_UP);
    assert_eq!(position(&frame.body), Ok(Position(41)));
    assert!(position(&frame.body[1..]).is_err());

    let ended = problem::plain(ErrorCode::TokenExpired, "ended");
    bytes.clear();
    frames::push_end(&mut bytes, &ended);
    let Said::End(read) = said(&one_frame(&bytes)).unwrap() else {
        panic!("an end")
    };
    assert_eq!(read, ended);
    bytes.clear();
    push_refused(&mut bytes, 7, &ended);
    let Said::Answer(7, Err(read)) = said(&one_frame(&bytes)).unwrap() else {
        panic!("a refusal")
    };
    assert_eq!(read, ended);
}

#[test]
fn what_is_wrong_with_a_batch_has_its_code() {
    let segment_of = |name: &str| one_segment(name).map_err(|problem| problem.code);
    assert_eq!(segment_of("tenant_*.apps"), Err(ErrorCode::GlobInAppend));
    assert_eq!(segment_of("Apps"), Err(ErrorCode::BadRequest));
    assert!(segment_of("platform").is_ok());
    // Data that is no JSON, in a frame that is otherwise sound.
    let event = NewEvent {
        id: EventId::mint(),
        segment: Segment::platform(),
        key: "k".to_owned(),
        kind: "happened".to_owned(),
        version: 1,
        cause: None,
        trace: None,
        data: RawValue::from_string("{\"a\":1}".to_owned()).unwrap(),
    };
    let mut body = batch_body(&Append::of(vec![event]));
    let last = body.len() - 1;
    body[last] = b']';
    let with_number = [&[0; 4][..], &body].concat();
    let refused = request(&with_number).unwrap().1.unwrap_err();
    assert_eq!(refused.code, ErrorCode::BadJson);
}
