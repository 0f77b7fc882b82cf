//! `tabbify-guest-init enter <program> <arguments…>`: the first process of a container that gets secrets. It
//! reads them from its standard input, makes them variables and files, and becomes the image's program. So
//! they are in nothing that an engine keeps: it has seen a pipe.
//!
//! The program is static, since an image from scratch has no libraries. What it reads is written by
//! [`encode`], on the host.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// What the program is called with, before the image's program.
pub const WORD: &str = "enter";
/// Where secrets are files: memory that is mounted there, and gone with the container.
pub const SECRETS_DIRECTORY: &str = "/run/secrets";
/// LIMIT: all that is read, in bytes: more than the values of one release may have together.
pub const ORDER_LEN_MAX: usize = 1024 * 1024;

/// Exit codes, as engines and shells have them: ours, a program that cannot be run, and one that is not there.
const FAILED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_THERE: u8 = 127;

/// One secret on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A variable and its value.
    Variable(&'a str, &'a str),
    /// The name of a file in [`SECRETS_DIRECTORY`], and its content.
    File(&'a str, &'a [u8]),
}

impl Item<'_> {
    const fn parts(&self) -> (u8, &[u8], &[u8]) {
        match self {
            Self::Variable(name, value) => (b'v', name.as_bytes(), value.as_bytes()),
            Self::File(name, content) => (b'f', name.as_bytes(), content),
        }
    }

    const fn len(&self) -> usize {
        let (_, name, value) = self.parts();
        1 + 4 + name.len() + 4 + value.len()
    }
}

/// What is not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It is longer than one may be.
    #[error("{0} bytes, at most {ORDER_LEN_MAX}")]
    TooLong(usize),
    /// It ends in the middle, or has what is no part of one.
    #[error("it is damaged at byte {0}")]
    Damaged(usize),
}

/// All of `items`, with its length before it. Nothing of it is copied on the way: whoever erases the result
/// has erased it.
///
/// # Errors
/// [`OrderError::TooLong`].
pub fn encode(items: &[Item<'_>]) -> Result<Vec<u8>, OrderError> {
    let len: usize = items.iter().map(Item::len).sum();
    let number = |len: usize| u32::try_from(len).map(u32::to_be_bytes);
    let (Ok(prefix), true) = (number(len), len <= ORDER_LEN_MAX) else {
        return Err(OrderError::TooLong(len));
    };
    let mut order = Vec::with_capacity(prefix.len() + len);
    order.extend_from_slice(&prefix);
    for item in items {
        let (kind, name, value) = item.parts();
        order.push(kind);
        for part in [name, value] {
            let len = number(part.len()).map_err(|_| OrderError::TooLong(part.len()))?;
            order.extend_from_slice(&len);
            order.extend_from_slice(part);
        }
    }
    Ok(order)
}

/// Reads what [`encode`] wrote, without the length before it.
///
/// # Errors
/// [`OrderError::Damaged`].
pub fn decode(order: &[u8]) -> Result<Vec<Item<'_>>, OrderError> {
    let mut rest = order;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let damaged = OrderError::Damaged(order.len() - rest.len());
        let item = item(&mut rest).ok_or(damaged)?;
        items.push(item);
    }
    Ok(items)
}

fn item<'a>(rest: &mut &'a [u8]) -> Option<Item<'a>> {
    let (kind, after) = rest.split_first()?;
    *rest = after;
    let name = std::str::from_utf8(part(rest)?).ok()?;
    let value = part(rest)?;
    let is_name =
        !name.is_empty() && !name.contains(['\0', '/', '=']) && name != "." && name != "..";
    match kind {
        b'v' if is_name => {
            let value = std::str::from_utf8(value).ok()?;
            (!value.contains('\0')).then_some(Item::Variable(name, value))
        }
        b'f' if is_name => Some(Item::File(name, value)),
        _ => None,
    }
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let (part, after) = after.split_at_checked(len)?;
    *rest = after;
    Some(part)
}

/// Becomes the program that `words` name, with the secrets that standard input brings. Returns only if it
/// cannot: the exit code, with the reason said on standard error, which is the app's log.
pub fn run(words: impl Iterator<Item = OsString>) -> u8 {
    let (code, why) = become_program(words, Path::new(SECRETS_DIRECTORY));
    // Nobody else can be told.
    let _ = writeln!(io::stderr(), "tabbify: {why}");
    code
}

fn become_program(mut words: impl Iterator<Item = OsString>, directory: &Path) -> (u8, String) {
    let Some(program) = words.next() else {
        return (FAILED, "no program was named".to_owned());
    };
    let ours = |doing: &str, error: &dyn std::fmt::Display| (FAILED, format!("{doing}: {error}"));
    let mut command = Command::new(&program);
    command.args(words);
    let order = match read(&mut io::stdin().lock()) {
        Ok(order) => order,
        Err(error) => return ours("its secrets do not come", &error),
    };
    let items = match decode(&order) {
        Ok(items) => items,
        Err(error) => return ours("its secrets are not understood", &error),
    };
    for item in items {
        match item {
            Item::Variable(name, value) => {
                command.env(name, value);
            }
            Item::File(name, content) => {
                if let Err(error) = write(&directory.join(name), content) {
                    return ours(&format!("{}", directory.join(name).display()), &error);
                }
            }
        }
    }
    // The program has no part in what came here.
    match File::open("/dev/null").map(rustix::stdio::dup2_stdin) {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => return ours("standard input", &errno),
        Err(error) => return ours("/dev/null", &error),
    }
    let error = command.exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_THERE,
        _ => CANNOT_RUN,
    };
    let program = program.to_string_lossy();
    (
        code,
        format!("the image's program {program:?} cannot be started: {error}"),
    )
}

/// The order, whole, and what follows it: nothing.
fn read(from: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    if len > ORDER_LEN_MAX {
        return Err(io::Error::other(OrderError::TooLong(len)));
    }
    let mut order = vec![0; len];
    from.read_exact(&mut order)?;
    Ok(order)
}

/// For who reads it now alone: the image's user.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_can_be_a_variable_or_a_file_is_one() {
        let check = |item: Item<'_>, is_one: bool| {
            let order = encode(&[item]).unwrap();
            assert_eq!(decode(&order[4..]).is_ok(), is_one, "{item:?}");
        };
        check(Item::Variable("API_KEY", "a=b\nc"), true);
        check(Item::Variable("API_KEY", ""), true);
        check(Item::File("tls-key", b"\0\xff"), true);
        check(Item::Variable("A=B", "c"), false);
        check(Item::Variable("", "c"), false);
        check(Item::Variable("A", "c\0"), false);
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0"] {
            check(Item::File(name, b"x"), false);
        }
        let huge = vec![0; ORDER_LEN_MAX];
        let refused = encode(&[Item::File("a", &huge)]);
        assert!(matches!(refused, Err(OrderError::TooLong(_))));
    }

    #[test]
    fn a_stream_that_ends_early_or_has_too_much_is_refused() {
        let order = encode(&[Item::Variable("A", "value")]).unwrap();
        for end in 0..order.len() {
            assert!(read(&mut &order[..end]).is_err(), "{end}");
        }
        assert_eq!(read(&mut &order[..]).unwrap(), order[4..]);
        assert!(read(&mut &[0xff; 8][..]).is_err());
    }

    #[test]
    fn files_are_the_users_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls-key");
        write(&path, b"key").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"key");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert!(write(&path, b"other").is_err(), "never over another");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            variables in vec(("[A-Z_]{1,9}", "[^\0]{0,40}"), 0..8),
            files in vec(("[a-z-]{1,9}", vec(any::<u8>(), 0..80)), 0..8),
        ) {
            let variables = variables.iter().map(|(name, value)| Item::Variable(name, value));
            let files = files.iter().map(|(name, content)| Item::File(name, content));
            let items: Vec<Item<'_>> = variables.chain(files).collect();
            let order = encode(&items).unwrap();
            prop_assert_eq!(order.len(), order.capacity());
            let read = read(&mut &order[..]).unwrap();
            prop_assert_eq!(decode(&read).unwrap(), items);
        }

        #[test]
        fn any_bytes_are_an_order_or_refused(bytes in vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = read(&mut &bytes[..]);
        }
    }
}
