//! The grammar of single values: names, sizes, durations, commands, paths.
//!
//! Each function takes a value and gives what it means, or what is wrong with it and how to write
//! it instead.

use std::str::FromStr;
use std::time::Duration;

use tabbify_types::{AppId, AppName, ByteSize, SecretName, Segment, SegmentGlob};

use crate::limits::{
    COMMAND_LEN_MAX, COMMAND_WORDS_MAX, CPUS_MILLI_MAX, DESCRIPTION_LEN_MAX, ENV_NAME_LEN_MAX,
    IMAGE_LEN_MAX, PATH_LEN_MAX,
};
use crate::manifest::{Build, Command, Cpus, Supervisor};
use crate::section::Wrong;
use crate::tree::{Node, Value};

/// Any text; `example` completes the fix "write text in quotes, such as …".
pub(crate) fn text<'n>(node: &'n Node, example: &str) -> Result<&'n str, Wrong> {
    match &node.value {
        Value::Text(text) => Ok(text),
        _ => Err(Wrong::kind(
            node,
            format!("write text in quotes, such as {example}"),
        )),
    }
}

/// One of the given words.
pub(crate) fn choice<T: Copy>(node: &Node, choices: &[(&str, T)]) -> Result<T, Wrong> {
    let words: Vec<String> = choices
        .iter()
        .map(|(word, _)| format!("{word:?}"))
        .collect();
    let fix = format!("write {}", words.join(" or "));
    let found = match &node.value {
        Value::Text(text) => choices.iter().find(|(word, _)| word == text),
        _ => return Err(Wrong::kind(node, fix)),
    };
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Wrong::new("is not a choice here", fix))
}

pub(crate) fn app_id(node: &Node) -> Result<AppId, Wrong> {
    let fix =
        "delete the line: tcli writes the id into the uploaded copy and keeps it in tabbify.lock";
    text(node, "\"0191e7c2-1111-7222-8333-444455556666\"")?
        .parse()
        .map_err(|_| Wrong::new("is not an app id", fix))
}

pub(crate) fn app_name(node: &Node) -> Result<AppName, Wrong> {
    let text = text(node, "\"shop\"")?;
    text.parse().map_err(|_| {
        let rule =
            "use 1 to 63 of a-z 0-9 -, starting and ending with a letter or digit, without --";
        let fix = match slug(text) {
            Some(name) => format!("write {:?}, or another name: {rule}", name.as_str()),
            None => rule.to_owned(),
        };
        Wrong::new("is not an app name", fix)
    })
}

/// The nearest valid app name to a text, such as `my-shop` for `My Shop`.
pub(crate) fn slug(text: &str) -> Option<AppName> {
    let words = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let joined = words.collect::<Vec<_>>().join("-").to_ascii_lowercase();
    let cut: String = joined.chars().take(63).collect();
    cut.trim_end_matches('-').parse().ok()
}

pub(crate) fn description(node: &Node) -> Result<String, Wrong> {
    let text = text(node, "\"what the app does\"")?;
    if text.len() > DESCRIPTION_LEN_MAX {
        return Err(Wrong::new(
            format!(
                "has {} bytes, and {DESCRIPTION_LEN_MAX} are allowed",
                text.len()
            ),
            "shorten it",
        ));
    }
    Ok(text.to_owned())
}

/// A size within bounds.
pub(crate) fn size(node: &Node, min: ByteSize, max: ByteSize) -> Result<ByteSize, Wrong> {
    let text = match &node.value {
        Value::Text(text) => text,
        Value::Integer(number) => {
            return Err(Wrong::new(
                "has no unit",
                format!("write \"{number}MiB\" or another unit"),
            ));
        }
        _ => {
            return Err(Wrong::kind(
                node,
                "write a size in quotes, such as \"512MiB\"",
            ));
        }
    };
    let size: ByteSize = text.parse().map_err(|_| {
        let fix = "write a whole number and B, KiB, MiB, GiB or TiB, such as \"512MiB\"";
        Wrong::new("is not a size", fix)
    })?;
    if (min..=max).contains(&size) {
        Ok(size)
    } else {
        Err(Wrong::new(
            "is out of range",
            format!("write a size from {min} to {max}"),
        ))
    }
}

/// A duration within bounds: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn duration(node: &Node, min: Duration, max: Duration) -> Result<Duration, Wrong> {
    let text = match &node.value {
        Value::Text(text) => text,
        Value::Integer(number) => {
            return Err(Wrong::new(
                "has no unit",
                format!("write \"{number}s\" or another unit"),
            ));
        }
        _ => {
            return Err(Wrong::kind(
                node,
                "write a duration in quotes, such as \"30s\"",
            ));
        }
    };
    let duration = parse_duration(text).ok_or_else(|| {
        let fix = "write a whole number and ms, s, m, h or d, such as \"30s\"";
        Wrong::new("is not a duration", fix)
    })?;
    if (min..=max).contains(&duration) {
        Ok(duration)
    } else {
        let range = format!(
            "write a duration from {} to {}",
            show_duration(min),
            show_duration(max)
        );
        Err(Wrong::new("is out of range", range))
    }
}

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(millis)
        .map(Duration::from_millis)
}

/// A duration in the largest unit that divides it, so that parsing gives it back.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = UNITS
        .iter()
        .find(|(_, unit)| millis != 0 && millis.is_multiple_of(u128::from(*unit)));
    match unit {
        Some((name, unit)) => format!("{}{name}", millis / u128::from(*unit)),
        None => "0s".to_owned(),
    }
}

/// A whole number from 1 to `max`.
pub(crate) fn count(node: &Node, max: u16) -> Result<u16, Wrong> {
    let fix = format!("write a whole number from 1 to {max}");
    let Value::Integer(number) = node.value else {
        return Err(Wrong::kind(node, fix));
    };
    match u16::try_from(number) {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(Wrong::new("is out of range", fix)),
    }
}

pub(crate) fn cpus(node: &Node) -> Result<Cpus, Wrong> {
    let fix = "write a number from 0.001 to 256, such as 1 or 0.5";
    let number = match node.value {
        Value::Integer(number) => i32::try_from(number).map_or(f64::INFINITY, f64::from),
        Value::Float(number) => number,
        _ => return Err(Wrong::kind(node, fix)),
    };
    let milli = (number * 1000.0).round();
    if !(1.0..=f64::from(CPUS_MILLI_MAX)).contains(&milli) {
        return Err(Wrong::new("is out of range", fix));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 256000, whole"
    )]
    let milli = milli as u32;
    Ok(Cpus::from_milli(milli))
}

/// A program and its arguments, never a line for a shell.
pub(crate) fn command(node: &Node) -> Result<Command, Wrong> {
    let example = "write a list of words, such as [\"./shop\", \"--verbose\"]";
    let items = match &node.value {
        Value::List(items) => items,
        Value::Text(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            return Err(Wrong::new(
                "is one text, and no shell would split it",
                format!("write {words:?}"),
            ));
        }
        _ => return Err(Wrong::kind(node, example)),
    };
    let mut words = Vec::new();
    for item in items {
        match &item.value {
            Value::Text(word) if !word.contains('\0') => words.push(word.clone()),
            _ => return Err(Wrong::new("is not a list of words", example)),
        }
    }
    let len: usize = words.iter().map(String::len).sum();
    if words.first().is_none_or(String::is_empty) {
        return Err(Wrong::new("names no program", example));
    }
    if words.len() > COMMAND_WORDS_MAX || len > COMMAND_LEN_MAX {
        let fix =
            format!("keep to {COMMAND_WORDS_MAX} words and {COMMAND_LEN_MAX} bytes; use a script");
        return Err(Wrong::new("is too long", fix));
    }
    Ok(Command { words })
}

/// The line that builds a component on the developer's machine.
pub(crate) fn build_command(node: &Node) -> Result<String, Wrong> {
    let text = text(node, "\"cargo build --release --target wasm32-wasip2\"")?;
    if text.trim().is_empty() || text.contains('\0') {
        return Err(Wrong::new(
            "is empty",
            "write the command, or delete the line",
        ));
    }
    if text.len() > COMMAND_LEN_MAX {
        return Err(Wrong::new("is too long", "use a script"));
    }
    Ok(text.to_owned())
}

/// Whether a path may leave the folder of `tabbify.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The file is read on the developer's machine; a Cargo workspace keeps its target one up.
    Allowed,
    /// The path is used where only the folder itself exists.
    Refused,
}

/// A path relative to the folder of `tabbify.toml`.
pub(crate) fn project_path(node: &Node, leaving: Leaving) -> Result<String, Wrong> {
    let text = text(node, "\"src\"")?;
    let fix = "write a path relative to the folder of this file";
    let drive = matches!(text.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if text.is_empty() || text.len() > PATH_LEN_MAX || text.contains(char::is_control) {
        return Err(Wrong::new("is not a path", fix));
    }
    if text.starts_with('/') || drive {
        return Err(Wrong::new(
            "is an absolute path, which exists on one machine only",
            fix,
        ));
    }
    if text.contains('\\') {
        return Err(Wrong::new(
            "has a backslash",
            format!("write {:?}", text.replace('\\', "/")),
        ));
    }
    if leaving == Leaving::Refused && text.split('/').any(|part| part == "..") {
        return Err(Wrong::new(
            "leaves the folder of this file",
            "keep it inside the folder",
        ));
    }
    Ok(text.to_owned())
}

/// The path of a component.
pub(crate) fn wasm_path(node: &Node) -> Result<String, Wrong> {
    let path = project_path(node, Leaving::Allowed)?;
    if path.ends_with(".wasm") {
        return Ok(path);
    }
    let example = "\"target/wasm32-wasip2/release/shop.wasm\"";
    Err(Wrong::new(
        "is not a .wasm file",
        format!("write the path of the component, such as {example}"),
    ))
}

/// The transports of a file, as containers/image and so skopeo and podman name them. Which of the two
/// forms the file has is seen when it is read.
const ARCHIVES: [&str; 2] = ["oci-archive:", "docker-archive:"];

/// An image: the reference of one that is fetched, or a transport and the path of a file.
pub(crate) fn image(node: &Node) -> Result<Build, Wrong> {
    let text = text(node, "\"postgres:17\"")?;
    let fix = "write an image reference such as \"postgres:17\"";
    if let Some(path) = ARCHIVES.iter().find_map(|name| text.strip_prefix(name)) {
        return archive(node, path).map(|archive| Build::Archive { archive });
    }
    if let Some((_, rest)) = text.split_once("://") {
        return Err(Wrong::new("has a scheme", format!("write {rest:?}")));
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@+[]".contains(&b);
    if text.is_empty() || text.len() > IMAGE_LEN_MAX || !text.bytes().all(ok) {
        return Err(Wrong::new("is not an image reference", fix));
    }
    let image = text.to_owned();
    Ok(Build::Image { image })
}

/// The path of an image's file. The transports allow a reference after it, which chooses one of several
/// images: here a file has one.
fn archive(node: &Node, path: &str) -> Result<String, Wrong> {
    if let Some((file, _)) = path.split_once(':') {
        let fix = format!("keep one image in the file and write only its path, {file:?}");
        return Err(Wrong::new("has a reference after the path", fix));
    }
    project_path(&Node::text(node.place, path), Leaving::Allowed)
}

/// An absolute path of an HTTP request.
pub(crate) fn url_path(node: &Node) -> Result<String, Wrong> {
    let text = text(node, "\"/healthz\"")?;
    let ok = |b: u8| b.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&b);
    if text.starts_with('/')
        && !text.starts_with("//")
        && text.len() <= PATH_LEN_MAX
        && text.bytes().all(ok)
    {
        Ok(text.to_owned())
    } else {
        Err(Wrong::new(
            "is not the path of a request",
            "write a path such as \"/healthz\"",
        ))
    }
}

/// Where a volume appears in the app.
pub(crate) fn mount_path(node: &Node) -> Result<String, Wrong> {
    let text = text(node, "\"/data\"")?;
    let fix = "write an absolute path such as \"/data\"";
    let Some(rest) = text.strip_prefix('/') else {
        return Err(Wrong::new("is not an absolute path", fix));
    };
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if text.len() > PATH_LEN_MAX || text.contains(char::is_control) || !rest.split('/').all(plain) {
        return Err(Wrong::new("is not a place for a volume", fix));
    }
    match rest.split('/').next() {
        Some("proc" | "sys" | "dev") => Err(Wrong::new("belongs to the kernel", fix)),
        // Each instance gets these anew, as memory of its own; some of them after its volume.
        Some("run" | "tmp" | ".tabbify-enter") => {
            let what = "belongs to the platform, which keeps nothing there";
            Err(Wrong::new(what, fix))
        }
        _ => Ok(format!("/{rest}")),
    }
}

/// The name of an environment variable that the app may set.
pub(crate) fn check_env_name(name: &str) -> Result<(), Wrong> {
    let start = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.len() > ENV_NAME_LEN_MAX
        || !name.as_bytes().first().is_some_and(start)
        || !name.bytes().all(ok)
    {
        let fix = format!(
            "use letters, digits and _, at most {ENV_NAME_LEN_MAX}, not starting with a digit"
        );
        return Err(Wrong::new("is not the name of a variable", fix));
    }
    if name == "PORT" {
        return Err(Wrong::new(
            "is set by the platform",
            "write [runtime] port instead",
        ));
    }
    if name.starts_with("TABBIFY_") {
        return Err(Wrong::new(
            "is set by the platform",
            "choose a name without TABBIFY_ before it",
        ));
    }
    Ok(())
}

/// The plain value of an environment variable.
pub(crate) fn env_value(node: &Node) -> Result<String, Wrong> {
    let text = match &node.value {
        Value::Text(text) => text,
        Value::List(_) | Value::Table(_) => return Err(Wrong::kind(node, "write text in quotes")),
        _ => {
            return Err(Wrong::kind(
                node,
                format!("write it in quotes: \"{}\"", node.shown()),
            ));
        }
    };
    if text.contains('\0') {
        return Err(Wrong::new(
            "has a zero byte, which no environment can hold",
            "remove it",
        ));
    }
    if text.starts_with("secret:") || text.starts_with("secret-file:") {
        let fix = "name it in [secrets], the same for every target";
        return Err(Wrong::new(
            "is a reference to a secret, and these values are plain",
            fix,
        ));
    }
    Ok(text.clone())
}

pub(crate) fn secret_name(node: &Node) -> Result<String, Wrong> {
    let fix = "write the secret's name, such as \"api-key\", or { name = \"api-key\", as = \"file\" }; \
               its value belongs to: tcli secrets set";
    let Value::Text(text) = &node.value else {
        return Err(Wrong::kind(node, fix));
    };
    if text.parse::<SecretName>().is_ok() {
        return Ok(text.clone());
    }
    let rule = "1 to 63 of letters, digits, . _ and -";
    Err(Wrong::new(
        format!("is not the name of a secret ({rule})"),
        fix,
    ))
}

/// A literal segment of the app's own tenant, to write events to.
pub(crate) fn segment(node: &Node) -> Result<Segment, Wrong> {
    let text = text(node, "\"chat\"")?;
    if text.contains('*') {
        return Err(Wrong::new(
            "is a pattern",
            "write each segment by its name: only subscribe takes patterns",
        ));
    }
    own_segment(text)
}

/// A pattern over the segments of the app's own tenant.
pub(crate) fn segment_glob(node: &Node) -> Result<SegmentGlob, Wrong> {
    own_segment(text(node, "\"chat\"")?)
}

fn own_segment<T: FromStr>(text: &str) -> Result<T, Wrong> {
    if text.starts_with("tenant_") || text == "platform" || text.starts_with("platform.") {
        let own = text.split_once('.').map_or("chat", |(_, rest)| rest);
        let fix = format!("write it without the tenant: {own:?}");
        return Err(Wrong::new("is not within the app's own tenant", fix));
    }
    let fix = "write parts of a-z 0-9 _ - joined by dots, such as \"chat\"";
    text.parse()
        .map_err(|_| Wrong::new("is not a segment", fix))
}

pub(crate) fn supervisor(node: &Node) -> Result<Supervisor, Wrong> {
    let text = text(node, "\"any\"")?;
    let fix = "write \"any\", \"name:box1\" or \"tag:gpu\"";
    let tag_ok = |tag: &str| {
        (1..=63).contains(&tag.len())
            && tag
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    };
    match text.split_once(':') {
        None if text == "any" => Ok(Supervisor::Any),
        None => match slug(text) {
            Some(name) if name.as_str() == text => Err(Wrong::new(
                "does not say what it names",
                format!("write \"name:{text}\" or \"tag:{text}\""),
            )),
            _ => Err(Wrong::new("is not a choice of machines", fix)),
        },
        Some(("name", name)) => name.parse().map(Supervisor::Name).map_err(|_| {
            Wrong::new(
                "does not name a machine",
                "write a name such as \"name:box1\"",
            )
        }),
        Some(("tag", tag)) if tag_ok(tag) => Ok(Supervisor::Tag(tag.to_owned())),
        Some(_) => Err(Wrong::new("is not a choice of machines", fix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Place;

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "1ms", "30s", "5m", "1h", "2d", "1500ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("120s"), parse_duration("2m"));
        for bad in [
            "",
            "s",
            "5",
            "-1s",
            "1.5s",
            "1 s",
            "99999999999999999d",
            "1w",
            "é",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn slugs_are_names() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                slug(text).map(|name| name.to_string()).as_deref(),
                expected,
                "{text}"
            );
        };
        check("My Shop", Some("my-shop"));
        check("a--b_c", Some("a-b-c"));
        check("-x-", Some("x"));
        check("ä", None);
        check("", None);
        check(
            &format!("{}-{}", "a".repeat(62), "b"),
            Some(&"a".repeat(62)),
        );
    }

    #[test]
    fn names_of_variables() {
        for good in ["A", "_", "a1", "LOG_LEVEL", "PORTS"] {
            assert_eq!(check_env_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "1A",
            "A-B",
            "A B",
            "Ä",
            "PORT",
            "TABBIFY_X",
            &"A".repeat(129),
        ] {
            assert!(check_env_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let mount = |text: &str| mount_path(&Node::text(Place::START, text));
        assert_eq!(mount("/data/").unwrap(), "/data");
        assert_eq!(mount("/var/lib/x").unwrap(), "/var/lib/x");
        for bad in [
            "", "data", "/", "//", "/a//b", "/a/../b", "/proc/x", "/dev", "/dev/shm", "/a\n",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
        for taken in ["/run", "/run/secrets", "/tmp/", "/tmp/x", "/.tabbify-enter"] {
            let wrong = mount(taken).unwrap_err();
            assert!(wrong.message.contains("platform"), "{taken}: {wrong:?}");
        }
        assert_eq!(mount("/runs").unwrap(), "/runs");
        assert_eq!(mount("/srv/tmp").unwrap(), "/srv/tmp");
    }
}
