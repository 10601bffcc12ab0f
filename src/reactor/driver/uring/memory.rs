//! Memory that is registered with a ring: its pages are held once, not anew for each operation.
//!
//! Owned by a driver's ring, so by one shard. At most [`PIECES`] pieces; memory beyond works unregistered, a little slower.

use std::io;

use io_uring::Submitter;

/// Pieces of registered memory, and the most bytes of one (the kernel's limit).
pub(super) const PIECES: u32 = 64;
const PIECE_BYTES: usize = 1 << 30;

/// What a ring's table of registered memory holds: start and length; the place is the kernel's index.
#[derive(Default)]
pub(super) struct RegisteredMemory {
    pieces: Vec<(usize, usize)>,
    has_table: bool,
}

impl RegisteredMemory {
    /// Registers memory, in pieces of at most a gigabyte.
    ///
    /// # Errors
    /// The operating system's (mostly RLIMIT_MEMLOCK); `OutOfMemory` when the table is full. What was registered before stays.
    ///
    /// # Safety
    /// The memory must stay mapped for as long as the ring lives.
    pub(super) unsafe fn register(&mut self, ring: &Submitter<'_>, pointer: *const u8, len: usize) -> io::Result<()> {
        if !self.has_table {
            ring.register_buffers_sparse(PIECES)?;
            self.has_table = true;
        }
        let mut done = 0;
        while done < len {
            let bytes = (len - done).min(PIECE_BYTES);
            let index = self.pieces.len() as u32;
            if index >= PIECES {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the ring's table of registered memory is full"));
            }
            let start = pointer as usize + done;
            let piece = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: bytes };
            // SAFETY: the caller promises that the memory stays mapped for as long as the ring lives.
            unsafe { ring.register_buffers_update(index, &[piece], None)? };
            self.pieces.push((start, bytes));
            done += bytes;
        }
        Ok(())
    }

    /// The kernel's index of the registered memory that these bytes lie in.
    pub(super) fn find(&self, start: *const u8, len: usize) -> Option<u16> {
        let start = start as usize;
        let within = |(from, bytes): &(usize, usize)| *from <= start && start + len <= from + bytes;
        self.pieces.iter().position(within).map(|index| index as u16)
    }

    /// What is registered: start and length.
    pub(super) fn pieces(&self) -> &[(usize, usize)] {
        &self.pieces
    }
}
