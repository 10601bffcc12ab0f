//! RustyDB gateway.
