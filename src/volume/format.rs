//! Formatting: makes a file or a block device into an empty volume.
//!
//! Done once, by the program that an operator runs, before any node has the volume open. It refuses a place that holds
//! data unless told that it may go. The superblock is written last: a formatting that was interrupted leaves no volume, and
//! is simply run again.

use std::io;
use std::path::Path;

use super::block::{self, BlockKind};
use super::error::VolumeError;
use super::layout::{Geometry, REDO_AREA_MAX, REDO_AREA_MIN, block_offset};
use super::open::{Expected, Volume};
use super::superblock::{CLUSTER_NAME_MAX, Superblock, superblock_pair};
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, NODES_MAX, PartitionId, SHARDS_MAX};
use crate::reactor::{FileId, IoBuf, OpenOptions, Reactor};

/// Bytes zeroed, and synced, between two calls of the progress callback.
const STEP: u64 = 32 << 20;

/// Bytes looked at, from the start, to find out whether a place holds data.
const LOOKED_AT: usize = 1 << 20;

/// What of a volume is written with zeros when it is formatted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitZero {
    /// Everything before the data: nodes' slots, votes and redo areas. The data area is reserved, if it is a file's.
    #[default]
    Redo,
    /// The data area too.
    ///
    /// What a file system has reserved and never written costs it a change of its map of extents with the first write. The log
    /// lies in the same file, and its next durable write waits for that change and writes the map too.
    All,
}

/// What the volume is to be.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Name of the cluster, as in the configuration of its nodes. 1 to 63 bytes.
    pub cluster_name: String,
    /// Nodes that get a slot and redo areas. 1 to 127.
    pub nodes_max: u8,
    /// Shards of each node. 1 to 64.
    pub shards: u8,
    /// Size of the volume in bytes; 0 takes what the file or device has.
    pub volume_bytes: u64,
    /// Size of the redo area of each shard of each node, in bytes; by default see [`Geometry::redo_area_default`].
    pub redo_area_bytes: Option<u64>,
    /// Format also over data. All of the volume is written then, whatever `init_zero` says.
    pub force: bool,
    /// What is written with zeros.
    pub init_zero: InitZero,
}

impl FormatOptions {
    /// A volume for 8 nodes with one shard each, of the size that the place has.
    #[must_use]
    pub fn new(cluster_name: &str) -> FormatOptions {
        FormatOptions {
            cluster_name: cluster_name.to_owned(),
            nodes_max: 8,
            shards: 1,
            volume_bytes: 0,
            redo_area_bytes: None,
            force: false,
            init_zero: InitZero::default(),
        }
    }
}

/// How far the formatting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatProgress {
    /// Bytes prepared.
    pub done: u64,
    /// Bytes to prepare.
    pub total: u64,
}

impl Volume {
    /// Formats `path`, and gives the opened volume. Creates the file if there is none.
    ///
    /// # Errors
    /// [`VolumeError::BadOption`], [`VolumeError::HasData`], [`VolumeError::TooSmall`]: nothing was changed then, besides an
    /// empty file where none was. The device's: the volume is not usable, format it again.
    pub async fn format(
        reactor: &Reactor,
        path: &Path,
        options: &FormatOptions,
        progress: &mut dyn FnMut(FormatProgress),
    ) -> Result<Volume, VolumeError> {
        check_options(options)?;
        let failed = |doing: &str, error: io::Error| VolumeError::Io { path: path.to_owned(), doing: doing.to_owned(), error };
        if !options.force
            && let Ok(existing) = Volume::open(reactor, path, &Expected::default()).await
        {
            let superblock = existing.superblock();
            let what = format!("a RustyDB volume of the cluster '{}'", superblock.cluster_name);
            return Err(VolumeError::HasData { path: path.to_owned(), what });
        }
        let file = reactor.open(path, OpenOptions::CREATE).await.map_err(|error| failed("open it", error))?;
        let superblock = match Volume::prepare(reactor, file, path, options, progress).await {
            Ok(superblock) => superblock,
            Err(error) => {
                reactor.close(file);
                return Err(error);
            }
        };
        let volume = Volume::assemble(reactor, file, path, superblock);
        volume.write_first_content().await?;
        Ok(volume)
    }

    /// Checks the place and writes the zeros.
    async fn prepare(
        reactor: &Reactor,
        file: FileId,
        path: &Path,
        options: &FormatOptions,
        progress: &mut dyn FnMut(FormatProgress),
    ) -> Result<Superblock, VolumeError> {
        let failed = |doing: &str, error: io::Error| VolumeError::Io { path: path.to_owned(), doing: doing.to_owned(), error };
        let present = reactor.file_bytes(file).await.map_err(|error| failed("tell its size", error))?;
        if !options.force && present > 0 {
            let length = present.min(LOOKED_AT as u64) as usize;
            let (result, buffer) = reactor.read(file, 0, IoBuf::aligned(length.next_multiple_of(BLOCK_SIZE))).await;
            let read = result.map_err(|error| failed("read it", error))?;
            if let Some(at) = buffer.as_slice()[..read].iter().position(|byte| *byte != 0) {
                let what = format!("data that RustyDB does not know (from byte {at} on)");
                return Err(VolumeError::HasData { path: path.to_owned(), what });
            }
        }
        let bytes = if options.volume_bytes == 0 { present } else { options.volume_bytes };
        let redo =
            options.redo_area_bytes.unwrap_or_else(|| Geometry::redo_area_default(bytes, options.nodes_max, options.shards));
        let cluster_id = (u128::from(reactor.random()) << 64) | u128::from(reactor.random());
        let geometry = Geometry::plan(cluster_id, bytes, options.nodes_max, options.shards, redo)
            .map_err(|minimum| VolumeError::TooSmall { path: path.to_owned(), bytes, minimum })?;
        if present < geometry.volume_bytes() {
            let allocated = reactor.allocate(file, geometry.volume_bytes()).await;
            allocated.map_err(|error| failed(&format!("make it {} bytes long", geometry.volume_bytes()), error))?;
        }

        // Real zeros in the redo areas: a log write then changes no metadata itself. Where an older volume may have been, the
        // data area is wiped too: a block of that life, valid in itself, must never be taken for one of this life.
        let whole = options.init_zero == InitZero::All || (options.force && present > 0);
        let total = if whole { geometry.volume_bytes() } else { block_offset(geometry.extents_first) };
        let mut done = 0;
        while done < total {
            let step = STEP.min(total - done);
            reactor.write_zeros(file, done, step).await.map_err(|error| failed("write zeros", error))?;
            done += step;
            progress(FormatProgress { done, total });
        }
        Ok(Superblock { cluster_name: options.cluster_name.clone(), formatted_ms: reactor.wall_ms(), geometry })
    }

    async fn write_first_content(&self) -> Result<(), VolumeError> {
        let geometry = *self.geometry();
        for map in 0..geometry.space_maps {
            let id = BlockId::new(PartitionId::SPACE, BlockNo(geometry.space_maps_first.0 + map));
            let mut buffer = IoBuf::aligned(BLOCK_SIZE);
            block::format_block(buffer.as_mut_slice(), id, BlockKind::SpaceMap);
            block::seal(buffer.as_mut_slice());
            self.write_block(id, buffer).await.0?;
        }
        self.write_first_facts().await?;
        self.sync().await?;
        let body = self.superblock().encode();
        for sequence in [1, 2] {
            let written = superblock_pair().write(self.reactor(), self.file(), sequence, geometry.stamp(), &body).await;
            written.map_err(|error| self.io("write", Geometry::superblocks()[0], error))?;
        }
        Ok(())
    }
}

fn check_options(options: &FormatOptions) -> Result<(), VolumeError> {
    let bad = |what: String| Err(VolumeError::BadOption { what });
    let name = options.cluster_name.len();
    if !(1..=CLUSTER_NAME_MAX).contains(&name) {
        return bad(format!("the cluster's name has {name} bytes; it takes 1 to {CLUSTER_NAME_MAX}"));
    }
    if !(1..=NODES_MAX).contains(&usize::from(options.nodes_max)) {
        return bad(format!("{} nodes; a volume takes 1 to {NODES_MAX}", options.nodes_max));
    }
    if !(1..=SHARDS_MAX).contains(&usize::from(options.shards)) {
        return bad(format!("{} shards a node; it takes 1 to {SHARDS_MAX}", options.shards));
    }
    if let Some(bytes) = options.redo_area_bytes
        && !(REDO_AREA_MIN..=REDO_AREA_MAX).contains(&bytes)
    {
        return bad(format!("redo areas of {bytes} bytes; they take {REDO_AREA_MIN} to {REDO_AREA_MAX}"));
    }
    Ok(())
}
