//! What an NVMe controller and namespace say of themselves: read-only, and only with the rights to it.

use std::fs::File;
use std::io;

use rustydb::reactor::nvme::{self, Whom};

use crate::facts::NvmeIdentity;

/// What the namespace `name` and its controller say.
pub(super) fn identify(name: &str) -> Result<NvmeIdentity, String> {
    let path = format!("/dev/{name}");
    ask(&path).map_err(|error| format!("{path}: {error}"))
}

/// The character device that takes commands to the namespace `name`; it is opened and closed again.
pub(super) fn open_for_commands(name: &str) -> Result<String, String> {
    let path = format!("/dev/ng{}", name.trim_start_matches("nvme"));
    File::options().read(true).write(true).open(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(path)
}

fn ask(path: &str) -> io::Result<NvmeIdentity> {
    let device = File::open(path)?;
    let number = nvme::namespace_id(&device)?;
    let controller = nvme::identify(&device, Whom::Controller)?;
    Ok(read(&controller, &nvme::identify(&device, Whom::Namespace(number))?))
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
    use rustydb::reactor::nvme::IDENTIFY_BYTES;

    use super::*;

    #[test]
    fn identify_pages_are_read_where_the_specification_puts_the_fields() {
        let (mut controller, mut namespace) = (vec![0; IDENTIFY_BYTES], vec![0; IDENTIFY_BYTES]);
        controller[24..64].fill(b' ');
        controller[24..31].copy_from_slice(b"A MODEL");
        assert_eq!(read(&controller, &namespace), NvmeIdentity { model: "A MODEL".into(), ..NvmeIdentity::default() });
        (controller[520], controller[525], namespace[30]) = (0x20, 1, 1);
        let found = read(&controller, &namespace);
        assert!(found.reservations && found.volatile_cache && found.shared);
    }
}
