//! RustyDB engine.
