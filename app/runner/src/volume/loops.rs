//! Loop devices: a file as a block device, for as long as somebody has it open or mounted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

/// Where devices are had from.
const CONTROL: &str = "/dev/loop-control";
/// LIMIT: devices that others take between our question and our answer.
const TRIES: u32 = 64;
/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` of `linux/loop.h`.
const GET_FREE: Opcode = 0x4C82;
const CONFIGURE: Opcode = 0x4C0A;
/// `LO_FLAGS_AUTOCLEAR`: the device lets go of the file when nobody has it open or mounted any more.
const AUTOCLEAR: u32 = 4;

/// `struct loop_config` of `linux/loop.h`, with its `struct loop_info64`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(
    size_of::<Config>() == 304,
    "INVARIANT: the kernel reads as many bytes"
);

/// Asks for the number of a device that nobody uses.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and answers with a number, which is all that is made of it.
#[expect(unsafe_code, reason = "an ioctl that rustix has no name for")]
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

/// Why there are no loop devices here, if so.
pub(super) fn is_possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the platform does not run as root".to_owned());
    }
    match OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{CONTROL}: {error}")),
    }
}

/// Makes `file` a device: it is one until the returned descriptor and all mounts of it are closed.
pub(super) fn attach(file: &Path) -> io::Result<(File, PathBuf)> {
    let writing = || OpenOptions::new().read(true).write(true).clone();
    let backing = writing().open(file)?;
    let control = writing().open(CONTROL)?;
    for _ in 0..TRIES {
        // SAFETY: `control` is the loop control device, which knows this request.
        #[expect(unsafe_code, reason = "an ioctl that rustix has no name for")]
        let number = unsafe { ioctl(&control, GetFree) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = writing().open(&path)?;
        match configure(&device, &backing) {
            Ok(()) => return Ok((device, path)),
            // Somebody else was given the same.
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other(format!(
        "others take every free loop device ({TRIES} attempts)"
    )))
}

fn configure(device: &File, backing: &File) -> rustix::io::Result<()> {
    let config = Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::BADF)?,
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which `Config` is, and keeps nothing of it but
    // the open file that its descriptor names.
    #[expect(unsafe_code, reason = "an ioctl that rustix has no name for")]
    unsafe {
        ioctl(device, Setter::<CONFIGURE, Config>::new(config))
    }
}

/// The devices that `file` is now, whoever made it one.
pub(super) fn of(file: &Path) -> Vec<PathBuf> {
    let Ok(file) = fs::canonicalize(file) else {
        return Vec::new();
    };
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let is_it = |entry: &fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == file)
    };
    let found = devices.flatten().filter(is_it);
    found
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}
