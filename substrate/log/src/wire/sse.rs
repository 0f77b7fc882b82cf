//! A subscription as server-sent events (WHATWG HTML, section 9.2).
//!
//! ```text
//!   id: 41                event: caught_up        : a comment, when there is nothing to say
//!   data: {…}             id: 41
//!                         data: {"position":41}
//! ```

use tabbify_api::Problem;
use tabbify_api::log::{CAUGHT_UP_EVENT, Delivery, END_EVENT, Head, PROGRESS_EVENT};
use tabbify_types::Position;

use super::event;

/// What is sent when there is nothing to say, so that both sides know that the other is there.
pub(crate) const HEARTBEAT: &[u8] = b":\n\n";

/// Appends a delivery.
pub(crate) fn push_delivery(out: &mut Vec<u8>, delivery: &Delivery) {
    let mut mark = |name: &str, position: Position| {
        let head = format!("event: {name}\nid: {position}\n");
        out.extend_from_slice(head.as_bytes());
        push_data(out, &Head { position });
    };
    match delivery {
        Delivery::CaughtUp(position) => mark(CAUGHT_UP_EVENT, *position),
        Delivery::Progress(position) => mark(PROGRESS_EVENT, *position),
        Delivery::Event(event) => {
            out.extend_from_slice(format!("id: {}\ndata: ", event.position).as_bytes());
            out.extend_from_slice(&event::to_line(event));
            out.extend_from_slice(b"\n\n");
        }
    }
}

/// Appends the last word of a subscription.
pub(crate) fn push_end(out: &mut Vec<u8>, problem: &Problem) {
    out.extend_from_slice(format!("event: {END_EVENT}\n").as_bytes());
    push_data(out, problem);
}

fn push_data(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    let json = serde_json::to_vec(value).expect("INVARIANT: our own shapes serialize");
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&json);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_ends_are_events_with_a_name() {
        let mut out = Vec::new();
        push_delivery(&mut out, &Delivery::CaughtUp(Position(41)));
        out.extend_from_slice(HEARTBEAT);
        push_delivery(&mut out, &Delivery::Progress(Position(42)));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "event: caught_up\nid: 41\ndata: {\"position\":41}\n\n:\n\n\
             event: progress\nid: 42\ndata: {\"position\":42}\n\n"
        );
    }
}
