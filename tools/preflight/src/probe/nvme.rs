//! IDENTIFY of an NVMe controller and namespace by the kernel's admin ioctl: read-only, and only with the rights to it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::facts::NvmeIdentity;

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    data: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<AdminCommand>() == 72);

/// `_IO('N', 0x40)`: the namespace's number.
const IOCTL_ID: libc::c_ulong = 0x4e40;
/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const IOCTL_ADMIN: libc::c_ulong = 0xc048_4e41;
const IDENTIFY: u8 = 0x06;
const PAGE: usize = 4096;

/// What the namespace `name` and its controller say.
pub(super) fn identify(name: &str) -> Result<NvmeIdentity, String> {
    let path = format!("/dev/{name}");
    let words = |error: io::Error| format!("{path}: {error}");
    let file = File::open(&path).map_err(words)?;
    // SAFETY: no pointers are involved.
    let namespace = unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_ID as _) };
    if namespace <= 0 {
        return Err(words(io::Error::last_os_error()));
    }
    let controller = page(&file, 0, 1).map_err(words)?;
    let namespace = page(&file, namespace as u32, 0).map_err(words)?;
    Ok(read(&controller, &namespace))
}

/// The character device that takes commands to the namespace `name`; it is opened and closed again.
pub(super) fn open_for_commands(name: &str) -> Result<String, String> {
    let path = format!("/dev/ng{}", name.trim_start_matches("nvme"));
    File::options().read(true).write(true).open(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(path)
}

fn page(file: &File, namespace: u32, what: u32) -> io::Result<Vec<u8>> {
    let mut data = vec![0u8; PAGE];
    let mut command = AdminCommand {
        opcode: IDENTIFY,
        namespace,
        data: data.as_mut_ptr() as u64,
        data_len: PAGE as u32,
        cdw10: what,
        timeout_ms: 5_000,
        ..AdminCommand::default()
    };
    // SAFETY: the kernel reads the command and fills the page that it points to; both outlive the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_ADMIN as _, &raw mut command) } {
        0 => Ok(data),
        status if status > 0 => Err(io::Error::other(format!("NVMe status {status:#x}"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Fields of the NVMe base specification's identify structures: MN (24), ONCS (520), VWC (525); NMIC (30).
fn read(controller: &[u8], namespace: &[u8]) -> NvmeIdentity {
    NvmeIdentity {
        model: String::from_utf8_lossy(&controller[24..64]).trim().to_owned(),
        reservations: controller[520] & 0x20 != 0,
        volatile_cache: controller[525] & 1 != 0,
        shared: namespace[30] & 1 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identify_pages_are_read_where_the_specification_puts_the_fields() {
        let (mut controller, mut namespace) = (vec![0; PAGE], vec![0; PAGE]);
        controller[24..64].fill(b' ');
        controller[24..31].copy_from_slice(b"A MODEL");
        assert_eq!(read(&controller, &namespace), NvmeIdentity { model: "A MODEL".into(), ..NvmeIdentity::default() });
        (controller[520], controller[525], namespace[30]) = (0x20, 1, 1);
        let found = read(&controller, &namespace);
        assert!(found.reservations && found.volatile_cache && found.shared);
    }
}
