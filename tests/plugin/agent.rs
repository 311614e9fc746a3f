//! The plugin and the node's agent: the real one with manifests in a folder, and ones that misbehave.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::binary;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::call::{Call, PREV_RESULT, Place, Reply, STATUS, hand_over, with_prev_result};

/// `redirect agent` as a process.
pub(crate) struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// Starts it in a folder: manifests in `pods`, socket `agent.sock`.
    pub(crate) fn start(dir: &Path) -> Agent {
        let (pods, socket) = (dir.join("pods"), dir.join("agent.sock"));
        std::fs::create_dir_all(&pods).unwrap();
        let child = Command::new(binary("redirect"))
            .arg("agent")
            .arg("--pods")
            .arg(pods)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::null())
            .spawn()
            .expect("start redirect agent");
        let agent = Agent { child, socket };
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(Instant::now() < deadline, "the agent does not listen at {}", agent.socket.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    fn stop(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is positive"));
        let _ = kill(pid, Signal::SIGTERM);
        self.child.wait().expect("wait for the agent").code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An agent that does `serve` with its first client.
fn impostor(socket: &Path, serve: impl FnOnce(UnixStream) + Send + 'static) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("listen");
    std::thread::spawn(move || serve(listener.accept().expect("a client").0))
}

/// Reads the question, which must be one line of JSON.
fn question(stream: &UnixStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a line");
    serde_json::from_str(&line).expect("a question is JSON")
}

pub(crate) fn conf(place: &Place) -> Value {
    let mut conf = place.conf();
    conf["podSource"] = json!("kubernetes");
    conf
}

/// For calls that get an answer, however slow the machine is.
fn patient(place: &Place) -> Value {
    let mut conf = conf(place);
    conf["agentTimeoutSeconds"] = json!(20);
    conf
}

/// Waits until the other end has closed the connection.
fn await_hangup(stream: &UnixStream) {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::NONE).expect("wait for the other end");
}

fn add(conf: &Value) -> Reply {
    Call::new("ADD").pod("shop", "web-0", "uid-1").stdin(with_prev_result(conf, PREV_RESULT)).run()
}

/// A manifest of an injected pod, with `change` made to it.
pub(crate) fn manifest(place: &Place, change: impl Fn(&mut Value)) {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "uid-1",
            "labels": { "app": "web" }, "annotations": { STATUS.0: STATUS.1 },
        },
        "spec": {
            "initContainers": [{ "name": "istio-validation" }],
            "containers": [
                { "name": "istio-proxy", "args": ["proxy", "sidecar"], "securityContext": { "runAsUser": 1337 } },
                { "name": "web", "env": [{ "name": "PASSWORD", "value": "hunter2" }] },
            ],
        },
    });
    change(&mut pod);
    let folder = place.dir.join("pods");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("web-0.new"), pod.to_string()).unwrap();
    std::fs::rename(folder.join("web-0.new"), folder.join("web-0.json")).unwrap();
}

/// Enrolled: it got as far as the namespace, which does not exist.
#[track_caller]
fn assert_enrolled(reply: &Reply) {
    assert!(reply.refused(8).contains("CNI_NETNS"), "{reply:?}");
}

#[test]
fn every_condition_that_needs_the_pod_is_decided_from_its_manifest() {
    let place = Place::new();
    let _agent = Agent::start(&place.dir);
    type Change = fn(&mut Value);
    let table: &[(&str, Change)] = &[
        ("enrolled", |_| {}),
        ("enrolled", |pod| pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true")),
        // A native sidecar is one of the two containers that the conditions ask for.
        ("enrolled", |pod| {
            pod["spec"]["initContainers"] = json!([{ "name": "istio-proxy", "restartPolicy": "Always" }]);
            pod["spec"]["containers"] = json!([{ "name": "web" }]);
        }),
        ("host_network", |pod| pod["spec"]["hostNetwork"] = json!(true)),
        ("istio_init", |pod| pod["spec"]["initContainers"] = json!([{ "name": "istio-init" }])),
        ("envoy_disabled", |pod| {
            pod["spec"]["containers"][0]["env"] = json!([{ "name": "DISABLE_ENVOY", "value": "true" }]);
        }),
        ("no_proxy_container", |pod| pod["spec"]["containers"][0]["name"] = json!("envoy")),
        ("not_a_sidecar", |pod| pod["spec"]["containers"][0]["args"] = json!(["proxy", "router"])),
        ("single_container", |pod| {
            pod["spec"]["containers"].as_array_mut().unwrap().truncate(1);
        }),
        ("inject_false", |pod| {
            pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("false");
            pod["metadata"]["annotations"]["sidecar.istio.io/inject"] = json!("true");
        }),
        ("not_injected", |pod| pod["metadata"]["annotations"] = json!({})),
        ("interception_none", |pod| {
            pod["metadata"]["annotations"]["sidecar.istio.io/interceptionMode"] = json!("NONE");
        }),
    ];
    for (outcome, change) in table {
        manifest(&place, change);
        let reply = add(&patient(&place));
        if *outcome == "enrolled" {
            assert_enrolled(&reply);
        } else {
            assert_eq!(reply.success(), PREV_RESULT);
            assert!(reply.stderr.contains(&format!("reason={outcome}")), "{outcome}: {reply:?}");
        }
    }
}

#[test]
fn a_pod_that_appears_late_is_waited_for_and_one_that_never_does_is_an_error() {
    let place = Place::new();
    let _agent = Agent::start(&place.dir);
    let mut conf = conf(&place);
    let started = Instant::now();
    let details = add(&conf).refused(11);
    assert!(started.elapsed() >= Duration::from_millis(400), "it did not wait");
    for part in ["shop/web-0", "uid-1", "agent.sock", "no pod"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    conf["agentTimeoutSeconds"] = json!(20);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| add(&conf));
        std::thread::sleep(Duration::from_millis(300));
        manifest(&place, |_| {});
        assert_enrolled(&waiting.join().unwrap());
    });
}

#[test]
fn another_pod_of_the_same_name_is_not_the_pod() {
    let place = Place::new();
    let _agent = Agent::start(&place.dir);
    manifest(&place, |pod| pod["metadata"]["uid"] = json!("uid-0"));
    assert!(add(&conf(&place)).refused(11).contains("uid-1"));
    // A static pod is known to the runtime by its hash, to the API by another uid.
    manifest(&place, |pod| {
        pod["metadata"]["uid"] = json!("uid-0");
        pod["metadata"]["annotations"]["kubernetes.io/config.hash"] = json!("uid-1");
    });
    assert_enrolled(&add(&patient(&place)));
}

#[test]
fn a_manifest_that_cannot_be_read_is_reported_by_name() {
    let place = Place::new();
    let _agent = Agent::start(&place.dir);
    std::fs::write(place.dir.join("pods/broken.json"), "{").unwrap();
    assert!(add(&conf(&place)).refused(11).contains("broken.json"));
    manifest(&place, |_| {});
    assert_enrolled(&add(&patient(&place)));
}

#[test]
fn an_absent_agent_is_waited_for_and_then_named() {
    let place = Place::new();
    let mut conf = conf(&place);
    let started = Instant::now();
    let details = add(&conf).refused(11);
    assert!(
        (Duration::from_millis(800)..Duration::from_secs(15)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    for part in ["agent.sock", "shop/web-0", "could not connect", "is the redirect-cni agent running"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    // One that starts meanwhile is found.
    manifest(&place, |_| {});
    conf["agentTimeoutSeconds"] = json!(20);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| add(&conf));
        std::thread::sleep(Duration::from_millis(300));
        let _agent = Agent::start(&place.dir);
        assert_enrolled(&waiting.join().unwrap());
    });
    // A socket that a dead agent left behind is as good as none.
    drop(UnixListener::bind(place.dir.join("dead.sock")).unwrap());
    conf["agentSocket"] = json!(place.dir.join("dead.sock"));
    conf["agentTimeoutSeconds"] = json!(1);
    assert!(add(&conf).refused(11).contains("could not connect"));
}

#[test]
fn a_pod_without_a_sidecar_never_touches_the_socket() {
    let place = Place::new();
    let listener = UnixListener::bind(place.dir.join("agent.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut conf = conf(&place);
    hand_over(&mut conf, &[("team", "a")]);
    add(&conf).success();
    let excluded = Call::new("ADD").pod("kube-system", "dns", "1").stdin(conf.to_string());
    excluded.run().success();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_slow_agent_costs_no_more_than_the_time_limit() {
    type Serve = fn(UnixStream);
    let table: [(&str, Serve); 3] = [
        ("says nothing", |stream| {
            question(&stream);
            await_hangup(&stream);
        }),
        ("drips", |mut stream| {
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }),
        ("does not even read", |stream| await_hangup(&stream)),
    ];
    for (name, serve) in table {
        let place = Place::new();
        let impostor = impostor(&place.dir.join("agent.sock"), serve);
        let started = Instant::now();
        let details = add(&conf(&place)).refused(11);
        assert!(started.elapsed() < Duration::from_secs(15), "{name}: {:?}", started.elapsed());
        assert!(details.contains("the time is up") && details.contains("get an answer"), "{name}: {details}");
        impostor.join().unwrap();
    }
}

#[test]
fn an_answer_that_is_none_is_an_error_that_shows_it() {
    let table: [(&[u8], u64, &str); 11] = [
        (b"", 103, "without a word"),
        (b"\n", 103, "EOF while parsing"),
        (b"HTTP/1.1 200 OK\r\n", 103, "HTTP/1.1 200 OK"),
        (b"{\"version\":1}\n", 103, "unusable answer"),
        (b"{\"version\":2,\"pod\":{}}\n", 103, "version 2"),
        (b"{\"version\":1,\"pod\":[]}\n", 103, "unusable answer"),
        (b"{\"version\":1,\"pod\":{}}\n", 103, "containers"),
        (b"{\"version\":1,\"pod\":{\"containers\":[]}}\n", 103, "no containers"),
        (b"{\"version\":1,\"pod\":{\"containers\":7}}\n", 103, "unusable answer"),
        (b"\xff\xfe\n", 103, "unusable answer"),
        (b"{\"version\":1,\"error\":{\"kind\":\"failed\",\"message\":\"no watch\"}}\n", 11, "no watch"),
    ];
    for (answer, code, part) in table {
        let place = Place::new();
        let impostor = impostor(&place.dir.join("agent.sock"), move |mut stream| {
            let asked = question(&stream);
            assert_eq!(
                (&asked["version"], &asked["namespace"], &asked["name"], &asked["uid"]),
                (&json!(1), &json!("shop"), &json!("web-0"), &json!("uid-1"))
            );
            let wait = asked["waitMs"].as_u64().expect("a number");
            assert!(wait <= 20_000, "the agent may not wait longer than the plugin: {wait}");
            stream.write_all(answer).unwrap();
        });
        let details = add(&patient(&place)).refused(code);
        assert!(details.contains(part) && details.contains("agent.sock"), "{part}: {details}");
        impostor.join().unwrap();
    }
}

/// What the agent says decides whether a pod is redirected. Somebody who is not root may say nothing, and the
/// kernel knows who listens.
#[test]
fn an_answer_of_somebody_who_is_not_root_is_not_believed() {
    let place = Place::new();
    let socket = place.dir.join("agent.sock");
    let says_no = |mut stream: UnixStream| {
        let web = json!({ "name": "web", "kind": "regular", "args": [], "env": {} });
        let answer = json!({ "version": 1, "pod": { "annotations": {}, "containers": [web] } });
        let _ = writeln!(stream, "{answer}");
        await_hangup(&stream);
    };
    // By root the same answer is believed.
    let root = impostor(&socket, says_no);
    add(&patient(&place)).success();
    root.join().unwrap();
    std::fs::remove_file(&socket).unwrap();
    std::fs::set_permissions(&place.dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (listens, listening) = std::sync::mpsc::channel();
    let stranger = std::thread::spawn(move || {
        // The call itself, not the library's, which would change the ids of all threads.
        // SAFETY: setresuid(2) takes three numbers, and this thread does nothing else but what follows.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) };
        assert_eq!(changed, 0, "setresuid: {}", std::io::Error::last_os_error());
        let listener = UnixListener::bind(socket).expect("listen");
        listens.send(()).expect("somebody waits");
        says_no(listener.accept().expect("a client").0);
    });
    listening.recv().expect("it listens");
    let mut conf = conf(&place);
    conf["agentTimeoutSeconds"] = json!(2);
    let details = add(&conf).refused(11);
    assert!(details.contains("uid 1000 answers there, and only root may"), "{details}");
    stranger.join().unwrap();
}

#[test]
fn an_endless_answer_is_cut_off() {
    let place = Place::new();
    let impostor = impostor(&place.dir.join("agent.sock"), |mut stream| {
        let chunk = vec![b'x'; 1 << 16];
        while stream.write_all(&chunk).is_ok() {}
    });
    assert!(add(&patient(&place)).refused(103).contains("unusable answer"));
    impostor.join().unwrap();
}

#[test]
fn the_socket_is_roots_alone_and_has_one_owner() {
    let place = Place::new();
    let mut agent = Agent::start(&place.dir);
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Command::new(binary("redirect"))
        .args(["agent", "--pods", "/nonexistent", "--socket"])
        .arg(&agent.socket)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(1) && text.contains("already listens"), "{text}");
    assert_eq!(agent.stop(), Some(0));
    assert!(!agent.socket.exists(), "the socket stays behind");
}

#[test]
fn the_folder_of_the_socket_is_writable_for_root_alone_with_any_umask() {
    let place = Place::new();
    let socket = place.dir.join("made/by/agent.sock");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(binary("redirect"));
    command.args(["agent", "--pods", "/nonexistent", "--socket"]).arg(&socket);
    let mut child = command.spawn().expect("start the agent");
    let deadline = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the agent does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    for folder in ["made", "made/by"] {
        let mode = std::fs::metadata(place.dir.join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{folder} can be changed by others: {mode:o}");
    }
}

/// Sockets in a folder and in its folders.
fn sockets_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets_below(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Whether others may connect: the modes of the socket, and of each folder down to it, say so.
fn is_open_to_others(root: &Path, socket: &Path) -> bool {
    let mode = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
    let mut folders = socket.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
    mode(socket) & 0o022 != 0 && folders.all(|folder| mode(folder) & 0o011 != 0)
}

#[test]
fn others_cannot_connect_to_a_socket_that_was_just_made() {
    let place = Place::new();
    std::fs::set_permissions(&place.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = place.dir.join("agent.sock");
    // What makes it private takes its time.
    let slowly = "inject=?chmod,fchmod,fchmodat:delay_enter=300000";
    let mut command = Command::new("strace");
    command.args([
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        slowly,
        "sh",
        "-c",
        "umask 0; exec \"$0\" \"$@\"",
    ]);
    command.arg(binary("redirect")).args(["agent", "--pods", "/nonexistent", "--socket"]).arg(&socket);
    let mut child = command.stderr(Stdio::null()).spawn().expect("start strace");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut open = Vec::new();
    while !socket.exists() {
        assert!(Instant::now() < deadline, "the agent makes no socket");
        open.extend(sockets_below(&place.dir).into_iter().filter(|path| is_open_to_others(&place.dir, path)));
        std::thread::sleep(Duration::from_millis(1));
    }
    open.extend(Some(socket.clone()).filter(|path| is_open_to_others(&place.dir, path)));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    assert!(open.is_empty(), "open to everybody: {}", open[0].display());
}

#[test]
fn the_agent_survives_clients_that_misbehave() {
    let place = Place::new();
    let agent = Agent::start(&place.dir);
    manifest(&place, |_| {});
    for (question, part) in [
        (&b"nonsense\n"[..], "badRequest"),
        (b"{\"version\":9,\"namespace\":\"a\",\"name\":\"b\"}\n", "version 9"),
        (b"{\"version\":1,\"namespace\":\"a\"}\n", "badRequest"),
        (b"{\"version\":1,\"namespace\":\"a\",\"name\":\"b\"}\n", "notFound"),
    ] {
        let mut stream = UnixStream::connect(&agent.socket).unwrap();
        stream.write_all(question).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains(part) && line.ends_with('\n'), "{line}");
    }
    // One that goes away before its answer, and many at once.
    drop(UnixStream::connect(&agent.socket).unwrap());
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(|| add(&patient(&place)))).collect();
        calls.into_iter().for_each(|call| assert_enrolled(&call.join().unwrap()));
    });
}

#[test]
fn what_does_not_decide_does_not_travel() {
    let place = Place::new();
    let agent = Agent::start(&place.dir);
    manifest(&place, |_| {});
    let mut stream = UnixStream::connect(&agent.socket).unwrap();
    stream.write_all(b"{\"version\":1,\"namespace\":\"shop\",\"name\":\"web-0\"}\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(
        line.contains("istio-proxy") && !line.contains("hunter2") && !line.contains("PASSWORD"),
        "{line}"
    );
}
