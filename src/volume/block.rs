//! The header of every block: its length and kind. (The volume's part replaces this file with the whole header.)
/// Bytes of the header of every block.
pub const BLOCK_HEADER: usize = 64;
const KIND: usize = 6;
/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// Not in use.
    Free = 0,
    /// Space map.
    SpaceMap = 1,
    /// Extent header.
    ExtentHeader = 2,
    /// Inner node.
    TreeInner = 3,
    /// Leaf.
    TreeLeaf = 4,
    /// Overflow.
    Overflow = 5,
}
impl BlockKind {
    /// From its byte.
    pub fn from_u8(byte: u8) -> Option<BlockKind> {
        use BlockKind::*;
        [Free, SpaceMap, ExtentHeader, TreeInner, TreeLeaf, Overflow].get(usize::from(byte)).copied()
    }
}
/// The kind.
pub fn kind(block: &[u8]) -> Option<BlockKind> {
    BlockKind::from_u8(block[KIND])
}
/// Sets it.
pub fn set_kind(block: &mut [u8], kind: BlockKind) {
    block[KIND] = kind as u8;
}
