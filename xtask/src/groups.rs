//! What the work needs, in groups: this table is the place to add a package (one line) or a step.
//!
//! A command asks [`crate::setup`] only for the groups it uses, so that building does not install a browser.

use anyhow::Result;

use crate::apt::{Package, deb};
use crate::workspace::Workspace;
use crate::{deny, deploy, envoy, kubectl, suites, toolchain};

/// Packages and steps that belong together.
pub(crate) struct Group {
    /// The name for `cargo xtask setup NAME`.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) about: &'static str,
    /// Installed first, with one call of apt for all groups that were asked for.
    pub(crate) packages: &'static [Package],
    /// Then these, in order.
    pub(crate) steps: &'static [Step],
}

/// Something to have that is not just a package.
pub(crate) struct Step {
    /// What the step brings.
    pub(crate) name: &'static str,
    /// Whether it is there already. Must take milliseconds: every command asks.
    pub(crate) done: fn(&Workspace) -> bool,
    /// Brings it.
    pub(crate) run: fn(&Workspace) -> Result<()>,
    /// What happens without it. A step that says so is allowed to fail.
    pub(crate) otherwise: Option<&'static str>,
}

/// Every group there is.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "toolchain",
        about: "compile user space and the kernel programs",
        packages: &[
            deb("gcc", "/usr/bin/cc"),
            deb("g++", "/usr/bin/c++"),
            deb("libc6-dev", "/usr/include/stdio.h"),
            // bpf-linker is built with it and runs with its shared library.
            Package {
                elsewhere: Some("llvm-22-dev for older releases is at https://apt.llvm.org"),
                ..deb("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h")
            },
        ],
        steps: &[
            Step {
                name: "a compiler with the source of its core library, for the BPF target",
                done: toolchain::has_core_source,
                run: toolchain::add_core_source,
                otherwise: None,
            },
            Step {
                name: "bpf-linker",
                done: toolchain::has_bpf_linker,
                run: toolchain::build_bpf_linker,
                otherwise: None,
            },
        ],
    },
    Group {
        name: "mesh",
        about: "pods on this machine: namespaces, CNI plugins, Envoy",
        packages: &[
            deb("iproute2", "/usr/sbin/ip"),
            deb("util-linux", "/usr/bin/nsenter"),
            deb("procps", "/usr/sbin/sysctl"),
            deb("containernetworking-plugins", "/usr/lib/cni/bridge"),
            deb("iptables", "/usr/sbin/iptables-save"),
            deb("nftables", "/usr/sbin/nft"),
            deb("bpftool", "/usr/sbin/bpftool"),
        ],
        steps: &[Step {
            name: "Envoy",
            done: envoy::is_present,
            run: envoy::download,
            otherwise: Some("a small built-in proxy takes Envoy's place"),
        }],
    },
    Group {
        name: "languages",
        about: "applications in other languages behind a sidecar; Go and Java are tried where they are",
        packages: &[
            deb("gcc", "/usr/bin/cc"),
            deb("libc6-dev", "/usr/include/stdio.h"),
            deb("linux-libc-dev", "/usr/include/linux/io_uring.h"),
            deb("musl-tools", "/usr/bin/musl-gcc"),
            deb("nodejs", "/usr/bin/node"),
        ],
        steps: &[],
    },
    Group {
        name: "kubectl",
        about: "a real client for the API server of the agent's tests",
        packages: &[],
        steps: &[Step {
            name: "kubectl",
            done: kubectl::is_present,
            run: kubectl::download,
            otherwise: Some("the tests that compare with it are skipped, and say so"),
        }],
    },
    Group {
        name: "oracle",
        about: "Istio's iptables rules, to compare decisions with",
        packages: &[
            deb("iptables", "/usr/sbin/iptables-legacy-restore"),
            deb("nftables", "/usr/sbin/nft"),
            deb("bind9-dnsutils", "/usr/bin/dig"),
        ],
        steps: &[],
    },
    Group {
        name: "containerd",
        about: "a throw-away node with a real container runtime",
        packages: &[
            deb("containerd", "/usr/bin/containerd"),
            deb("runc", "/usr/sbin/runc"),
            deb("busybox-static", "/bin/busybox"),
        ],
        steps: &[Step {
            name: "containerd 2 of a later Debian suite, beside the installed one",
            done: suites::has_containerd,
            run: suites::fetch_containerd,
            otherwise: Some("the tests with it fail"),
        }],
    },
    Group {
        name: "deploy",
        about: "chart and packages: Helm, Prometheus, a small Debian",
        packages: &[
            deb("dpkg", "/usr/bin/dpkg-deb"),
            deb("rpm", "/usr/bin/rpm"),
            deb("debootstrap", "/usr/sbin/debootstrap"),
            deb("prometheus", "/usr/bin/promtool"),
            deb("systemd", "/usr/bin/systemd-analyze"),
        ],
        steps: &[
            Step {
                name: "Helm's library and the API's schemas",
                done: deploy::has_helm,
                run: deploy::fetch_helm,
                otherwise: Some("the tests of the chart fail"),
            },
            Step {
                name: "a small Debian",
                done: deploy::has_debian,
                run: deploy::make_debian,
                otherwise: Some("the test of the Debian package fails"),
            },
        ],
    },
    Group {
        name: "lint",
        about: "look at licences and versions of other people's crates",
        packages: &[],
        steps: &[Step { name: "cargo-deny", done: deny::is_present, run: deny::fetch, otherwise: None }],
    },
    Group { name: "fuzz", about: "compile libFuzzer", packages: &[deb("g++", "/usr/bin/g++")], steps: &[] },
    Group {
        name: "faults",
        about: "let system calls fail",
        packages: &[deb("strace", "/usr/bin/strace")],
        steps: &[],
    },
    Group {
        name: "bpftrace",
        about: "load the scripts of contrib/bpftrace",
        packages: &[deb("bpftrace", "/usr/bin/bpftrace")],
        steps: &[],
    },
    Group {
        name: "vm",
        about: "boot other kernels",
        packages: &[
            deb("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
            deb("busybox-static", "/bin/busybox"),
            deb("kmod", "/usr/sbin/depmod"),
            deb("cpio", "/usr/bin/cpio"),
            deb("xz-utils", "/usr/bin/xz"),
            deb("zstd", "/usr/bin/zstd"),
        ],
        steps: &[],
    },
    Group {
        name: "arm64",
        about: "compile for arm64, and start what was compiled",
        packages: &[
            deb("gcc-aarch64-linux-gnu", "/usr/bin/aarch64-linux-gnu-gcc"),
            deb("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a"),
            // Its standard library is a package for arm64, too.
            deb("rustc-web", "/usr/bin/rustc"),
            deb("qemu-user-static", "/usr/bin/qemu-aarch64-static"),
        ],
        steps: &[],
    },
    Group {
        name: "arm64-vm",
        about: "boot a kernel for arm64",
        packages: &[deb("qemu-system-arm", "/usr/bin/qemu-system-aarch64")],
        steps: &[],
    },
    Group {
        name: "bench",
        about: "load generators and a server to put load on",
        packages: &[
            deb("wrk", "/usr/bin/wrk"),
            deb("nginx-light", "/usr/sbin/nginx"),
            deb("hyperfine", "/usr/bin/hyperfine"),
            deb("iperf3", "/usr/bin/iperf3"),
        ],
        steps: &[],
    },
    Group {
        name: "browser",
        about: "look at pages and at a terminal as a user does",
        packages: &[deb("chromium", "/usr/bin/chromium"), deb("tmux", "/usr/bin/tmux")],
        steps: &[],
    },
];
