//! The program that libFuzzer is linked into: it feeds the function that `REDIRECT_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("REDIRECT_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).expect("REDIRECT_FUZZ_TARGET names no function of the package redirect-fuzz")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (TARGET.feed)(data);
});
