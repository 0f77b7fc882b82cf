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
/// LIMIT: bytes of one server-sent event. A log event has 64 KiB of data, six times that when every
/// character of it is escaped, and may carry it twice.
const EVENT_LEN_MAX: usize = 1024 * 1024;

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

/// One server-sent event, as far as this protocol uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// Reads a stream, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// What has come of a line that is not whole yet.
    line: Vec<u8>,
    message: Message,
    len: usize,
}

impl Parser {
    /// Takes the next piece; gives what became whole with it. What is wrong is the error.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<Vec<Message>, &'static str> {
        let mut whole = Vec::new();
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.add(&rest[..end])?;
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&line, &mut whole);
        }
        self.add(rest)?;
        Ok(whole)
    }

    fn add(&mut self, part: &[u8]) -> Result<(), &'static str> {
        self.len += part.len();
        if self.len > EVENT_LEN_MAX {
            return Err("a server-sent event is too long");
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn line(&mut self, line: &[u8], whole: &mut Vec<Message>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            self.len = 0;
            if message != Message::default() {
                whole.push(message);
            }
            return;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.message.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push(b'\n');
                }
                self.message.data.extend_from_slice(value);
            }
            // Comments, ids (they stand in the data too) and what is not known.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(name: &str, data: &str) -> Message {
        Message {
            name: name.to_owned(),
            data: data.as_bytes().to_vec(),
        }
    }

    #[test]
    fn fields_comments_and_ends_of_lines() {
        let text = ":\n\nid: 7\ndata: {\"a\":1}\n\r\n: x\nevent:caught_up\r\ndata\ndata: a\ndata:  b\n\nrest";
        let mut parser = Parser::default();
        let expected = [message("", "{\"a\":1}"), message("caught_up", "a\n b")];
        assert_eq!(parser.take(text.as_bytes()), Ok(expected.to_vec()));
        assert_eq!(parser.take(b": 1\ndata: x\n\n"), Ok(vec![message("", "x")]));
    }

    #[test]
    fn what_we_send_is_what_is_read() {
        let mut bytes = Vec::new();
        push_delivery(&mut bytes, &Delivery::CaughtUp(Position(41)));
        bytes.extend_from_slice(HEARTBEAT);
        push_delivery(&mut bytes, &Delivery::Progress(Position(42)));
        let expected = [
            message("caught_up", "{\"position\":41}"),
            message("progress", "{\"position\":42}"),
        ];
        assert_eq!(Parser::default().take(&bytes), Ok(expected.to_vec()));
    }

    #[test]
    fn a_stream_without_end_is_refused_and_heartbeats_are_not() {
        let mut parser = Parser::default();
        for _ in 0..EVENT_LEN_MAX {
            assert!(parser.take(HEARTBEAT).is_ok());
        }
        let long = vec![b'x'; EVENT_LEN_MAX];
        assert!(parser.take(&long).is_ok());
        assert!(parser.take(b"x").is_err());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "([a-z :\r]{0,12}\n?){0,12}", cuts in prop::collection::vec(0..80usize, 0..6)) {
            let bytes = text.as_bytes();
            let whole = Parser::default().take(bytes);
            let (mut parser, mut parts, mut from) = (Parser::default(), Vec::new(), 0);
            let mut cuts = cuts;
            cuts.push(bytes.len());
            cuts.sort_unstable();
            for cut in cuts {
                let cut = cut.min(bytes.len());
                parts.extend(parser.take(&bytes[from..cut]).unwrap());
                from = cut;
            }
            prop_assert_eq!(whole, Ok(parts));
        }

        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let _ = Parser::default().take(&bytes);
        }
    }
}
