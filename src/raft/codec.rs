//! Raft's messages, entries, configurations and snapshots as bytes, for the wire and for the log.
//!
//! Functions over bytes, without state and without I/O. raft-rs keeps its values in Protocol Buffers' structs; their
//! own decoder is never given a byte that came from a peer or from the disk (its version has a known flaw, RUSTSEC-2024-0437,
//! and checks nothing of what Raft relies on). The decoder here checks every length and every relation that raft-rs takes for
//! granted, and gives a [`CodecFault`] for anything else. Bounded by [`BODY_BYTES_MAX`] for a message and by the constants
//! below. Drawn in `docs/formats.md`.

use std::fmt;

use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};
use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::types::{Configuration, ConfigurationChange, GroupId, HardState, LogIndex, MemberChange, Term, node_of, raft_id};
use crate::fusion::NodeSet;
use crate::ids::{NODES_MAX, NodeId};
use crate::interconnect::BODY_BYTES_MAX;

/// Most bytes of one proposal: an entry fits into one message together with everything around it.
pub const PROPOSAL_BYTES_MAX: usize = 56 * 1024;

/// Most entries of one message, and of one record of the log.
pub const ENTRIES_MAX: usize = 4_096;

/// Most bytes that a message's context may have: a read's name, or the mark of a leadership transfer.
pub const CONTEXT_BYTES_MAX: usize = 64;

/// Most bytes of a state machine's snapshot.
pub const SNAPSHOT_BYTES_MAX: usize = 4 << 20;

/// Bytes of a snapshot that one message carries.
pub const SNAPSHOT_PART_BYTES: usize = 56 * 1024;

/// Bytes of an entry beside its data.
pub const ENTRY_OVERHEAD: usize = size_of::<WireEntry>();

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecFault {
    /// They end before their content does.
    TooShort,
    /// They go on after their content.
    TooLong {
        /// Bytes too many.
        extra: usize,
    },
    /// A kind that nothing has.
    Kind(u8),
    /// A length or count beyond its bound.
    Bound {
        /// Of what.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// Parts that contradict each other.
    Inconsistent(&'static str),
}

impl fmt::Display for CodecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecFault::TooShort => write!(f, "the bytes end before their content does"),
            CodecFault::TooLong { extra } => write!(f, "{extra} bytes follow the content"),
            CodecFault::Kind(kind) => write!(f, "nothing has the kind {kind}"),
            CodecFault::Bound { what, value } => write!(f, "{what}: {value} is beyond its bound"),
            CodecFault::Inconsistent(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for CodecFault {}

/// A message for one group, as it lies in a frame; its entries follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireMessage {
    /// Bytes of the whole, this header included.
    length: U32,
    kind: u8,
    reject: u8,
    entries: U16,
    group: U64,
    term: U64,
    log_term: U64,
    index: U64,
    commit: U64,
    commit_term: U64,
    reject_hint: U64,
    context_len: U32,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireEntry {
    term: U64,
    index: U64,
    data_len: U32,
    kind: u8,
    reserved: [u8; 3],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireConfiguration {
    voters: U128,
    learners: U128,
    outgoing: U128,
    learners_next: U128,
    auto_leave: u8,
    reserved: [u8; 7],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireHardState {
    term: U64,
    commit: U64,
    vote: u8,
    reserved: [u8; 7],
}

/// A part of a snapshot message; its bytes follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireSnapshotPart {
    group: U64,
    message_term: U64,
    index: U64,
    term: U64,
    configuration: WireConfiguration,
    total: U32,
    offset: U32,
}

const _: () = {
    assert!(size_of::<WireMessage>() == 72);
    assert!(size_of::<WireEntry>() == 24);
    assert!(size_of::<WireConfiguration>() == 72);
    assert!(size_of::<WireHardState>() == 24);
    assert!(size_of::<WireSnapshotPart>() == 112);
    assert!(size_of::<WireSnapshotPart>() + SNAPSHOT_PART_BYTES <= BODY_BYTES_MAX);
    assert!(size_of::<WireMessage>() + size_of::<WireEntry>() + PROPOSAL_BYTES_MAX <= BODY_BYTES_MAX);
};

/// What lies between nodes, by its number. Proposals travel in frames of their own, and what raft-rs calls local messages never do.
const KINDS: [MessageType; 11] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

const NORMAL: u8 = 0;
const CONFIGURATION: u8 = 1;

/// Bytes that are taken from the front.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(&mut self) -> Result<&'a T, CodecFault> {
        let (value, rest) = T::ref_from_prefix(self.0).map_err(|_| CodecFault::TooShort)?;
        self.0 = rest;
        Ok(value)
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecFault> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(CodecFault::TooShort)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn end(&self) -> Result<(), CodecFault> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecFault::TooLong { extra: self.0.len() }) }
    }
}

/// Bytes that a message will take.
#[must_use]
pub fn message_len(message: &Message) -> usize {
    let entries: usize = if carries_entries(message.get_msg_type()) { message.entries.iter().map(entry_len).sum() } else { 0 };
    size_of::<WireMessage>() + context_of(message).len() + entries
}

fn carries_entries(kind: MessageType) -> bool {
    kind == MessageType::MsgAppend
}

fn is_read(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgReadIndex | MessageType::MsgReadIndexResp)
}

/// A read's name stands where other messages have their context.
fn context_of(message: &Message) -> &[u8] {
    if is_read(message.get_msg_type()) { &message.entries[0].data } else { &message.context }
}

/// Whether a message goes by [`encode_message`]; a snapshot goes in parts, see [`snapshot_parts`].
#[must_use]
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}

/// Appends a message for a group. Sender and receiver are those of the frame.
///
/// # Panics
/// When it is of a kind that does not travel, or larger than a frame: the replica bounds what it sends.
pub fn encode_message(group: GroupId, message: &Message, out: &mut Vec<u8>) {
    let kind = message.get_msg_type();
    let number = KINDS.iter().position(|known| *known == kind);
    let number = number.unwrap_or_else(|| panic!("{kind:?} is not for other nodes")) as u8 + 1;
    let length = message_len(message);
    let entries: &[Entry] = if carries_entries(kind) { &message.entries } else { &[] };
    let context = context_of(message);
    assert!(length <= BODY_BYTES_MAX && entries.len() <= ENTRIES_MAX, "a message of {length} bytes, {} entries", entries.len());
    assert!(context.len() <= CONTEXT_BYTES_MAX, "a context of {} bytes", context.len());
    let header = WireMessage {
        length: U32::new(length as u32),
        kind: number,
        reject: u8::from(message.reject),
        entries: U16::new(entries.len() as u16),
        group: U64::new(group.0),
        term: U64::new(message.term),
        log_term: U64::new(message.log_term),
        index: U64::new(message.index),
        commit: U64::new(message.commit),
        commit_term: U64::new(message.commit_term),
        reject_hint: U64::new(message.reject_hint),
        context_len: U32::new(context.len() as u32),
        reserved: U32::ZERO,
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(context);
    entries.iter().for_each(|entry| encode_entry(entry, out));
}

/// Takes the next message from the front of `bytes`. `from` and `to` are those of the frame that it came in.
///
/// # Errors
/// [`CodecFault`]; the rest of the frame is of no use then.
pub(super) fn decode_message(bytes: &mut Reader<'_>, from: NodeId, to: NodeId) -> Result<(GroupId, Message), CodecFault> {
    let length = bytes.0.get(..4).ok_or(CodecFault::TooShort)?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    let mut content = Reader(bytes.bytes(length)?);
    let header = content.take::<WireMessage>()?;
    let kind = usize::from(header.kind).checked_sub(1).and_then(|at| KINDS.get(at)).ok_or(CodecFault::Kind(header.kind))?;
    let context_len = header.context_len.get() as usize;
    if context_len > CONTEXT_BYTES_MAX {
        return Err(CodecFault::Bound { what: "bytes of a context", value: context_len as u64 });
    }
    let context = content.bytes(context_len)?;
    let count = usize::from(header.entries.get());
    if count > ENTRIES_MAX || (count > 0 && !carries_entries(*kind)) {
        return Err(CodecFault::Bound { what: "entries of a message", value: count as u64 });
    }
    let entries = decode_entries(&mut content, count)?;
    content.end()?;
    if header.reject > 1 {
        return Err(CodecFault::Inconsistent("a rejection is yes or no"));
    }
    // A term of 0 would make raft-rs take it for a message of its own node.
    if (header.term.get() == 0) != (*kind == MessageType::MsgReadIndex) {
        return Err(CodecFault::Inconsistent("every message but a read has a term"));
    }
    if let Some(first) = entries.first()
        && (first.index != header.index.get().wrapping_add(1) || first.term < header.log_term.get())
    {
        return Err(CodecFault::Inconsistent("the entries do not follow what the message says"));
    }
    if entries.last().is_some_and(|last| last.term > header.term.get()) {
        return Err(CodecFault::Inconsistent("an entry is of a later term than its message"));
    }
    if is_read(*kind) && context.is_empty() {
        return Err(CodecFault::Inconsistent("a read has a name"));
    }

    let mut message = Message::default();
    message.set_msg_type(*kind);
    message.from = raft_id(from);
    message.to = raft_id(to);
    message.term = header.term.get();
    message.log_term = header.log_term.get();
    message.index = header.index.get();
    message.commit = header.commit.get();
    message.commit_term = header.commit_term.get();
    message.reject = header.reject == 1;
    message.reject_hint = header.reject_hint.get();
    if is_read(*kind) {
        message.set_entries(vec![Entry { data: context.to_vec().into(), ..Entry::default() }].into());
    } else {
        message.set_entries(entries.into());
        message.context = context.to_vec().into();
    }
    Ok((GroupId(header.group.get()), message))
}

/// Bytes that an entry will take.
#[must_use]
pub fn entry_len(entry: &Entry) -> usize {
    size_of::<WireEntry>() + entry_data(entry).1.len()
}

/// A change of the configuration has our own form of it in its context, and only that travels.
fn entry_data(entry: &Entry) -> (u8, &[u8]) {
    match entry.get_entry_type() {
        EntryType::EntryNormal => (NORMAL, &entry.data),
        EntryType::EntryConfChangeV2 => (CONFIGURATION, &entry.context),
        EntryType::EntryConfChange => unreachable!("changes of the configuration are proposed in their second form"),
    }
}

/// Appends an entry.
pub(super) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    let (kind, data) = entry_data(entry);
    let header = WireEntry {
        term: U64::new(entry.term),
        index: U64::new(entry.index),
        data_len: U32::new(data.len() as u32),
        kind,
        reserved: [0; 3],
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
}

/// Takes `count` entries, which follow each other in index and in term.
pub(super) fn decode_entries(bytes: &mut Reader<'_>, count: usize) -> Result<Vec<Entry>, CodecFault> {
    let mut entries: Vec<Entry> = Vec::with_capacity(count.min(ENTRIES_MAX));
    for _ in 0..count {
        let header = *bytes.take::<WireEntry>()?;
        let length = header.data_len.get() as usize;
        if length > PROPOSAL_BYTES_MAX {
            return Err(CodecFault::Bound { what: "bytes of an entry", value: length as u64 });
        }
        let data = bytes.bytes(length)?;
        let mut entry = Entry { term: header.term.get(), index: header.index.get(), ..Entry::default() };
        if entry.term == 0 || entry.index == 0 || entry.index == u64::MAX {
            return Err(CodecFault::Inconsistent("an entry has a term and an index"));
        }
        if let Some(before) = entries.last()
            && (before.index + 1 != entry.index || before.term > entry.term)
        {
            return Err(CodecFault::Inconsistent("entries follow each other in index and term"));
        }
        match header.kind {
            NORMAL => entry.data = data.to_vec().into(),
            CONFIGURATION => {
                decode_change(data)?;
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.context = data.to_vec().into();
            }
            kind => return Err(CodecFault::Kind(kind)),
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// A change of the configuration: two bytes for each member, nothing for leaving a joint configuration.
#[must_use]
pub fn encode_change(change: &ConfigurationChange) -> Vec<u8> {
    let pair = |change: &MemberChange| match change {
        MemberChange::AddVoter(node) => [1, node.0],
        MemberChange::AddLearner(node) => [2, node.0],
        MemberChange::Remove(node) => [3, node.0],
    };
    change.0.iter().flat_map(pair).collect()
}

/// Reads what [`encode_change`] has written.
///
/// # Errors
/// [`CodecFault`].
pub fn decode_change(bytes: &[u8]) -> Result<ConfigurationChange, CodecFault> {
    if bytes.len() > 2 * NODES_MAX {
        return Err(CodecFault::Bound { what: "bytes of a configuration change", value: bytes.len() as u64 });
    }
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(CodecFault::TooShort);
    }
    let change = |[kind, node]: &[u8; 2]| {
        let node = node_of(u64::from(*node)).ok_or(CodecFault::Bound { what: "a node's number", value: u64::from(*node) })?;
        match kind {
            1 => Ok(MemberChange::AddVoter(node)),
            2 => Ok(MemberChange::AddLearner(node)),
            3 => Ok(MemberChange::Remove(node)),
            kind => Err(CodecFault::Kind(*kind)),
        }
    };
    pairs.iter().map(change).collect::<Result<Vec<_>, _>>().map(ConfigurationChange)
}

fn wire_configuration(configuration: &Configuration) -> WireConfiguration {
    WireConfiguration {
        voters: U128::new(configuration.voters.bits()),
        learners: U128::new(configuration.learners.bits()),
        outgoing: U128::new(configuration.outgoing.bits()),
        learners_next: U128::new(configuration.learners_next.bits()),
        auto_leave: u8::from(configuration.auto_leave),
        reserved: [0; 7],
    }
}

fn configuration_of(wire: &WireConfiguration) -> Result<Configuration, CodecFault> {
    let set = |bits: U128| NodeSet::from_bits(bits.get()).ok_or(CodecFault::Inconsistent("node 0 is nobody"));
    let configuration = Configuration {
        voters: set(wire.voters)?,
        learners: set(wire.learners)?,
        outgoing: set(wire.outgoing)?,
        learners_next: set(wire.learners_next)?,
        auto_leave: wire.auto_leave == 1,
    };
    let voting = configuration.voters.bits() | configuration.outgoing.bits();
    let sound = wire.auto_leave <= 1
        && configuration.learners.bits() & voting == 0
        && configuration.learners_next.bits() & !configuration.outgoing.bits() == 0
        && configuration.learners_next.bits() & configuration.voters.bits() == 0
        && (configuration.is_joint() || !configuration.auto_leave);
    if sound { Ok(configuration) } else { Err(CodecFault::Inconsistent("no configuration has such members")) }
}

/// Appends a configuration.
pub(super) fn encode_configuration(configuration: &Configuration, out: &mut Vec<u8>) {
    out.extend_from_slice(wire_configuration(configuration).as_bytes());
}

/// Takes a configuration.
pub(super) fn decode_configuration(bytes: &mut Reader<'_>) -> Result<Configuration, CodecFault> {
    configuration_of(bytes.take()?)
}

/// Appends a hard state.
pub(super) fn encode_hard_state(state: &HardState, out: &mut Vec<u8>) {
    let wire = WireHardState {
        term: U64::new(state.term.0),
        commit: U64::new(state.commit.0),
        vote: state.vote.map_or(0, |node| node.0),
        reserved: [0; 7],
    };
    out.extend_from_slice(wire.as_bytes());
}

/// Takes a hard state.
pub(super) fn decode_hard_state(bytes: &mut Reader<'_>) -> Result<HardState, CodecFault> {
    let wire = bytes.take::<WireHardState>()?;
    if usize::from(wire.vote) > NODES_MAX {
        return Err(CodecFault::Bound { what: "a node's number", value: u64::from(wire.vote) });
    }
    Ok(HardState { term: Term(wire.term.get()), vote: node_of(u64::from(wire.vote)), commit: LogIndex(wire.commit.get()) })
}

/// One part of a snapshot message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPart<'a> {
    /// The group.
    pub group: GroupId,
    /// Term of the message that carries the snapshot.
    pub message_term: Term,
    /// The last entry that the snapshot stands for.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The configuration at that entry.
    pub configuration: Configuration,
    /// Bytes of the whole snapshot.
    pub total: usize,
    /// Where this part begins.
    pub offset: usize,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// The bodies of the frames that carry a snapshot message, in order. At least one.
///
/// # Panics
/// When the snapshot is larger than [`SNAPSHOT_BYTES_MAX`]: no replica takes such a one.
pub fn snapshot_parts(group: GroupId, message: &Message) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (snapshot, total) = (message.get_snapshot(), message.get_snapshot().data.len());
    assert!(total <= SNAPSHOT_BYTES_MAX, "a snapshot of {total} bytes");
    let metadata = snapshot.get_metadata();
    let configuration = wire_configuration(&Configuration::from_conf_state(metadata.get_conf_state()));
    (0..total.div_ceil(SNAPSHOT_PART_BYTES).max(1)).map(move |part| {
        let offset = part * SNAPSHOT_PART_BYTES;
        let header = WireSnapshotPart {
            group: U64::new(group.0),
            message_term: U64::new(message.term),
            index: U64::new(metadata.index),
            term: U64::new(metadata.term),
            configuration,
            total: U32::new(total as u32),
            offset: U32::new(offset as u32),
        };
        let mut body = header.as_bytes().to_vec();
        body.extend_from_slice(&snapshot.data[offset..total.min(offset + SNAPSHOT_PART_BYTES)]);
        body
    })
}

/// Reads a frame that carries a part of a snapshot.
///
/// # Errors
/// [`CodecFault`].
pub fn decode_snapshot_part(body: &[u8]) -> Result<SnapshotPart<'_>, CodecFault> {
    let mut reader = Reader(body);
    let header = reader.take::<WireSnapshotPart>()?;
    let (total, offset, bytes) = (header.total.get() as usize, header.offset.get() as usize, reader.0);
    if total > SNAPSHOT_BYTES_MAX {
        return Err(CodecFault::Bound { what: "bytes of a snapshot", value: total as u64 });
    }
    if bytes.len() > SNAPSHOT_PART_BYTES || offset + bytes.len() > total || (bytes.is_empty() && total > 0) {
        return Err(CodecFault::Inconsistent("a part reaches beyond its snapshot"));
    }
    if header.index.get() == 0 || header.term.get() == 0 || header.message_term.get() < header.term.get() {
        return Err(CodecFault::Inconsistent("a snapshot has an index and a term, no later than its message's"));
    }
    Ok(SnapshotPart {
        group: GroupId(header.group.get()),
        message_term: Term(header.message_term.get()),
        index: LogIndex(header.index.get()),
        term: Term(header.term.get()),
        configuration: configuration_of(&header.configuration)?,
        total,
        offset,
        bytes,
    })
}

impl SnapshotPart<'_> {
    /// The message that the parts make, when `data` is all of their bytes.
    #[must_use]
    pub fn message(&self, data: Vec<u8>, from: NodeId, to: NodeId) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = raft_id(from);
        message.to = raft_id(to);
        message.term = self.message_term.0;
        message.set_snapshot(raft_snapshot(self.index, self.term, &self.configuration, data));
        message
    }
}

/// A snapshot in raft-rs's form.
pub(super) fn raft_snapshot(index: LogIndex, term: Term, configuration: &Configuration, data: Vec<u8>) -> Snapshot {
    let mut metadata = SnapshotMetadata { index: index.0, term: term.0, ..SnapshotMetadata::default() };
    metadata.set_conf_state(configuration.to_conf_state());
    let mut snapshot = Snapshot::default();
    snapshot.set_metadata(metadata);
    snapshot.data = data.into();
    snapshot
}

#[cfg(test)]
mod tests;
