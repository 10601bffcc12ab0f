//! The lock service's messages, as they go through the interconnect. Plain encoding, drawn in `docs/ges.md`.
//!
//! The header carries the resource (class in `partition`, id1 in `block_no`, id2 in `argument`), the requester's number for
//! the lock in `request` and the mode in `mode`; the body carries a value block or a probe.

use super::core::rebuild::{Claim, Claimed, ClaimsEnd};
use super::core::{Input, LockKey, Output, Refusal, ValueChange};
use super::deadlock::{PATH_MAX, Probe, Target, Waiter};
use super::local::WaitId;
use super::types::{LockMode, Resource, ResourceClass, VALUE_BYTES, ValueBlock};
use crate::ids::{BlockId, BlockNo, NodeId, PartitionId, RequestId, TxnId};
use crate::interconnect::{BODY_BYTES_MAX, Body, Header, Message, Service};

const BASE: u8 = Service::Ges.base();
const REQUEST: u8 = BASE;
const CONVERT: u8 = BASE + 1;
const UNLOCK: u8 = BASE + 2;
const CANCEL: u8 = BASE + 3;
const BUSY: u8 = BASE + 4;
const GRANTED: u8 = BASE + 5;
const REFUSED: u8 = BASE + 6;
const BLOCKING: u8 = BASE + 7;
const PROBE: u8 = BASE + 8;
const VICTIM: u8 = BASE + 9;
const AWAIT_END: u8 = BASE + 10;
const FORGET_END: u8 = BASE + 11;
const ENDED: u8 = BASE + 12;
const CLAIMS: u8 = BASE + 13;
const CLAIMS_END: u8 = BASE + 14;

/// The requester doesn't want to wait.
const FLAG_NO_WAIT: u8 = 0x10;
/// The body is a value to be written.
const FLAG_VALUE: u8 = 0x20;
/// The value is in doubt.
const FLAG_IN_DOUBT: u8 = 0x40;

const STEP_TRANSACTION: u8 = 1;
const STEP_REQUEST: u8 = 2;
const STEP_USERS: u8 = 3;

const WAITER_BYTES: usize = 24;
const PROBE_BYTES: usize = 24;
const GRANT_BYTES: usize = 8 + VALUE_BYTES;
const CLAIM_BYTES: usize = 32 + VALUE_BYTES;

const CLAIM_IN_DOUBT: u8 = 1;
const CLAIM_WORD: u8 = 2;

/// Most claims that go in one message.
pub(super) const CLAIMS_PER_MESSAGE: usize = BODY_BYTES_MAX / CLAIM_BYTES;

/// Everything that goes from one node's lock service to another's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wire {
    /// To a master.
    ToMaster(Input),
    /// From a master.
    FromMaster(Output),
    /// A search for a deadlock goes on.
    Probe(Probe),
    /// The youngest of a circle is to give up this wait.
    Victim(TxnId, WaitId),
    /// Say when this transaction has ended; a number of ours comes back with the answer.
    AwaitEnd(TxnId, u64),
    /// The answer is not wanted any more.
    ForgetEnd(TxnId, u64),
    /// It has ended.
    Ended(TxnId, u64),
    /// To a new master: what the sender holds, or knew as the former master. At most [`CLAIMS_PER_MESSAGE`].
    Claims(Vec<Claim>),
    /// To a new master: that was all.
    ClaimsEnd(ClaimsEnd),
}

fn message(kind: u8, resource: Resource, id: u64, mode: LockMode) -> Message {
    Message {
        kind,
        flags: 0,
        mode: mode as u8,
        block: BlockId::new(PartitionId(u32::from(resource.class.0)), BlockNo(resource.id1)),
        request: RequestId(id),
        argument: resource.id2,
    }
}

pub(super) fn encode(wire: &Wire) -> (Message, Body) {
    let nothing = Resource::new(ResourceClass(0), 0, 0);
    match wire {
        Wire::ToMaster(input) => encode_input(input),
        Wire::FromMaster(output) => encode_output(output),
        Wire::Probe(probe) => (message(PROBE, nothing, 0, LockMode::Null), Body::Bytes(encode_probe(probe))),
        Wire::Victim(txn, wait) => (message(VICTIM, Resource::transaction(*txn), wait.0, LockMode::Null), Body::Empty),
        Wire::AwaitEnd(txn, id) => (message(AWAIT_END, Resource::transaction(*txn), *id, LockMode::Null), Body::Empty),
        Wire::ForgetEnd(txn, id) => (message(FORGET_END, Resource::transaction(*txn), *id, LockMode::Null), Body::Empty),
        Wire::Ended(txn, id) => (message(ENDED, Resource::transaction(*txn), *id, LockMode::Null), Body::Empty),
        Wire::Claims(claims) => (message(CLAIMS, nothing, 0, LockMode::Null), Body::Bytes(encode_claims(claims))),
        Wire::ClaimsEnd(end) => {
            let flags = if end.in_doubt { FLAG_IN_DOUBT } else { 0 };
            (Message { flags, argument: end.count, ..message(CLAIMS_END, nothing, 0, LockMode::Null) }, Body::Empty)
        }
    }
}

fn encode_input(input: &Input) -> (Message, Body) {
    let no_wait_flag = |no_wait: bool| if no_wait { FLAG_NO_WAIT } else { 0 };
    match *input {
        Input::Request { resource, key, mode, no_wait } => {
            (Message { flags: no_wait_flag(no_wait), ..message(REQUEST, resource, key.id, mode) }, Body::Empty)
        }
        Input::Convert { resource, key, mode, no_wait, value } => {
            with_value(message(CONVERT, resource, key.id, mode), no_wait_flag(no_wait), value)
        }
        Input::Unlock { resource, key, value } => with_value(message(UNLOCK, resource, key.id, LockMode::Null), 0, value),
        Input::Cancel { resource, key } => (message(CANCEL, resource, key.id, LockMode::Null), Body::Empty),
        Input::Busy { resource, key, wanted } => (message(BUSY, resource, key.id, wanted), Body::Empty),
    }
}

fn with_value(message: Message, flags: u8, value: ValueChange) -> (Message, Body) {
    match value {
        ValueChange::Keep => (Message { flags, ..message }, Body::Empty),
        ValueChange::Write(bytes) => (Message { flags: flags | FLAG_VALUE, ..message }, Body::Bytes(bytes.to_vec())),
        ValueChange::Invalidate => (Message { flags: flags | FLAG_IN_DOUBT, ..message }, Body::Empty),
    }
}

fn encode_output(output: &Output) -> (Message, Body) {
    match *output {
        Output::Granted { resource, key, mode, value } => {
            let flags = if value.valid { FLAG_VALUE } else { FLAG_VALUE | FLAG_IN_DOUBT };
            (Message { flags, ..message(GRANTED, resource, key.id, mode) }, Body::Bytes(encode_value(&value)))
        }
        Output::Refused { resource, key, reason } => {
            (Message { mode: reason as u8, ..message(REFUSED, resource, key.id, LockMode::Null) }, Body::Empty)
        }
        Output::Blocking { resource, key, wanted } => (message(BLOCKING, resource, key.id, wanted), Body::Empty),
    }
}

/// `None` for what no lock service of this version says; `us` is the receiver.
pub(super) fn decode(from: NodeId, us: NodeId, header: &Header, body: &Body) -> Option<Wire> {
    let class = ResourceClass(u8::try_from(header.block.partition.0).ok()?);
    let resource = Resource::new(class, header.block.block.0, header.argument);
    let bytes: &[u8] = match body {
        Body::Empty => &[],
        Body::Bytes(bytes) => bytes,
        Body::Block(_) => return None,
    };
    let id = header.request.0;
    let theirs = LockKey { node: from, id };
    let ours = LockKey { node: us, id };
    let no_wait = header.flags & FLAG_NO_WAIT != 0;
    let mode = || LockMode::from_number(header.mode);
    let txn = || TxnId::from_raw(resource.id1);
    let value = || -> Option<ValueChange> {
        Some(match (header.flags & FLAG_VALUE != 0, header.flags & FLAG_IN_DOUBT != 0) {
            (true, _) => ValueChange::Write(bytes.try_into().ok()?),
            (false, true) => ValueChange::Invalidate,
            (false, false) => ValueChange::Keep,
        })
    };
    Some(match header.kind {
        REQUEST => Wire::ToMaster(Input::Request { resource, key: theirs, mode: mode()?, no_wait }),
        CONVERT => Wire::ToMaster(Input::Convert { resource, key: theirs, mode: mode()?, no_wait, value: value()? }),
        UNLOCK => Wire::ToMaster(Input::Unlock { resource, key: theirs, value: value()? }),
        CANCEL => Wire::ToMaster(Input::Cancel { resource, key: theirs }),
        BUSY => Wire::ToMaster(Input::Busy { resource, key: theirs, wanted: mode()? }),
        GRANTED => {
            let bytes: &[u8; GRANT_BYTES] = bytes.try_into().ok()?;
            let value = decode_value(bytes, header.flags & FLAG_IN_DOUBT == 0);
            Wire::FromMaster(Output::Granted { resource, key: ours, mode: mode()?, value })
        }
        REFUSED => {
            let reason = match header.mode {
                1 => Refusal::WouldBlock,
                2 => Refusal::Canceled,
                3 => Refusal::Full,
                4 => Refusal::Unknown,
                _ => return None,
            };
            Wire::FromMaster(Output::Refused { resource, key: ours, reason })
        }
        BLOCKING => Wire::FromMaster(Output::Blocking { resource, key: ours, wanted: mode()? }),
        PROBE => Wire::Probe(decode_probe(bytes)?),
        VICTIM => Wire::Victim(txn()?, WaitId(id)),
        AWAIT_END => Wire::AwaitEnd(txn()?, id),
        FORGET_END => Wire::ForgetEnd(txn()?, id),
        ENDED => Wire::Ended(txn()?, id),
        CLAIMS => Wire::Claims(decode_claims(bytes)?),
        CLAIMS_END => Wire::ClaimsEnd(ClaimsEnd { count: header.argument, in_doubt: header.flags & FLAG_IN_DOUBT != 0 }),
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// A value: its sequence, its bytes.
fn encode_value(value: &ValueBlock) -> Vec<u8> {
    [&value.sequence.to_le_bytes()[..], &value.bytes].concat()
}

fn decode_value(bytes: &[u8; GRANT_BYTES], valid: bool) -> ValueBlock {
    let value = bytes[8..].try_into().expect("the rest of a grant is the value");
    ValueBlock { bytes: value, valid, sequence: word(bytes, 0) }
}

/// Claims: 64 bytes each.
fn encode_claims(claims: &[Claim]) -> Vec<u8> {
    assert!(claims.len() <= CLAIMS_PER_MESSAGE, "{} claims in one message", claims.len());
    let mut bytes = Vec::with_capacity(claims.len() * CLAIM_BYTES);
    for Claim { resource, what, value } in claims {
        let (mode, flag) = match what {
            Claimed::Lock(mode) => (*mode, 0),
            Claimed::Word => (LockMode::Null, CLAIM_WORD),
        };
        let flags = flag | if value.valid { 0 } else { CLAIM_IN_DOUBT };
        bytes.extend([resource.class.0, mode as u8, flags, 0, 0, 0, 0, 0]);
        bytes.extend(resource.id1.to_le_bytes());
        bytes.extend(resource.id2.to_le_bytes());
        bytes.extend(encode_value(value));
    }
    bytes
}

fn decode_claims(bytes: &[u8]) -> Option<Vec<Claim>> {
    let (claims, rest) = bytes.as_chunks::<CLAIM_BYTES>();
    let decode = |bytes: &[u8; CLAIM_BYTES]| {
        let resource = Resource::new(ResourceClass(bytes[0]), word(bytes, 8), word(bytes, 16));
        let what = match (bytes[2] & CLAIM_WORD != 0, LockMode::from_number(bytes[1])?) {
            (false, mode) => Claimed::Lock(mode),
            (true, LockMode::Null) => Claimed::Word,
            (true, _) => return None,
        };
        let value = bytes[24..].try_into().expect("the rest of a claim is its value");
        let known = bytes[2] & !(CLAIM_WORD | CLAIM_IN_DOUBT) == 0 && bytes[3..8] == [0; 5];
        known.then(|| Claim { resource, what, value: decode_value(value, bytes[2] & CLAIM_IN_DOUBT == 0) })
    };
    if !rest.is_empty() || claims.is_empty() {
        return None;
    }
    claims.iter().map(decode).collect()
}

/// A probe: 24 bytes that say where it goes, then 24 bytes for each transaction of its path.
fn encode_probe(probe: &Probe) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PROBE_BYTES + probe.path.len() * WAITER_BYTES);
    let (step, resource, node, mode, flags) = match probe.target {
        Target::Transaction(txn) => (STEP_TRANSACTION, Resource::transaction(txn), 0, LockMode::Null, 0),
        Target::Session(session) => unreachable!("{session} is looked for on its own node only"),
        Target::Request(resource, key) => (STEP_REQUEST, resource, key.node.0, LockMode::Null, 0),
        Target::Users { resource, wanted, holds, ahead } => {
            (STEP_USERS, resource, 0, wanted, u8::from(holds) | (u8::from(ahead) << 1))
        }
    };
    bytes.extend([step, mode as u8, flags, resource.class.0, node, 0, 0, 0]);
    bytes.extend(resource.id1.to_le_bytes());
    bytes.extend(resource.id2.to_le_bytes());
    for waiter in &probe.path {
        bytes.extend(waiter.txn.raw().to_le_bytes());
        bytes.extend(waiter.began.to_le_bytes());
        bytes.extend(waiter.wait.0.to_le_bytes());
    }
    bytes
}

fn decode_probe(bytes: &[u8]) -> Option<Probe> {
    let (head, path) = bytes.split_at_checked(PROBE_BYTES)?;
    if path.len() % WAITER_BYTES != 0 || path.len() > PATH_MAX * WAITER_BYTES {
        return None;
    }
    let node = NodeId(head[4]);
    let resource = Resource::new(ResourceClass(head[3]), word(head, 8), word(head, 16));
    let target = match head[0] {
        STEP_TRANSACTION => Target::Transaction(TxnId::from_raw(resource.id1)?),
        STEP_REQUEST => Target::Request(resource, LockKey { node, id: 0 }),
        STEP_USERS => {
            let wanted = LockMode::from_number(head[1])?;
            Target::Users { resource, wanted, holds: head[2] & 1 != 0, ahead: head[2] & 2 != 0 }
        }
        _ => return None,
    };
    let path = path.chunks_exact(WAITER_BYTES).map(|bytes| {
        Some(Waiter { txn: TxnId::from_raw(word(bytes, 0))?, began: word(bytes, 8), wait: WaitId(word(bytes, 16)) })
    });
    Some(Probe { target, path: path.collect::<Option<Vec<Waiter>>>()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{Epoch, Incarnation, Scn, ShardId};

    fn claim() -> impl Strategy<Value = Claim> {
        let value = (any::<[u8; VALUE_BYTES]>(), any::<bool>(), any::<u64>());
        (any::<(u8, u64, u64)>(), proptest::option::of(0..6u8), value).prop_map(|((class, id1, id2), mode, value)| Claim {
            resource: Resource::new(ResourceClass(class), id1, id2),
            what: mode.and_then(LockMode::from_number).map_or(Claimed::Word, Claimed::Lock),
            value: ValueBlock { bytes: value.0, valid: value.1, sequence: value.2 },
        })
    }

    proptest! {
        #[test]
        fn claims_come_back_as_they_went(claims in proptest::collection::vec(claim(), 1..40)) {
            let bytes = encode_claims(&claims);
            prop_assert_eq!(bytes.len(), claims.len() * CLAIM_BYTES);
            prop_assert_eq!(decode_claims(&bytes), Some(claims));
        }

        #[test]
        fn garbage_is_no_claim_and_no_probe(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(claims) = decode_claims(&bytes) {
                prop_assert_eq!(encode_claims(&claims), bytes.clone());
            }
            let _ = decode_probe(&bytes);
        }
    }

    #[test]
    fn every_message_comes_back_as_it_went() {
        let (us, them) = (NodeId(1), NodeId(2));
        let resource = Resource::new(ResourceClass::CATALOG, u64::MAX - 5, 77);
        let key = LockKey { node: us, id: 3 };
        let mode = LockMode::ProtectedWrite;
        let txn = |slot| TxnId::new(us, ShardId(0), slot, 9);
        let path: Vec<Waiter> =
            (0..PATH_MAX as u16).map(|slot| Waiter { txn: txn(slot), began: u64::from(slot) + 7, wait: WaitId(1) }).collect();
        let all = [
            Wire::ToMaster(Input::Request { resource, key, mode, no_wait: true }),
            Wire::ToMaster(Input::Convert { resource, key, mode, no_wait: false, value: ValueChange::Write([8; 32]) }),
            Wire::ToMaster(Input::Convert { resource, key, mode, no_wait: true, value: ValueChange::Keep }),
            Wire::ToMaster(Input::Unlock { resource, key, value: ValueChange::Invalidate }),
            Wire::ToMaster(Input::Cancel { resource, key }),
            Wire::ToMaster(Input::Busy { resource, key, wanted: mode }),
            Wire::FromMaster(Output::Granted {
                resource,
                key: LockKey { node: them, id: 4 },
                mode,
                value: ValueBlock { bytes: [3; 32], valid: false, sequence: 1 << 40 },
            }),
            Wire::FromMaster(Output::Refused { resource, key: LockKey { node: them, id: 4 }, reason: Refusal::Unknown }),
            Wire::FromMaster(Output::Blocking { resource, key: LockKey { node: them, id: 4 }, wanted: mode }),
            Wire::Probe(Probe { target: Target::Transaction(txn(1)), path: path.clone() }),
            Wire::Probe(Probe { target: Target::Request(resource, LockKey { node: them, id: 0 }), path: path.clone() }),
            Wire::Probe(Probe { target: Target::Users { resource, wanted: mode, holds: true, ahead: false }, path: Vec::new() }),
            Wire::Victim(txn(1), WaitId(6)),
            Wire::AwaitEnd(txn(1), 6),
            Wire::ForgetEnd(txn(2), 7),
            Wire::Ended(txn(3), 8),
            Wire::ClaimsEnd(ClaimsEnd { count: 1 << 33, in_doubt: true }),
        ];
        for wire in all {
            let (message, body) = encode(&wire);
            let header = Header {
                kind: message.kind,
                flags: message.flags,
                mode: message.mode,
                from: us,
                body_len: 0,
                epoch: Epoch(1),
                incarnation: Incarnation(1),
                scn: Scn(1),
                block: message.block,
                request: message.request,
                argument: message.argument,
            };
            assert_eq!(decode(us, them, &header, &body), Some(wire));
            let unknown = Header { kind: BASE + 31, ..header };
            assert_eq!(decode(us, them, &unknown, &body), None);
        }
    }
}
