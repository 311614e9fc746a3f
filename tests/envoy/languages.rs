//! Applications in other languages than the tests': each accepts a connection behind a real Envoy in TPROXY
//! mode, by its own unchanged standard library, and tells the client's address.
//!
//! C with both libraries, and Node, are there where `cargo xtask setup languages` ran. Go and Java are large:
//! without a compiler for one, its part is left out, which is printed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::envoy::OriginalSrc;
use harness::unprivileged::unprivileged;
use harness::{Family, Node, User, kernel_test};

use crate::tproxy::{Scene, client};

/// How an application is made and started.
struct Language {
    name: &'static str,
    /// The compiler, or the program that runs it; the part is left out where it is not there.
    needs: &'static str,
    /// Must be there: `cargo xtask setup` installs it.
    required: bool,
    /// Makes it in a directory; what is to be started, with its arguments before the port.
    make: fn(&Path, &Path) -> Vec<PathBuf>,
}

const LANGUAGES: &[Language] = &[
    Language {
        name: "C, glibc",
        needs: "/usr/bin/cc",
        required: true,
        make: |from, to| compile("/usr/bin/cc", &from.join("server.c"), &to.join("glibc")),
    },
    Language {
        name: "C, musl",
        needs: "/usr/bin/musl-gcc",
        required: true,
        make: |from, to| compile("/usr/bin/musl-gcc", &from.join("server.c"), &to.join("musl")),
    },
    Language {
        name: "C, io_uring",
        needs: "/usr/bin/cc",
        required: true,
        make: |from, to| compile("/usr/bin/cc", &from.join("uring.c"), &to.join("uring")),
    },
    Language {
        name: "Node",
        needs: "/usr/bin/node",
        required: true,
        make: |from, to| {
            std::fs::copy(from.join("server.js"), to.join("server.js")).unwrap();
            vec!["/usr/bin/node".into(), to.join("server.js")]
        },
    },
    Language {
        name: "Go",
        needs: "/usr/bin/go",
        required: false,
        make: |from, to| {
            let binary = to.join("go-server");
            let mut command = Command::new("/usr/bin/go");
            command.args(["build", "-o"]).arg(&binary).arg(from.join("server.go"));
            command.env("GOCACHE", to.join("go-cache")).env("GO111MODULE", "off").env("GOTOOLCHAIN", "local");
            succeed(&mut command);
            vec![binary]
        },
    },
    Language {
        name: "Java",
        needs: "/usr/bin/javac",
        required: false,
        make: |from, to| {
            succeed(Command::new("/usr/bin/javac").arg("-d").arg(to).arg(from.join("Server.java")));
            // The link leads to the launcher, which finds its libraries from where it lies.
            let java = std::fs::canonicalize("/usr/bin/java").unwrap();
            vec![java, "-Xshare:auto".into(), "-cp".into(), to.to_owned(), "Server".into()]
        },
    },
];

fn compile(compiler: &str, source: &Path, binary: &Path) -> Vec<PathBuf> {
    succeed(Command::new(compiler).arg("-o").arg(binary).arg(source));
    vec![binary.to_owned()]
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A running application; it ends when this goes out of scope.
struct Application(Child);

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it in the pod, as its root without a capability: the files are root's.
fn start(scene: &Scene, argv: &[PathBuf], port: u16) -> Application {
    let mut command = unprivileged(&argv[0], User::ROOT).unwrap();
    command.args(&argv[1..]).arg(port.to_string()).stdin(Stdio::null());
    scene.pod.netns().enter(&mut command, Some(&scene.pod.container("app")));
    Application(command.spawn().unwrap())
}

/// The client that it named, when it listens; an application of Java takes a second to start.
fn named(scene: &Scene, from: IpAddr, port: u16, application: &mut Application) -> IpAddr {
    let process = scene.clients.app();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let socket = process.tcp(Family::of(&from));
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        // The sidecar accepts, and closes where it does not reach the application.
        socket.connect(scene.pod.at(Family::of(&from), port)).unwrap();
        let answer = socket.receive(100).map(|got| got.data).unwrap_or_default();
        if let Some(line) = String::from_utf8_lossy(&answer).strip_suffix('\n') {
            let text = line.split('%').next().unwrap_or(line);
            return text.parse::<IpAddr>().unwrap_or_else(|error| panic!("{text}: {error}")).to_canonical();
        }
        if let Some(status) = application.0.try_wait().unwrap() {
            panic!("the application ended: {status}");
        }
        assert!(Instant::now() < deadline, "the application does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn language(node: &Node, scene: &Scene, language: &Language, port: u16) {
    if !Path::new(language.needs).exists() {
        assert!(!language.required, "{} is missing: cargo xtask setup languages", language.needs);
        println!("left out: {}, there is no {}", language.name, language.needs);
        return;
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy/languages");
    let argv = (language.make)(&sources, node.dir());
    let mut application = start(scene, &argv, port);
    for family in Family::ALL {
        for number in [7, 8] {
            let from = client(family, number);
            assert_eq!(named(scene, from, port, &mut application), from, "{}", language.name);
        }
    }
    println!("{}: names its clients", language.name);
}

#[test]
fn applications_of_other_languages_name_their_clients() {
    kernel_test(|node| {
        let scene = Scene::new(node, OriginalSrc::Address, User::PROXY);
        for (one, port) in LANGUAGES.iter().zip(9000..) {
            language(node, &scene, one, port);
        }
    });
}
