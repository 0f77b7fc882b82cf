//! The output of one instance, from a place in its files onwards.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tabbify_api::logs::LogLine;
use tabbify_types::{InstanceId, Timestamp};

use super::{LINE_LEN_MAX, backward};

/// The files of an instance, oldest first; each may be missing.
pub(super) fn paths(directory: &Path, instance: InstanceId) -> [PathBuf; 2] {
    [
        directory.join(format!("{instance}.1.ndjson")),
        directory.join(format!("{instance}.ndjson")),
    ]
}

/// One line on disk, if it is one of this instance.
pub(super) fn parse(line: &[u8], instance: InstanceId) -> Option<LogLine> {
    let parsed: LogLine = serde_json::from_slice(line).ok()?;
    (parsed.instance == instance).then_some(parsed)
}

/// Reads one instance's lines, and goes on when its file grows or is rotated.
#[derive(Debug)]
pub(super) struct Tail {
    instance: InstanceId,
    paths: [PathBuf; 2],
    open: Option<Open>,
    /// Where to begin: in which of the files, and where in it.
    begin: (usize, u64),
    next: Option<LogLine>,
}

#[derive(Debug)]
struct Open {
    file: BufReader<File>,
    inode: u64,
    /// A line whose end has not been read yet; `None` while one that is too long passes.
    partial: Option<Vec<u8>>,
}

impl Tail {
    pub(super) fn new(directory: &Path, instance: InstanceId) -> Self {
        Self {
            instance,
            paths: paths(directory, instance),
            open: None,
            begin: (0, 0),
            next: None,
        }
    }

    /// Begins at the last `newest` lines that are not before `since`; how many there are.
    pub(super) fn skip_to_last(
        &mut self,
        newest: usize,
        since: Option<Timestamp>,
    ) -> io::Result<usize> {
        let mut found = 0;
        // With nothing to show, it begins at the end of the newest file.
        let end = fs::metadata(&self.paths[1]).map_or(0, |file| file.len());
        self.begin = (1, end);
        for index in [1, 0] {
            let Some(file) = existing(File::open(&self.paths[index]))? else {
                continue;
            };
            let mut begin = self.begin;
            backward::lines(&file, |offset, line| {
                if found == newest {
                    return false;
                }
                match parse(line, self.instance) {
                    Some(line) if since.is_some_and(|since| line.at < since) => return false,
                    Some(_) => {
                        found += 1;
                        begin = (index, offset);
                    }
                    None => {}
                }
                true
            })?;
            self.begin = begin;
        }
        Ok(found)
    }

    /// The next line, if it is there whole.
    pub(super) fn peek(&mut self, since: Option<Timestamp>) -> io::Result<Option<&LogLine>> {
        while self.next.is_none() {
            if self.open.is_none() && !self.first()? {
                return Ok(None);
            }
            let Some(line) = self.line()? else {
                if self.later()? {
                    continue;
                }
                return Ok(None);
            };
            let wanted = |line: &LogLine| since.is_none_or(|since| line.at >= since);
            self.next = parse(&line, self.instance).filter(wanted);
        }
        Ok(self.next.as_ref())
    }

    pub(super) fn pop(&mut self) -> Option<LogLine> {
        self.next.take()
    }

    /// Opens the file to begin with; whether there is one.
    fn first(&mut self) -> io::Result<bool> {
        let (index, offset) = self.begin;
        for (skipped, path) in self.paths[index..].iter().enumerate() {
            if let Some(file) = existing(File::open(path))? {
                let offset = if skipped == 0 { offset } else { 0 };
                self.open = Some(Open::at(file, offset)?);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next whole line of the open file.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        match &mut self.open {
            Some(open) => open.line(),
            None => Ok(None),
        }
    }

    /// At the end of a file that has been rotated, goes on with the newest; whether there is one.
    fn later(&mut self) -> io::Result<bool> {
        let Some(file) = existing(File::open(&self.paths[1]))? else {
            return Ok(false);
        };
        let Some(open) = &mut self.open else {
            return Ok(false);
        };
        let inode = file.metadata()?.ino();
        if inode == open.inode {
            return Ok(false);
        }
        // It was written to between our last read and the rotation.
        if !open.file.fill_buf()?.is_empty() {
            return Ok(true);
        }
        self.open = Some(Open::at(file, 0)?);
        Ok(true)
    }
}

impl Open {
    fn at(mut file: File, offset: u64) -> io::Result<Self> {
        // A file that is shorter than where we were is another one: it was rotated meanwhile.
        if offset <= file.metadata()?.len() {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(Self {
            inode: file.metadata()?.ino(),
            file: BufReader::new(file),
            partial: Some(Vec::new()),
        })
    }

    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let mut piece = Vec::new();
            let limit = u64::try_from(LINE_LEN_MAX).unwrap_or(u64::MAX);
            let mut limited = (&mut self.file).take(limit);
            if limited.read_until(b'\n', &mut piece)? == 0 {
                return Ok(None);
            }
            let ended = piece.pop_if(|byte| *byte == b'\n').is_some();
            if let Some(partial) = &mut self.partial {
                partial.append(&mut piece);
            }
            if self
                .partial
                .as_ref()
                .is_some_and(|it| it.len() > LINE_LEN_MAX)
            {
                self.partial = None;
            }
            if ended {
                // A line that was too long gives an empty one, which is not a line of ours.
                return Ok(Some(self.partial.replace(Vec::new()).unwrap_or_default()));
            }
        }
    }
}

/// `None` for a file that is not there.
fn existing(file: io::Result<File>) -> io::Result<Option<File>> {
    match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
