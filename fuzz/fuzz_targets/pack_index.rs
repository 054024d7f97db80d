#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| gravwell::fuzzing::run("pack_index", data));
