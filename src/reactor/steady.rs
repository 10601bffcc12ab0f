//! Buffers that are used over and over (a log's batches, the block writer's copies), in memory that is registered with the driver:
//! the kernel holds their pages for good instead of anew for each operation.
//!
//! Owned by one reactor, which keeps their memory until its driver has gone. Bounded by [`PIECES_MAX`] and [`BYTES_MAX`]; who comes
//! later gets ordinary memory.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use super::buffer::IoBuf;

/// Most buffers of one reactor.
const PIECES_MAX: usize = 16;

/// Most bytes of them together.
const BYTES_MAX: usize = 32 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct SteadyBuffers {
    /// A buffer that nobody else refers to is free.
    pieces: RefCell<Vec<Rc<IoBuf>>>,
    /// Registering has failed once: it is not tried again.
    refused: Cell<bool>,
}

impl SteadyBuffers {
    /// `len` zeroed bytes, aligned for direct I/O; `register` is asked once for each piece of memory.
    pub(super) fn take(&self, len: usize, register: impl FnOnce(&IoBuf) -> std::io::Result<()>) -> IoBuf {
        let mut pieces = self.pieces.borrow_mut();
        if let Some(free) = pieces.iter().find(|piece| piece.len() == len && Rc::strong_count(piece) == 1) {
            let mut buffer = lend(free);
            buffer.as_mut_slice().fill(0);
            return buffer;
        }
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.refused.get() || pieces.len() >= PIECES_MAX || bytes + len > BYTES_MAX {
            return IoBuf::aligned(len);
        }
        let piece = IoBuf::aligned(len);
        if register(&piece).is_err() {
            self.refused.set(true);
            return piece;
        }
        let piece = Rc::new(piece);
        pieces.push(piece.clone());
        lend(&piece)
    }
}

fn lend(piece: &Rc<IoBuf>) -> IoBuf {
    let start = NonNull::new(piece.as_ptr().cast_mut()).expect("a buffer lies somewhere");
    // SAFETY: the guard keeps the memory. A piece is lent to one at a time (nobody else refers to it), and the pool never looks at
    // the bytes of one that is lent.
    unsafe { IoBuf::from_raw(start, piece.len(), piece.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_registered_once_used_again_zeroed_and_never_lent_twice() {
        let (buffers, registered) = (SteadyBuffers::default(), Cell::new(0));
        let take = || {
            buffers.take(8192, |_| {
                registered.set(registered.get() + 1);
                Ok(())
            })
        };
        let (mut one, two) = (take(), take());
        assert_ne!(one.as_ptr(), two.as_ptr());
        one.as_mut_slice().fill(9);
        let (address, part) = (one.as_ptr(), one.slice(4096..8192));
        assert_ne!(take().as_ptr(), address, "a part of it is still in use");
        drop(part);
        let again = take();
        assert_eq!((again.as_ptr(), registered.get()), (address, 3));
        assert!(again.as_slice().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn beyond_the_bounds_and_after_a_refusal_memory_is_ordinary() {
        let buffers = SteadyBuffers::default();
        let held: Vec<IoBuf> = (0..PIECES_MAX).map(|_| buffers.take(4096, |_| Ok(()))).collect();
        assert_eq!(buffers.take(4096, |_| panic!("the table is full")).len(), 4096);
        drop(held);
        let refused = SteadyBuffers::default();
        assert_eq!(refused.take(4096, |_| Err(std::io::ErrorKind::OutOfMemory.into())).len(), 4096);
        assert_eq!(refused.take(4096, |_| panic!("asked again")).len(), 4096);
    }
}
