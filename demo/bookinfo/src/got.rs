//! What a request got that was made with `bookinfo-services get`.

/// How the program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// Its exit status.
    pub(crate) code: i32,
    /// The HTTP status on the first line, then the body.
    pub(crate) stdout: String,
    /// Why there was no answer.
    pub(crate) stderr: String,
}

impl Got {
    /// The HTTP status; none where there was no answer.
    pub(crate) fn status(&self) -> Option<u16> {
        self.stdout.lines().next().filter(|_| self.code == 0)?.parse().ok()
    }

    /// What was answered.
    pub(crate) fn body(&self) -> &str {
        self.stdout.split_once('\n').map_or("", |(_, body)| body)
    }

    /// Whether the request was made and there was no answer to it; a program that could not be run does not
    /// count.
    pub(crate) fn is_failure(&self) -> bool {
        self.code == 1 && self.stdout.is_empty() && self.stderr.contains("error sending request")
    }

    /// Whether there was no listener.
    pub(crate) fn is_refusal(&self) -> bool {
        self.is_failure() && self.stderr.contains("Connection refused")
    }

    /// In words, for a report.
    pub(crate) fn summary(&self) -> String {
        match self.status() {
            Some(status) => format!("{status} {}", self.body().trim().chars().take(60).collect::<String>()),
            // The last part of the chain is what the system said.
            None => self.stderr.trim().rsplit(": ").next().unwrap_or_default().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(code: i32, stdout: &str, stderr: &str) -> Got {
        Got { code, stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let got = got(0, "200\n{\"status\":\"fine\"}\n", "");
        assert_eq!((got.status(), got.body()), (Some(200), "{\"status\":\"fine\"}\n"));
        assert!(!got.is_failure() && !got.is_refusal());
    }

    #[test]
    fn a_refusal_is_a_failure_and_a_program_that_did_not_run_is_neither() {
        let sent = "bookinfo-services: error sending request for url (http://10.0.0.1:9080/)";
        let refused = got(
            1,
            "",
            &format!("{sent}: client error (Connect): tcp connect error: Connection refused (os error 111)"),
        );
        assert!(refused.is_failure() && refused.is_refusal());
        assert_eq!(refused.summary(), "Connection refused (os error 111)");
        let closed = got(
            1,
            "",
            &format!("{sent}: client error (SendRequest): connection closed before message completed"),
        );
        assert!(closed.is_failure() && !closed.is_refusal());
        assert!(!got(126, "", "exec failed").is_failure());
        assert!(!got(1, "", "no such container").is_failure());
    }
}
