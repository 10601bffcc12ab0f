//! The cluster as a whole: how its members come together, recover the volume and live.

pub mod formation;
pub mod recovery;
