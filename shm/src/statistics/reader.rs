//! Reading a file: by plain reads of a copy, never through a mapping, so that a file that is cut short meanwhile is a short
//! read and not a signal.
//!
//! A group is read between two looks at its sequence and again when a publication came in between, at most [`TRIES`] times:
//! whoever has died in the middle of one will not finish it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::layout::{self, group, state};
use super::snapshot::{Plan, Snapshot, word};

/// How often a group is read until it is in one piece.
const TRIES: usize = 50;
/// A publication takes microseconds; its thread may have been put aside in it.
const BETWEEN_TRIES: Duration = Duration::from_micros(200);

/// Why a file says nothing.
#[derive(Debug)]
pub enum ReadError {
    /// The system's refusal.
    Io(io::Error),
    /// It is no statistics file.
    NotStatistics,
    /// It is one, of another layout.
    OtherVersion {
        /// Which.
        found: u32,
    },
    /// It is one, and can't be as it is: cut short, or written over.
    Damaged(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => write!(f, "{error}"),
            ReadError::NotStatistics => write!(f, "it is no statistics file of RustyDB"),
            ReadError::OtherVersion { found } => write!(
                f,
                "its layout is version {found}, and this program reads version {}: use the program of the node's own release",
                layout::VERSION
            ),
            ReadError::Damaged(what) => {
                write!(f, "the file is damaged: {what}; the node makes a new one at its next start")
            }
        }
    }
}

impl std::error::Error for ReadError {}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

/// The statistics files in a folder, whatever is in them, by name.
///
/// # Errors
/// The system's: there is no such folder, or it can't be read.
pub fn find(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.starts_with("rustydb-") && name.ends_with(".stats") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A file that is open for reading. It stays that life's: who wants the next life's opens the path anew.
#[derive(Debug)]
pub struct Reader {
    file: File,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's; what stands in it is looked at by [`Reader::snapshot`].
    pub fn open(path: &Path) -> Result<Reader, ReadError> {
        // Anybody may put something of such a name there: a pipe would be waited for, a link would lead elsewhere.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file").into());
        }
        Ok(Reader { file })
    }

    pub(super) fn of(file: File) -> Reader {
        Reader { file }
    }

    /// Everything that the file says now.
    ///
    /// # Errors
    /// [`ReadError`]: what is wrong with it.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.copy().and_then(|bytes| Snapshot::parse(&bytes))
    }

    /// A copy of the file in which each group is in one piece, if its writer is not dead in the middle of it.
    ///
    /// # Errors
    /// [`ReadError`]: what is wrong with it.
    pub fn copy(&self) -> Result<Vec<u8>, ReadError> {
        let length = self.file.metadata()?.len();
        if length > layout::FILE_BYTES_MAX {
            return Err(ReadError::NotStatistics);
        }
        let mut bytes = vec![0; length as usize];
        let read = read_up_to(&self.file, &mut bytes, 0)?;
        bytes.truncate(read);
        let plan = Plan::of(&bytes)?;
        for entry in &plan.groups {
            let (offset, length) = (entry.offset.get() as usize, entry.bytes.get() as usize);
            self.settle(&mut bytes, offset, length, group::SEQUENCE)?;
        }
        self.settle(&mut bytes, layout::STATE_OFFSET, state::WORDS * 8, state::SEQUENCE)?;
        Ok(bytes)
    }

    /// Reads a range again until no publication came in between.
    fn settle(&self, bytes: &mut [u8], offset: usize, length: usize, sequence: usize) -> Result<(), ReadError> {
        let range = &mut bytes[offset..offset + length];
        for _ in 0..TRIES {
            let before = self.word_at(offset + sequence * 8)?;
            fence(Ordering::SeqCst);
            if read_up_to(&self.file, range, offset as u64)? < length {
                return Err(ReadError::Damaged("it was cut short while it was read".into()));
            }
            fence(Ordering::SeqCst);
            let after = self.word_at(offset + sequence * 8)?;
            if before == after && before % 2 == 0 && word(range, sequence) == before {
                return Ok(());
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        Ok(())
    }

    fn word_at(&self, offset: usize) -> Result<u64, ReadError> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, offset as u64)?;
        Ok(u64::from_le_bytes(word))
    }
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
