//! What goes over the channel between host and guest: frames.
//!
//! ```text
//! 0      1        5          9
//! ┌──────┬────────┬──────────┬─────────────┐
//! │ kind │ of: u32│ len: u32 │ len bytes   │   numbers in little endian
//! └──────┴────────┴──────────┴─────────────┘
//! ```
//! `of` is 0 for the app and what belongs to the machine, and else the number that the host gave an
//! exec. Both sides are bounded: a frame by [`PAYLOAD_LEN_MAX`], what waits by the reader, which does
//! not read on before it has room. Neither believes the other: what is no frame ends the channel.

use std::fmt;

/// LIMIT: bytes in a frame: an order with its environment is the largest.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;
/// LIMIT: bytes in a frame of a guest's, which has no orders to give: the host keeps many of them.
pub const FROM_GUEST_LEN_MAX: usize = 64 << 10;
/// The name of the port of the machine's virtio console that is the channel.
pub const PORT: &str = "tabbify";
/// Bytes before the payload.
pub const HEADER_LEN: usize = 9;

/// What a frame says. The lower numbers are the host's, those from 64 on the guest's, those from 128 on both's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What to run: [`Start`](crate::order::Start) as JSON. Once.
    Start = 1,
    /// End the app: [`Stop`](crate::order::Stop) as JSON.
    Stop = 2,
    /// Run something beside the app: [`Exec`](crate::order::Exec) as JSON.
    Exec = 3,
    /// Kill an exec.
    Kill = 4,
    /// Everything was heard: the machine may end.
    Bye = 5,
    /// Tell who listens.
    Look = 6,
    /// The guest is up and waits for [`Kind::Start`].
    Booted = 64,
    /// The app runs.
    Started = 65,
    /// Standard output of the app or an exec.
    Stdout = 66,
    /// Standard error of the app or an exec.
    Stderr = 67,
    /// The app or an exec has ended, and its output as well: [`End`](crate::order::End) as JSON.
    Ended = 68,
    /// It could not be started: a sentence.
    Failed = 69,
    /// On the way out ([`crate::way`]): a program has connected, and this is its stream from now on.
    Dial = 71,
    /// Who listens: a list of [`SocketAddr`](std::net::SocketAddr) as JSON.
    Listening = 70,
    /// On the way out, in both directions: a piece of a stream.
    Data = 128,
    /// A piece was taken: there is room for another.
    Room = 129,
    /// No piece follows.
    End = 130,
    /// The stream is over in both directions.
    Reset = 131,
}

impl Kind {
    const ALL: [Self; 18] = [
        Self::Start,
        Self::Stop,
        Self::Exec,
        Self::Kill,
        Self::Bye,
        Self::Look,
        Self::Booted,
        Self::Started,
        Self::Stdout,
        Self::Stderr,
        Self::Ended,
        Self::Failed,
        Self::Listening,
        Self::Dial,
        Self::Data,
        Self::Room,
        Self::End,
        Self::Reset,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Of whom: 0 is the app.
    pub of: u32,
    /// The rest of it.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    /// Without the payload: an order has secrets in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind)
            .field("of", &self.of)
            .field("len", &self.payload.len())
            .finish()
    }
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first byte is none of [`Kind`].
    #[error("{0} is no kind of frame")]
    Kind(u8),
    /// Longer than its reader takes.
    #[error("a frame of {len} bytes, over {max}")]
    Length {
        /// What it says of itself.
        len: u32,
        /// What its reader takes.
        max: usize,
    },
}

/// Appends a frame. A payload beyond [`PAYLOAD_LEN_MAX`] is cut: its reader would refuse it all.
pub fn encode(kind: Kind, of: u32, payload: &[u8], out: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(PAYLOAD_LEN_MAX)];
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.push(kind as u8);
    out.extend(of.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(payload);
}

/// Makes frames of bytes as they come.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How many of them have been given out.
    taken: usize,
    /// The longest payload.
    max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::within(PAYLOAD_LEN_MAX)
    }
}

impl Decoder {
    /// One that takes payloads of so many bytes.
    #[must_use]
    pub const fn within(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            taken: 0,
            max,
        }
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend(bytes);
    }

    /// The next frame, if it is there as a whole.
    ///
    /// # Errors
    /// [`WireError`]; nothing that follows can be read then.
    pub fn take(&mut self) -> Result<Option<Frame>, WireError> {
        let bytes = &self.bytes[self.taken..];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [kind, of @ .., a, b, c, d] = *header;
        let kind = Kind::from_byte(kind).ok_or(WireError::Kind(kind))?;
        let said = u32::from_le_bytes([a, b, c, d]);
        let len = usize::try_from(said).unwrap_or(usize::MAX);
        if len > self.max {
            let max = self.max;
            return Err(WireError::Length { len: said, max });
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.taken += HEADER_LEN + len;
        Ok(Some(Frame {
            kind,
            of: u32::from_le_bytes(of),
            payload,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..300);
        let kind = proptest::sample::select(&Kind::ALL[..]);
        let frame = (kind, any::<u32>(), payload).prop_map(|(kind, of, payload)| Frame {
            kind,
            of,
            payload,
        });
        proptest::collection::vec(frame, 0..10)
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Frame>, WireError> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for part in bytes.chunks(step) {
            decoder.push(part);
            while let Some(frame) = decoder.take()? {
                found.push(frame);
            }
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(frames in frames(), step in 1_usize..50) {
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(frame.kind, frame.of, &frame.payload, &mut bytes);
            }
            prop_assert_eq!(read(&bytes, step), Ok(frames));
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1_usize..50) {
            if let Ok(frames) = read(&bytes, step) {
                let len: usize = frames.iter().map(|frame| HEADER_LEN + frame.payload.len()).sum();
                prop_assert!(len <= bytes.len());
            }
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_there() {
        let mut bytes = vec![Kind::Stdout as u8, 0, 0, 0, 0];
        bytes.extend(u32::MAX.to_le_bytes());
        let refused = |max| {
            let len = u32::MAX;
            Err(WireError::Length { len, max })
        };
        assert_eq!(read(&bytes, 9), refused(PAYLOAD_LEN_MAX).map(|()| vec![]));
        let mut decoder = Decoder::within(FROM_GUEST_LEN_MAX);
        decoder.push(&bytes);
        assert_eq!(decoder.take(), refused(FROM_GUEST_LEN_MAX).map(|()| None));
        assert_eq!(read(&[0; 9], 9), Err(WireError::Kind(0)));
        let mut long = Vec::new();
        encode(Kind::Stdout, 0, &vec![0; PAYLOAD_LEN_MAX + 5], &mut long);
        assert_eq!(
            read(&long, 4096).map(|frames| frames[0].payload.len()),
            Ok(PAYLOAD_LEN_MAX)
        );
    }
}
