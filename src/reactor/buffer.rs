//! Memory that an operation owns while the kernel (or the simulator) may touch it.
//!
//! An [`IoBuf`] is moved into an operation and comes back with its completion, so no safe code can free or change
//! bytes that are being read or written, also not by dropping the future. Belongs to one shard (not `Send`).
//! Bounded by whoever allocates it: this module keeps no pool.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

/// Alignment, in bytes, that direct file I/O asks of memory, file offsets and lengths.
pub const IO_ALIGNMENT: usize = 4096;

/// A buffer owned by whoever holds it: aligned heap memory, a `Vec`, or memory kept alive by a guard.
pub struct IoBuf {
    start: NonNull<u8>,
    len: usize,
    whole: (NonNull<u8>, usize),
    memory: Memory,
}

enum Memory {
    Aligned(Layout),
    Vec { capacity: usize },
    Borrowed { _keep_alive: Rc<dyn Any> },
}

impl IoBuf {
    /// `len` zeroed bytes, aligned to [`IO_ALIGNMENT`] for direct I/O.
    #[must_use]
    pub fn aligned(len: usize) -> IoBuf {
        let layout = Layout::from_size_align(len.max(1), IO_ALIGNMENT).expect("an I/O buffer is smaller than isize::MAX");
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        IoBuf { start, len, whole: (start, len), memory: Memory::Aligned(layout) }
    }

    /// The bytes of `vec` without copying them. Not aligned: for streams, not for direct file I/O.
    #[must_use]
    pub fn from_vec(vec: Vec<u8>) -> IoBuf {
        let mut vec = ManuallyDrop::new(vec);
        let start = NonNull::new(vec.as_mut_ptr()).expect("a Vec's pointer is never null");
        let len = vec.len();
        IoBuf { start, len, whole: (start, len), memory: Memory::Vec { capacity: vec.capacity() } }
    }

    /// `len` bytes at `pointer`, that live at least as long as `keep_alive` does: a frame of a cache, for example.
    ///
    /// # Safety
    /// The bytes must be initialised, readable and writable until the last clone of `keep_alive` is dropped, and nobody
    /// may hold a reference that conflicts with this buffer's use (a shared one while it is only sent or written to a
    /// file; none while it is received or read into).
    #[must_use]
    pub unsafe fn from_raw(pointer: NonNull<u8>, len: usize, keep_alive: Rc<dyn Any>) -> IoBuf {
        IoBuf { start: pointer, len, whole: (pointer, len), memory: Memory::Borrowed { _keep_alive: keep_alive } }
    }

    /// The bytes in view.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: every constructor guarantees `whole` to be initialised and live while `self` is; the view lies in it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes in view, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Bytes in view.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in view.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes of the view. Does nothing when it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Narrows the view to `range` (relative to the present view). Panics when it reaches outside.
    #[must_use]
    pub fn slice(mut self, range: Range<usize>) -> IoBuf {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of a buffer of {} bytes", self.len);
        // SAFETY: range.start <= len, so the new start is inside the allocation or one past its end.
        self.start = unsafe { self.start.add(range.start) };
        self.len = range.end - range.start;
        self
    }

    /// The whole memory again, after `slice` or `truncate`.
    #[must_use]
    pub fn whole(mut self) -> IoBuf {
        (self.start, self.len) = self.whole;
        self
    }

    /// The view of `len` bytes at `start`, which this buffer's memory had before it was sliced.
    pub(crate) fn view_at(mut self, start: *const u8, len: usize) -> IoBuf {
        let offset = start as usize - self.whole.0.as_ptr() as usize;
        assert!(offset + len <= self.whole.1, "a view outside of the buffer");
        // SAFETY: the offset was just checked to lie inside the allocation.
        self.start = unsafe { self.whole.0.add(offset) };
        self.len = len;
        self
    }

    /// Address of the first byte in view.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Address of the first byte in view, for a driver that fills it.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes in view as a `Vec`; copies unless the buffer came from one and is not sliced at the front.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        if let Memory::Vec { capacity } = self.memory
            && self.start == self.whole.0
        {
            let this = ManuallyDrop::new(self);
            // SAFETY: pointer and capacity come from the Vec that `from_vec` forgot; len <= its length; `this` is not dropped.
            return unsafe { Vec::from_raw_parts(this.start.as_ptr(), this.len, capacity) };
        }
        self.as_slice().to_vec()
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        match &self.memory {
            // SAFETY: allocated in `aligned` with this very layout, freed once.
            Memory::Aligned(layout) => unsafe { dealloc(self.whole.0.as_ptr(), *layout) },
            // SAFETY: rebuilds the Vec that `from_vec` forgot, once.
            Memory::Vec { capacity } => unsafe {
                drop(Vec::from_raw_parts(self.whole.0.as_ptr(), self.whole.1, *capacity));
            },
            Memory::Borrowed { .. } => {}
        }
    }
}

impl From<Vec<u8>> for IoBuf {
    fn from(vec: Vec<u8>) -> IoBuf {
        IoBuf::from_vec(vec)
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_narrow_and_widen_without_moving_bytes() {
        let mut buffer = IoBuf::aligned(8192);
        assert_eq!(buffer.as_ptr() as usize % IO_ALIGNMENT, 0);
        buffer.as_mut_slice()[100] = 7;
        let buffer = buffer.slice(100..200).slice(0..10);
        assert_eq!((buffer.len(), buffer.as_slice()[0]), (10, 7));
        assert_eq!(buffer.whole().len(), 8192);
    }

    #[test]
    fn a_vec_comes_back_as_itself() {
        let vec = vec![1, 2, 3];
        let address = vec.as_ptr();
        let mut buffer = IoBuf::from_vec(vec);
        buffer.truncate(2);
        let vec = buffer.into_vec();
        assert_eq!((vec.as_ptr(), vec.as_slice()), (address, &[1, 2][..]));
        assert_eq!(IoBuf::from_vec(vec).slice(1..2).into_vec(), [2]);
    }

    #[test]
    fn the_guard_of_borrowed_memory_lives_as_long_as_the_buffer() {
        let guard: Rc<Vec<std::cell::Cell<u8>>> = Rc::new(vec![std::cell::Cell::new(5); 16]);
        let pointer = NonNull::new(guard.as_ptr() as *mut u8).unwrap();
        // SAFETY: Cells are writable through a shared reference, and the guard owns them.
        let buffer = unsafe { IoBuf::from_raw(pointer, 16, guard.clone()) };
        assert_eq!(Rc::strong_count(&guard), 2);
        assert_eq!(buffer.slice(3..4).as_slice(), [5]);
        assert_eq!(Rc::strong_count(&guard), 1);
    }
}
