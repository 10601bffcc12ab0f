//! An open volume: the file or device, its superblock, and checked reads and writes of whole blocks.
//!
//! Each shard opens the volume for itself (a file belongs to one reactor); clones of a [`Volume`] share it within the
//! shard. It promises that a volume that is not the expected one is refused before anything is written, with an error that
//! names what was expected and what was found.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::block;
use super::error::VolumeError;
use super::layout::{Geometry, block_offset};
use super::sector::SectorFault;
use super::superblock::{Superblock, superblock_pair};
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, NodeId};
use crate::reactor::{FileId, IoBuf, OpenOptions, Reactor};

/// What the volume must be; `None` where anything will do.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The id of the cluster, once it is known (from another shard, or another node).
    pub cluster_id: Option<u128>,
    /// The name of the cluster in the configuration.
    pub cluster_name: Option<String>,
    /// Shards a node in the configuration.
    pub shards: Option<u8>,
    /// The node that opens it, which must have a slot.
    pub node: Option<NodeId>,
}

/// An open volume. Clones share it.
#[derive(Clone)]
pub struct Volume(Rc<Inner>);

struct Inner {
    reactor: Reactor,
    file: FileId,
    path: PathBuf,
    superblock: Superblock,
}

impl Volume {
    /// Opens the volume at `path` and checks that it is whole and the expected one.
    ///
    /// # Errors
    /// See [`VolumeError`]; nothing is changed.
    pub async fn open(reactor: &Reactor, path: &Path, expected: &Expected) -> Result<Volume, VolumeError> {
        let failed = |doing: &str, error: io::Error| VolumeError::Io { path: path.to_owned(), doing: doing.to_owned(), error };
        let file = reactor.open(path, OpenOptions::WRITE).await.map_err(|error| failed("open it", error))?;
        match Volume::check(reactor, file, path, expected).await {
            Ok(superblock) => Ok(Volume::assemble(reactor, file, path, superblock)),
            Err(error) => {
                reactor.close(file);
                Err(error)
            }
        }
    }

    pub(super) fn assemble(reactor: &Reactor, file: FileId, path: &Path, superblock: Superblock) -> Volume {
        Volume(Rc::new(Inner { reactor: reactor.clone(), file, path: path.to_owned(), superblock }))
    }

    async fn check(reactor: &Reactor, file: FileId, path: &Path, expected: &Expected) -> Result<Superblock, VolumeError> {
        let path = path.to_owned();
        let failed = |doing: &str, error: io::Error| VolumeError::Io { path: path.clone(), doing: doing.to_owned(), error };
        let bytes = reactor.file_bytes(file).await.map_err(|error| failed("tell its size", error))?;
        let read = superblock_pair().read(reactor, file).await.map_err(|error| failed("read the superblock", error))?;
        let read = match read {
            Ok(read) => read,
            Err(copies) => return Err(unusable(path, copies)),
        };
        for (copy, fault) in read.faults.iter().enumerate() {
            if let Some(fault) = fault {
                let path = path.display();
                tracing::warn!(%path, "copy {copy} of the superblock is {fault}; the other copy is used: check the device");
            }
        }
        let superblock = match Superblock::decode(read.body()) {
            Ok(superblock) => superblock,
            Err(what) => return Err(VolumeError::BadSuperblock { path, what }),
        };
        let geometry = &superblock.geometry;
        if let Some(id) = expected.cluster_id
            && id != geometry.cluster_id
        {
            let found = format!("'{}' ({:032x})", superblock.cluster_name, geometry.cluster_id);
            return Err(VolumeError::OtherCluster { path, expected: format!("{id:032x}"), found });
        }
        if let Some(name) = &expected.cluster_name
            && *name != superblock.cluster_name
        {
            let found = format!("'{}'", superblock.cluster_name);
            return Err(VolumeError::OtherCluster { path, expected: format!("'{name}'"), found });
        }
        if bytes < geometry.volume_bytes() {
            return Err(VolumeError::Truncated { path, bytes, expected: geometry.volume_bytes() });
        }
        if let Some(configured) = expected.shards
            && configured != geometry.shards
        {
            return Err(VolumeError::OtherShards { path, volume: geometry.shards, configured });
        }
        if let Some(node) = expected.node
            && !(1..=geometry.nodes_max).contains(&node.0)
        {
            return Err(VolumeError::NoSuchNode { path, node, nodes_max: geometry.nodes_max });
        }
        Ok(superblock)
    }

    /// Where everything lies.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.0.superblock.geometry
    }

    /// What the volume is.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }

    /// The file, for the log and for who reads and writes by offset.
    #[must_use]
    pub fn file(&self) -> FileId {
        self.0.file
    }

    /// The reactor that the volume was opened on.
    #[must_use]
    pub fn reactor(&self) -> &Reactor {
        &self.0.reactor
    }

    /// Where the volume is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Reads a block and checks that it is the one asked for, whole.
    pub async fn read_block(&self, id: BlockId, buffer: IoBuf) -> (Result<(), VolumeError>, IoBuf) {
        self.assert_block(id.block, &buffer);
        let (result, buffer) = self.0.reactor.read(self.0.file, block_offset(id.block), buffer).await;
        let result = match result {
            Ok(BLOCK_SIZE) => block::verify(buffer.as_slice(), id).map_err(|fault| self.fault(id, fault)),
            Ok(_) => Err(self.io("read", id.block, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.io("read", id.block, error)),
        };
        (result, buffer)
    }

    /// Writes a sealed block. It is durable after the next [`Volume::sync`].
    pub async fn write_block(&self, id: BlockId, buffer: IoBuf) -> (Result<(), VolumeError>, IoBuf) {
        self.assert_block(id.block, &buffer);
        assert_eq!(block::block_id(buffer.as_slice()), id, "a block is written to its own place");
        let (result, buffer) = self.0.reactor.write(self.0.file, block_offset(id.block), buffer).await;
        (result.map(|_| ()).map_err(|error| self.io("write", id.block, error)), buffer)
    }

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// The device's. What was written since the last sync may be lost then: treat it as not written.
    pub async fn sync(&self) -> Result<(), VolumeError> {
        let synced = self.0.reactor.sync(self.0.file).await;
        synced.map_err(|error| VolumeError::Io { path: self.0.path.clone(), doing: "sync it".to_owned(), error })
    }

    pub(super) fn io(&self, doing: &str, block: BlockNo, error: io::Error) -> VolumeError {
        VolumeError::Io { path: self.0.path.clone(), doing: format!("{doing} {block}"), error }
    }

    fn fault(&self, id: BlockId, fault: block::BlockFault) -> VolumeError {
        VolumeError::Block { path: self.0.path.clone(), id, fault }
    }

    fn assert_block(&self, block: BlockNo, buffer: &IoBuf) {
        let geometry = self.geometry();
        assert!((geometry.space_maps_first.0..geometry.blocks_total).contains(&block.0), "{block} is not one of the data area");
        assert_eq!(buffer.len(), BLOCK_SIZE, "blocks are read and written whole");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reactor.close(self.file);
    }
}

fn unusable(path: PathBuf, copies: [SectorFault; 2]) -> VolumeError {
    use SectorFault::{Blank, CutOff, NewerFormat, NotOurs, OlderFormat};
    if let Some(NewerFormat(format)) = copies.iter().find(|copy| matches!(copy, NewerFormat(_))) {
        return VolumeError::NewerFormat { path, format: *format };
    }
    if let Some(OlderFormat(format)) = copies.iter().find(|copy| matches!(copy, OlderFormat(_))) {
        return VolumeError::OlderFormat { path, format: *format };
    }
    if copies.iter().all(|copy| matches!(copy, Blank | CutOff | NotOurs)) {
        return VolumeError::NotAVolume { path, copies };
    }
    VolumeError::CorruptSuperblock { path, copies }
}
