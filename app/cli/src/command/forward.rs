//! `forward`: a port of this machine that leads to a raw port of the app, until Ctrl-C. Every connection goes
//! through the platform's node, with our token.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tabbify_api::attach::PORT_PROTOCOL;

use crate::args::ForwardArgs;
use crate::client::path_of_port;
use crate::clock;
use crate::command::Tool;
use crate::error::{Code, Exit, Failure, Result};
use crate::server::Server;

/// LIMIT: connections at a time; further ones are closed as they come.
const CONNECTIONS_MAX: usize = 256;
/// LIMIT: the head of the platform's answer, in bytes.
const HEAD_LEN_MAX: usize = 16 * 1024;
/// The pause after a connection that could not be taken: with no descriptor left, the next one fails at once.
const PAUSE: Duration = Duration::from_millis(200);
/// LIMIT: how long the platform may take to connect us.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn run(tool: &Tool, args: &ForwardArgs) -> Result<Exit> {
    let (name, text) = match args.what.as_slice() {
        [name, port] => (Some(name.as_str()), port),
        [port] => (None, port),
        _ => return Err(Failure::new(Code::Usage, "Name a port.")),
    };
    let (local, port) = ports(text)?;
    let client = tool.client()?;
    let app = tool.app(&client, name)?;
    client.check_port(app.id, port)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).map_err(|error| {
        let what = format!("Port {local} of this machine cannot be had: {error}.");
        let fix = format!("Take another one: tcli forward {} 0:{port}", app.name);
        Failure::new(Code::Port, what).fix(fix)
    })?;
    let here = listener.local_addr().map_err(|error| broken(&error))?;
    let text = format!("{here} → {}:{port}, until Ctrl-C", app.name);
    let document = json!({ "listening": here, "app": app.id, "port": port });
    tool.output.result(&text, &document)?;
    let path = path_of_port(app.id, port);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                report(&error);
                clock::pause(PAUSE);
                continue;
            }
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        match client.token() {
            Ok(token) => {
                let head = head(client.server(), &path, &token);
                begin(&open, stream, authority(client.server()), head);
            }
            Err(failure) => report(&failure),
        }
    }
}

/// Says what became of one connection among many: the others go on, and the next one may be better off.
fn report(what: &impl fmt::Display) {
    let _ = writeln!(io::stderr(), "a connection: {what}");
}

/// Passes a connection on, beside the others.
fn begin(open: &Arc<AtomicUsize>, stream: TcpStream, authority: String, head: String) {
    open.fetch_add(1, Ordering::Relaxed);
    let counted = Arc::clone(open);
    let begun = thread::Builder::new().spawn(move || {
        if let Err(error) = pass(&stream, &authority, &head) {
            report(&error);
        }
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = begun {
        open.fetch_sub(1, Ordering::Relaxed);
        report(&error);
    }
}

/// `5432` or `15432:5432`: the local port and the app's.
fn ports(text: &str) -> Result<(u16, u16)> {
    let (local, port) = text.split_once(':').unwrap_or((text, text));
    match (local.parse(), port.parse()) {
        (Ok(local), Ok(port)) if port != 0 => Ok((local, port)),
        _ => {
            let what = format!("{text:?} is no port.");
            let fix = "Write 5432, or 15432:5432 with the local one before it";
            Err(Failure::new(Code::Usage, what).fix(fix))
        }
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(Code::Port, format!("Nothing can be listened to: {error}."))
}

/// `host:port` of the platform.
fn authority(server: &Server) -> String {
    let rest = server.as_str().trim_start_matches("http://");
    let has_port = rest
        .rsplit(':')
        .next()
        .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    match has_port {
        true => rest.to_owned(),
        false => format!("{rest}:80"),
    }
}

fn head(server: &Server, path: &str, token: &str) -> String {
    let host = server.as_str().trim_start_matches("http://");
    format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
         connection: upgrade\r\nupgrade: {PORT_PROTOCOL}\r\n\r\n"
    )
}

/// One connection, to the end of both its directions.
fn pass(local: &TcpStream, authority: &str, head: &str) -> io::Result<()> {
    let mut remote = TcpStream::connect(authority)?;
    remote.set_read_timeout(Some(HEAD_WITHIN))?;
    remote.write_all(head.as_bytes())?;
    let answer = answer(&mut remote)?;
    if !answer.starts_with("HTTP/1.1 101 ") {
        let line = answer.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("the platform answers {line:?}")));
    }
    remote.set_read_timeout(None)?;
    remote.set_nodelay(true)?;
    local.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let up = scope.spawn(|| copy(local, &remote));
        let down = copy(&remote, local);
        if down.is_err() {
            // Neither direction has a reader any more.
            let _ = local.shutdown(Shutdown::Both);
            let _ = remote.shutdown(Shutdown::Both);
        }
        // A panic there is a connection that broke.
        let up = up
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        down.and(up)
    })
}

/// All of one direction, and its end.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    // It may have ended there already.
    let _ = to.shutdown(Shutdown::Write);
    match copied {
        Ok(_) => Ok(()),
        Err(error) => {
            let _ = from.shutdown(Shutdown::Read);
            Err(error)
        }
    }
}

/// The head of the answer, and nothing of what follows it.
fn answer(remote: &mut impl io::Read) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_LEN_MAX {
            return Err(io::Error::other(
                "the platform's answer has too long a head",
            ));
        }
        remote.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_both_forms() {
        for (text, expected) in [
            ("5432", Some((5432, 5432))),
            ("15432:5432", Some((15432, 5432))),
            ("0:5432", Some((0, 5432))),
            ("5432:0", None),
            ("0", None),
            ("", None),
            (":", None),
            ("70000", None),
            ("a:1", None),
        ] {
            assert_eq!(ports(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn where_the_platform_is() {
        for (server, expected) in [
            ("http://localhost:8090", "localhost:8090"),
            ("http://127.0.0.1", "127.0.0.1:80"),
            ("http://[::1]:9", "[::1]:9"),
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(authority(&server.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_head_is_taken_and_no_more() {
        let mut bytes = &b"HTTP/1.1 101 Switching Protocols\r\na: b\r\n\r\nrest"[..];
        assert!(answer(&mut bytes).unwrap().starts_with("HTTP/1.1 101 "));
        assert_eq!(bytes, b"rest");
        assert!(answer(&mut &b"HTTP/1.1 101"[..]).is_err());
        assert!(answer(&mut &vec![b'a'; HEAD_LEN_MAX + 1][..]).is_err());
    }
}
