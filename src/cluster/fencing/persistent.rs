//! Persistent reservations of a block device: the kernel's ioctls (`linux/pr.h`), and PERSISTENT RESERVE IN by SG_IO where
//! the kernel has no ioctl to read with (before Linux 6.19).
//!
//! Every call blocks until the device has answered or the kernel has given it up; use it from the fencing thread only.
//! The registration belongs to the path (SCSI: the I_T nexus, NVMe: the host), not to the open file or the process.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `PR_WRITE_EXCLUSIVE_REG_ONLY` of linux/pr.h: only registered paths may write, everybody may read.
pub(super) const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u32 = 3;
/// The same in SCSI's numbering (SPC-4, persistent reservation type codes).
const SCSI_WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
/// Most keys that are read: several paths of each of the most nodes.
const KEYS_MAX: usize = 2_048;
/// How often a request is repeated that only delivered the news that something had changed (a unit attention).
const ATTENTIONS_MAX: usize = 8;
const SG_TIMEOUT_MS: u32 = 20_000;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PrReservation {
    pub key: u64,
    pub kind: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PrRegistration {
    pub old_key: u64,
    pub new_key: u64,
    pub flags: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PrPreempt {
    pub old_key: u64,
    pub new_key: u64,
    pub kind: u32,
    pub flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PrReadKeys {
    pub generation: u32,
    pub num_keys: u32,
    pub keys_ptr: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct PrReadReservation {
    pub key: u64,
    pub generation: u32,
    pub kind: u32,
}

const WRITE: u64 = 1;
const READ: u64 = 2;
/// `_IOC` of asm-generic/ioctl.h for type `'p'`.
const fn request<T>(direction: u64, number: u64) -> libc::c_ulong {
    direction << 30 | (size_of::<T>() as u64) << 16 | (b'p' as u64) << 8 | number
}
pub(super) const IOC_PR_REGISTER: libc::c_ulong = request::<PrRegistration>(WRITE, 200);
pub(super) const IOC_PR_RESERVE: libc::c_ulong = request::<PrReservation>(WRITE, 201);
pub(super) const IOC_PR_PREEMPT_ABORT: libc::c_ulong = request::<PrPreempt>(WRITE, 204);
pub(super) const IOC_PR_READ_KEYS: libc::c_ulong = request::<PrReadKeys>(READ | WRITE, 206);
pub(super) const IOC_PR_READ_RESERVATION: libc::c_ulong = request::<PrReadReservation>(READ, 207);
const SG_IO: libc::c_ulong = 0x2285;

/// `struct sg_io_hdr` of scsi/sg.h.
#[repr(C)]
pub(super) struct SgHeader {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

/// Why a device did not do it.
#[derive(Debug)]
pub enum DeviceError {
    /// The device says that the keys or the reservation don't allow it.
    Conflict,
    /// The kernel or the device does not know the request.
    Unsupported(String),
    /// Anything else.
    System(io::Error),
}

/// The reservation that a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The holder's key; for some types meaningless.
    pub key: u64,
    /// Whether its type is write exclusive, registrants only.
    pub registrants_only: bool,
    /// The type as the device numbers it, for messages.
    pub kind: u32,
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SCSI disk, or a multipath device over such.
    Scsi,
    /// An NVMe namespace.
    Nvme,
}

/// What the reservation method needs of a device; a model of one in tests.
pub trait ReservationDevice: Send {
    /// Opens the device, if it isn't open; changes nothing.
    ///
    /// # Errors
    /// When it is no device that could have reservations.
    fn open(&mut self) -> Result<Kind, DeviceError>;
    /// REGISTER: replaces this path's key `old` (0: there is none) by `new` (0: none).
    ///
    /// # Errors
    /// [`DeviceError::Conflict`] when the path's key is not `old`.
    fn register(&mut self, old: u64, new: u64) -> Result<(), DeviceError>;
    /// RESERVE, write exclusive, registrants only.
    ///
    /// # Errors
    /// [`DeviceError::Conflict`] when the path is not registered with `key` or somebody holds a reservation.
    fn reserve(&mut self, key: u64) -> Result<(), DeviceError>;
    /// PREEMPT AND ABORT: removes all registrations under `victim` and ends their requests; takes over their reservation.
    ///
    /// # Errors
    /// [`DeviceError::Conflict`] when the path is not registered with `own` or there is no such `victim`.
    fn preempt_abort(&mut self, own: u64, victim: u64) -> Result<(), DeviceError>;
    /// READ KEYS: one for each registered path.
    ///
    /// # Errors
    /// When the device doesn't say.
    fn keys(&mut self) -> Result<Vec<u64>, DeviceError>;
    /// READ RESERVATION.
    ///
    /// # Errors
    /// When the device doesn't say.
    fn reservation(&mut self) -> Result<Option<Reservation>, DeviceError>;
    /// Where it is.
    fn path(&self) -> &Path;
}

/// A block device of this machine.
pub struct PersistentReservations {
    path: PathBuf,
    open: Option<(File, Kind)>,
}

impl PersistentReservations {
    /// The device at `path`, not opened yet.
    #[must_use]
    pub fn new(path: &Path) -> PersistentReservations {
        PersistentReservations { path: path.to_owned(), open: None }
    }

    fn ioctl<T>(&mut self, number: libc::c_ulong, argument: &mut T) -> Result<(), DeviceError> {
        self.open()?;
        let (file, _) = self.open.as_ref().expect("just opened");
        for _ in 0..ATTENTIONS_MAX {
            // SAFETY: `argument` is the structure whose size `number` carries, and outlives the call.
            let status = unsafe { libc::ioctl(file.as_raw_fd(), number as _, std::ptr::from_mut(argument)) };
            match outcome(status, io::Error::last_os_error()) {
                Some(result) => return result,
                None => continue,
            }
        }
        Err(DeviceError::System(io::Error::other("the device answers with unit attentions only")))
    }

    /// PERSISTENT RESERVE IN with a service action; the bytes that came back.
    fn reserve_in(&mut self, action: u8) -> Result<Vec<u8>, DeviceError> {
        let (file, _) = self.open.as_ref().expect("opened by the caller");
        let mut data = vec![0u8; 8 + 8 * KEYS_MAX];
        let length = u16::try_from(data.len()).expect("a few KiB").to_be_bytes();
        let command = [0x5e, action, 0, 0, 0, 0, 0, length[0], length[1], 0];
        for _ in 0..ATTENTIONS_MAX {
            let mut sense = [0u8; 32];
            let mut header = SgHeader {
                interface_id: i32::from(b'S'),
                dxfer_direction: -3,
                cmd_len: command.len() as u8,
                mx_sb_len: sense.len() as u8,
                iovec_count: 0,
                dxfer_len: data.len() as u32,
                dxferp: data.as_mut_ptr(),
                cmdp: command.as_ptr(),
                sbp: sense.as_mut_ptr(),
                timeout: SG_TIMEOUT_MS,
                flags: 0,
                pack_id: 0,
                usr_ptr: std::ptr::null_mut(),
                status: 0,
                masked_status: 0,
                msg_status: 0,
                sb_len_wr: 0,
                host_status: 0,
                driver_status: 0,
                resid: 0,
                duration: 0,
                info: 0,
            };
            // SAFETY: the header's pointers are to `data`, `command` and `sense`, with their lengths, and all outlive the call.
            if unsafe { libc::ioctl(file.as_raw_fd(), SG_IO as _, &raw mut header) } < 0 {
                return Err(refused(io::Error::last_os_error()));
            }
            if header.status == 0 && header.host_status == 0 {
                let got = data.len().saturating_sub(usize::try_from(header.resid).unwrap_or(0));
                data.truncate(got);
                return Ok(data);
            }
            // Sense keys, fixed or descriptor format: 5 = illegal request, 6 = unit attention.
            let key = if sense[0] & 0x7f >= 0x72 { sense[1] & 0xf } else { sense[2] & 0xf };
            match (header.status, key) {
                (2, 6) => continue,
                (2, 5) => return Err(DeviceError::Unsupported("the device knows no persistent reservations".into())),
                (0x18, _) => return Err(DeviceError::Conflict),
                (status, key) => {
                    let words = format!("SCSI status {status:#x}, sense key {key:#x}, host status {:#x}", header.host_status);
                    return Err(DeviceError::System(io::Error::other(words)));
                }
            }
        }
        Err(DeviceError::System(io::Error::other("the device answers with unit attentions only")))
    }

    /// Runs the kernel's own ioctl to read; `None` when this kernel has none and SG_IO must do.
    fn read_ioctl<T>(&mut self, number: libc::c_ulong, argument: &mut T) -> Result<Option<()>, DeviceError> {
        match self.ioctl(number, argument) {
            Ok(()) => Ok(Some(())),
            Err(DeviceError::Unsupported(reason)) => match self.open()? {
                Kind::Scsi => Ok(None),
                Kind::Nvme => {
                    Err(DeviceError::Unsupported(format!("an NVMe device's keys are read from Linux 6.19 on ({reason})")))
                }
            },
            Err(error) => Err(error),
        }
    }
}

/// What an ioctl of linux/pr.h said: below 0 an error of the system, above 0 a status of the device. `None`: ask again.
fn outcome(status: libc::c_int, error: io::Error) -> Option<Result<(), DeviceError>> {
    match status {
        0 => Some(Ok(())),
        // PR_STS_IOERR; what is left of a unit attention too.
        2 => None,
        // SAM's RESERVATION CONFLICT, and NVMe's in kernels that don't translate it.
        0x18 | 0x83 | 0x4083 => Some(Err(DeviceError::Conflict)),
        status if status > 0 => Some(Err(DeviceError::System(io::Error::other(format!("the device's status {status:#x}"))))),
        _ => Some(Err(refused(error))),
    }
}

fn refused(error: io::Error) -> DeviceError {
    match error.raw_os_error() {
        Some(libc::EBADE) => DeviceError::Conflict,
        Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL) => DeviceError::Unsupported(error.to_string()),
        Some(libc::EPERM | libc::EACCES) => {
            DeviceError::Unsupported(format!("{error}: run as root or with CAP_SYS_ADMIN and CAP_SYS_RAWIO, on a whole disk"))
        }
        _ => DeviceError::System(error),
    }
}

/// SCSI or NVMe, by the device's place in sysfs; what lies under a device-mapper device decides for it.
fn kind_of(number: u64) -> Kind {
    let place = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let is_nvme = |path: &Path| std::fs::canonicalize(path).is_ok_and(|real| real.to_string_lossy().contains("/nvme"));
    let below = std::fs::read_dir(format!("{place}/slaves")).into_iter().flatten().flatten();
    let nvme = is_nvme(Path::new(&place)) || below.map(|entry| entry.path()).any(|path| is_nvme(&path));
    if nvme { Kind::Nvme } else { Kind::Scsi }
}

impl ReservationDevice for PersistentReservations {
    fn open(&mut self) -> Result<Kind, DeviceError> {
        if let Some((_, kind)) = &self.open {
            return Ok(*kind);
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.path).map_err(DeviceError::System)?;
        let metadata = file.metadata().map_err(DeviceError::System)?;
        if !metadata.file_type().is_block_device() {
            return Err(DeviceError::Unsupported("it is a plain file; reservations are a block device's".into()));
        }
        let kind = kind_of(metadata.rdev());
        self.open = Some((file, kind));
        Ok(kind)
    }

    fn register(&mut self, old: u64, new: u64) -> Result<(), DeviceError> {
        self.ioctl(IOC_PR_REGISTER, &mut PrRegistration { old_key: old, new_key: new, flags: 0, pad: 0 })
    }

    fn reserve(&mut self, key: u64) -> Result<(), DeviceError> {
        self.ioctl(IOC_PR_RESERVE, &mut PrReservation { key, kind: WRITE_EXCLUSIVE_REGISTRANTS_ONLY, flags: 0 })
    }

    fn preempt_abort(&mut self, own: u64, victim: u64) -> Result<(), DeviceError> {
        // The header's names mislead: `old_key` is the caller's own, `new_key` the one that is removed.
        let kind = WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
        self.ioctl(IOC_PR_PREEMPT_ABORT, &mut PrPreempt { old_key: own, new_key: victim, kind, flags: 0 })
    }

    fn keys(&mut self) -> Result<Vec<u64>, DeviceError> {
        let mut keys = vec![0u64; KEYS_MAX];
        let mut argument = PrReadKeys { generation: 0, num_keys: KEYS_MAX as u32, keys_ptr: keys.as_mut_ptr() as u64 };
        if self.read_ioctl(IOC_PR_READ_KEYS, &mut argument)?.is_some() {
            if argument.num_keys as usize > KEYS_MAX {
                return Err(too_many());
            }
            keys.truncate(argument.num_keys as usize);
            return Ok(keys);
        }
        parse_keys(&self.reserve_in(0)?)
    }

    fn reservation(&mut self) -> Result<Option<Reservation>, DeviceError> {
        let mut argument = PrReadReservation::default();
        if self.read_ioctl(IOC_PR_READ_RESERVATION, &mut argument)?.is_some() {
            let registrants_only = argument.kind == WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
            return Ok((argument.kind != 0).then_some(Reservation { key: argument.key, registrants_only, kind: argument.kind }));
        }
        parse_reservation(&self.reserve_in(1)?)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn too_many() -> DeviceError {
    DeviceError::System(io::Error::other(format!("more than {KEYS_MAX} keys are registered with the device")))
}

fn short() -> DeviceError {
    DeviceError::System(io::Error::other("the device's answer to PERSISTENT RESERVE IN is too short"))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Parameter data of READ KEYS (SPC-4): generation, length in bytes, keys; big-endian.
pub(super) fn parse_keys(data: &[u8]) -> Result<Vec<u64>, DeviceError> {
    let length = number(data.get(4..8).ok_or_else(short)?) as usize;
    if length > 8 * KEYS_MAX {
        return Err(too_many());
    }
    Ok(data.get(8..8 + length).ok_or_else(short)?.chunks_exact(8).map(number).collect())
}

/// Parameter data of READ RESERVATION (SPC-4): generation, length (0: none), key, 5 bytes, scope and type.
pub(super) fn parse_reservation(data: &[u8]) -> Result<Option<Reservation>, DeviceError> {
    if number(data.get(4..8).ok_or_else(short)?) == 0 {
        return Ok(None);
    }
    let kind = data.get(21).ok_or_else(short)? & 0xf;
    let registrants_only = kind == SCSI_WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
    Ok(Some(Reservation { key: number(&data[8..16]), registrants_only, kind: u32::from(kind) }))
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::Conflict => f.write_str("the device reports a reservation conflict"),
            DeviceError::Unsupported(reason) => f.write_str(reason),
            DeviceError::System(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DeviceError {}
