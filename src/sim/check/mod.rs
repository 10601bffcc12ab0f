//! Judges what clients saw: pure functions from histories to the list of broken promises.

pub(super) mod bank;
mod graph;
pub(super) mod lists;
#[cfg(test)]
mod tests;
