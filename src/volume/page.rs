//! The slotted page: key-value cells in the body of one block, in the order that the user keeps them in.
//!
//! A view over the bytes of a block, without state of its own: whoever holds the block's guard owns it. Bounded by the
//! block. Everything here is a function of the block's bytes and the arguments alone, so that a change replayed from the
//! redo gives the bytes that it gave when it was made: where a cell lands, and when the page is compacted, included.
//!
//! Behind the block's header come the page's own fields, the user header (its length is chosen when the page is
//! formatted), the slots growing upwards and the cells growing downwards from the end. The gap between them is always
//! zero. `docs/formats.md` draws it.

use std::cmp::Ordering;
use std::fmt;

use super::block::BLOCK_HEADER;
use crate::ids::BLOCK_SIZE;

/// Bytes of the page's own fields, behind the block's header.
pub const PAGE_FIELDS: usize = 8;

/// Where the user header begins, counted from the start of the block.
pub const USER_HEADER: usize = BLOCK_HEADER + PAGE_FIELDS;

/// Bytes that a cell takes beyond its key and value, its slot not included.
pub const CELL_HEADER: usize = 4;

/// Bytes of a slot.
pub const SLOT: usize = 2;

/// Longest user header: a page that holds no cell may give its whole body to it.
pub const USER_HEADER_MAX: usize = BLOCK_SIZE - USER_HEADER;

const COUNT: usize = BLOCK_HEADER;
const HEAP: usize = BLOCK_HEADER + 2;
const DEAD: usize = BLOCK_HEADER + 4;
const USER_LEN: usize = BLOCK_HEADER + 6;

/// Bytes that a cell with this key and value takes in a page, its slot included.
#[must_use]
pub const fn cell_bytes(key_len: usize, value_len: usize) -> usize {
    SLOT + CELL_HEADER + key_len + value_len
}

/// Bytes that the cells of a page with this user header may take together.
#[must_use]
pub const fn page_capacity(user_header_len: usize) -> usize {
    BLOCK_SIZE - USER_HEADER - user_header_len
}

/// Why a page refused an edit, or what is wrong with its structure. On the forward path each is a bug of the caller;
/// in recovery it means that the redo and the block don't belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFault {
    /// There is no such slot.
    NoSlot {
        /// The slot asked for.
        slot: u16,
        /// How many there are.
        count: u16,
    },
    /// The cell does not fit.
    Full {
        /// Bytes it would take.
        need: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// The user header is longer than the body.
    UserHeaderTooLong {
        /// Bytes asked for.
        len: usize,
    },
    /// The edit lies outside what it may touch.
    OutOfRange {
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
    },
    /// The page's own fields, slots or cells contradict each other.
    Structure(&'static str),
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageFault::NoSlot { slot, count } => write!(f, "slot {slot} of a page with {count} slots"),
            PageFault::Full { need, free } => write!(f, "a cell of {need} bytes for a page with {free} bytes free"),
            PageFault::UserHeaderTooLong { len } => write!(f, "a user header of {len} bytes, longer than the page's body"),
            PageFault::OutOfRange { offset, len } => {
                write!(f, "an edit of {len} bytes at offset {offset}, outside the page's user bytes")
            }
            PageFault::Structure(what) => write!(f, "the page contradicts itself: {what}"),
        }
    }
}

impl std::error::Error for PageFault {}

/// A page to read from.
#[derive(Clone, Copy)]
pub struct Page<'a>(&'a [u8; BLOCK_SIZE]);

/// A page to edit.
pub struct PageMut<'a>(&'a mut [u8; BLOCK_SIZE]);

#[inline]
fn get(block: &[u8; BLOCK_SIZE], at: usize) -> usize {
    usize::from(u16::from_le_bytes([block[at], block[at + 1]]))
}

fn put(block: &mut [u8; BLOCK_SIZE], at: usize, value: usize) {
    let value = u16::try_from(value).expect("offsets and lengths in a block fit 16 bits");
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

impl<'a> Page<'a> {
    /// Looks at a block as a page. The block must have been formatted as one; blocks from the disk have passed their
    /// checksum, and recovery calls [`Page::check`] before it edits.
    ///
    /// # Panics
    /// When `block` is not exactly one block long.
    #[must_use]
    #[inline]
    pub fn new(block: &'a [u8]) -> Page<'a> {
        Page(block.try_into().expect("a page is one whole block"))
    }

    /// How many cells there are.
    #[must_use]
    #[inline]
    pub fn count(self) -> u16 {
        get(self.0, COUNT) as u16
    }

    /// The user header.
    #[must_use]
    #[inline]
    pub fn user_header(self) -> &'a [u8] {
        &self.0[USER_HEADER..USER_HEADER + get(self.0, USER_LEN)]
    }

    #[inline]
    fn slots_start(self) -> usize {
        USER_HEADER + get(self.0, USER_LEN)
    }

    fn slots_end(self) -> usize {
        self.slots_start() + SLOT * get(self.0, COUNT)
    }

    #[inline]
    fn cell_offset(self, slot: u16) -> usize {
        assert!(slot < self.count(), "slot {slot} of a page with {} slots", self.count());
        get(self.0, self.slots_start() + SLOT * usize::from(slot))
    }

    fn cell_len(self, offset: usize) -> usize {
        CELL_HEADER + get(self.0, offset) + get(self.0, offset + 2)
    }

    /// The key of a cell.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    #[inline]
    pub fn key(self, slot: u16) -> &'a [u8] {
        self.key_at(self.cell_offset(slot))
    }

    #[inline]
    fn key_at(self, offset: usize) -> &'a [u8] {
        let start = offset + CELL_HEADER;
        &self.0[start..start + get(self.0, offset)]
    }

    /// The value of a cell.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    #[inline]
    pub fn value(self, slot: u16) -> &'a [u8] {
        let range = self.value_range(slot);
        &self.0[range]
    }

    /// Where in the block the value of a cell lies now: for edits in place (see `Change::Patch`).
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    #[inline]
    pub fn value_range(self, slot: u16) -> std::ops::Range<usize> {
        let offset = self.cell_offset(slot);
        let start = offset + CELL_HEADER + get(self.0, offset);
        start..start + get(self.0, offset + 2)
    }

    /// Key and value of a cell.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    pub fn cell(self, slot: u16) -> (&'a [u8], &'a [u8]) {
        (self.key(slot), self.value(slot))
    }

    /// Bytes that this cell takes, its slot included.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    pub fn cell_size(self, slot: u16) -> usize {
        SLOT + self.cell_len(self.cell_offset(slot))
    }

    /// Bytes that are free for slots and cells, counting what a compaction would gain.
    #[must_use]
    pub fn free_bytes(self) -> usize {
        self.gap() + get(self.0, DEAD)
    }

    fn gap(self) -> usize {
        get(self.0, HEAP) - self.slots_end()
    }

    /// Whether a new cell with this key and value fits.
    #[must_use]
    pub fn fits(self, key_len: usize, value_len: usize) -> bool {
        cell_bytes(key_len, value_len) <= self.free_bytes()
    }

    /// Whether the cell at `slot` may be replaced by one with this key and value.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    pub fn fits_instead(self, slot: u16, key_len: usize, value_len: usize) -> bool {
        cell_bytes(key_len, value_len) <= self.free_bytes() + self.cell_size(slot)
    }

    /// Finds `key` among the slots from `first` on, which are sorted by key: `Ok` is the slot that holds it, `Err` the
    /// slot that it would take.
    #[inline]
    pub fn find(self, first: u16, key: &[u8]) -> Result<u16, u16> {
        self.find_between(usize::from(first), get(self.0, COUNT), key)
    }

    /// As [`Page::find`], beginning at the slot `guess` and going away from it in growing steps: the nearer the guess, the
    /// fewer cells are looked at.
    #[inline]
    pub fn find_near(self, first: u16, guess: u16, key: &[u8]) -> Result<u16, u16> {
        let (first, end, guess) = (usize::from(first), get(self.0, COUNT), usize::from(guess));
        assert!((first..end).contains(&guess), "a guess of slot {guess} among {first}..{end}");
        let mut step = 1;
        match self.compare(guess, key) {
            Ordering::Equal => Ok(guess as u16),
            Ordering::Less => {
                let mut low = guess + 1;
                while low + step < end {
                    match self.compare(low + step - 1, key) {
                        Ordering::Equal => return Ok((low + step - 1) as u16),
                        Ordering::Less => low += step,
                        Ordering::Greater => return self.find_between(low, low + step - 1, key),
                    }
                    step *= 2;
                }
                self.find_between(low, end, key)
            }
            Ordering::Greater => {
                let mut high = guess;
                while high > first + step {
                    match self.compare(high - step, key) {
                        Ordering::Equal => return Ok((high - step) as u16),
                        Ordering::Greater => high -= step,
                        Ordering::Less => return self.find_between(high - step + 1, high, key),
                    }
                    step *= 2;
                }
                self.find_between(first, high, key)
            }
        }
    }

    #[inline]
    fn find_between(self, mut low: usize, mut high: usize, key: &[u8]) -> Result<u16, u16> {
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.compare(middle, key) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle as u16),
            }
        }
        Err(low as u16)
    }

    /// How the key of a slot compares with `key`.
    #[inline]
    fn compare(self, slot: usize, key: &[u8]) -> Ordering {
        compare_keys(self.key_at(get(self.0, self.slots_start() + SLOT * slot)), key)
    }

    /// The page's bytes on both sides of the gap, from behind the block's header on: all there is to know about it.
    #[must_use]
    pub fn halves(self) -> (&'a [u8], &'a [u8]) {
        (&self.0[BLOCK_HEADER..self.slots_end()], &self.0[get(self.0, HEAP)..])
    }

    /// Checks that fields, slots and cells fit together and don't overlap, so that no later edit can go astray.
    pub fn check(self) -> Result<(), PageFault> {
        let heap = get(self.0, HEAP);
        if get(self.0, USER_LEN) > USER_HEADER_MAX || self.slots_end() > heap || heap > BLOCK_SIZE {
            return Err(PageFault::Structure("the slots run into the cells"));
        }
        if self.0[self.slots_end()..heap].iter().any(|&byte| byte != 0) {
            return Err(PageFault::Structure("the gap is not empty"));
        }
        let mut covered = [0u64; BLOCK_SIZE / 64];
        let mut live = 0;
        for slot in 0..self.count() {
            let offset = self.cell_offset(slot);
            if offset < heap || offset + CELL_HEADER > BLOCK_SIZE || offset + self.cell_len(offset) > BLOCK_SIZE {
                return Err(PageFault::Structure("a slot points outside the cells"));
            }
            let end = offset + self.cell_len(offset);
            live += end - offset;
            for byte in offset..end {
                let (word, bit) = (byte / 64, 1u64 << (byte % 64));
                if covered[word] & bit != 0 {
                    return Err(PageFault::Structure("two cells overlap"));
                }
                covered[word] |= bit;
            }
        }
        if live + get(self.0, DEAD) != BLOCK_SIZE - heap {
            return Err(PageFault::Structure("the count of dead bytes is wrong"));
        }
        Ok(())
    }
}

/// Compares as `memcmp` does, the first eight bytes at once: most keys differ there, or have no more.
#[inline]
pub fn compare_keys(a: &[u8], b: &[u8]) -> Ordering {
    match (a.split_first_chunk::<8>(), b.split_first_chunk::<8>()) {
        (Some((a8, a_rest)), Some((b8, b_rest))) => match u64::from_be_bytes(*a8).cmp(&u64::from_be_bytes(*b8)) {
            Ordering::Equal if a_rest.is_empty() || b_rest.is_empty() => a_rest.len().cmp(&b_rest.len()),
            Ordering::Equal => a_rest.cmp(b_rest),
            order => order,
        },
        _ => a.cmp(b),
    }
}

impl<'a> PageMut<'a> {
    /// Looks at a formatted block as a page to edit.
    ///
    /// # Panics
    /// When `block` is not exactly one block long.
    #[must_use]
    pub fn new(block: &'a mut [u8]) -> PageMut<'a> {
        PageMut(block.try_into().expect("a page is one whole block"))
    }

    /// Makes the block's body an empty page with a user header of `user_len` bytes, of which the first are given and the
    /// rest are zero.
    pub fn format(block: &'a mut [u8], user_len: usize, user_header: &[u8]) -> Result<PageMut<'a>, PageFault> {
        if user_len > USER_HEADER_MAX || user_header.len() > user_len {
            return Err(PageFault::UserHeaderTooLong { len: user_len.max(user_header.len()) });
        }
        let page = PageMut::new(block);
        page.0[BLOCK_HEADER..].fill(0);
        put(page.0, HEAP, BLOCK_SIZE);
        put(page.0, USER_LEN, user_len);
        page.0[USER_HEADER..USER_HEADER + user_header.len()].copy_from_slice(user_header);
        Ok(page)
    }

    /// Makes the block's body what [`Page::halves`] told of another.
    pub fn restore(block: &'a mut [u8], low: &[u8], high: &[u8]) -> Result<PageMut<'a>, PageFault> {
        if low.len() < PAGE_FIELDS || low.len() + high.len() > BLOCK_SIZE - BLOCK_HEADER {
            return Err(PageFault::Structure("an image that is no page"));
        }
        let page = PageMut::new(block);
        page.0[BLOCK_HEADER..BLOCK_HEADER + low.len()].copy_from_slice(low);
        page.0[BLOCK_HEADER + low.len()..BLOCK_SIZE - high.len()].fill(0);
        page.0[BLOCK_SIZE - high.len()..].copy_from_slice(high);
        page.view().check()?;
        Ok(page)
    }

    /// The same page, to read from.
    #[must_use]
    pub fn view(&self) -> Page<'_> {
        Page(self.0)
    }

    fn slot_at(&self, slot: u16) -> usize {
        self.view().slots_start() + SLOT * usize::from(slot)
    }

    fn need_slot(&self, slot: u16) -> Result<usize, PageFault> {
        let count = self.view().count();
        if slot < count { Ok(self.view().cell_offset(slot)) } else { Err(PageFault::NoSlot { slot, count }) }
    }

    /// Puts a cell at `slot`; the slots from there on move up by one.
    pub fn insert(&mut self, slot: u16, key: &[u8], value: &[u8]) -> Result<(), PageFault> {
        let (count, free, need) = (self.view().count(), self.view().free_bytes(), cell_bytes(key.len(), value.len()));
        if slot > count {
            return Err(PageFault::NoSlot { slot, count });
        }
        if need > free {
            return Err(PageFault::Full { need, free });
        }
        if need > self.view().gap() {
            self.compact(None);
        }
        let (at, end) = (self.slot_at(slot), self.view().slots_end());
        self.0.copy_within(at..end, at + SLOT);
        put(self.0, COUNT, usize::from(count) + 1);
        self.place(slot, key.len(), value.len());
        self.fill(slot, Some(key), value);
        Ok(())
    }

    /// Replaces key and value of the cell at `slot`.
    pub fn replace(&mut self, slot: u16, key: &[u8], value: &[u8]) -> Result<(), PageFault> {
        self.put_instead(slot, Some(key), value)
    }

    /// Replaces the value of the cell at `slot`; its key stays.
    pub fn replace_value(&mut self, slot: u16, value: &[u8]) -> Result<(), PageFault> {
        self.put_instead(slot, None, value)
    }

    fn put_instead(&mut self, slot: u16, key: Option<&[u8]>, value: &[u8]) -> Result<(), PageFault> {
        let offset = self.need_slot(slot)?;
        let key_len = key.map_or_else(|| get(self.0, offset), <[u8]>::len);
        let (old, new) = (self.view().cell_len(offset), CELL_HEADER + key_len + value.len());
        let free = self.view().free_bytes();
        if new > free + old {
            return Err(PageFault::Full { need: new, free: free + old });
        }
        if new <= old {
            put(self.0, offset, key_len);
            put(self.0, offset + 2, value.len());
            self.bury(old - new);
            self.fill(slot, key, value);
            return Ok(());
        }
        if new <= self.view().gap() {
            self.place(slot, key_len, value.len());
            if key.is_none() {
                let moved = self.view().cell_offset(slot);
                self.0.copy_within(offset + CELL_HEADER..offset + CELL_HEADER + key_len, moved + CELL_HEADER);
            }
            self.bury(old);
            self.fill(slot, key, value);
        } else {
            let kept = match key {
                Some(_) => Vec::new(),
                None => self.view().key(slot).to_vec(),
            };
            self.compact(Some(slot));
            self.place(slot, key_len, value.len());
            self.fill(slot, Some(key.unwrap_or(&kept)), value);
        }
        Ok(())
    }

    /// Takes the cell at `slot` away; the slots above it move down by one.
    pub fn remove(&mut self, slot: u16) -> Result<(), PageFault> {
        let offset = self.need_slot(slot)?;
        let len = self.view().cell_len(offset);
        let heap = get(self.0, HEAP);
        if offset == heap {
            // The lowest cell goes back into the gap at once: what is appended and taken back leaves no trace.
            self.0[offset..offset + len].fill(0);
            put(self.0, HEAP, heap + len);
        } else {
            self.bury(len);
        }
        let (at, end) = (self.slot_at(slot), self.view().slots_end());
        self.0.copy_within(at + SLOT..end, at);
        self.0[end - SLOT..end].fill(0);
        let count = self.view().count() - 1;
        put(self.0, COUNT, usize::from(count));
        if count == 0 {
            let heap = get(self.0, HEAP);
            self.0[heap..].fill(0);
            put(self.0, HEAP, BLOCK_SIZE);
            put(self.0, DEAD, 0);
        }
        Ok(())
    }

    /// Takes the cells from slot `from` on away. `from` may be the count: then nothing changes.
    pub fn truncate(&mut self, from: u16) -> Result<(), PageFault> {
        let count = self.view().count();
        if from > count {
            return Err(PageFault::NoSlot { slot: from, count });
        }
        for slot in (from..count).rev() {
            self.remove(slot)?;
        }
        Ok(())
    }

    /// Overwrites bytes in place: of the user header, or of a cell's key or value. Lengths and structure can't be touched.
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) -> Result<(), PageFault> {
        let out_of_range = PageFault::OutOfRange { offset, len: bytes.len() };
        let end = offset.checked_add(bytes.len()).ok_or(out_of_range)?;
        let in_header = offset >= USER_HEADER && end <= self.view().slots_start();
        let in_cell = || {
            (0..self.view().count()).any(|slot| {
                let cell = self.view().cell_offset(slot);
                offset >= cell + CELL_HEADER && end <= cell + self.view().cell_len(cell)
            })
        };
        if !in_header && !in_cell() {
            return Err(out_of_range);
        }
        self.0[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn bury(&mut self, len: usize) {
        let dead = get(self.0, DEAD) + len;
        put(self.0, DEAD, dead);
    }

    /// Takes room for a cell off the gap and points `slot` at it.
    fn place(&mut self, slot: u16, key_len: usize, value_len: usize) {
        let offset = get(self.0, HEAP) - CELL_HEADER - key_len - value_len;
        assert!(offset >= self.view().slots_end(), "a cell was placed over the slots");
        put(self.0, HEAP, offset);
        put(self.0, offset, key_len);
        put(self.0, offset + 2, value_len);
        let at = self.slot_at(slot);
        put(self.0, at, offset);
    }

    fn fill(&mut self, slot: u16, key: Option<&[u8]>, value: &[u8]) {
        let offset = self.view().cell_offset(slot);
        let (key_at, value_at) = (offset + CELL_HEADER, offset + CELL_HEADER + get(self.0, offset));
        if let Some(key) = key {
            self.0[key_at..value_at].copy_from_slice(key);
        }
        self.0[value_at..value_at + value.len()].copy_from_slice(value);
    }

    /// Moves the cells together in the order of their slots, leaving out the one at `without`, whose slot then points
    /// nowhere until it is placed again.
    fn compact(&mut self, without: Option<u16>) {
        let old = *self.0;
        let before = Page(&old);
        let mut heap = BLOCK_SIZE;
        for slot in 0..before.count() {
            if without == Some(slot) {
                continue;
            }
            let offset = before.cell_offset(slot);
            let len = before.cell_len(offset);
            heap -= len;
            self.0[heap..heap + len].copy_from_slice(&old[offset..offset + len]);
            let at = self.slot_at(slot);
            put(self.0, at, heap);
        }
        let end = before.slots_end();
        self.0[end..heap].fill(0);
        put(self.0, HEAP, heap);
        put(self.0, DEAD, 0);
    }
}

#[cfg(test)]
mod tests;
