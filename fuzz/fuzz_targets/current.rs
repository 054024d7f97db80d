#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| gravwell_tests::fuzzing::run("current", data));
