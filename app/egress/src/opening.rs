//! Whom the first bytes of a connection are for: the server name of a TLS ClientHello (RFC 8446, section
//! 4.1.2; RFC 6066, section 3), or a line of HTTP, or neither. Many names share an address, and it is these
//! bytes that choose among them.

/// LIMIT: bytes of a beginning: a ClientHello with every extension that is in use fits well, and so does a
/// request line.
pub(crate) const OPENING_LEN_MAX: usize = 32 * 1024;

/// The content type of a TLS record that carries a handshake.
const HANDSHAKE: u8 = 22;
/// LIMIT: bytes of one TLS record.
const RECORD_LEN_MAX: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// PostgreSQL's question for TLS, and for GSSAPI (its protocol, "Message Formats": SSLRequest, GSSENCRequest). The
/// server answers with one byte, and then the client begins.
pub(crate) const QUESTIONS: [[u8; 8]; 2] =
    [[0, 0, 0, 8, 4, 210, 22, 47], [0, 0, 0, 8, 4, 210, 22, 48]];

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opening {
    /// More are needed.
    Short,
    /// A ClientHello, for the server of this name if it says one.
    Tls(Option<Vec<u8>>),
    /// A request of HTTP/1.
    Http,
    /// The preface of HTTP/2 without TLS, whose requests name their servers in a form of its own.
    Http2,
    /// Something that begins like TLS or HTTP and is broken, or too long.
    Broken(&'static str),
    /// One of [`QUESTIONS`]: whom the connection is for is said after its answer.
    Question,
    /// Another protocol: one that chooses among no names.
    Other,
}

/// Reads what has come so far.
pub(crate) fn opening(bytes: &[u8]) -> Opening {
    let read = match bytes.first() {
        None => return Opening::Short,
        Some(&HANDSHAKE) => hello(bytes),
        Some(0) => question(bytes),
        Some(_) => line(bytes),
    };
    if read == Opening::Short && bytes.len() >= OPENING_LEN_MAX {
        return Opening::Broken("they have no end");
    }
    read
}

fn question(bytes: &[u8]) -> Opening {
    let asked = &bytes[..bytes.len().min(8)];
    match QUESTIONS.iter().any(|question| question.starts_with(asked)) {
        true if asked.len() == 8 => Opening::Question,
        true => Opening::Short,
        false => Opening::Other,
    }
}

/// A line that says that it is HTTP, or one that does not.
fn line(bytes: &[u8]) -> Opening {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    // Servers overlook empty lines before a request (RFC 9112, section 2.2).
    let blank = bytes
        .iter()
        .take_while(|byte| b"\r\n".contains(byte))
        .count();
    let bytes = &bytes[blank..];
    // A method is a token; what follows it is white space.
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(is_token).count();
    match bytes.get(method) {
        None => return Opening::Short,
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Opening::Other,
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Opening::Short;
    };
    let line = &bytes[..=end];
    if line == PREFACE {
        return Opening::Http2;
    }
    let upper = line.to_ascii_uppercase();
    match upper.windows(5).any(|part| part == b"HTTP/") {
        true => Opening::Http,
        false => Opening::Other,
    }
}

/// A ClientHello, which may be cut into several records.
fn hello(bytes: &[u8]) -> Opening {
    const BROKEN: Opening = Opening::Broken("a TLS handshake that is none");
    let (mut rest, mut message) = (bytes, Vec::new());
    loop {
        let [kind, major, _, high, low, after @ ..] = rest else {
            return Opening::Short;
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if (*kind, *major) != (HANDSHAKE, 3) || len == 0 || len > RECORD_LEN_MAX {
            return BROKEN;
        }
        message.extend_from_slice(&after[..len.min(after.len())]);
        if let [kind, a, b, c, body @ ..] = &message[..] {
            let whole = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
            if *kind != CLIENT_HELLO || whole > OPENING_LEN_MAX {
                return BROKEN;
            }
            if let Some(body) = body.get(..whole) {
                return server_name(body).map_or(BROKEN, Opening::Tls);
            }
        }
        let Some(next) = after.get(len..) else {
            return Opening::Short;
        };
        rest = next;
    }
}

/// The name in the body of a ClientHello; `None` if that is not one, or names several.
fn server_name(body: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut body = Reader(body);
    // Version and random.
    body.take(2 + 32)?;
    body.list8()?; // session
    body.list16()?; // cipher suites
    body.list8()?; // compression
    if body.0.is_empty() {
        return Some(None);
    }
    let mut extensions = body.list16()?;
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut extension = extensions.list16()?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = extension.list16()?;
        while !names.0.is_empty() {
            let kind = names.take(1)?;
            let name = names.list16()?;
            // Two of them, and the server might take the other one.
            if kind != [HOST_NAME] || found.is_some() {
                return None;
            }
            found = Some(name.0.to_vec());
        }
    }
    Some(found)
}

/// What is left of a message; takes what is there, or nothing.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let taken = self.take(2)?;
        Some(u16::from_be_bytes(taken.try_into().ok()?))
    }

    fn list8(&mut self) -> Option<Self> {
        let len = *self.take(1)?.first()?;
        self.take(len.into()).map(Self)
    }

    fn list16(&mut self) -> Option<Self> {
        let len = self.u16()?;
        self.take(len.into()).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a real client says first.
    fn real_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake in records of `len` bytes.
    fn cut(hello: &[u8], len: usize) -> Vec<u8> {
        let records = hello[5..].chunks(len).map(|part| {
            let len = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1][..], &len, part].concat()
        });
        records.collect::<Vec<_>>().concat()
    }

    #[test]
    fn the_name_of_a_real_handshake() {
        let hello = real_hello("api.example.com");
        let expected = Opening::Tls(Some(b"api.example.com".to_vec()));
        assert_eq!(opening(&hello), expected);
        assert_eq!(opening(&[&hello[..], b"and more"].concat()), expected);
        for len in [1, 7, 100] {
            assert_eq!(opening(&cut(&hello, len)), expected, "{len}");
        }
        for len in 0..hello.len() {
            assert_eq!(opening(&hello[..len]), Opening::Short, "{len}");
        }
        assert_eq!(opening(&real_hello("8.8.8.8")), Opening::Tls(None));
    }

    #[test]
    fn two_names_are_none() {
        let hello = real_hello("a.example");
        let at = hello
            .windows(9)
            .position(|part| part == b"a.example")
            .unwrap();
        // server_name is 2 bytes of type, 2 of length, 2 of the list's, 1 of kind, 2 of the name's.
        let name = &hello[at - 3..at + 9];
        let list: u16 = (name.len() * 2).try_into().unwrap();
        let mut extension = vec![0, 0];
        extension.extend((list + 2).to_be_bytes());
        extension.extend(list.to_be_bytes());
        extension.extend([name, name].concat());
        let mut twice = [&hello[..at - 9], &extension, &hello[at + 9..]].concat();
        let grown = |bytes: &mut [u8], by: usize| {
            let len = usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) + by;
            bytes.copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        };
        grown(&mut twice[3..5], name.len());
        grown(&mut twice[7..9], name.len());
        // The list of extensions: after version, random, session, suites and compression.
        let session = 9 + 34 + 1 + usize::from(hello[9 + 34]);
        let suites =
            session + 2 + usize::from(u16::from_be_bytes([hello[session], hello[session + 1]]));
        let extensions = suites + 1 + usize::from(hello[suites]);
        grown(&mut twice[extensions..extensions + 2], name.len());
        assert!(matches!(opening(&twice), Opening::Broken(_)));
    }

    #[test]
    fn other_beginnings() {
        let check = |bytes: &[u8], expected: Opening| {
            assert_eq!(
                opening(bytes),
                expected,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        };
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Opening::Http);
        check(b"\r\n\r\nGET / HTTP/1.1\r\n", Opening::Http);
        check(b"FOO\t/ http/1.0\n", Opening::Http);
        check(b"GET /", Opening::Short);
        check(b"GE", Opening::Short);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Opening::Http2);
        check(b"EHLO me\r\n", Opening::Other);
        check(b"AUTH secret\r\n", Opening::Other);
        check(b"*1\r\n$4\r\nPING\r\n", Opening::Other);
        for question in QUESTIONS {
            check(&question, Opening::Question);
            check(&[&question[..], b"and more"].concat(), Opening::Question);
            check(&question[..7], Opening::Short);
        }
        check(&[0, 0, 0, 8, 4, 210, 22, 46], Opening::Other);
        check(&[0, 0, 0, 9], Opening::Other);
        check(b"SSH-2.0-x\r\n", Opening::Other);
        check(
            &[22, 3, 1, 0, 0],
            Opening::Broken("a TLS handshake that is none"),
        );
        check(
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            Opening::Broken("a TLS handshake that is none"),
        );
        check(
            &[b'a'; OPENING_LEN_MAX],
            Opening::Broken("they have no end"),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Nothing that comes later changes what was read; no bytes are too strange.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), tls in any::<bool>()) {
            let bytes = if tls { [&[22, 3, 1, 1, 0, 1][..], &bytes].concat() } else { bytes };
            let mut read = Opening::Short;
            for len in 0..=bytes.len() {
                let now = opening(&bytes[..len]);
                prop_assert!(read == Opening::Short || read == now);
                read = now;
            }
        }

        #[test]
        fn any_harm_to_a_handshake(at in 0_usize..250, to in any::<u8>()) {
            let mut hello = real_hello("api.example.com");
            let at = at.min(hello.len() - 1);
            hello[at] = to;
            let _ = opening(&hello);
        }
    }
}
