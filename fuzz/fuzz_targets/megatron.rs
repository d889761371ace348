#![no_main]

use autodist_exporters::Target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| autodist_fuzz::trainer(Target::Megatron, bytes));
