//! The agent's memory: what it frees goes back to the kernel.
//!
//! glibc keeps what a thread has freed in an arena of that thread. It also learns from a large block that is
//! freed to keep blocks of that size, up to 32 MiB, in the arenas (mallopt(3)). The agent works in many
//! short-lived threads, and reads tables of the kernel through large buffers. With glibc's habits it would
//! keep several hundred MiB after a day.

/// Has the allocator keep one arena, and give large blocks back at once. To be called before the first thread
/// is started. Other allocators than glibc's are left as they are.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: mallopt takes two numbers and touches the allocator's own parameters.
        let understood = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(understood, 1, "parameter {parameter} of mallopt");
    }
}

/// From so many bytes on a block is large: glibc's own first threshold.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 << 10;
