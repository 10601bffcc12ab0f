//! A vector with holes: stable indexes, constant-time insert and remove, memory reused. Owned by one shard.
//! Grows to the most entries that were ever alive at once; its users bound that.

pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Option<u32>,
    len: usize,
}

enum Entry<T> {
    Full(T),
    Free(Option<u32>),
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { entries: Vec::new(), free: None, len: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(index) = self.free {
            let entry = &mut self.entries[index as usize];
            let Entry::Free(next) = *entry else { unreachable!("the free list names a full entry") };
            self.free = next;
            *entry = Entry::Full(value);
            return index;
        }
        let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 entries");
        self.entries.push(Entry::Full(value));
        index
    }

    /// Panics when there is no such entry: indexes are handed out once and given back once.
    pub(crate) fn remove(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        assert!(matches!(entry, Entry::Full(_)), "entry {index} was removed before");
        let Entry::Full(value) = std::mem::replace(entry, Entry::Free(self.free)) else { unreachable!() };
        self.free = Some(index);
        self.len -= 1;
        value
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        match self.entries.get(index as usize) {
            Some(Entry::Full(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self.entries.get_mut(index as usize) {
            Some(Entry::Full(value)) => Some(value),
            _ => None,
        }
    }

    /// The indexes of all live entries.
    pub(crate) fn indexes(&self) -> Vec<u32> {
        (0..self.entries.len() as u32).filter(|index| self.get(*index).is_some()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, index: u32) -> &T {
        self.get(index).expect("a live entry")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index).expect("a live entry")
    }
}
