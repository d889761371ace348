#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| autodist_fuzz::run_table(bytes));
