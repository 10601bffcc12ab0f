//! An NVMe command as the kernel takes it, and the two questions by which a namespace says who and what it is.
//!
//! Owned by nobody: plain values, and calls that block until the device has answered, 5 s at the most. Nodes ask when they
//! open a volume, `rusty-db-preflight` before there is one. Promises that nothing on the device is changed.

use std::io;
use std::os::fd::AsRawFd;

use zerocopy::{Immutable, IntoBytes};

/// `_IO('N', 0x40)`: the namespace's number.
const IOCTL_ID: u32 = 0x4e40;
/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`: an admin command.
const IOCTL_ADMIN: u32 = 0xc048_4e41;

const IDENTIFY: u8 = 0x06;
/// Bytes of what a controller or a namespace says of itself.
pub const IDENTIFY_BYTES: usize = 4096;
/// Milliseconds after which the kernel gives up on an identification.
const IDENTIFY_TIMEOUT_MS: u32 = 5_000;

/// `struct nvme_uring_cmd` of linux/nvme_ioctl.h; `struct nvme_passthru_cmd` differs in its last field's name alone.
#[derive(Default, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Command {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) reserved: u16,
    pub(super) namespace: u32,
    pub(super) dword2: u32,
    pub(super) dword3: u32,
    pub(super) metadata: u64,
    pub(super) data: u64,
    pub(super) metadata_bytes: u32,
    pub(super) data_bytes: u32,
    pub(super) dword10: u32,
    pub(super) dword11: u32,
    pub(super) dword12: u32,
    pub(super) dword13: u32,
    pub(super) dword14: u32,
    pub(super) dword15: u32,
    pub(super) timeout_ms: u32,
    pub(super) result: u32,
}

const _: () = assert!(size_of::<Command>() == 72);

/// Whom IDENTIFY is asked about: its CNS field, by the NVM Express base specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The namespace of this number.
    Namespace(u32),
    /// The controller behind the device.
    Controller,
}

/// The number of the namespace that an open device (`/dev/nvme0n1` or `/dev/ng0n1`) is.
///
/// # Errors
/// The operating system's: ENOTTY of what is no NVMe namespace.
pub fn namespace_id(device: &impl AsRawFd) -> io::Result<u32> {
    // SAFETY: no pointers are involved.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ID as _) };
    u32::try_from(id).ok().filter(|id| *id > 0).ok_or_else(io::Error::last_os_error)
}

/// The page of [`IDENTIFY_BYTES`] that a device says of itself.
///
/// # Errors
/// The operating system's (EACCES without the rights to send commands), or the device's status.
pub fn identify(device: &impl AsRawFd, whom: Whom) -> io::Result<Vec<u8>> {
    let (namespace, kind) = match whom {
        Whom::Namespace(number) => (number, 0),
        Whom::Controller => (0, 1),
    };
    let mut page = vec![0u8; IDENTIFY_BYTES];
    let mut command = Command {
        opcode: IDENTIFY,
        namespace,
        data: page.as_mut_ptr() as u64,
        data_bytes: IDENTIFY_BYTES as u32,
        dword10: kind,
        timeout_ms: IDENTIFY_TIMEOUT_MS,
        ..Command::default()
    };
    // SAFETY: the kernel reads the command and fills the page that it points to; both outlive the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ADMIN as _, &raw mut command) } {
        0 => Ok(page),
        status if status > 0 => Err(io::Error::other(format!("NVMe status {status:#x}"))),
        _ => Err(io::Error::last_os_error()),
    }
}
