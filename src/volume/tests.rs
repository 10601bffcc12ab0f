//! Formatting and opening on real files: what an operator may do wrong, and what a device may do to a volume.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::block::{self, BlockFault, BlockKind};
use super::sector::{SectorFault, SectorKind, VOLUME_FORMAT, seal_sector};
use super::*;
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, Scn, ShardId};
use crate::reactor::{DriverChoice, IoBuf, Reactor, ReactorOptions, thread};

const MIB: u64 = 1 << 20;

/// A place for one test's volume; the file goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("rustydb-volume-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        Place(path)
    }

    fn file(&self) -> fs::File {
        fs::OpenOptions::new().read(true).write(true).open(&self.0).unwrap()
    }

    /// Flips the bits of one byte, as a device would.
    fn damage(&self, offset: u64) {
        let mut byte = [0];
        self.file().read_exact_at(&mut byte, offset).unwrap();
        self.file().write_all_at(&[!byte[0]], offset).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn on_reactor<F, Fut>(main: F) -> Fut::Output
where
    F: FnOnce(Reactor) -> Fut,
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    thread::run_local(ReactorOptions { driver: DriverChoice::Poll, overprovisioned: true }, main).unwrap()
}

fn small() -> FormatOptions {
    FormatOptions { nodes_max: 2, volume_bytes: 24 * MIB, redo_area_bytes: Some(MIB), ..FormatOptions::new("test") }
}

fn format(place: &Place, options: &FormatOptions) -> Result<Geometry, VolumeError> {
    let (path, options) = (place.0.clone(), options.clone());
    on_reactor(|reactor| async move {
        let volume = Volume::format(&reactor, &path, &options, &mut |_| {}).await?;
        Ok(*volume.geometry())
    })
}

fn open(place: &Place, expected: Expected) -> Result<Superblock, VolumeError> {
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let volume = Volume::open(&reactor, &path, &expected).await?;
        Ok(volume.superblock().clone())
    })
}

#[test]
fn a_formatted_volume_opens_as_what_it_was_made() {
    let place = Place::new("formatted");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let mut seen = Vec::new();
        let options = FormatOptions { shards: 2, ..small() };
        let made = Volume::format(&reactor, &path, &options, &mut |progress| seen.push(progress)).await.unwrap();
        assert_eq!(seen.last().map(|progress| progress.done), Some(block_offset(made.geometry().extents_first)));
        assert!(seen.iter().all(|progress| progress.done <= progress.total));

        let expected = Expected {
            cluster_id: Some(made.geometry().cluster_id),
            cluster_name: Some("test".to_owned()),
            shards: Some(2),
            node: Some(NodeId(2)),
        };
        let opened = Volume::open(&reactor, &path, &expected).await.unwrap();
        assert_eq!(opened.superblock(), made.superblock());
        // The redo areas are there for real: their space is allocated, and reads back as zeros.
        let last = opened.geometry().redo_area(NodeId(2), ShardId(1));
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= last.offset + last.bytes);
        assert_eq!(metadata.len(), opened.geometry().volume_bytes());
        let (result, buffer) = reactor.read(opened.file(), last.offset, IoBuf::aligned(last.bytes as usize)).await;
        assert_eq!(result.unwrap() as u64, last.bytes);
        assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
    });
}

#[test]
fn formatting_refuses_what_holds_data_until_told_to() {
    let place = Place::new("refuses");
    let first = format(&place, &small()).unwrap();
    let refused = format(&place, &small()).unwrap_err();
    assert!(matches!(&refused, VolumeError::HasData { what, .. } if what.contains("'test'")), "{refused}");
    assert_eq!(open(&place, Expected::default()).unwrap().geometry, first);
    let second = format(&place, &FormatOptions { force: true, ..small() }).unwrap();
    assert_ne!(second.cluster_id, first.cluster_id);

    let other = Place::new("foreign");
    let mut bytes = vec![0; 300_000];
    bytes[200_000] = 1;
    fs::write(&other.0, &bytes).unwrap();
    let refused = format(&other, &small()).unwrap_err();
    assert!(matches!(&refused, VolumeError::HasData { what, .. } if what.contains("byte 200000")), "{refused}");
    assert_eq!(fs::read(&other.0).unwrap(), bytes);
}

#[test]
fn forcing_wipes_the_blocks_of_the_earlier_life() {
    let place = Place::new("wiped");
    let geometry = format(&place, &small()).unwrap();
    let offset = block_offset(geometry.extent_block(3));
    place.file().write_all_at(b"old", offset).unwrap();
    format(&place, &FormatOptions { force: true, ..small() }).unwrap();
    let mut found = [1; 3];
    place.file().read_exact_at(&mut found, offset).unwrap();
    assert_eq!(found, [0; 3]);
}

#[test]
fn all_of_a_volume_is_written_where_that_is_asked_for() {
    let place = Place::new("whole");
    let remains = |init_zero| {
        // Far from where formatting looks for data.
        let (path, offset) = (place.0.clone(), 20 * MIB);
        fs::write(&path, []).unwrap();
        place.file().write_all_at(b"old", offset).unwrap();
        let options = FormatOptions { init_zero, ..small() };
        let last = on_reactor(|reactor| async move {
            let mut last = None;
            Volume::format(&reactor, &path, &options, &mut |progress| last = Some(progress)).await.unwrap();
            last.unwrap()
        });
        assert_eq!(last.done, last.total);
        let mut found = [1; 3];
        place.file().read_exact_at(&mut found, offset).unwrap();
        assert!(open(&place, Expected::default()).is_ok());
        (last.total, found)
    };
    assert_eq!(remains(InitZero::All), (24 * MIB, [0; 3]));
    let (written, found) = remains(InitZero::Redo);
    assert!(written < 20 * MIB && found == *b"old", "{written}");
}

#[test]
fn options_out_of_bounds_are_refused_and_named() {
    let place = Place::new("options");
    let too_small = format(&place, &FormatOptions { volume_bytes: MIB, ..small() }).unwrap_err();
    let VolumeError::TooSmall { minimum, .. } = too_small else { panic!("{too_small}") };
    assert!(too_small.to_string().contains(&minimum.to_string()));
    assert!(format(&place, &FormatOptions { volume_bytes: minimum, ..small() }).is_ok());
    for bad in [
        FormatOptions { nodes_max: 0, ..small() },
        FormatOptions { nodes_max: 128, ..small() },
        FormatOptions { shards: 65, ..small() },
        FormatOptions { redo_area_bytes: Some(4096), ..small() },
        FormatOptions { cluster_name: "x".repeat(64), ..small() },
    ] {
        let refused = format(&place, &bad).unwrap_err();
        assert!(matches!(refused, VolumeError::BadOption { .. }), "{refused}");
    }
}

#[test]
fn another_volume_than_the_expected_one_is_refused() {
    let place = Place::new("expected");
    let geometry = format(&place, &small()).unwrap();
    let refused = open(&place, Expected { cluster_name: Some("prod".to_owned()), ..Expected::default() }).unwrap_err();
    assert!(refused.to_string().contains("cluster 'test', not to 'prod'"), "{refused}");
    let refused = open(&place, Expected { cluster_id: Some(7), ..Expected::default() }).unwrap_err();
    assert!(refused.to_string().contains(&format!("{:032x}", geometry.cluster_id)), "{refused}");
    let refused = open(&place, Expected { shards: Some(4), ..Expected::default() }).unwrap_err();
    assert!(matches!(refused, VolumeError::OtherShards { volume: 1, configured: 4, .. }));
    let refused = open(&place, Expected { node: Some(NodeId(3)), ..Expected::default() }).unwrap_err();
    assert!(matches!(refused, VolumeError::NoSuchNode { nodes_max: 2, .. }));

    place.file().set_len(geometry.volume_bytes() - 1).unwrap();
    let refused = open(&place, Expected::default()).unwrap_err();
    assert!(matches!(refused, VolumeError::Truncated { expected, .. } if expected == geometry.volume_bytes()));
}

#[test]
fn what_is_no_volume_is_called_so() {
    let place = Place::new("novolume");
    assert!(matches!(open(&place, Expected::default()), Err(VolumeError::Io { .. })));
    fs::write(&place.0, []).unwrap();
    let refused = open(&place, Expected::default()).unwrap_err();
    assert!(matches!(refused, VolumeError::NotAVolume { copies: [SectorFault::CutOff, SectorFault::CutOff], .. }));
    fs::write(&place.0, vec![b'x'; 64 << 10]).unwrap();
    assert!(matches!(open(&place, Expected::default()), Err(VolumeError::NotAVolume { .. })));
}

#[test]
fn one_good_copy_of_the_superblock_is_enough() {
    let place = Place::new("copies");
    let geometry = format(&place, &small()).unwrap();
    place.damage(100);
    assert_eq!(open(&place, Expected::default()).unwrap().geometry, geometry);
    place.damage(BLOCK_SIZE as u64 + 100);
    let refused = open(&place, Expected::default()).unwrap_err();
    assert!(matches!(refused, VolumeError::CorruptSuperblock { copies: [SectorFault::Checksum, SectorFault::Checksum], .. }));
    // A damaged volume still has data: formatting doesn't run over it.
    assert!(matches!(format(&place, &small()), Err(VolumeError::HasData { .. })));
    place.damage(100);
    assert!(open(&place, Expected::default()).is_ok());
}

#[test]
fn another_format_is_left_to_the_program_that_knows_it() {
    let place = Place::new("newer");
    format(&place, &small()).unwrap();
    let mut sector = vec![0; SECTOR];
    seal_sector(&mut sector, 0, SectorKind::Superblock, 9, 1);
    let mut opened_as = |format: u16| {
        sector[14..16].copy_from_slice(&format.to_le_bytes());
        for offset in [0, BLOCK_SIZE as u64] {
            place.file().write_all_at(&sector, offset).unwrap();
        }
        open(&place, Expected::default()).unwrap_err()
    };
    assert!(matches!(opened_as(VOLUME_FORMAT + 1), VolumeError::NewerFormat { .. }));
    assert!(matches!(opened_as(VOLUME_FORMAT - 1), VolumeError::OlderFormat { .. }));
}

/// The disk, or the way to it, gives what lies elsewhere: another node's slot, or the older copy in the newer one's place.
#[test]
fn a_slot_from_another_place_is_not_taken_for_this_one() {
    let place = Place::new("misplaced");
    let geometry = format(&place, &small()).unwrap();
    let copies = |node| [0, SECTOR as u64].map(|copy| geometry.node_slot(NodeId(node)).0 * BLOCK_SIZE as u64 + copy);
    let sectors = |offsets: [u64; 2]| {
        offsets.map(|offset| {
            let mut sector = vec![0; SECTOR];
            place.file().read_exact_at(&mut sector, offset).unwrap();
            sector
        })
    };
    let (ours, [newer, older]) = (copies(2), sectors(copies(2)));
    for misplaced in [[older, newer], sectors(copies(1))] {
        ours.iter().zip(misplaced).for_each(|(offset, sector)| place.file().write_all_at(&sector, *offset).unwrap());
        let path = place.0.clone();
        let read = on_reactor(|reactor| async move {
            let volume = Volume::open(&reactor, &path, &Expected::default()).await.unwrap();
            volume.read_node_slot(NodeId(2)).await
        });
        let both = [SectorFault::Checksum, SectorFault::Checksum];
        assert!(matches!(read, Err(VolumeError::Sector { faults, .. }) if faults == both), "{read:?}");
    }
}

#[test]
fn a_torn_slot_says_what_it_said_before() {
    let place = Place::new("slots");
    let geometry = format(&place, &small()).unwrap();
    let path = place.0.clone();
    let node = NodeId(2);
    on_reactor(|reactor| async move {
        let volume = Volume::open(&reactor, &path, &Expected::default()).await.unwrap();
        let mut slot = volume.read_node_slot(node).await.unwrap();
        assert_eq!((slot.state, slot.incarnation), (NodeState::Clean, Incarnation(0)));
        for life in 1..=3 {
            slot = volume.read_node_slot(node).await.unwrap();
            slot.incarnation = Incarnation(life);
            slot.state = NodeState::Running;
            slot.scn = Scn(100 * life);
            volume.write_node_slot(&mut slot).await.unwrap();
            assert_eq!(volume.read_node_slot(node).await.unwrap(), slot);
        }
        assert_eq!(volume.read_node_slot(NodeId(1)).await.unwrap().incarnation, Incarnation(0));

        let mut control = volume.read_control().await.unwrap();
        control.epoch = Epoch(4);
        control.members = 0b110;
        volume.write_control(&mut control).await.unwrap();
        assert_eq!(volume.read_control().await.unwrap(), control);
        let mut vote = volume.read_vote(node).await.unwrap();
        vote.beat = 17;
        volume.write_vote(&mut vote).await.unwrap();
        assert_eq!(volume.read_vote(node).await.unwrap(), vote);
    });
    // Formatting wrote sequences 1 and 2, the loop 3 to 5: the newest is in the second sector.
    let slot_offset = block_offset(geometry.node_slot(node));
    place.damage(slot_offset + SECTOR as u64 + 512);
    let read = |place: &Place| {
        let path = place.0.clone();
        on_reactor(|reactor| async move {
            let volume = Volume::open(&reactor, &path, &Expected::default()).await.unwrap();
            volume.read_node_slot(node).await
        })
    };
    assert_eq!(read(&place).unwrap().incarnation, Incarnation(2));
    place.damage(slot_offset + 512);
    assert!(matches!(read(&place), Err(VolumeError::Sector { kind: SectorKind::NodeSlot, .. })));
}

#[test]
fn a_block_is_read_as_written_or_refused_by_name() {
    let place = Place::new("blocks");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let volume = Volume::format(&reactor, &path, &small(), &mut |_| {}).await.unwrap();
        let map = BlockId::new(PartitionId::SPACE, volume.geometry().space_maps_first);
        assert!(volume.read_block(map, IoBuf::aligned(BLOCK_SIZE)).await.0.is_ok());

        let id = BlockId::new(PartitionId(70), volume.geometry().extent_block(1));
        let fault = |result: Result<(), VolumeError>| match result {
            Err(VolumeError::Block { id: named, fault, .. }) if named.block == id.block => fault,
            other => panic!("{other:?}"),
        };
        let (result, mut buffer) = volume.read_block(id, IoBuf::aligned(BLOCK_SIZE)).await;
        assert_eq!(fault(result), BlockFault::NeverWritten);
        block::format_block(buffer.as_mut_slice(), id, BlockKind::TreeLeaf);
        block::seal(buffer.as_mut_slice());
        let (written, buffer) = volume.write_block(id, buffer).await;
        written.unwrap();
        volume.sync().await.unwrap();
        let (result, read) = volume.read_block(id, IoBuf::aligned(BLOCK_SIZE)).await;
        result.unwrap();
        assert_eq!(read.as_slice(), buffer.as_slice());
        let other = BlockId::new(PartitionId(71), id.block);
        assert_eq!(fault(volume.read_block(other, read).await.0), BlockFault::OtherBlock { found: id });

        // Half of a write.
        let offset = block_offset(id.block) + SECTOR as u64;
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"torn", offset).unwrap();
        assert!(matches!(fault(volume.read_block(id, buffer).await.0), BlockFault::Checksum { .. }));
    });
}

#[test]
#[should_panic(expected = "not one of the data area")]
fn no_block_is_written_outside_the_data_area() {
    let place = Place::new("outside");
    let path = place.0.clone();
    on_reactor(|reactor| async move {
        let volume = Volume::format(&reactor, &path, &small(), &mut |_| {}).await.unwrap();
        let id = BlockId::new(PartitionId(70), BlockNo(volume.geometry().redo_first.0));
        let _ = volume.write_block(id, IoBuf::aligned(BLOCK_SIZE)).await;
    });
}
