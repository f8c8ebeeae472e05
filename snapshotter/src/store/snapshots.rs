//! The tables of snapshots.
