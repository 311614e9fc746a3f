//! Text that a pod chooses, on its way to an operator: names of interfaces and of processes. The kernel lets
//! them have line feeds and escape sequences of terminals.

/// The text with everything that a terminal does not print as it stands written as an escape (`\u{1b}`), so
/// that it stays in its line.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\'' | '"' | '\\' => shown.push(letter),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable("eth0 Web Content grüße \"it's\" \\"), "eth0 Web Content grüße \"it's\" \\");
        assert_eq!(printable("a\nb\u{1b}[2J\r\t\u{7f}"), "a\\nb\\u{1b}[2J\\r\\t\\u{7f}");
        // Control characters of one byte in Latin-1, and letters that turn the direction of a line.
        assert_eq!(printable("\u{9b}31m\u{202e}"), "\\u{9b}31m\\u{202e}");
    }
}
