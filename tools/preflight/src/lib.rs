//! Whether a host is fit to run a RustyDB node: what `rusty-db-preflight` looks at, and how it says it.
//!
//! Every check is a pure function of a [`host::Host`]; [`probe`] makes one of a real machine and changes nothing on it.
//! `docs/preflight.md` lists the checks.

pub mod args;
pub mod check;
pub mod checks;
pub mod facts;
pub mod host;
pub mod needs;
pub mod probe;
pub mod report;
#[cfg(test)]
mod tests;
