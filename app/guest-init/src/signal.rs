//! Signals by name, as `STOPSIGNAL` has them.

/// Those of Linux that a person would name, by number on every processor but mips.
const NAMES: [(&str, i32); 22] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGCHLD", 17),
    ("SIGCONT", 18),
    ("SIGSTOP", 19),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGWINCH", 28),
    ("SIGSYS", 31),
];
/// `SIGRTMIN` as C libraries count; systemd wants `SIGRTMIN+3`.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of `SIGTERM`, `term`, `15` or `SIGRTMIN+3`; `None` for what is no signal.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let number = match upper.parse() {
        Ok(number) => number,
        Err(_) => {
            let short = upper.strip_prefix("SIG").unwrap_or(&upper);
            if let Some(above) = short.strip_prefix("RTMIN") {
                let above = above.strip_prefix('+').unwrap_or("0");
                RTMIN.checked_add(above.parse().ok()?)?
            } else {
                let found = NAMES.iter().find(|(name, _)| name[3..] == *short);
                found.map(|(_, number)| *number)?
            }
        }
    };
    (1..=RTMAX).contains(&number).then_some(number)
}

/// `SIGTERM`, or `signal 40`.
#[must_use]
pub fn signal_name(number: i32) -> String {
    let found = NAMES.iter().find(|(_, found)| *found == number);
    found.map_or_else(
        || format!("signal {number}"),
        |(name, _)| (*name).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("3", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+99", None),
            ("SIGRTMIN+2147483647", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("SIG", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
        assert_eq!(
            (signal_name(9), signal_name(40)),
            ("SIGKILL".to_owned(), "signal 40".to_owned())
        );
    }
}
