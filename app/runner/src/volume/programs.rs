//! The programs that make and grow file systems: those of the system, found without a search path. Each holds
//! the volume's lock, too: it may outlive this process, and goes on writing then.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tabbify_api::runner::Failure;

use super::failure;
use super::holder::Holder;

/// Where they are, for a process without a search path.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// LIMIT: what is repeated of what one says, in bytes.
const SAID_LEN_MAX: usize = 512;

/// Where `program` is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let mut places = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
    places.find(|place| place.is_file())
}

/// Runs `program` of `e2fsprogs` to its end: it must exit with one of `codes`.
pub(super) fn run(
    holder: &Holder,
    program: &str,
    arguments: &[&str],
    codes: &[i32],
) -> Result<(), Failure> {
    let Some(path) = find(program) else {
        return Err(failure(format!(
            "its volume needs {program}, which is missing on its machine: install e2fsprogs"
        )));
    };
    let output = command(&path, arguments, holder.file()).and_then(|mut command| command.output());
    let output = match output {
        Ok(output) => output,
        Err(error) => return Err(failure(format!("{program} cannot be run: {error}"))),
    };
    if output
        .status
        .code()
        .is_some_and(|code| codes.contains(&code))
    {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    let cut = said.floor_char_boundary(SAID_LEN_MAX);
    Err(failure(format!(
        "{program} fails at its volume ({}): {}",
        output.status,
        &said[..cut]
    )))
}

/// `program`, with `lock` as its standard input, which none of them reads. A lock belongs to the open file and
/// not to who opened it: killed in the middle, this process leaves one that nobody gets before the program has
/// ended.
fn command(program: &Path, arguments: &[&str], lock: &File) -> io::Result<Command> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        // The same words everywhere.
        .env("LC_ALL", "C")
        .stdin(lock.try_clone()?);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_program_that_is_left_behind_has_the_lock_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let ours = File::create(&path).unwrap();
        flock(&ours, FlockOperation::LockExclusive).unwrap();
        let sleep = find("sleep").unwrap();
        let mut left = command(&sleep, &["600"], &ours).unwrap().spawn().unwrap();
        // All that the end of a process, by whatever signal, does to its lock.
        drop(ours);
        let next = File::open(&path).unwrap();
        let early = flock(&next, FlockOperation::NonBlockingLockExclusive);
        left.kill().unwrap();
        left.wait().unwrap();
        assert_eq!(early, Err(Errno::WOULDBLOCK));
        flock(&next, FlockOperation::LockExclusive).unwrap();
    }
}
