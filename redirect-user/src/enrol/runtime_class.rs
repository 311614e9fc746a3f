//! RuntimeClasses whose pods cannot be captured: a sandbox with a kernel of its own has sockets that this
//! kernel's programs never see.

/// Names of classes; a `*` at the end stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeClasses(Vec<String>);

impl Default for RuntimeClasses {
    /// The names that gVisor and Kata Containers give their classes.
    fn default() -> RuntimeClasses {
        RuntimeClasses(["gvisor*", "runsc*", "kata*"].map(str::to_owned).to_vec())
    }
}

impl RuntimeClasses {
    /// These names.
    #[must_use]
    pub fn new(names: Vec<String>) -> RuntimeClasses {
        RuntimeClasses(names)
    }

    /// Whether a class is among them.
    #[must_use]
    pub fn contain(&self, class: &str) -> bool {
        self.0.iter().any(|name| match name.strip_suffix('*') {
            Some(beginning) => class.starts_with(beginning),
            None => class == name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_ending() {
        let default = RuntimeClasses::default();
        for (class, refused) in
            [("gvisor", true), ("kata", true), ("kata-qemu", true), ("runc", false), ("my-kata", false)]
        {
            assert_eq!(default.contain(class), refused, "{class}");
        }
        let own = RuntimeClasses::new(vec!["wasm".to_owned()]);
        assert!(own.contain("wasm") && !own.contain("wasmtime") && !own.contain("kata"));
        assert!(!RuntimeClasses::new(Vec::new()).contain(""));
    }
}
