//! Why the kernel did not take a program, in one line. The verifier's log has thousands, and only one of them
//! says why.

use aya::EbpfError;
use aya::programs::ProgramError;

use crate::kernel::sys;

/// A program that was refused.
pub(crate) fn of_program(error: &ProgramError, whole: bool) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return first_line(&error.to_string());
    };
    let log = verifier_log.to_string();
    let hint = match io_error.raw_os_error() {
        Some(libc::EPERM) => " (CAP_BPF and CAP_NET_ADMIN are needed)",
        _ => "",
    };
    let text = match useful_line(&log) {
        Some(line) => format!("{io_error}{hint}: {line}"),
        None => format!("{io_error}{hint}"),
    };
    if whole && !log.trim().is_empty() { format!("{text}\n{}", log.trim_end()) } else { text }
}

/// An object that could not be loaded: a map, or a program's relocation.
pub(crate) fn of_object(error: &EbpfError, whole: bool) -> String {
    match error {
        EbpfError::ProgramError(error) => of_program(error, whole),
        // Not every error of the loader keeps the kernel's answer, so the kernel is asked once more.
        error => {
            first_line(&error.to_string())
                + &sys::forbidden().map_or(String::new(), |why| format!(" ({why})"))
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The last line of a verifier's log that is neither an instruction, nor the state of registers, nor the sums
/// at the end.
fn useful_line(log: &str) -> Option<&str> {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.rev().find(|line| !is_noise(line))
}

fn is_noise(line: &str) -> bool {
    const BEGINNINGS: [&str; 14] = [
        "processed ",
        "verification time",
        "stack depth",
        "subprog ",
        "peak_states",
        ";",
        "from ",
        "mark_precise",
        "last_idx",
        "regs=",
        "parent ",
        "func#",
        "Live regs",
        "caller:",
    ];
    BEGINNINGS.iter().any(|beginning| line.starts_with(beginning)) || is_instruction(line) || is_state(line)
}

/// `12: (85) call bpf_get_netns_cookie#122`
fn is_instruction(line: &str) -> bool {
    line.split_once(": ")
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// `R1=ctx() R10=fp0`
fn is_state(line: &str) -> bool {
    let first = line.split(' ').next().unwrap_or_default();
    first.split_once('=').is_some_and(|(register, _)| register.starts_with('R') || register.starts_with("fp"))
}

#[cfg(test)]
mod tests {
    use super::useful_line;

    #[test]
    fn the_line_that_says_why_is_found_among_the_others() {
        let log = "func#0 @0\n0: R1=ctx() R10=fp0\n; let cookie = unsafe { bpf_get_netns_cookie(ctx) };\n\
            0: (85) call bpf_get_netns_cookie#122\nprogram of this type cannot use helper bpf_get_netns_cookie#122\n\
            processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n\
            verification time 49 usec\nstack depth 0\n";
        assert_eq!(useful_line(log), Some("program of this type cannot use helper bpf_get_netns_cookie#122"));
        let log = "0: (61) r2 = *(u32 *)(r1 +400)\nR1=ctx() R10=fp0\ninvalid bpf_context access off=400 size=4\n\
            processed 1 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(useful_line(log), Some("invalid bpf_context access off=400 size=4"));
        let log = "; fun(retval) @ helpers.rs:1890\nAt bpf_set_retval the register R1 has unknown scalar value should have been in [-4095, 0]\n\
            verification time 571034 usec\nstack depth max 0\n\
            subprog 0 (connect4) main insns_self 153 insns_total 256 stack 128\n\
            subprog 9 (trace_call) global insns_self 0 insns_total 0 stack 0\n\
            processed 256 insns (limit 1000000) max_states_per_insn 1 total_states 16 peak_states 16\n";
        assert_eq!(
            useful_line(log),
            Some("At bpf_set_retval the register R1 has unknown scalar value should have been in [-4095, 0]")
        );
        assert_eq!(useful_line("processed 3 insns\n"), None);
    }
}
