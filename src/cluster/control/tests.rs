//! What the group agrees on, and its bytes. How it does in a node's life: `src/cluster/tests.rs`.

use proptest::prelude::*;

use super::codec::{decode_answer, decode_state, encode_answer, encode_state};
use super::*;
use crate::fusion::grd::Bucket;
use crate::ids::Epoch;

fn any_node() -> impl Strategy<Value = NodeId> {
    (1..=6_u8).prop_map(NodeId)
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| std::net::IpAddr::from(bits.to_be_bytes())),
        (0..4_u8).prop_map(|last| std::net::IpAddr::from([10, 0, 0, last])),
        (0x2000_0000_u32..0x3000_0000).prop_map(|high| std::net::IpAddr::from((u128::from(high) << 96 | 1).to_be_bytes())),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

fn any_command() -> impl Strategy<Value = Command> {
    let epoch = || (0..9_u64).prop_map(Epoch);
    let role = prop_oneof![Just(NodeRole::Voter), Just(NodeRole::Observer)];
    let standing = prop_oneof![Just(NodeStanding::Member), Just(NodeStanding::Draining), Just(NodeStanding::Removed)];
    let members = proptest::collection::vec(any_node(), 0..4);
    prop_oneof![
        (epoch(), members).prop_map(|(epoch, members)| Command::View { epoch, members }),
        (epoch(), any_node(), any_address(), role).prop_map(|(epoch, node, address, role)| Command::Configure {
            epoch,
            node,
            address,
            role
        }),
        (epoch(), any_node(), standing).prop_map(|(epoch, node, standing)| Command::Stand { epoch, node, standing }),
        (epoch(), any::<u16>(), proptest::option::of(any_node())).prop_map(|(epoch, bucket, node)| Command::Master {
            epoch,
            bucket: Bucket(bucket),
            node
        }),
        (epoch(), "[a-c.]{1,3}", proptest::option::of("\\PC{0,9}")).prop_map(|(epoch, name, value)| Command::Set {
            epoch,
            name,
            value
        }),
    ]
}

fn founded() -> ControlState {
    let address = |node: u8| SocketAddr::from(([10, 9, 0, node], 7433));
    ControlState::founding(&(1..=3).map(|node| (NodeId(node), address(node))).collect())
}

proptest! {
    #[test]
    fn commands_and_states_come_back_from_their_bytes(commands in proptest::collection::vec(any_command(), 0..40)) {
        let mut state = founded();
        for (index, command) in (2..).map(LogIndex).zip(commands) {
            let bytes = encode_command(&command);
            prop_assert_eq!(decode_command(&bytes), Ok(command.clone()));
            prop_assert!(decode_command(&bytes[..bytes.len() - 1]).is_err());
            let outcome = state.apply(index, command.clone());
            prop_assert_eq!(decode_answer(&encode_answer(outcome)), outcome);
            // Whoever does not hear the answer proposes it again.
            let once = state.clone();
            prop_assert_eq!(state.apply(index, command), outcome);
            prop_assert_eq!(&state, &once);
            let bytes = encode_state(&state);
            prop_assert_eq!(decode_state(&bytes), Ok(state.clone()));
            prop_assert!(decode_state(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_value_or_a_fault(bytes in proptest::collection::vec(0..9_u8, 0..200)) {
        let _ = (decode_command(&bytes), decode_state(&bytes), decode_answer(&bytes));
    }
}

#[test]
fn a_removed_node_stays_removed_and_the_last_voter_stays() {
    let mut state = founded();
    let stand = |node, standing| Command::Stand { epoch: Epoch(3), node: NodeId(node), standing };
    let index = LogIndex(9);
    state.apply(index, stand(2, NodeStanding::Removed)).unwrap();
    assert_eq!(state.nodes()[&NodeId(2)].changed, Changed { epoch: Epoch(3), index });
    let again = Command::Configure {
        epoch: Epoch(4),
        node: NodeId(2),
        address: SocketAddr::from(([10, 9, 0, 22], 7433)),
        role: NodeRole::Voter,
    };
    assert_eq!(state.apply(index, again), Err(Refusal::Removed(NodeId(2))));
    assert_eq!(state.apply(index, stand(2, NodeStanding::Member)), Err(Refusal::Removed(NodeId(2))));
    state.apply(index, stand(1, NodeStanding::Removed)).unwrap();
    assert_eq!(state.apply(index, stand(3, NodeStanding::Removed)), Err(Refusal::LastNode(NodeId(3))));
    assert_eq!(state.apply(index, stand(7, NodeStanding::Draining)), Err(Refusal::Unknown(NodeId(7))));
}

#[test]
fn what_it_keeps_is_bounded() {
    let mut state = founded();
    for number in 0..(2 * VIEWS_MAX as u64) {
        let members = (1..=MEMBERS_MAX as u8).map(NodeId).collect();
        state.apply(LogIndex(number), Command::View { epoch: Epoch(number), members }).unwrap();
    }
    assert_eq!(state.views().count(), VIEWS_MAX);
    for number in 0..=SETTINGS_MAX {
        let name = format!("{number:0SETTING_NAME_BYTES_MAX$}");
        let value = Some("x".repeat(SETTING_BYTES_MAX));
        let outcome = state.apply(LogIndex(9), Command::Set { epoch: Epoch(1), name, value });
        assert_eq!(outcome.is_err(), number == SETTINGS_MAX);
    }
    for bucket in 0..=OVERRIDES_MAX {
        let master = Command::Master { epoch: Epoch(1), bucket: Bucket(bucket as u16), node: Some(NodeId(1)) };
        assert_eq!(state.apply(LogIndex(9), master).is_err(), bucket == OVERRIDES_MAX);
    }
    for node in 4..=MEMBERS_MAX as u8 {
        let address = SocketAddr::from(([10, 9, 0, node], 7433));
        state
            .apply(LogIndex(9), Command::Configure { epoch: Epoch(1), node: NodeId(node), address, role: NodeRole::Voter })
            .unwrap();
    }
    let bytes = encode_state(&state).len();
    assert!(bytes < 90_000, "{bytes} bytes");
}
