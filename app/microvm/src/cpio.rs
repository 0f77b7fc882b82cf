//! Archives for the kernel's initramfs: cpio in its "newc" form
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of Linux).

/// An archive under construction, in memory: a few megabytes.
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

impl Cpio {
    /// A directory; those above it come before it.
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), b"");
    }

    /// A file that may be run.
    pub(crate) fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, (0, 0), content);
    }

    /// The character device that the kernel opens for process 1.
    pub(crate) fn console(&mut self, name: &str) {
        self.entry(name, CONSOLE, (5, 1), b"");
    }

    /// The whole.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time: the same parts give the same archive
            len(content.len()),
            0,
            0, // device that it is on
            device.0,
            device.1,
            len(name.len() + 1),
            0, // checksum, of another form
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut cpio = Cpio::default();
        cpio.directory("dev");
        cpio.console("dev/console");
        cpio.program("init", b"12345");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|start| start % 4 == 0), "{starts:?}");
        assert!(text[starts[2]..].starts_with("07070100000003000081ed"));
        assert_eq!(&text[starts[2] + 54..starts[2] + 62], "00000005");
        assert!(text[starts[3]..].contains("TRAILER!!!"));
    }
}
