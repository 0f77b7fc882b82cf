//! Frames with a length: how the bytes of a stream become messages. All numbers are little-endian.
//!
//! ```text
//!   0          4      5
//!   ├──────────┼──────┼──────────────┐
//!   │ length   │ kind │ body         │   the length counts kind and body
//!   └──────────┴──────┴──────────────┘
//! ```

use bytes::{Buf as _, Bytes, BytesMut};
use tabbify_api::Problem;
use tabbify_api::log::BODY_LEN_MAX;

use crate::fields::{Fields, size};

/// LIMIT: kind and body of one frame, in bytes.
pub(crate) const FRAME_LEN_MAX: usize = BODY_LEN_MAX;
const LENGTH_LEN: usize = 4;
/// Bytes to make room for when nothing is known of what comes.
const READ_LEN: usize = 16 * 1024;

/// Kinds of frames. A reader skips those that it does not know.
pub(crate) mod kind {
    /// Nothing, so that both sides know that the other is there.
    pub(crate) const HEARTBEAT: u8 = 0;
    /// An event of a subscription or page.
    pub(crate) const EVENT: u8 = 1;
    /// [`Delivery::CaughtUp`](tabbify_api::log::Delivery).
    pub(crate) const CAUGHT_UP: u8 = 2;
    /// [`Delivery::Progress`](tabbify_api::log::Delivery).
    pub(crate) const PROGRESS: u8 = 3;
    /// A batch to append.
    pub(crate) const APPEND: u8 = 4;
    /// Its answer.
    pub(crate) const APPENDED: u8 = 5;
    /// Its refusal.
    pub(crate) const REFUSED: u8 = 6;
    /// The last word, and why: a problem document.
    pub(crate) const END: u8 = 7;
}

/// Nothing to say.
pub(crate) const HEARTBEAT: &[u8] = &[1, 0, 0, 0, kind::HEARTBEAT];

/// Appends a frame whose body `fill` writes.
pub(crate) fn push(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_LEN]);
    out.push(kind);
    fill(out);
    let len = u32::try_from(out.len() - start - LENGTH_LEN);
    let len = len.expect("INVARIANT: what we send is bounded far below 4 GiB");
    out[start..start + LENGTH_LEN].copy_from_slice(&len.to_le_bytes());
}

/// Appends the last word of a stream.
pub(crate) fn push_end(out: &mut Vec<u8>, problem: &Problem) {
    push(out, kind::END, |out| push_json(out, problem));
}

pub(crate) fn push_json(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("INVARIANT: our own shapes serialize");
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

/// The end of a stream that is not made of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotFrames(pub(crate) &'static str);

/// Takes frames from the bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buf: BytesMut,
}

impl Frames {
    /// Where to read the next bytes to: with room for the frame that has begun.
    pub(crate) fn spare(&mut self) -> Result<&mut BytesMut, NotFrames> {
        let due = self.due()?.map_or(0, |due| LENGTH_LEN + due);
        self.buf
            .reserve(due.saturating_sub(self.buf.len()).max(READ_LEN));
        Ok(&mut self.buf)
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Whether a frame has begun.
    pub(crate) fn has_begun(&self) -> bool {
        !self.buf.is_empty()
    }

    /// Length of the frame that has begun, once it is known.
    pub(crate) fn due(&self) -> Result<Option<usize>, NotFrames> {
        match Fields::new(&self.buf).u32().map(size) {
            None => Ok(None),
            Some(1..=FRAME_LEN_MAX) => Ok(Fields::new(&self.buf).u32().map(size)),
            Some(0) => Err(NotFrames("a frame without a kind")),
            Some(_) => Err(NotFrames("a frame longer than 8 MiB")),
        }
    }

    /// Whether the frame that has begun is whole.
    pub(crate) fn is_whole(&self) -> Result<bool, NotFrames> {
        let due = self.due()?;
        Ok(due.is_some_and(|due| self.buf.len() >= LENGTH_LEN + due))
    }

    /// The next frame, if it is whole.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, NotFrames> {
        let Some(due) = self.due()? else {
            return Ok(None);
        };
        if self.buf.len() < LENGTH_LEN + due {
            return Ok(None);
        }
        self.buf.advance(LENGTH_LEN);
        let kind = self.buf[0];
        let mut body = self.buf.split_to(due).freeze();
        body.advance(1);
        Ok(Some(Frame { kind, body }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_bounded() {
        let mut frames = Frames::default();
        frames.extend(&[0, 0, 0, 0]);
        assert!(frames.next().is_err() && frames.spare().is_err());
        let mut frames = Frames::default();
        let len = u32::try_from(FRAME_LEN_MAX + 1).unwrap();
        frames.extend(&len.to_le_bytes());
        assert!(frames.next().is_err() && frames.is_whole().is_err());
        let mut frames = Frames::default();
        frames.extend(&(len - 1).to_le_bytes());
        assert_eq!(frames.next(), Ok(None));
        assert_eq!(frames.due(), Ok(Some(FRAME_LEN_MAX)));
        let mut frames = Frames::default();
        frames.extend(HEARTBEAT);
        let heartbeat = frames.next().unwrap().unwrap();
        assert_eq!((heartbeat.kind, heartbeat.body.len()), (kind::HEARTBEAT, 0));
        assert!(!frames.has_begun());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cuts in prop::collection::vec(0..300usize, 0..8),
        ) {
            let mut bytes = Vec::new();
            for (kind, body) in &bodies {
                push(&mut bytes, *kind, |out| out.extend_from_slice(body));
            }
            let mut cuts = cuts;
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut frames, mut seen, mut from) = (Frames::default(), Vec::new(), 0);
            for cut in cuts {
                let cut = cut.min(bytes.len());
                frames.extend(&bytes[from..cut]);
                from = cut;
                while let Some(frame) = frames.next().unwrap() {
                    seen.push((frame.kind, frame.body.to_vec()));
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(!frames.has_begun());
        }

        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let mut frames = Frames::default();
            frames.extend(&bytes);
            while let Ok(Some(_)) = frames.next() {}
        }
    }
}
