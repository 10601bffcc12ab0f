//! The machine's watchdog (`/dev/watchdog`): resets the machine when nobody gives it a sign of life in time.
//!
//! It is fed only while a [`Lease`] is held, so a machine whose node can't stop by itself is reset at the latest one
//! timeout after the lease ran out; survivors wait longer than that ([`Lease`]'s margin).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{FencingError, Held, Lease};
use crate::reactor::Instant;

/// `WDIOC_SETTIMEOUT` of linux/watchdog.h: `_IOWR('W', 6, int)`, seconds; returns what the device made of it.
pub(super) const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;

/// An armed watchdog. Dropped without [`Watchdog::disarm`] it goes on counting, as it must when a node panics.
pub struct Watchdog {
    device: File,
    path: PathBuf,
}

impl Watchdog {
    /// Arms the watchdog: from now on it wants to be fed within each `timeout` (whole seconds, rounded up).
    ///
    /// # Errors
    /// [`FencingError::System`] when there is none, somebody else feeds it, or it can't count that short a time; then it is
    /// disarmed again as far as it lets itself.
    pub fn arm(path: &Path, timeout: Duration) -> Result<Watchdog, FencingError> {
        let wrong = |doing, error| FencingError::System { doing, path: path.to_owned(), error };
        let device = OpenOptions::new().write(true).open(path).map_err(|error| wrong("open the watchdog", error))?;
        let watchdog = Watchdog { device, path: path.to_owned() };
        let wanted = libc::c_int::try_from(timeout.as_millis().div_ceil(1_000)).unwrap_or(libc::c_int::MAX);
        let mut seconds = wanted;
        // SAFETY: the kernel reads and writes one int, which outlives the call.
        let set = unsafe { libc::ioctl(watchdog.device.as_raw_fd(), WDIOC_SETTIMEOUT as _, &raw mut seconds) };
        let refusal = match set {
            set if set < 0 => Some(io::Error::last_os_error()),
            _ if seconds > wanted => Some(io::Error::other(format!("it can't count less than {seconds} s"))),
            _ => None,
        };
        if let Some(error) = refusal {
            watchdog.disarm().ok();
            return Err(wrong("set the timeout of the watchdog", error));
        }
        Ok(watchdog)
    }

    /// Feeds it if the lease is held at `now`. Says whether it did.
    ///
    /// # Errors
    /// When the device refuses; the machine will be reset.
    pub fn feed(&mut self, lease: &mut Lease, now: Instant) -> Result<bool, FencingError> {
        if !matches!(lease.held(now), Held::Until(_)) {
            return Ok(false);
        }
        let fed = self.device.write_all(b".");
        fed.map(|()| true).map_err(|error| FencingError::System { doing: "feed the watchdog", path: self.path.clone(), error })
    }

    /// Stops the watchdog. Only after this node's last write has ended.
    ///
    /// # Errors
    /// When the device refuses (some can't be stopped); the machine will be reset.
    pub fn disarm(mut self) -> Result<(), FencingError> {
        let done = self.device.write_all(b"V");
        done.map_err(|error| FencingError::System { doing: "disarm the watchdog", path: self.path.clone(), error })
    }
}
