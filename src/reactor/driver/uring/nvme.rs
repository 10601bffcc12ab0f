//! Reads, writes and flushes of an NVMe namespace as the device's own commands, without the kernel's block layer.
//!
//! The kernel shows a namespace twice: as a block device (`/dev/nvme0n1`) and as a character device (`/dev/ng0n1`) that takes
//! commands by io_uring (`IORING_OP_URING_CMD`, from Linux 5.19 on). [`Namespace::find`] proves that both are the same before
//! anything goes this way. Opcodes, fields and status codes are those of the NVM Express base and NVM command set
//! specifications; which error each status becomes is as the kernel's block layer has it, so that whoever sees the error can't
//! tell by which way it came.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use zerocopy::IntoBytes;

use super::super::system;
use crate::reactor::nvme::{Command, Whom, identify, namespace_id};

/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`: a command for the data, by io_uring.
pub(super) const URING_COMMAND: u32 = 0xc048_4e80;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
/// Forced unit access, in dword 12: on stable media before the command completes.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;

/// A command in the place that it has in a submission of 128 bytes.
pub(super) type CommandBytes = [u8; 80];

fn bytes_of(command: &Command) -> CommandBytes {
    let mut bytes = [0; 80];
    bytes[..size_of::<Command>()].copy_from_slice(command.as_bytes());
    bytes
}

/// A namespace that takes commands.
pub(super) struct Namespace {
    device: OwnedFd,
    path: PathBuf,
    id: u32,
    /// A logical block is two to the power of this many bytes.
    block_shift: u32,
    bytes: u64,
    /// Most bytes of one command.
    transfer_bytes_max: u32,
}

impl Namespace {
    /// The namespace behind an open block device.
    ///
    /// # Errors
    /// Why there is none that could be used, for an operator.
    pub(super) fn find(block: RawFd) -> Result<Namespace, String> {
        let (name, folder) = block_device(block)?;
        let numbers = name.strip_prefix("nvme").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let Some(numbers) = numbers else { return Err(format!("{name} is not an NVMe namespace")) };
        if folder.join("partition").exists() {
            return Err(format!("{name} is a partition: only a whole namespace takes commands"));
        }
        let path = PathBuf::from(format!("/dev/ng{numbers}"));
        let device = open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no {}: it takes Linux 5.13 or newer, and udev or devtmpfs", path.display())
            }
            io::ErrorKind::PermissionDenied => {
                format!("{} may not be opened: let the server's user read and write it, by a rule of udev's", path.display())
            }
            _ => format!("{} can't be opened: {error}", path.display()),
        })?;
        let id = namespace_id(&device).map_err(|error| format!("{} tells no number: {error}", path.display()))?;
        let other = namespace_id(&block).map_err(|error| format!("{name} tells no number: {error}"))?;
        if id != other {
            return Err(format!("{} is namespace {id} and {name} is namespace {other}", path.display()));
        }
        let page =
            identify(&device, Whom::Namespace(id)).map_err(|why| format!("{} can't be identified: {why}", path.display()))?;
        let (block_shift, blocks) = layout(&page).map_err(|why| format!("{} {why}", path.display()))?;
        let bytes = system::file_bytes(block).map_err(|error| format!("{name} does not tell its size: {error}"))?;
        if blocks.checked_mul(1 << block_shift) != Some(bytes) {
            return Err(format!(
                "{} has {blocks} blocks of {} bytes and {name} has {bytes} bytes",
                path.display(),
                1u64 << block_shift
            ));
        }
        let number = |limit: &str| fs::read_to_string(folder.join("queue").join(limit)).ok()?.trim().parse::<u64>().ok();
        let (Some(kilobytes), Some(segments)) = (number("max_hw_sectors_kb"), number("max_segments")) else {
            return Err(format!("{name} does not say how much a command may move"));
        };
        let transfer_bytes_max = transfer_bytes_max(kilobytes, segments, block_shift);
        Ok(Namespace { device, path, id, block_shift, bytes, transfer_bytes_max })
    }

    /// The character device.
    pub(super) fn device(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a transfer between this place and this memory can be told by commands at all.
    pub(super) fn fits(&self, offset: u64, pointer: *const u8, len: usize) -> bool {
        let mask = (1u64 << self.block_shift) - 1;
        len > 0 && offset & mask == 0 && len as u64 & mask == 0 && (pointer as usize).is_multiple_of(4)
    }

    /// Bytes of the next command for a transfer of `len` from `offset` on: what a command may move and the device has.
    /// 0 at the end of the device.
    pub(super) fn part(&self, offset: u64, len: usize) -> u32 {
        let left = self.bytes.saturating_sub(offset).min(len as u64);
        left.min(u64::from(self.transfer_bytes_max)) as u32
    }

    /// Reads `bytes` at `offset`.
    pub(super) fn read(&self, offset: u64, pointer: *mut u8, bytes: u32) -> CommandBytes {
        self.transfer(READ, offset, pointer, bytes, 0)
    }

    /// Writes `bytes` at `offset`, to stable media if `durable`.
    pub(super) fn write(&self, offset: u64, pointer: *const u8, bytes: u32, durable: bool) -> CommandBytes {
        self.transfer(WRITE, offset, pointer, bytes, if durable { FORCE_UNIT_ACCESS } else { 0 })
    }

    /// What has been written before is on stable media when this completes.
    pub(super) fn flush(&self) -> CommandBytes {
        bytes_of(&Command { opcode: FLUSH, namespace: self.id, ..Command::default() })
    }

    fn transfer(&self, opcode: u8, offset: u64, pointer: *const u8, bytes: u32, flags: u32) -> CommandBytes {
        let (first, blocks) = (offset >> self.block_shift, bytes >> self.block_shift);
        assert!((1..=0x1_0000).contains(&blocks), "an NVMe command moves 1 to 65,536 blocks, not {blocks}");
        assert!(offset + u64::from(bytes) <= self.bytes, "an NVMe command beyond the end of the namespace");
        let command = Command {
            opcode,
            namespace: self.id,
            data: pointer as u64,
            data_bytes: bytes,
            dword10: first as u32,
            dword11: (first >> 32) as u32,
            // Counted from zero.
            dword12: (blocks - 1) | flags,
            ..Command::default()
        };
        bytes_of(&command)
    }
}

/// How a command has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Done,
    /// It may succeed when it is sent again.
    Again,
    /// The number of the operating system's error.
    Failed(i32),
}

/// What the result of a command's completion means: 0, a status of the device, or a negative error number.
pub(super) fn outcome(result: i32) -> Outcome {
    /// Do not retry: sending it again is pointless.
    const FINAL: i32 = 0x4000;
    /// Its kind (3 bits) and its code (8 bits).
    const CODE: i32 = 0x7ff;
    if result == 0 {
        return Outcome::Done;
    }
    if result < 0 {
        // A command is cancelled when its controller is reset, for example.
        let passing = matches!(-result, libc::EINTR | libc::EAGAIN);
        return if passing { Outcome::Again } else { Outcome::Failed(-result) };
    }
    Outcome::Failed(match result & CODE {
        // A reservation of another's.
        0x83 => libc::EBADE,
        0x81 => libc::ENOSPC,
        // The opcode, a field, the namespace, attributes: not what this device does.
        0x01 | 0x02 | 0x0b | 0x180 => libc::EOPNOTSUPP,
        // Beyond the end.
        0x80 => libc::EREMOTEIO,
        // The medium: write fault, unrecovered read, compare, access denied, deallocated block; write protected.
        0x280 | 0x281 | 0x285 | 0x286 | 0x287 | 0x182 => libc::ENODATA,
        // Protection information.
        0x181 | 0x282 | 0x283 | 0x284 => libc::EILSEQ,
        _ if result & FINAL == 0 => return Outcome::Again,
        // The path to the device.
        0x370 => libc::ENOLINK,
        _ => libc::EIO,
    })
}

/// What is behind an open block device: its name in the kernel, and its folder in /sys.
fn block_device(fd: RawFd) -> Result<(String, PathBuf), String> {
    // SAFETY: stat is plain data, all zeros is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is live and the kernel's.
    if unsafe { libc::fstat(fd, &mut stat) } < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    if stat.st_mode & libc::S_IFMT != libc::S_IFBLK {
        return Err("it is a file, not a block device".into());
    }
    let link = format!("/sys/dev/block/{}:{}", libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
    let folder = fs::canonicalize(&link).map_err(|error| format!("{link}: {error}"))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, folder))
}

/// Whether operations on an open block device can be polled for.
///
/// # Errors
/// Why not, for an operator.
pub(super) fn can_poll(fd: RawFd) -> Result<(), String> {
    let (name, folder) = block_device(fd)?;
    // Of a partition it is the disk that has the queue.
    let queue = [folder.join("queue"), folder.join("../queue")].into_iter().find(|queue| queue.exists());
    let polls = queue.and_then(|queue| fs::read_to_string(queue.join("io_poll")).ok());
    if polls.is_some_and(|polls| polls.trim() == "1") {
        return Ok(());
    }
    let remedy = if name.starts_with("nvme") { ": load the module nvme with poll_queues=N" } else { "" };
    Err(format!("{name} has no queues for polling{remedy}"))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bits in a byte count of a logical block, and how many blocks there are: NSZE (byte 0), FLBAS (26), DPS (29) and the table of
/// formats (128).
fn layout(page: &[u8]) -> Result<(u32, u64), String> {
    let blocks = u64::from_le_bytes(page[..8].try_into().expect("eight bytes"));
    let format = usize::from(page[26] & 0x0f | (page[26] >> 1) & 0x30);
    let entry = &page[128 + 4 * format..][..4];
    let metadata_bytes = u16::from_le_bytes([entry[0], entry[1]]);
    let block_shift = u32::from(entry[2]);
    if metadata_bytes != 0 || page[29] & 7 != 0 {
        return Err(format!("is formatted with {metadata_bytes} bytes of metadata a block: only formats without are used"));
    }
    if !(9..=12).contains(&block_shift) {
        return Err(format!("has blocks of 2^{block_shift} bytes: 512 to 4,096 bytes are used"));
    }
    Ok((block_shift, blocks))
}

/// Most bytes of one command: by the device's and the driver's limits. Segments are taken for single pages; 65,536 blocks are
/// what a command can tell.
fn transfer_bytes_max(kilobytes: u64, segments: u64, block_shift: u32) -> u32 {
    /// So that a part of a transfer begins at a multiple of what direct I/O asks for.
    const PAGE: u64 = 4096;
    let most = (kilobytes << 10).min(segments.saturating_mul(PAGE)).min(0x1_0000 << block_shift).min(1 << 30);
    (most / PAGE * PAGE).max(PAGE) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::nvme::IDENTIFY_BYTES;

    fn namespace() -> Namespace {
        let device = fs::File::open("/dev/null").expect("it is everywhere").into();
        Namespace { device, path: "/dev/ng0n1".into(), id: 7, block_shift: 9, bytes: 1 << 43, transfer_bytes_max: 128 << 10 }
    }

    fn dword(bytes: &CommandBytes, place: usize) -> u32 {
        u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap())
    }

    /// Places as in linux/nvme_ioctl.h.
    #[test]
    fn commands_have_their_fields_where_the_kernel_looks() {
        let memory = 0x1234_5678_9000 as *const u8;
        let write = namespace().write((1 << 33) * 512, memory, 8192, true);
        assert_eq!((write[0], dword(&write, 4)), (WRITE, 7));
        assert_eq!(u64::from_le_bytes(write[24..32].try_into().unwrap()), memory as u64);
        assert_eq!(dword(&write, 36), 8192);
        assert_eq!((dword(&write, 40), dword(&write, 44)), (0, 2), "the first block, low and high");
        assert_eq!(dword(&write, 48), 15 | 1 << 30, "16 blocks, forced unit access");
        let read = namespace().read(512, memory.cast_mut(), 512);
        assert_eq!((read[0], dword(&read, 40), dword(&read, 48)), (READ, 1, 0));
        assert_eq!((namespace().flush()[0], dword(&namespace().flush(), 4)), (FLUSH, 7));
    }

    #[test]
    fn transfers_are_cut_to_what_a_command_and_the_device_bear() {
        let namespace = namespace();
        assert_eq!(namespace.part(0, 1 << 20), 128 << 10);
        assert_eq!(namespace.part((1 << 43) - 4096, 8192), 4096);
        assert_eq!(namespace.part(1 << 43, 4096), 0);
        assert!(namespace.fits(512, 4096 as *const u8, 1024));
        assert!(!namespace.fits(100, 4096 as *const u8, 1024) && !namespace.fits(512, 4096 as *const u8, 1000));
        assert!(!namespace.fits(512, 4097 as *const u8, 1024) && !namespace.fits(512, 4096 as *const u8, 0));
        assert_eq!(transfer_bytes_max(512, 127, 9), 127 * 4096);
        assert_eq!(transfer_bytes_max(128, 127, 12), 128 << 10);
        assert_eq!(transfer_bytes_max(1 << 40, 1 << 40, 9), 0x1_0000 << 9);
    }

    /// The words of an operator depend on it: EBADE is "fenced".
    #[test]
    fn what_a_device_says_becomes_the_error_that_the_block_layer_would_give() {
        use Outcome::*;
        const FINAL: i32 = 0x4000;
        assert_eq!(outcome(0), Done);
        assert_eq!(outcome(0x83 | FINAL), Failed(libc::EBADE));
        assert_eq!(outcome(0x83), Failed(libc::EBADE), "no use in asking a fence again");
        assert_eq!(outcome(0x81 | FINAL), Failed(libc::ENOSPC));
        assert_eq!(outcome(0x281 | FINAL), Failed(libc::ENODATA));
        assert_eq!(outcome(0x06 | FINAL), Failed(libc::EIO));
        assert_eq!(outcome(0x06), Again, "an internal error that may pass");
        assert_eq!((outcome(-libc::EINTR), outcome(-libc::ENODEV)), (Again, Failed(libc::ENODEV)));
    }

    #[test]
    fn an_identify_page_is_read_where_the_specification_puts_the_fields() {
        let mut page = vec![0u8; IDENTIFY_BYTES];
        page[..8].copy_from_slice(&1000u64.to_le_bytes());
        page[26] = 0x01;
        page[128 + 4 + 2] = 12;
        assert_eq!(layout(&page), Ok((12, 1000)));
        page[26] = 0x21; // the seventeenth format
        page[128 + 4 * 17 + 2] = 9;
        assert_eq!(layout(&page), Ok((9, 1000)));
        page[128 + 4 * 17] = 8;
        assert!(layout(&page).unwrap_err().contains("metadata"));
    }
}
