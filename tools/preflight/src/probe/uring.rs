//! What io_uring can do here: rings are made and dropped, nothing is submitted.

use io_uring::{IoUring, Probe, opcode};

use crate::facts::Uring;

/// Bytes of memory that are registered to see whether it works: more than a ring needs, less than any sensible limit.
const REGISTERED_BYTES: usize = 2 << 20;
const ENTRIES: u32 = 64;

/// Operations that the engine's driver submits.
const NEEDED: [(&str, u8); 10] = [
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("SEND", opcode::Send::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECV", opcode::Recv::CODE),
];

/// Tries it; the error number when no ring can be made at all.
pub(super) fn probe() -> Result<Uring, i32> {
    let number = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let ring = IoUring::new(ENTRIES).map_err(number)?;
    let with = |flags: fn(&mut io_uring::Builder)| {
        let mut builder = IoUring::builder();
        flags(&mut builder);
        builder.build(ENTRIES).is_ok()
    };
    let mut known = Probe::new();
    let probed = ring.submitter().register_probe(&mut known).is_ok();
    let knows = |code| probed && known.is_supported(code);
    let parameters = ring.params();
    let registered_files = ring.submitter().register_files_sparse(ENTRIES).err().map(number);
    Ok(Uring {
        single_issuer: with(|flags| _ = flags.setup_single_issuer()),
        defer_taskrun: with(|flags| _ = flags.setup_single_issuer().setup_defer_taskrun()),
        coop_taskrun: with(|flags| _ = flags.setup_coop_taskrun()),
        iopoll: with(|flags| _ = flags.setup_iopoll()),
        needed_features: parameters.is_feature_ext_arg() && parameters.is_feature_nodrop(),
        skip_success: parameters.is_feature_skip_cqe_on_success(),
        missing: NEEDED.iter().filter(|(_, code)| !knows(*code)).map(|(name, _)| *name).collect(),
        msg_ring: knows(opcode::MsgRingData::CODE),
        send_zc: knows(opcode::SendZc::CODE),
        uring_cmd: knows(opcode::UringCmd16::CODE),
        registered_files,
        registered_buffers: register_memory(&ring).map(number),
    })
}

fn register_memory(ring: &IoUring) -> Option<std::io::Error> {
    let mut memory = vec![0u8; REGISTERED_BYTES];
    let part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory outlives its registration, which ends below (or with the ring, if that should fail).
    let registered = unsafe { ring.submitter().register_buffers(&[part]) };
    if registered.is_ok() && ring.submitter().unregister_buffers().is_err() {
        // The kernel may still know of it.
        std::mem::forget(memory);
    }
    registered.err()
}
