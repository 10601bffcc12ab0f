//! List-append histories, judged as Elle does (Kingsbury, Alvaro: "Elle: Inferring Isolation Anomalies from Experimental
//! Observations", 2020): a list shows the order of its writers, so the graph of who depends on whom need not be guessed.
//!
//! Forbidden always: G0 (a cycle of writes), G1a (a read of what was rolled back), G1b (a read of what was not the
//! writer's last word), G1c (a cycle of writes and reads), lost and doubled elements, halves of transactions, and a read
//! that misses what was acknowledged before it began. In REPEATABLE READ also G-single: a cycle in which one transaction
//! missed the change of another that it otherwise depends on.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use crate::sim::history::{ListOperation, ListTransaction, Outcome};
use crate::store::Isolation;

/// Where an element comes from.
#[derive(Clone, Copy)]
struct Origin {
    transaction: usize,
    list: u32,
    /// The transaction's last for that list.
    last: bool,
}

struct Checker<'a> {
    history: &'a [ListTransaction],
    lists: &'a BTreeMap<u32, Vec<u32>>,
    origins: BTreeMap<u32, Origin>,
    /// Each final element's place in its list.
    places: BTreeMap<u32, usize>,
    /// By list: the place behind the last element that was acknowledged so early, for each moment of an acknowledgement.
    acknowledged: BTreeMap<u32, Vec<(u64, usize)>>,
    broken: Vec<String>,
}

/// Every promise that this history breaks. `lists` are the lists after everything had ended.
pub(in crate::sim) fn check(history: &[ListTransaction], lists: &BTreeMap<u32, Vec<u32>>) -> Vec<String> {
    let mut checker = Checker {
        history,
        lists,
        origins: BTreeMap::new(),
        places: BTreeMap::new(),
        acknowledged: BTreeMap::new(),
        broken: Vec::new(),
    };
    checker.find_origins();
    checker.final_lists();
    for index in 0..history.len() {
        checker.operations(index);
    }
    if checker.broken.is_empty() {
        checker.cycles();
    }
    checker.broken
}

impl Checker<'_> {
    fn name(&self, index: usize) -> String {
        let ListTransaction { node, isolation, began_ns, outcome, operations, .. } = &self.history[index];
        let began = *began_ns as f64 / 1e9;
        format!("T{index} (node{node}, {isolation:?}, began {began:.6}, {outcome:?}, {operations:?})")
    }

    fn find_origins(&mut self) {
        for (transaction, recorded) in self.history.iter().enumerate() {
            let mut last = BTreeSet::new();
            for operation in recorded.operations.iter().rev() {
                if let ListOperation::Append { list, element, .. } = operation {
                    self.origins.insert(*element, Origin { transaction, list: *list, last: last.insert(*list) });
                }
            }
        }
    }

    fn final_lists(&mut self) {
        for (list, elements) in self.lists {
            for (place, element) in elements.iter().enumerate() {
                if self.places.insert(*element, place).is_some() {
                    self.broken.push(format!("element {element} stands twice in the final list {list}: {elements:?}"));
                }
                match self.origins.get(element) {
                    Some(origin) if origin.list == *list => {
                        if self.history[origin.transaction].outcome == Outcome::Aborted {
                            let name = self.name(origin.transaction);
                            self.broken.push(format!(
                                "list {list} ends up with {element} of a transaction that was rolled back: {name}"
                            ));
                        }
                    }
                    _ => self.broken.push(format!("list {list} ends up with {element}, which nobody appended to it")),
                }
            }
        }
        for (index, recorded) in self.history.iter().enumerate() {
            let appended = recorded.operations.iter().filter_map(|operation| match operation {
                ListOperation::Append { element, list, .. } => Some((*element, *list)),
                ListOperation::Read { .. } => None,
            });
            let (there, missing): (Vec<_>, Vec<_>) = appended.partition(|(element, _)| self.places.contains_key(element));
            match recorded.outcome {
                Outcome::Committed(at_ns) => {
                    if !missing.is_empty() {
                        self.broken.push(format!("acknowledged and lost: {missing:?} of {}", self.name(index)));
                    }
                    for (element, list) in there {
                        self.acknowledged.entry(list).or_default().push((at_ns, self.places[&element] + 1));
                    }
                }
                _ if !there.is_empty() && !missing.is_empty() => {
                    self.broken.push(format!("half a transaction: {there:?} without {missing:?} of {}", self.name(index)));
                }
                _ => {}
            }
        }
        for moments in self.acknowledged.values_mut() {
            moments.sort_unstable();
            let mut most = 0;
            for (_, place) in moments {
                most = most.max(*place);
                *place = most;
            }
        }
    }

    /// What each operation of a transaction saw.
    fn operations(&mut self, index: usize) {
        let recorded = &self.history[index];
        let mut own: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for operation in &recorded.operations {
            match operation {
                ListOperation::Append { list, element, found, at_ns } => {
                    if let Some(found) = found {
                        // An update works on the newest version: of its own moment, also in REPEATABLE READ, where it fails
                        // when that is not the snapshot's.
                        self.saw(index, *list, found, own.get(list), *at_ns);
                    }
                    own.entry(*list).or_default().push(*element);
                }
                ListOperation::Read { list, elements, at_ns } => {
                    let since = if recorded.isolation == Isolation::RepeatableRead { recorded.began_ns } else { *at_ns };
                    self.saw(index, *list, elements, own.get(list), since);
                }
            }
        }
    }

    fn saw(&mut self, index: usize, list: u32, elements: &[u32], own: Option<&Vec<u32>>, since_ns: u64) {
        let own = own.map_or(&[][..], Vec::as_slice);
        let Some(others) = elements.strip_suffix(own) else {
            let name = self.name(index);
            self.broken
                .push(format!("a transaction does not see its own {own:?} at the end of list {list}, {elements:?}: {name}"));
            return;
        };
        let empty = Vec::new();
        let in_the_end = self.lists.get(&list).unwrap_or(&empty);
        if let Some(element) = others.iter().find(|element| !self.places.contains_key(element)) {
            let origin = self.origins.get(element).map_or("nobody".to_owned(), |origin| self.name(origin.transaction));
            let name = self.name(index);
            self.broken.push(format!(
                "G1a: {element} of list {list} was read and is not there in the end; appended by {origin}; read by {name}"
            ));
        } else if !in_the_end.starts_with(others) {
            let name = self.name(index);
            self.broken.push(format!("list {list} was read as {others:?}, which is no beginning of {in_the_end:?}: {name}"));
        }
        if let Some(origin) = others.last().and_then(|element| self.origins.get(element))
            && !origin.last
            && origin.transaction != index
        {
            let (name, writer) = (self.name(index), self.name(origin.transaction));
            self.broken.push(format!("G1b: list {list} was read in the middle of {writer} by {name}"));
        }
        let moments = self.acknowledged.get(&list).map_or(&[][..], Vec::as_slice);
        let known = moments.partition_point(|(at_ns, _)| *at_ns < since_ns);
        if known > 0 && others.len() < moments[known - 1].1 {
            let (at_ns, place) = moments[known - 1];
            let name = self.name(index);
            self.broken.push(format!(
                "stale: list {list} was read as {others:?} though its first {place} elements were acknowledged at {:.6}, before the read began: {name}",
                at_ns as f64 / 1e9
            ));
        }
    }

    /// Whether a transaction has happened.
    fn happened(&self, index: usize) -> bool {
        let recorded = &self.history[index];
        matches!(recorded.outcome, Outcome::Committed(_))
            || recorded
                .operations
                .iter()
                .any(|operation| matches!(operation, ListOperation::Append { element, .. } if self.places.contains_key(element)))
    }

    fn cycles(&mut self) {
        let count = self.history.len();
        let (mut writes, mut depends) = (Graph::new(count), Graph::new(count));
        for elements in self.lists.values() {
            for pair in elements.windows(2) {
                let (first, second) = (self.origins[&pair[0]].transaction, self.origins[&pair[1]].transaction);
                writes.add(first, second);
                depends.add(first, second);
            }
        }
        if let Err(cycle) = writes.sort() {
            return self.report("G0", &cycle);
        }
        // Who read and missed, whose change.
        let mut missed = Vec::new();
        for index in (0..count).filter(|index| self.happened(*index)) {
            let recorded = &self.history[index];
            for operation in &recorded.operations {
                let (list, elements) = match operation {
                    ListOperation::Append { list, found: Some(found), .. } => (list, found),
                    ListOperation::Read { list, elements, .. } => (list, elements),
                    ListOperation::Append { found: None, .. } => continue,
                };
                let others = elements.iter().filter(|element| self.origins[element].transaction != index);
                let others: Vec<_> = others.collect();
                if let Some(last) = others.last() {
                    depends.add(self.origins[last].transaction, index);
                }
                let next = self.lists.get(list).and_then(|in_the_end| in_the_end.get(others.len()));
                if let Some(next) = next {
                    let writer = self.origins[next].transaction;
                    if writer != index && recorded.isolation == Isolation::RepeatableRead {
                        missed.push((index, writer));
                    }
                }
            }
        }
        let order = match depends.sort() {
            Ok(order) => order,
            Err(cycle) => return self.report("G1c", &cycle),
        };
        let mut rank = vec![0; count];
        order.iter().enumerate().for_each(|(place, index)| rank[*index] = place);
        for (reader, writer) in missed {
            if rank[writer] < rank[reader]
                && let Some(path) = depends.path(writer, reader, |node| rank[node] < rank[reader])
            {
                let mut cycle = vec![reader];
                cycle.extend(path);
                return self.report("G-single", &cycle);
            }
        }
    }

    fn report(&mut self, anomaly: &str, cycle: &[usize]) {
        let names: Vec<String> = cycle.iter().map(|index| self.name(*index)).collect();
        self.broken.push(format!("{anomaly}: a cycle of {} transactions: {}", cycle.len(), names.join(" -> ")));
    }
}
