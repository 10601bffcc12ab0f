//! Looks at the volume: what its path names, what its superblock says; and, where that is allowed, times durable writes.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustydb::reactor::IoBuf;
use rustydb::volume::sector::{SECTOR_HEADER, SectorFault, SectorKind, verify_sector};
use rustydb::volume::superblock::superblock_pair;
use rustydb::volume::{SECTOR, Superblock};

use crate::facts::{DurableWrites, VolumeFacts, VolumeFormat, VolumeKind};

/// Writes of each kind, and the file that takes them.
const WRITES: usize = 100;
const WRITTEN_BYTES: u64 = WRITES as u64 * SECTOR as u64;

/// File systems by their magic number (linux/magic.h), and whether several machines can mount one at once.
const FILE_SYSTEMS: [(i64, &str, bool); 10] = [
    (0xef53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (0x9123_683e, "btrfs", false),
    (0x0102_1994, "tmpfs", false),
    (0x794c_7630, "overlayfs", false),
    (0x2fc1_2fc1, "zfs", false),
    (0x6969, "nfs", true),
    (0x0116_1970, "gfs2", true),
    (0x7461_636f, "ocfs2", true),
    (0x00c3_6400, "ceph", true),
];

/// Reads what there is; writes nothing.
pub(super) fn look(path: &Path) -> VolumeFacts {
    let mut facts = VolumeFacts { path: path.to_owned(), ..VolumeFacts::default() };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                facts.access = Some(error.to_string());
            }
            // What would hold it.
            let folder = path.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned);
            let folder = folder.unwrap_or_else(|| PathBuf::from("."));
            facts.device = fs::metadata(&folder).ok().map(|metadata| numbers(metadata.dev()));
            fill_file_system(&mut facts, &folder);
            return facts;
        }
    };
    let kind = metadata.file_type();
    facts.kind = match () {
        () if kind.is_block_device() => VolumeKind::Device,
        () if kind.is_file() => VolumeKind::File,
        () => VolumeKind::Other,
    };
    facts.device = match facts.kind {
        VolumeKind::Device => Some(numbers(metadata.rdev())),
        _ => Some(numbers(metadata.dev())),
    };
    if facts.kind == VolumeKind::File {
        fill_file_system(&mut facts, path);
    }
    facts.access = access(path, libc::R_OK | libc::W_OK).err().map(|error| error.to_string());
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
    let file = direct.or_else(|error| {
        let file = File::open(path)?;
        facts.direct = Some(error.to_string());
        Ok::<_, io::Error>(file)
    });
    if let Err(error) = &file {
        facts.access.get_or_insert_with(|| error.to_string());
    }
    if let Ok(file) = file {
        facts.bytes = length(&file).unwrap_or(metadata.len());
        facts.format = format(&file);
    }
    facts
}

fn numbers(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}

/// Whether this process may, without opening: opening a device for writing makes udev look at it anew.
pub(super) fn access(path: &Path, what: libc::c_int) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the name is a C string that outlives the call.
    let code = unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), what, libc::AT_EACCESS) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn length(file: &File) -> io::Result<u64> {
    // SAFETY: no pointers; nobody else uses the file's position.
    let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

fn fill_file_system(facts: &mut VolumeFacts, path: &Path) {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return };
    // SAFETY: all bits zero are a valid structure of numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string, and the call fills the structure that it is given.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut found) } != 0 {
        return;
    }
    let magic = found.f_type as i64 & 0xffff_ffff;
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    facts.file_system = known.map_or_else(|| format!("an unknown file system ({magic:#x})"), |(_, name, _)| (*name).to_owned());
    facts.file_system_shared = known.is_some_and(|(.., shared)| *shared);
    facts.free_bytes = found.f_bavail.saturating_mul(found.f_bsize as u64);
}

/// What the superblock says: the first valid of its two copies.
fn format(file: &File) -> VolumeFormat {
    let mut faults = Vec::new();
    for offset in superblock_pair().offsets {
        let mut sector = IoBuf::aligned(SECTOR);
        let read = match file.read_at(sector.as_mut_slice(), offset) {
            Ok(read) => read,
            Err(error) => return VolumeFormat::Unusable(format!("its superblock can't be read: {error}")),
        };
        match verify_sector(&sector.as_slice()[..read], offset, SectorKind::Superblock, None) {
            Ok(_) => {
                return match Superblock::decode(&sector.as_slice()[SECTOR_HEADER..]) {
                    Ok(superblock) => VolumeFormat::Volume {
                        cluster_name: superblock.cluster_name,
                        nodes_max: superblock.geometry.nodes_max,
                        shards: superblock.geometry.shards,
                        bytes: superblock.geometry.volume_bytes(),
                    },
                    Err(words) => VolumeFormat::Unusable(words),
                };
            }
            Err(fault) => faults.push(fault),
        }
    }
    let foreign = |fault: &SectorFault| matches!(fault, SectorFault::Blank | SectorFault::NotOurs | SectorFault::CutOff);
    let words = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; its copy: ");
    if faults.iter().all(foreign) { VolumeFormat::Unformatted(words) } else { VolumeFormat::Unusable(words) }
}

/// A file beside the volume's, removed whatever happens.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made; and there is nobody to tell.
        fs::remove_file(&self.0).ok();
    }
}

/// Times durable writes to a temporary file in the volume's folder.
pub(super) fn durable_writes(volume: &Path) -> Result<DurableWrites, String> {
    let folder = volume.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = Scratch(folder.join(format!(".rusty-db-preflight-{}", std::process::id())));
    time_writes(&scratch.0).map_err(|error| format!("{}: {error}", scratch.0.display()))
}

fn time_writes(path: &Path) -> io::Result<DurableWrites> {
    let open = |flags| File::options().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    let file = open(libc::O_DIRECT).or_else(|_| open(0))?;
    let buffer = IoBuf::aligned(SECTOR);
    for offset in (0..WRITTEN_BYTES).step_by(SECTOR) {
        file.write_all_at(buffer.as_slice(), offset)?;
    }
    file.sync_all()?;
    let (mut dsync, mut sync) = (Vec::new(), Vec::new());
    for offset in (0..WRITTEN_BYTES).step_by(SECTOR) {
        let began = Instant::now();
        write_dsync(&file, buffer.as_slice(), offset)?;
        dsync.push(began.elapsed().as_micros() as u64);
        let began = Instant::now();
        file.write_all_at(buffer.as_slice(), offset)?;
        file.sync_data()?;
        sync.push(began.elapsed().as_micros() as u64);
    }
    dsync.sort_unstable();
    sync.sort_unstable();
    Ok(DurableWrites { dsync_p50_us: dsync[WRITES / 2], dsync_max_us: dsync[WRITES - 1], sync_p50_us: sync[WRITES / 2] })
}

fn write_dsync(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the descriptor is open, and the one part lies in `bytes`, which nobody changes during the call.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset as i64, libc::RWF_DSYNC) };
    match usize::try_from(written) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(written) => Err(io::Error::other(format!("the device took {written} of {} bytes", bytes.len()))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
