//! What the app's people are told of a container that does not serve.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tabbify_api::runner::Failure;
use tabbify_container::{End, Error, Seen, seconds};
use tabbify_process::chain;
use tabbify_types::ByteSize;
use tabbify_types::event::v1::FailureReason;

/// LIMIT: addresses that are named.
const NAMED_MAX: usize = 4;

pub(crate) fn failure(reason: FailureReason, detail: String) -> Failure {
    Failure { reason, detail }
}

/// A container that could not be had.
pub(crate) fn failed(error: &Error) -> Failure {
    let reason = match error {
        Error::Image(_) | Error::Load(_) | Error::Program(_) => FailureReason::Image,
        _ => FailureReason::Runtime,
    };
    failure(reason, chain(error).to_string())
}

/// A container that has ended by itself, which is never what an app is for.
pub(crate) fn ended(end: &End, memory: ByteSize) -> Failure {
    if end.out_of_memory {
        let after = seconds(end.ran_for);
        let more = ByteSize(memory.bytes().saturating_mul(2));
        let detail =
            format!("it was killed at {memory}, {after} after start. Set memory = \"{more}\"");
        return failure(FailureReason::Memory, detail);
    }
    failure(FailureReason::Exited, format!("it {end}"))
}

/// A container that runs and does not serve.
pub(crate) fn unhealthy(
    port: u16,
    path: Option<&str>,
    within: Duration,
    seen: &Seen,
    listening: &[SocketAddr],
) -> String {
    let at = path.unwrap_or_default();
    let within = seconds(within);
    if let Seen::Status(status) = seen {
        return format!("it answered :{port}{at} with {status} for {within}");
    }
    let not = format!("it did not answer on :{port}{at} in {within}");
    let is_right = |address: &SocketAddr| address.port() == port && !address.ip().is_loopback();
    if *seen == Seen::Mute || listening.iter().any(is_right) {
        return format!("{not}, though it listens there");
    }
    let named: Vec<String> = listening.iter().take(NAMED_MAX).map(shown).collect();
    if named.is_empty() {
        return format!("{not}; it listens nowhere. Listen on 0.0.0.0:$PORT");
    }
    format!(
        "{not}; it listens on {}. Listen on 0.0.0.0:$PORT",
        named.join(", ")
    )
}

fn shown(address: &SocketAddr) -> String {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => format!("[::]:{}", address.port()),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_understands_why() {
        let minute = Duration::from_secs(60);
        let check = |path, seen: Seen, listening: &[&str], expected: &str| {
            let listening: Vec<SocketAddr> = listening.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(unhealthy(8080, path, minute, &seen, &listening), expected);
        };
        check(
            None,
            Seen::Nobody,
            &["127.0.0.1:3000"],
            "it did not answer on :8080 in 60 s; it listens on 127.0.0.1:3000. Listen on 0.0.0.0:$PORT",
        );
        check(
            None,
            Seen::Nobody,
            &["127.0.0.1:8080", "[::]:9"],
            "it did not answer on :8080 in 60 s; it listens on 127.0.0.1:8080, [::]:9. \
             Listen on 0.0.0.0:$PORT",
        );
        check(
            None,
            Seen::Nobody,
            &[],
            "it did not answer on :8080 in 60 s; it listens nowhere. Listen on 0.0.0.0:$PORT",
        );
        check(
            Some("/up"),
            Seen::Status(http::StatusCode::NOT_FOUND),
            &["0.0.0.0:8080"],
            "it answered :8080/up with 404 Not Found for 60 s",
        );
        check(
            Some("/up"),
            Seen::Mute,
            &["0.0.0.0:8080"],
            "it did not answer on :8080/up in 60 s, though it listens there",
        );
    }

    #[test]
    fn memory_is_told_from_other_ends() {
        let mut end = End {
            code: 137,
            out_of_memory: true,
            ran_for: Duration::from_millis(3200),
        };
        let told = ended(&end, ByteSize::mib(512));
        let expected = "it was killed at 512MiB, 3 s after start. Set memory = \"1GiB\"";
        assert_eq!(
            (told.reason, told.detail.as_str()),
            (FailureReason::Memory, expected)
        );
        (end.code, end.out_of_memory) = (1, false);
        let told = ended(&end, ByteSize::mib(512));
        let expected = "it ended with exit code 1, 3 s after start";
        assert_eq!(
            (told.reason, told.detail.as_str()),
            (FailureReason::Exited, expected)
        );
    }
}
