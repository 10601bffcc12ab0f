//! The membership's messages as bytes, drawn in `docs/membership.md`. The interconnect's header carries the kind, the body
//! the rest, little-endian; a node of any state can be told, whatever its epoch.
//!
//! Plain functions. A body is at most [`BODY_MAX`] bytes; whatever arrives is decoded or refused, never trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::types::{Known, Message, OVERRIDES_MAX, Override, Pledge, State, View};
use crate::fusion::grd::Bucket;
use crate::ids::{Epoch, Incarnation, NODES_MAX, NodeId, Scn, ShardId};
use crate::interconnect::{BODY_BYTES_MAX, Service};
use crate::volume::{Roster, RosterChange, RosterNode, Standing};

/// The kinds of the cluster service from here on are the membership's.
const BASE: u8 = Service::Cluster.base() + 8;
const STATE: u8 = BASE;
const PROPOSE: u8 = BASE + 1;
const ACCEPT: u8 = BASE + 2;
const WITHDRAW: u8 = BASE + 3;
const FREEZE: u8 = BASE + 4;
const FROZEN: u8 = BASE + 5;
const GO: u8 = BASE + 6;
const INSTANCES_RECOVERED: u8 = BASE + 7;
const RELEASED: u8 = BASE + 8;
const EXCLUDED: u8 = BASE + 9;
const ASK_LEASE: u8 = BASE + 10;
const GRANT_LEASE: u8 = BASE + 11;

const WENT: u8 = 1;
const SUSPENDED: u8 = 2;
const DISTURBED: u8 = 4;
const HAS_VIEW: u8 = 8;
const WISH_ADMIT: u8 = 16;
const WISH_REMOVE: u8 = 32;
const WISH_OUT: u8 = 64;
const FLAGS: u8 = WENT | SUSPENDED | DISTURBED | HAS_VIEW | WISH_ADMIT | WISH_REMOVE | WISH_OUT;

const FOUNDER: u8 = 0x80;

const PLEDGE_FREE: u8 = 0;
const PLEDGE_TO: u8 = 1;
const PLEDGE_LEADS: u8 = 2;
const PLEDGE_SETTLED: u8 = 3;

/// Most bytes of a body: a state with a wish and a view of all the nodes that a cluster may have, or such a view with as many
/// overrides as go from one to the next.
const BODY_MAX: usize = 19 + 20 + 20 + NODES_MAX * (10 + 20) + 4 * OVERRIDES_MAX;

const _: () = assert!(BODY_MAX <= BODY_BYTES_MAX);

impl Message {
    /// Kind and body.
    #[must_use]
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        let number = |number: u64| number.to_le_bytes().to_vec();
        let pair = |epoch: &Epoch, number: &u64| [epoch.0.to_le_bytes(), number.to_le_bytes()].concat();
        let kind = match self {
            Message::State(state) => {
                put_state(&mut body, state);
                STATE
            }
            Message::Propose { ballot, base, members } => {
                body.extend(ballot.to_le_bytes());
                body.extend(base.0.to_le_bytes());
                put_members(&mut body, members);
                PROPOSE
            }
            Message::Freeze { ballot, view, overrides } => {
                body.extend(ballot.to_le_bytes());
                put_view(&mut body, view);
                put_overrides(&mut body, overrides);
                FREEZE
            }
            Message::Accept { ballot } => return (ACCEPT, number(*ballot)),
            Message::Withdraw { ballot } => return (WITHDRAW, number(*ballot)),
            Message::Frozen(epoch) => return (FROZEN, number(epoch.0)),
            Message::Go(epoch) => return (GO, number(epoch.0)),
            Message::InstancesRecovered(epoch) => return (INSTANCES_RECOVERED, number(epoch.0)),
            Message::Released(epoch) => return (RELEASED, number(epoch.0)),
            Message::Excluded(life) => return (EXCLUDED, number(life.0)),
            Message::AskLease { epoch, asked_ns } => return (ASK_LEASE, pair(epoch, asked_ns)),
            Message::GrantLease { epoch, asked_ns } => return (GRANT_LEASE, pair(epoch, asked_ns)),
        };
        assert!(body.len() <= BODY_MAX, "a message about the membership of {} bytes", body.len());
        (kind, body)
    }

    /// From what arrived; `None` when it is none of ours or damaged.
    #[must_use]
    pub fn decode(kind: u8, body: &[u8]) -> Option<Message> {
        let mut rest = body;
        let rest = &mut rest;
        let message = match kind {
            STATE => Message::State(take_state(rest)?),
            PROPOSE => Message::Propose { ballot: take_u64(rest)?, base: Epoch(take_u64(rest)?), members: take_members(rest)? },
            ACCEPT => Message::Accept { ballot: take_u64(rest)? },
            WITHDRAW => Message::Withdraw { ballot: take_u64(rest)? },
            FREEZE => {
                let (ballot, view) = (take_u64(rest)?, take_view(rest)?);
                let overrides = take_overrides(rest, &view)?;
                Message::Freeze { ballot, view, overrides }
            }
            FROZEN => Message::Frozen(Epoch(take_u64(rest)?)),
            GO => Message::Go(Epoch(take_u64(rest)?)),
            INSTANCES_RECOVERED => Message::InstancesRecovered(Epoch(take_u64(rest)?)),
            RELEASED => Message::Released(Epoch(take_u64(rest)?)),
            EXCLUDED => Message::Excluded(Incarnation(take_u64(rest)?)),
            ASK_LEASE => Message::AskLease { epoch: Epoch(take_u64(rest)?), asked_ns: take_u64(rest)? },
            GRANT_LEASE => Message::GrantLease { epoch: Epoch(take_u64(rest)?), asked_ns: take_u64(rest)? },
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

fn put_state(body: &mut Vec<u8>, state: &State) {
    let flag = |on: bool, flag: u8| if on { flag } else { 0 };
    body.push(
        flag(state.went, WENT)
            | flag(state.suspended, SUSPENDED)
            | flag(state.disturbed, DISTURBED)
            | flag(state.view.is_ok(), HAS_VIEW)
            | flag(matches!(state.wish, Some(RosterChange::Admit(..))), WISH_ADMIT)
            | flag(matches!(state.wish, Some(RosterChange::Remove(_))), WISH_REMOVE)
            | flag(state.out.is_some(), WISH_OUT),
    );
    let (pledge, to) = match state.pledge {
        Pledge::Free => (PLEDGE_FREE, 0),
        Pledge::To(node) => (PLEDGE_TO, node.0),
        Pledge::Leads { settled: false } => (PLEDGE_LEADS, 0),
        Pledge::Leads { settled: true } => (PLEDGE_SETTLED, 0),
    };
    body.extend([pledge, to]);
    let links = state.links.iter().fold(0u128, |links, node| links | 1 << node.0);
    body.extend(links.to_le_bytes());
    match state.wish {
        Some(RosterChange::Admit(node, address)) => {
            body.push(node.0);
            put_address(body, address);
        }
        Some(RosterChange::Remove(node)) => body.push(node.0),
        None => {}
    }
    body.extend(state.out.map(|node| node.0));
    match &state.view {
        Ok(view) => put_view(body, view),
        Err(known) => {
            body.extend(known.epoch.0.to_le_bytes());
            put_roster(body, &known.roster);
        }
    }
}

fn take_state(rest: &mut &[u8]) -> Option<State> {
    let [flags, pledge, to] = take(rest)?;
    if flags & !FLAGS != 0 {
        return None;
    }
    let links = u128::from_le_bytes(take(rest)?);
    Some(State {
        went: flags & WENT != 0,
        suspended: flags & SUSPENDED != 0,
        disturbed: flags & DISTURBED != 0,
        pledge: match pledge {
            PLEDGE_FREE => Pledge::Free,
            PLEDGE_TO => Pledge::To(NodeId(to)),
            PLEDGE_LEADS => Pledge::Leads { settled: false },
            PLEDGE_SETTLED => Pledge::Leads { settled: true },
            _ => return None,
        },
        links: (1..=NODES_MAX as u8).filter(|node| links >> node & 1 == 1).map(NodeId).collect::<BTreeSet<_>>(),
        wish: match flags & (WISH_ADMIT | WISH_REMOVE) {
            0 => None,
            WISH_ADMIT => Some(RosterChange::Admit(take_node(rest)?, take_address(rest)?)),
            WISH_REMOVE => Some(RosterChange::Remove(take_node(rest)?)),
            _ => return None,
        },
        out: if flags & WISH_OUT != 0 { Some(take_node(rest)?) } else { None },
        view: match flags & HAS_VIEW {
            0 => Err(Known { epoch: Epoch(take_u64(rest)?), roster: take_roster(rest)? }),
            _ => Ok(take_view(rest)?),
        },
    })
}

fn put_view(body: &mut Vec<u8>, view: &View) {
    body.extend(view.epoch.0.to_le_bytes());
    body.extend(view.scn.0.to_le_bytes());
    put_members(body, &view.members);
    body.push(view.unrecovered.len() as u8);
    body.extend(view.unrecovered.iter().map(|node| node.0));
    body.push(view.new.map_or(0, |node| node.0));
    put_roster(body, &view.roster);
}

fn put_address(body: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    body.extend(ip.octets());
    body.extend(address.port().to_le_bytes());
}

fn take_address(rest: &mut &[u8]) -> Option<SocketAddr> {
    let ip = Ipv6Addr::from(take::<16>(rest)?);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    Some(SocketAddr::new(ip, u16::from_le_bytes(take(rest)?)))
}

fn put_roster(body: &mut Vec<u8>, roster: &Roster) {
    body.push(roster.nodes().len() as u8);
    for (node, there) in roster.nodes() {
        let standing = match there.standing {
            Standing::Joining => 1,
            Standing::Member => 2,
            Standing::Removed => 3,
        };
        body.extend([node.0, standing | if there.founder { FOUNDER } else { 0 }]);
        put_address(body, there.address);
    }
}

fn take_roster(rest: &mut &[u8]) -> Option<Roster> {
    let [count] = take(rest)?;
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let node = take_node(rest)?;
        let [standing] = take(rest)?;
        let founder = standing & FOUNDER != 0;
        let standing = match standing & !FOUNDER {
            1 => Standing::Joining,
            2 => Standing::Member,
            3 => Standing::Removed,
            _ => return None,
        };
        nodes.insert(node, RosterNode { address: take_address(rest)?, standing, founder });
    }
    (nodes.len() == usize::from(count)).then(|| Roster::of(nodes))
}

fn take_view(rest: &mut &[u8]) -> Option<View> {
    let (epoch, scn) = (Epoch(take_u64(rest)?), Scn(take_u64(rest)?));
    let members = take_members(rest)?;
    let [count] = take(rest)?;
    let mut unrecovered = Vec::new();
    for _ in 0..count {
        unrecovered.push(take_node(rest)?);
    }
    let [new] = take(rest)?;
    let new = (new != 0).then_some(NodeId(new));
    let view = View { epoch, members, unrecovered, scn, roster: take_roster(rest)?, new };
    if new.is_some_and(|new| !view.has_node(new)) {
        return None;
    }
    let sorted = view.unrecovered.is_sorted_by(|a, b| a < b) && !view.members.is_empty();
    (sorted && !view.unrecovered.iter().any(|node| view.has_node(*node))).then_some(view)
}

fn put_overrides(body: &mut Vec<u8>, overrides: &[Override]) {
    body.extend((overrides.len() as u16).to_le_bytes());
    for Override { shard, bucket, master } in overrides {
        body.extend([shard.0, master.0]);
        body.extend(bucket.0.to_le_bytes());
    }
}

fn take_overrides(rest: &mut &[u8], view: &View) -> Option<Vec<Override>> {
    let count = usize::from(u16::from_le_bytes(take(rest)?));
    let mut overrides = Vec::new();
    for _ in 0..(count <= OVERRIDES_MAX).then_some(count)? {
        let [shard] = take(rest)?;
        let master = take_node(rest).filter(|node| view.has_node(*node))?;
        overrides.push(Override { shard: ShardId(shard), bucket: Bucket(u16::from_le_bytes(take(rest)?)), master });
    }
    Some(overrides)
}

fn put_members(body: &mut Vec<u8>, members: &[(NodeId, Incarnation)]) {
    body.push(members.len() as u8);
    for (node, life) in members {
        body.push(node.0);
        body.extend(life.0.to_le_bytes());
    }
}

fn take_members(rest: &mut &[u8]) -> Option<Vec<(NodeId, Incarnation)>> {
    let [count] = take(rest)?;
    let mut members = Vec::new();
    for _ in 0..count {
        members.push((take_node(rest)?, Incarnation(take_u64(rest)?)));
    }
    members.is_sorted_by(|a, b| a.0 < b.0).then_some(members)
}

fn take_node(rest: &mut &[u8]) -> Option<NodeId> {
    let [node] = take(rest)?;
    (1..=NODES_MAX).contains(&usize::from(node)).then_some(NodeId(node))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::roster::tests::rosters;
    use proptest::prelude::*;

    fn members() -> impl Strategy<Value = Vec<(NodeId, Incarnation)>> {
        prop::collection::btree_map(1..=NODES_MAX as u8, any::<u64>(), 1..=NODES_MAX)
            .prop_map(|members| members.into_iter().map(|(node, life)| (NodeId(node), Incarnation(life))).collect())
    }

    fn views() -> impl Strategy<Value = View> {
        let unrecovered = prop::collection::btree_set(1..=NODES_MAX as u8, 0..20);
        (members(), any::<u64>(), any::<u64>(), unrecovered, rosters()).prop_map(|(members, epoch, scn, unrecovered, roster)| {
            let member = |node: &u8| members.iter().any(|(member, _)| member.0 == *node);
            let unrecovered = unrecovered.into_iter().filter(|node| !member(node)).map(NodeId).collect();
            let new = members.first().map(|(node, _)| *node).filter(|node| node.0 % 2 == 0);
            View { epoch: Epoch(epoch), members, unrecovered, scn: Scn(scn), roster, new }
        })
    }

    fn messages() -> impl Strategy<Value = Message> {
        let pledge = prop_oneof![
            Just(Pledge::Free),
            (1..=NODES_MAX as u8).prop_map(|node| Pledge::To(NodeId(node))),
            any::<bool>().prop_map(|settled| Pledge::Leads { settled }),
        ];
        let links = prop::collection::btree_set((1..=NODES_MAX as u8).prop_map(NodeId), 0..=NODES_MAX);
        let flags = any::<(bool, bool, bool)>();
        let known = (any::<u64>(), rosters()).prop_map(|(epoch, roster)| Known { epoch: Epoch(epoch), roster });
        let view = prop_oneof![views().prop_map(Ok), known.prop_map(Err)];
        let address = (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip.to_be_bytes(), port)));
        let wish = prop_oneof![
            Just(None),
            (1..=NODES_MAX as u8, address).prop_map(|(node, address)| Some(RosterChange::Admit(NodeId(node), address))),
            (1..=NODES_MAX as u8).prop_map(|node| Some(RosterChange::Remove(NodeId(node)))),
        ];
        let out = prop::option::of((1..=NODES_MAX as u8).prop_map(NodeId));
        let states = (view, flags, pledge, links, wish, out).prop_map(|(view, flags, pledge, links, wish, out)| State {
            wish,
            out,
            view,
            went: flags.0,
            suspended: flags.1,
            disturbed: flags.2,
            pledge,
            links,
        });
        prop_oneof![
            states.prop_map(Message::State),
            (any::<u64>(), any::<u64>(), members()).prop_map(|(ballot, base, members)| Message::Propose {
                ballot,
                base: Epoch(base),
                members
            }),
            (any::<u64>(), views(), prop::collection::vec(any::<(u8, u16)>(), 0..40)).prop_map(|(ballot, view, moved)| {
                let master = view.members[0].0;
                let moved = moved.into_iter();
                let overrides =
                    moved.map(|(shard, bucket)| Override { shard: ShardId(shard), bucket: Bucket(bucket), master }).collect();
                Message::Freeze { ballot, view, overrides }
            }),
            any::<u64>().prop_map(|ballot| Message::Accept { ballot }),
            any::<u64>().prop_map(|ballot| Message::Withdraw { ballot }),
            any::<u64>().prop_map(|epoch| Message::Frozen(Epoch(epoch))),
            any::<u64>().prop_map(|epoch| Message::Go(Epoch(epoch))),
            any::<u64>().prop_map(|epoch| Message::InstancesRecovered(Epoch(epoch))),
            any::<u64>().prop_map(|epoch| Message::Released(Epoch(epoch))),
            any::<u64>().prop_map(|life| Message::Excluded(Incarnation(life))),
            any::<(u64, u64)>().prop_map(|(epoch, asked_ns)| Message::AskLease { epoch: Epoch(epoch), asked_ns }),
            any::<(u64, u64)>().prop_map(|(epoch, asked_ns)| Message::GrantLease { epoch: Epoch(epoch), asked_ns }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_comes_out_as_it_went_in_and_never_in_part(message in messages(), cut in any::<prop::sample::Index>()) {
            let (kind, body) = message.encode();
            prop_assert_eq!(Message::decode(kind, &body), Some(message));
            prop_assert_eq!(Message::decode(kind, &body[..cut.index(body.len())]), None);
        }

        #[test]
        fn whatever_arrives_is_decoded_or_refused(kind: u8, body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(message) = Message::decode(kind, &body) {
                // A pledge and links have bits that say nothing; everything else is as it was.
                let (again, _) = message.encode();
                prop_assert_eq!(again, kind);
            }
        }
    }
}
