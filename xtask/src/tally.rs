//! Counts of tests, read from the closing lines of `cargo test`.

/// How many tests passed, failed and were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Tally {
    /// The sum of all `test result:` lines of an output.
    pub(crate) fn of_output(text: &str) -> Self {
        let mut tally = Self::default();
        // A test that writes without a line end may stand before the words.
        for (_, result) in text.lines().filter_map(|line| line.split_once("test result: ")) {
            tally.passed += number_before(result, " passed");
            tally.failed += number_before(result, " failed");
            tally.ignored += number_before(result, " ignored");
        }
        tally
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    pub(crate) fn add_pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn add_failure(&mut self) {
        self.failed += 1;
    }

    pub(crate) fn has_failure(&self) -> bool {
        self.failed > 0
    }

    /// Whether not even one test ran, which is a mistake in the tier and no success.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }
}

fn number_before(text: &str, word: &str) -> u32 {
    let digits =
        |head: &str| head.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|run| run.parse().ok());
    text.split_once(word).and_then(|(head, _)| digits(head)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let text = "running 2 tests\n..\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
            loud test without a line endtest result: FAILED. 10 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out\n\
            the word passed alone means nothing\n";
        assert_eq!(Tally::of_output(text), Tally { passed: 12, failed: 3, ignored: 1 });
    }

    #[test]
    fn no_result_is_no_success() {
        assert!(Tally::of_output("error: could not compile `xtask`").is_empty());
    }
}
