//! The control group's commands, answers and state as bytes.
//!
//! Functions over bytes, without state. Each begins with [`VERSION`]; numbers are little-endian; every length is checked
//! against its bound, and bytes that are left over are a fault. Drawn in `docs/formats.md`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::state::{
    Changed, Command, ConfiguredNode, ControlState, MEMBERS_MAX, NodeRole, NodeStanding, OVERRIDES_MAX, Refusal,
    SETTING_BYTES_MAX, SETTING_NAME_BYTES_MAX, SETTINGS_MAX, VIEWS_MAX, ViewRecord,
};
use crate::fusion::grd::Bucket;
use crate::ids::{Epoch, NODES_MAX, NodeId};
use crate::raft::LogIndex;
use crate::raft::codec::CodecFault;

/// The form that this release writes, and the only one that it reads.
const VERSION: u8 = 1;

const VIEW: u8 = 1;
const CONFIGURE: u8 = 2;
const STAND: u8 = 3;
const MASTER: u8 = 4;
const SET: u8 = 5;

const DONE: u8 = 0;
const REMOVED: u8 = 1;
const UNKNOWN: u8 = 2;
const LAST_NODE: u8 = 3;
const ADDRESS_TAKEN: u8 = 4;
const FULL: u8 = 5;
const NOT_UNDERSTOOD: u8 = 6;

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Writer {
        Writer(vec![VERSION, kind])
    }

    fn u8(&mut self, value: u8) -> &mut Writer {
        self.0.push(value);
        self
    }

    fn u16(&mut self, value: usize) -> &mut Writer {
        self.0.extend_from_slice(&u16::try_from(value).expect("bounded by its constant").to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Writer {
        self.u16(text.len()).0.extend_from_slice(text.as_bytes());
        self
    }

    fn address(&mut self, address: SocketAddr) -> &mut Writer {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        self.0.extend_from_slice(&ip.octets());
        self.u16(usize::from(address.port()))
    }

    fn nodes(&mut self, nodes: &[NodeId]) -> &mut Writer {
        self.u8(u8::try_from(nodes.len()).expect("a cluster has at most 127 nodes"));
        self.0.extend(nodes.iter().map(|node| node.0));
        self
    }

    fn changed(&mut self, changed: Changed) -> &mut Writer {
        self.u64(changed.epoch.0).u64(changed.index.0)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Behind the version: what it is.
    fn new(bytes: &'a [u8]) -> Result<(Reader<'a>, u8), CodecFault> {
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(CodecFault::Bound { what: "the control group's format", value: u64::from(version) });
        }
        let kind = reader.u8()?;
        Ok((reader, kind))
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecFault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CodecFault::TooShort)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecFault> {
        Ok(self.bytes(N)?.try_into().expect("as many as were asked for"))
    }

    fn u8(&mut self) -> Result<u8, CodecFault> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, CodecFault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, CodecFault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &'static str, maximum: usize) -> Result<usize, CodecFault> {
        let count = usize::from(self.u16()?);
        if count <= maximum { Ok(count) } else { Err(CodecFault::Bound { what, value: count as u64 }) }
    }

    fn node(&mut self) -> Result<NodeId, CodecFault> {
        let number = self.u8()?;
        if (1..=NODES_MAX).contains(&usize::from(number)) {
            return Ok(NodeId(number));
        }
        Err(CodecFault::Bound { what: "a node's number", value: u64::from(number) })
    }

    fn nodes(&mut self) -> Result<Vec<NodeId>, CodecFault> {
        let count = usize::from(self.u8()?);
        if count > MEMBERS_MAX {
            return Err(CodecFault::Bound { what: "members of a view", value: count as u64 });
        }
        (0..count).map(|_| self.node()).collect()
    }

    fn text(&mut self, what: &'static str, maximum: usize) -> Result<String, CodecFault> {
        let length = self.count(what, maximum)?;
        let text = std::str::from_utf8(self.bytes(length)?);
        text.map(str::to_owned).map_err(|_| CodecFault::Inconsistent("a text that is not UTF-8"))
    }

    fn address(&mut self) -> Result<SocketAddr, CodecFault> {
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn role(&mut self) -> Result<NodeRole, CodecFault> {
        match self.u8()? {
            0 => Ok(NodeRole::Voter),
            1 => Ok(NodeRole::Observer),
            value => Err(CodecFault::Bound { what: "a node's role", value: u64::from(value) }),
        }
    }

    fn standing(&mut self) -> Result<NodeStanding, CodecFault> {
        match self.u8()? {
            0 => Ok(NodeStanding::Member),
            1 => Ok(NodeStanding::Draining),
            2 => Ok(NodeStanding::Removed),
            value => Err(CodecFault::Bound { what: "a node's standing", value: u64::from(value) }),
        }
    }

    fn epoch(&mut self) -> Result<Epoch, CodecFault> {
        Ok(Epoch(self.u64()?))
    }

    fn changed(&mut self) -> Result<Changed, CodecFault> {
        Ok(Changed { epoch: self.epoch()?, index: LogIndex(self.u64()?) })
    }

    fn end<T>(&self, value: T) -> Result<T, CodecFault> {
        if self.0.is_empty() { Ok(value) } else { Err(CodecFault::TooLong { extra: self.0.len() }) }
    }
}

fn role_byte(role: NodeRole) -> u8 {
    match role {
        NodeRole::Voter => 0,
        NodeRole::Observer => 1,
    }
}

fn standing_byte(standing: NodeStanding) -> u8 {
    match standing {
        NodeStanding::Member => 0,
        NodeStanding::Draining => 1,
        NodeStanding::Removed => 2,
    }
}

/// A command's bytes: at most some 400.
#[must_use]
pub fn encode_command(command: &Command) -> Vec<u8> {
    let mut writer = Writer::new(match command {
        Command::View { .. } => VIEW,
        Command::Configure { .. } => CONFIGURE,
        Command::Stand { .. } => STAND,
        Command::Master { .. } => MASTER,
        Command::Set { .. } => SET,
    });
    match command {
        Command::View { epoch, members } => writer.u64(epoch.0).nodes(members),
        Command::Configure { epoch, node, address, role } => {
            writer.u64(epoch.0).u8(node.0).u8(role_byte(*role)).address(*address)
        }
        Command::Stand { epoch, node, standing } => writer.u64(epoch.0).u8(node.0).u8(standing_byte(*standing)),
        Command::Master { epoch, bucket, node } => {
            writer.u64(epoch.0).u16(usize::from(bucket.0)).u8(node.map_or(0, |node| node.0))
        }
        Command::Set { epoch, name, value } => {
            let value_byte = u8::from(value.is_some());
            writer.u64(epoch.0).u8(value_byte).text(name).text(value.as_deref().unwrap_or_default())
        }
    };
    writer.0
}

/// The command of these bytes.
///
/// # Errors
/// What is wrong with them.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecFault> {
    let (mut reader, kind) = Reader::new(bytes)?;
    let epoch = reader.epoch()?;
    let command = match kind {
        VIEW => Command::View { epoch, members: reader.nodes()? },
        CONFIGURE => {
            let (node, role) = (reader.node()?, reader.role()?);
            Command::Configure { epoch, node, role, address: reader.address()? }
        }
        STAND => Command::Stand { epoch, node: reader.node()?, standing: reader.standing()? },
        MASTER => {
            let bucket = Bucket(reader.u16()?);
            let node = if reader.0 == [0] { reader.u8().map(|_| None)? } else { Some(reader.node()?) };
            Command::Master { epoch, bucket, node }
        }
        SET => {
            let has_value = reader.u8()?;
            let name = reader.text("bytes of a setting's name", SETTING_NAME_BYTES_MAX)?;
            let value = reader.text("bytes of a setting", SETTING_BYTES_MAX)?;
            let value = match has_value {
                1 => Some(value),
                0 if value.is_empty() => None,
                _ => return Err(CodecFault::Inconsistent("a setting that is taken away has a value")),
            };
            Command::Set { epoch, name, value }
        }
        kind => return Err(CodecFault::Kind(kind)),
    };
    reader.end(command)
}

/// An answer's bytes.
pub(super) fn encode_answer(outcome: Result<(), Refusal>) -> Vec<u8> {
    let (kind, node) = match outcome {
        Ok(()) => (DONE, 0),
        Err(Refusal::Removed(node)) => (REMOVED, node.0),
        Err(Refusal::Unknown(node)) => (UNKNOWN, node.0),
        Err(Refusal::LastNode(node)) => (LAST_NODE, node.0),
        Err(Refusal::AddressTaken(node)) => (ADDRESS_TAKEN, node.0),
        Err(Refusal::Full) => (FULL, 0),
        Err(Refusal::NotUnderstood) => (NOT_UNDERSTOOD, 0),
    };
    let mut writer = Writer::new(kind);
    writer.u8(node);
    writer.0
}

/// The outcome of these bytes; what can't be read is an answer of a release that understands more.
pub(super) fn decode_answer(bytes: &[u8]) -> Result<(), Refusal> {
    let &[VERSION, kind, node] = bytes else { return Err(Refusal::NotUnderstood) };
    let node = NodeId(node);
    match kind {
        DONE => Ok(()),
        REMOVED => Err(Refusal::Removed(node)),
        UNKNOWN => Err(Refusal::Unknown(node)),
        LAST_NODE => Err(Refusal::LastNode(node)),
        ADDRESS_TAKEN => Err(Refusal::AddressTaken(node)),
        FULL => Err(Refusal::Full),
        _ => Err(Refusal::NotUnderstood),
    }
}

/// The state's bytes, at most some 90 KB.
pub(super) fn encode_state(state: &ControlState) -> Vec<u8> {
    let mut writer = Writer::new(0);
    writer.u16(state.nodes.len());
    for (id, node) in &state.nodes {
        writer.u8(id.0).u8(role_byte(node.role)).u8(standing_byte(node.standing)).address(node.address).changed(node.changed);
    }
    writer.u16(state.views.len());
    for view in &state.views {
        writer.u64(view.epoch.0).u64(view.index.0).nodes(&view.members);
    }
    writer.u16(state.overrides.len());
    for (bucket, (node, changed)) in &state.overrides {
        writer.u16(usize::from(bucket.0)).u8(node.0).changed(*changed);
    }
    writer.u16(state.settings.len());
    for (name, (value, changed)) in &state.settings {
        writer.text(name).text(value).changed(*changed);
    }
    writer.0
}

/// The state of these bytes.
pub(super) fn decode_state(bytes: &[u8]) -> Result<ControlState, CodecFault> {
    let (mut reader, kind) = Reader::new(bytes)?;
    if kind != 0 {
        return Err(CodecFault::Kind(kind));
    }
    let mut state = ControlState::default();
    for _ in 0..reader.count("configured nodes", NODES_MAX)? {
        let (id, role, standing) = (reader.node()?, reader.role()?, reader.standing()?);
        let (address, changed) = (reader.address()?, reader.changed()?);
        state.nodes.insert(id, ConfiguredNode { address, role, standing, changed });
    }
    for _ in 0..reader.count("views", VIEWS_MAX)? {
        let (epoch, index) = (reader.epoch()?, LogIndex(reader.u64()?));
        state.views.push_back(ViewRecord { epoch, index, members: reader.nodes()? });
    }
    for _ in 0..reader.count("masters out of turn", OVERRIDES_MAX)? {
        let (bucket, node) = (Bucket(reader.u16()?), reader.node()?);
        state.overrides.insert(bucket, (node, reader.changed()?));
    }
    for _ in 0..reader.count("settings", SETTINGS_MAX)? {
        let name = reader.text("bytes of a setting's name", SETTING_NAME_BYTES_MAX)?;
        let value = reader.text("bytes of a setting", SETTING_BYTES_MAX)?;
        state.settings.insert(name, (value, reader.changed()?));
    }
    reader.end(state)
}
