#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vnode_devcluster::fuzzing::patch(data));
