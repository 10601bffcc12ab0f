//! The cache over a real log and a volume, with the cluster played by [`Peers`].

mod crashes;
mod latches;
mod ships;
mod world;
