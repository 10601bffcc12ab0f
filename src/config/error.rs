//! What can be wrong with a configuration, in words that say which key, which value and what to write instead.

use std::fmt;
use std::path::{Path, PathBuf};

/// A configuration that a node does not start with.
#[derive(Debug)]
pub enum ConfigError {
    /// The file can't be read.
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the message shows the line.
    Syntax {
        /// The parser's words, with the place.
        message: String,
    },
    /// A value outside its bounds.
    OutOfRange {
        /// The key with its section.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Something that has no default is not there.
    Missing {
        /// The key with its section.
        key: &'static str,
        /// What to write.
        remedy: String,
    },
    /// Any of the above, and the file it is in.
    InFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ConfigError>,
    },
}

impl ConfigError {
    pub(super) fn out_of_range(key: &'static str, value: &dyn fmt::Display, allowed: String) -> ConfigError {
        ConfigError::OutOfRange { key, value: value.to_string(), allowed }
    }

    pub(super) fn in_file(self, path: &Path) -> ConfigError {
        ConfigError::InFile { path: path.to_owned(), error: Box::new(self) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unreadable { path, error } => write!(f, "can't read the configuration {}: {error}", path.display()),
            ConfigError::Syntax { message } => write!(f, "{}", message.trim_end()),
            ConfigError::OutOfRange { key, value, allowed } => write!(f, "{key} = {value} is out of range: it must be {allowed}"),
            ConfigError::Missing { key, remedy } => write!(f, "{key} is missing: {remedy}"),
            ConfigError::InFile { path, error } => write!(f, "configuration {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ConfigError {}
