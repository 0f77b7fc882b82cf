//! A process of the guest: started as somebody, its output read by us.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Uid};
use rustix::process::Pid;

use crate::account::Account;
use crate::order::Process;

/// `PATH` where nobody sets one; that of container engines.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started process and the ends of its output, which do not block.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The environment with what every program expects.
pub(crate) fn complete(process: &mut Process, account: &Account, hostname: &str) {
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", account.home.as_str()),
        ("HOSTNAME", hostname),
    ] {
        if !process.env.iter().any(|(there, _)| there == name) {
            process.env.push((name.to_owned(), value.to_owned()));
        }
    }
    if process.working_dir.is_empty() {
        process.working_dir.push('/');
    }
}

/// Starts `command` with the environment and the directory of `process`.
pub(crate) fn spawn(
    command: &[String],
    process: &Process,
    account: &Account,
) -> Result<Spawned, String> {
    let Some((program, arguments)) = command.split_first() else {
        return Err("there is no program to run".to_owned());
    };
    let directory = process.working_dir.as_str();
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory);
    made.map_err(|error| format!("the working directory {directory}: {error}"))?;
    let mut starting = Command::new(program);
    starting
        .args(arguments)
        .env_clear()
        .envs(process.env.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    become_account(&mut starting, account);
    let spawned = starting.spawn();
    let mut child = spawned.map_err(|error| why_not(program, directory, &error))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("its output cannot be read".to_owned());
    };
    // The process is waited for with all others, and not through `child`.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let spawned = Spawned {
        pid: pid.ok_or("it has no process id")?,
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    for end in [&spawned.stdout, &spawned.stderr] {
        // `/dev/stdout` is the pipe by name, and only its owner opens it.
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        rustix::fs::fchown(end, Some(uid), Some(gid))
            .and_then(|()| rustix::io::ioctl_fionbio(end, true))
            .map_err(|error| format!("its output: {error}"))?;
    }
    Ok(spawned)
}

#[expect(
    unsafe_code,
    reason = "the standard library sets no supplementary groups, and these must come first"
)]
fn become_account(starting: &mut Command, account: &Account) {
    let groups: Vec<Gid> = account
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let change = move || -> io::Result<()> {
        rustix::process::setsid()?;
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on memory from before the fork.
    unsafe { starting.pre_exec(change) };
}

/// What a person can do about it.
fn why_not(program: &str, directory: &str, error: &io::Error) -> String {
    let there = program.contains('/') && Path::new(directory).join(program).exists();
    match error.kind() {
        io::ErrorKind::NotFound if there => format!(
            "{program} needs a loader or an interpreter that is not in the image. \
             Link it statically, or build on an image that has it"
        ),
        io::ErrorKind::NotFound => format!("{program} is not in the image"),
        io::ErrorKind::PermissionDenied => {
            format!("{program} may not be run by this user. Run chmod +x on it in the Dockerfile")
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => format!(
            "{program} is no program of this machine: built for another one, or a script without #!"
        ),
        _ => format!("{program} does not start: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn process(directory: &Path) -> Process {
        Process {
            command: Vec::new(),
            env: vec![("PATH".to_owned(), "/nowhere".to_owned())],
            user: String::new(),
            working_dir: directory.to_string_lossy().into_owned(),
        }
    }

    #[test]
    fn what_is_said_of_a_program_that_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8], mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.to_string_lossy().into_owned()
        };
        let script = write("script", b"#!/no/such/interpreter\n", 0o755);
        let plain = write("plain", b"text", 0o644);
        // Becoming ourselves needs no privilege but the groups; without it the first refusal is theirs.
        let root = rustix::process::geteuid().is_root();
        let me = Account {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Vec::new(),
            home: "/".to_owned(),
        };
        for (program, says) in [
            ("missing", "missing is not in the image"),
            (script.as_str(), "a loader or an interpreter"),
            (plain.as_str(), "chmod +x"),
        ] {
            if !root {
                eprintln!("NOT RUN: what_is_said_of_a_program_that_does_not_start: needs root");
                return;
            }
            let error = spawn(&[program.to_owned()], &process(dir.path()), &me).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(spawn(&[], &process(dir.path()), &me).is_err());
    }

    #[test]
    fn the_environment_is_completed_and_not_replaced() {
        let account = crate::account::find("", Path::new("/no/such/root")).unwrap();
        let mut process = Process {
            env: vec![("PATH".to_owned(), "/own".to_owned())],
            working_dir: String::new(),
            ..process(Path::new("/"))
        };
        complete(&mut process, &account, "shop");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            process.env,
            [
                pair("PATH", "/own"),
                pair("HOME", "/"),
                pair("HOSTNAME", "shop")
            ]
        );
        assert_eq!(process.working_dir, "/");
    }
}
