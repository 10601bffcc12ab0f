//! Directed graphs over transactions: cycles, and what is reachable without passing an order.

use std::collections::BTreeSet;

/// Edges by their source.
pub(super) struct Graph {
    edges: Vec<BTreeSet<usize>>,
}

impl Graph {
    pub(super) fn new(nodes: usize) -> Graph {
        Graph { edges: vec![BTreeSet::new(); nodes] }
    }

    pub(super) fn add(&mut self, from: usize, to: usize) {
        if from != to {
            self.edges[from].insert(to);
        }
    }

    /// The nodes in an order in which every edge goes forward, or a cycle (its nodes in order).
    pub(super) fn sort(&self) -> Result<Vec<usize>, Vec<usize>> {
        let mut before = vec![0usize; self.edges.len()];
        self.edges.iter().flatten().for_each(|to| before[*to] += 1);
        let mut ready: Vec<usize> = (0..before.len()).filter(|node| before[*node] == 0).collect();
        let mut order = Vec::with_capacity(before.len());
        while let Some(node) = ready.pop() {
            order.push(node);
            for to in &self.edges[node] {
                before[*to] -= 1;
                if before[*to] == 0 {
                    ready.push(*to);
                }
            }
        }
        if order.len() == self.edges.len() { Ok(order) } else { Err(self.shortest_cycle(&before)) }
    }

    /// A cycle among the nodes that something stands before.
    fn shortest_cycle(&self, before: &[usize]) -> Vec<usize> {
        let candidates = (0..before.len()).filter(|node| before[*node] > 0);
        let cycles = candidates.filter_map(|start| self.path(start, start, |node| before[node] > 0));
        cycles.min_by_key(Vec::len).expect("what can't be sorted has a cycle")
    }

    /// The shortest way of at least one edge over nodes that `may` be passed; `from` is its first node, `to` is left out.
    pub(super) fn path(&self, from: usize, to: usize, may: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
        let mut came_from = std::collections::BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for next in &self.edges[node] {
                if *next == to {
                    let mut path = vec![node];
                    while let Some(previous) = came_from.get(path.last().expect("it has one")) {
                        path.push(*previous);
                    }
                    path.reverse();
                    return Some(path);
                }
                if *next != from && may(*next) && !came_from.contains_key(next) {
                    came_from.insert(*next, node);
                    queue.push_back(*next);
                }
            }
        }
        None
    }
}
