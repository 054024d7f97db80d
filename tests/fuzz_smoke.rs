//! The fuzz targets over their seeds and many deterministic mutations of them: the short run that works everywhere.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

const MUTATIONS_PER_SEED: u64 = 30_000;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % bound.max(1)
    }
}

fn mutate(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.below(256) as u8),
            _ if at < bytes.len() => drop(bytes.remove(at)),
            _ => {}
        }
    }
    bytes
}

#[test]
fn no_decoder_panics_on_mutated_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in gravwell::fuzzing::TARGETS {
        let seeds: Vec<Vec<u8>> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|error| panic!("seeds of {name}: {error}"))
            .map(|entry| fs::read(entry.expect("entry").path()).expect("reads"))
            .collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        target(&[]);
        for seed in &seeds {
            target(seed);
            for _ in 0..MUTATIONS_PER_SEED {
                target(&mutate(seed, &mut dice));
            }
        }
    }
}
