//! Entry points of the fuzz targets: each feeds arbitrary bytes to a family of decoders or to a state machine of the
//! protocol, and checks invariants.
//!
//! The same functions run under `cargo fuzz` and, over mutated seeds, in `tests/fuzz_smoke.rs`.

pub mod chunks;
pub mod decoders;
pub mod files;
pub mod outbox;
pub mod sequencer;
pub mod steps;
pub mod tail;

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("record", decoders::record),
    ("segment", decoders::segment),
    ("wire", decoders::wire),
    ("messages", decoders::messages),
    ("admin", decoders::admin),
    ("config", decoders::config),
    ("token", decoders::token),
    ("jsonl", decoders::json_lines),
    ("journal", files::journal),
    ("entries", files::entries),
    ("members", files::members),
    ("current", files::current),
    ("rows", files::rows),
    ("sequencer", sequencer::run),
    ("outbox", outbox::run),
    ("follower", tail::follower),
    ("ring", tail::ring),
    ("pack", chunks::pack),
    ("pack_index", chunks::pack_index),
    ("index_chunk", chunks::index_chunk),
    ("delta", chunks::delta_of_a_chunk),
];

/// Runs one target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| target);
    target.expect("invariant: a target of the list")(bytes);
}
