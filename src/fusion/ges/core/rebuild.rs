//! A master after a change of the members: it throws away what it knows, and learns it from what the members hold.
//!
//! Messages of the former epoch are dropped wherever they arrive, so what was granted or given up on the way is known to
//! the nodes and not to the masters: a grant that did not arrive was none, a lock that was given up is free. What the nodes
//! hold is the truth. Each tells the new masters, lock by lock ([`Claim`]); what its users wait for it asks for again. A
//! master answers nothing before it has heard all claims of all members (`count` of [`ClaimsEnd`], so that their order is of
//! no account). The locks of lost nodes are gone, because nobody claims them. This is the recovery of the Linux DLM, with
//! every resource rebuilt, not only those of lost masters.
//!
//! *Values.* The one thing that holders cannot tell is what the lost ones may have done. A value is valid when
//! a surviving node holds more than CR (nobody has written it since it was granted that), or when the former master lives
//! and no lost node had PW or EX of it: it passes its *word* on, and the newest of that and of the claims counts (a writer's
//! last value may have been on its way). Else it is in doubt.
//!
//! Owned by the shard of its [`GesCore`]. Bounded by what the members hold, and by a few inputs for each lock that a member
//! has or wants.

use std::collections::{BTreeMap, VecDeque};

use super::super::rules::{Rule, Rules};
use super::super::types::{LockMode, Resource, ValueBlock};
use super::{Entry, GesCore, Input, Lock, LockKey, Output};
use crate::ids::NodeId;

/// What a member says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Claimed {
    /// It holds the lock in this mode.
    Lock(LockMode),
    /// It was the resource's master until now.
    Word,
}

/// What a member tells the new master of one resource.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Claim {
    /// Of what.
    pub resource: Resource,
    /// As what.
    pub what: Claimed,
    /// The value as it knows it. What a user has written but not let go of yet is not in it.
    pub value: ValueBlock,
}

/// A member's last word on what it claims from a master.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClaimsEnd {
    /// How many claims there are in all.
    pub count: u64,
    /// It knows that a master was lost, so there may have been values that nobody claims.
    pub in_doubt: bool,
}

/// What a master knew of a value when its epoch ended.
#[derive(Clone, Debug)]
pub(super) struct Word {
    value: ValueBlock,
    /// Who held PW or EX.
    writer: Option<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Heard {
    come: u64,
    end: Option<ClaimsEnd>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Gathered {
    locks: Vec<(NodeId, LockMode, ValueBlock)>,
    word: Option<ValueBlock>,
}

/// A master's knowledge while it comes in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Rebuild {
    heard: BTreeMap<NodeId, Heard>,
    gathered: BTreeMap<Resource, Gathered>,
    held_back: VecDeque<Input>,
}

impl Rebuild {
    pub(super) fn new(members: &[NodeId]) -> Rebuild {
        let heard = members.iter().map(|member| (*member, Heard::default())).collect();
        Rebuild { heard, gathered: BTreeMap::new(), held_back: VecDeque::new() }
    }

    /// Keeps what a member says that goes on already.
    pub(super) fn hold_back(&mut self, input: Input) {
        self.held_back.push_back(input);
    }

    fn is_complete(&self, rules: Rules) -> bool {
        let is_heard = |heard: &Heard| heard.end.is_some_and(|end| end.count == heard.come);
        self.heard.values().all(is_heard) || !rules.hold(Rule::AllClaimsFirst) && self.heard.values().any(is_heard)
    }
}

impl GesCore {
    /// The master of a node that is new: it was none before, and waits for the claims of `members`.
    #[must_use]
    pub fn entering(members: &[NodeId]) -> GesCore {
        GesCore { rebuild: Some(Box::new(Rebuild::new(members))), ..GesCore::default() }
    }

    /// Leaves an epoch with the members `former` for the next with these: everything but what it knows of values is thrown
    /// away, inputs wait for the claims of all members.
    pub fn enter(&mut self, former: &[NodeId], members: &[NodeId]) {
        let is_lost = |node: &NodeId| !members.contains(node);
        self.in_doubt |= former.iter().any(is_lost);
        // In an epoch in which not all went on nobody was granted anything: what was known before still stands.
        if std::mem::replace(&mut self.gone, false) {
            // Where it never came to serve, another master may have.
            self.in_doubt |= self.rebuild.is_some();
            self.words =
                std::mem::take(&mut self.resources).into_iter().map(|(resource, entry)| (resource, entry.word())).collect();
        }
        for word in self.words.values_mut() {
            if word.writer.take_if(|writer| is_lost(writer)).is_some() && self.rules.hold(Rule::LostWriterLeavesDoubt) {
                word.value = word.value.doubted();
            }
        }
        self.unclaimed.clear();
        self.locks = 0;
        self.rebuild = Some(Box::new(Rebuild::new(members)));
    }

    /// All members have entered. What this node, as a former master, has to say to the new ones, and whether it knows
    /// of doubts ([`ClaimsEnd::in_doubt`]).
    #[must_use]
    pub fn go(&mut self) -> (Vec<Claim>, bool) {
        assert!(!std::mem::replace(&mut self.gone, true), "the members go once in an epoch");
        let words = std::mem::take(&mut self.words).into_iter();
        let claims = words.map(|(resource, word)| Claim { resource, what: Claimed::Word, value: word.value });
        (claims.collect(), self.in_doubt)
    }

    /// Whether inputs wait until all members have claimed what they hold.
    #[must_use]
    pub fn is_rebuilding(&self) -> bool {
        self.rebuild.is_some()
    }

    /// A member claims something.
    pub fn on_claim(&mut self, from: NodeId, claim: Claim, out: &mut Vec<Output>) {
        let Some(rebuild) = self.rebuild.as_mut() else {
            assert!(!self.rules.hold(Rule::AllClaimsFirst), "{from} claims {claim:?} when its master serves already");
            return;
        };
        let heard = rebuild.heard.get_mut(&from).expect("only members claim");
        heard.come += 1;
        assert!(heard.end.is_none_or(|end| heard.come <= end.count), "{from} has sent more claims than it said");
        let gathered = rebuild.gathered.entry(claim.resource).or_default();
        match claim.what {
            Claimed::Lock(mode) => {
                assert!(gathered.locks.iter().all(|(node, ..)| *node != from), "{from} claims {} twice", claim.resource);
                gathered.locks.push((from, mode, claim.value));
            }
            Claimed::Word => {
                let before = gathered.word.replace(claim.value);
                assert_eq!(before, None, "{} had two masters, {from} one of them", claim.resource);
            }
        }
        self.serve_when_complete(out);
    }

    /// A member has claimed all that it holds.
    pub fn on_claims_end(&mut self, from: NodeId, end: ClaimsEnd, out: &mut Vec<Output>) {
        let Some(rebuild) = self.rebuild.as_mut() else {
            assert!(!self.rules.hold(Rule::AllClaimsFirst), "{from} ends its claims when their master serves already");
            return;
        };
        let heard = rebuild.heard.get_mut(&from).expect("only members claim");
        assert!(heard.end.is_none() && heard.come <= end.count, "{from} ends its claims twice, or has sent more than it says");
        heard.end = Some(end);
        self.serve_when_complete(out);
    }

    fn serve_when_complete(&mut self, out: &mut Vec<Output>) {
        let Some(rebuild) = self.rebuild.take_if(|rebuild| rebuild.is_complete(self.rules)) else { return };
        self.in_doubt |= rebuild.heard.values().any(|heard| heard.end.is_some_and(|end| end.in_doubt));
        self.in_doubt &= self.rules.hold(Rule::UnheardLeavesDoubt);
        for (resource, gathered) in rebuild.gathered {
            if gathered.locks.is_empty() {
                self.unclaimed.extend(gathered.word.filter(|word| *word != ValueBlock::default()).map(|word| (resource, word)));
                continue;
            }
            let value = self.value(&gathered);
            let locks = gathered.locks.iter().map(|(node, mode, _)| Lock {
                key: LockKey { node: *node, id: 0 },
                mode: *mode,
                told: LockMode::Null,
                busy: false,
            });
            let entry = Entry { granted: locks.collect(), value, ..Entry::default() };
            for (i, lock) in entry.granted.iter().enumerate() {
                let beside = entry.granted[i + 1..].iter().find(|other| !lock.mode.compatible(other.mode));
                assert!(beside.is_none() || !self.rules.all_hold(), "{resource}: {lock:?} and {beside:?} are claimed");
            }
            self.locks += entry.granted.len();
            self.resources.insert(resource, entry);
        }
        for input in rebuild.held_back {
            self.on(input, out);
        }
    }

    /// The value by the rules of the module.
    fn value(&self, gathered: &Gathered) -> ValueBlock {
        let newest = |values: &mut dyn Iterator<Item = ValueBlock>| values.max_by_key(|value| value.sequence);
        let sure = gathered.locks.iter().filter(|(_, mode, _)| !LockMode::ConcurrentRead.covers(*mode));
        if let Some(value) = newest(&mut sure.map(|(_, _, value)| *value)) {
            return value;
        }
        let claimed = newest(&mut gathered.locks.iter().map(|(_, _, value)| *value)).expect("somebody claims it");
        match gathered.word {
            Some(word) if word.sequence >= claimed.sequence => word,
            Some(_) => claimed,
            None if self.rules.hold(Rule::LostMasterLeavesDoubt) => claimed.doubted(),
            None => claimed,
        }
    }
}

impl Entry {
    fn word(self) -> Word {
        let writer = self.granted.iter().find(|lock| lock.mode.writes_value()).map(|lock| lock.key.node);
        Word { value: self.value, writer }
    }
}

#[cfg(test)]
mod tests;
