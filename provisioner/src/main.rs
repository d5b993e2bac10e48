//! `anneal`: the daemon and the operator's CLI in one binary.

fn main() {}
