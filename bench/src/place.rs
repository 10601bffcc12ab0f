//! Where a benchmark keeps its volume: a file of its own in a folder of the caller's, gone when the benchmark ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static PLACES: AtomicU32 = AtomicU32::new(0);

/// A file's name that nobody else has. The file is removed with it, if there is one.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// A name in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Place {
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        Place(folder.join(format!("rusty-db-bench-{}-{number}.volume", std::process::id())))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may never have been made; and there is nobody to tell.
        std::fs::remove_file(&self.0).ok();
    }
}
