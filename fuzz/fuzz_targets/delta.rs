#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| gravwell::fuzzing::run("delta", data));
