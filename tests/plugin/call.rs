//! One call of the plugin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use harness::unprivileged::{refuse_bpf, unprivileged};
use harness::{User, binary};
use serde_json::{Value, json};

/// The annotation of an injected pod, in the injector's words.
pub(crate) const STATUS: (&str, &str) = (
    "sidecar.istio.io/status",
    r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"revision":"default"}"#,
);

/// A result as `bridge` and `host-local` leave it, with spacing, order and numbers that a careless plugin
/// would change.
pub(crate) const PREV_RESULT: &str = r#"{ "cniVersion": "1.0.0", "interfaces":[{"name":"eth0","mac":"aa:bb:cc:dd:ee:ff",
  "sandbox":"/var/run/netns/x"}], "ips":[{"interface":0,"address":"10.77.0.2/16","gateway":"10.77.0.1"},
  {"address":"fd77::2/64"}], "dns":{}, "zz-later":{"big":12345678901234567890123, "float":1.50, "a":null}}"#;

/// What the plugin is called with.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) env: BTreeMap<String, Vec<u8>>,
    pub(crate) stdin: Vec<u8>,
    unprivileged: bool,
    /// What runs the plugin, with its arguments; nothing for the plugin itself.
    wrapper: Vec<OsString>,
    /// What every bpf(2) of the plugin is answered with.
    bpf_refused: Option<i32>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Exit status; `None` if a signal ended the process.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Call {
    /// A verb on a container, with nothing on stdin.
    pub(crate) fn new(verb: &str) -> Call {
        let mut call = Call {
            env: BTreeMap::new(),
            stdin: Vec::new(),
            unprivileged: false,
            wrapper: Vec::new(),
            bpf_refused: None,
        };
        for (name, value) in [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "eth0")] {
            call = call.env(name, value);
        }
        call.env("CNI_NETNS", "/nonexistent/netns").env("CNI_PATH", "/opt/cni/bin")
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<[u8]>) -> Call {
        self.env.insert(name.to_owned(), value.as_ref().to_vec());
        self
    }

    /// Takes a variable away.
    pub(crate) fn without(mut self, name: &str) -> Call {
        self.env.remove(name);
        self
    }

    /// Names a pod, as containerd does.
    pub(crate) fn pod(self, namespace: &str, name: &str, uid: &str) -> Call {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID={uid}"
        );
        self.env("CNI_ARGS", args)
    }

    /// Sets what is on stdin.
    pub(crate) fn stdin(mut self, text: impl AsRef<[u8]>) -> Call {
        self.stdin = text.as_ref().to_vec();
        self
    }

    /// Runs without any privilege, if there are any to drop.
    pub(crate) fn unprivileged(mut self) -> Call {
        self.unprivileged = nix::unistd::geteuid().is_root();
        self
    }

    /// Has a filter answer each bpf(2) with an error.
    pub(crate) fn bpf_refused(mut self, errno: i32) -> Call {
        self.bpf_refused = Some(errno);
        self
    }

    /// Has the plugin run by another program.
    pub(crate) fn wrapped(mut self, wrapper: &[OsString]) -> Call {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Has strace tamper with system calls, as its `inject=` says.
    pub(crate) fn injecting(self, what: &str) -> Call {
        let inject = format!("inject={what}");
        self.wrapped(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject].map(OsString::from))
    }

    /// Runs the plugin to its end.
    pub(crate) fn run(&self) -> Reply {
        let plugin = binary("redirect-cni");
        let mut command = match (self.unprivileged, &self.wrapper[..]) {
            (true, _) => unprivileged(&plugin, User::APP).expect("open redirect-cni"),
            (false, [program, arguments @ ..]) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(plugin);
                command
            }
            (false, []) => Command::new(plugin),
        };
        // setpriv, where it is used, is looked up in PATH.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in &self.env {
            command.env(name, std::ffi::OsStr::from_bytes(value));
        }
        if let Some(errno) = self.bpf_refused {
            refuse_bpf(&mut command, errno);
        }
        let mut child = command.spawn().expect("start redirect-cni");
        // A plugin that refuses its environment does not read stdin, and the pipe breaks.
        let _ = child.stdin.take().expect("a pipe").write_all(&self.stdin);
        let output = child.wait_with_output().expect("wait for redirect-cni");
        Reply {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Reply {
    /// The error on stdout, after checking that it is one as the specification wants it.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        assert_eq!(self.code, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        let version = error["cniVersion"].as_str().expect("an error has a version");
        assert!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(&version), "{self:?}");
        assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{self:?}");
        assert!(error["code"].as_u64().is_some_and(|code| code != 100), "it panicked: {self:?}");
        error
    }

    /// Checks the code of the error and returns its details.
    #[track_caller]
    pub(crate) fn refused(&self, code: u64) -> String {
        let error = self.error();
        assert_eq!(error["code"], code, "{self:?}");
        error["details"].as_str().expect("our errors have details").to_owned()
    }

    /// Checks that the verb succeeded and returns what it printed.
    #[track_caller]
    pub(crate) fn success(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout.trim_end_matches('\n')
    }
}

/// A state directory of one test, and configurations that use it and nothing of the machine's.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("redirect-plugin-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).expect("make a directory");
        Place { dir }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A configuration with no bpffs behind it; enrolment must fail, and nothing else may need one.
    pub(crate) fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "mesh",
            "type": "redirect-cni",
            "podSource": "annotations",
            "agentSocket": self.dir.join("agent.sock"),
            "agentTimeoutSeconds": 1,
            "bpffsRoot": self.dir,
            "stateDir": self.state(),
        })
    }

    /// How often each outcome was counted.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, u64> {
        outcomes(&self.state())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The outcomes that were counted in a state directory, read as `redirect outcomes` shows them.
pub(crate) fn outcomes(state: &Path) -> BTreeMap<String, u64> {
    let output = Command::new(binary("redirect"))
        .args(["outcomes", "--output", "json", "--state-dir"])
        .arg(state)
        .output()
        .expect("start redirect");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Hands the pod's annotations over, as a runtime with the capability does.
pub(crate) fn hand_over(conf: &mut Value, annotations: &[(&str, &str)]) {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    conf["runtimeConfig"]["io.kubernetes.cri.pod-annotations"] = json!(annotations);
}

/// A configuration as text with `prevResult` put in byte for byte.
pub(crate) fn with_prev_result(conf: &Value, prev_result: &str) -> String {
    let text = conf.to_string();
    format!(r#"{},"prevResult":{prev_result}}}"#, text.strip_suffix('}').expect("an object"))
}
