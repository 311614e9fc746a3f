//! `redirect report`: everything that a bug report needs, and none of the secrets that were planted.

use std::fs;
use std::io::Read as _;

use harness::cli::Outcome;
use harness::kernel_test;

const SECRETS: [&str; 7] = [
    "planted-token",
    "planted-password",
    "planted-bearer",
    "planted-env",
    "planted-kubeconfig",
    "planted-pem",
    "planted.jwt",
];

#[test]
fn planted_secrets_are_not_in_it_and_what_is_needed_is() {
    kernel_test(|node| {
        let pod = node.pod("web");
        node.attach(&pod, &[]);
        let root = node.dir().join("root");
        let net = root.join("etc/cni/net.d");
        fs::create_dir_all(&net).expect("make folders");
        fs::create_dir_all(root.join("var/log")).expect("make folders");
        let conf = r#"{"cniVersion":"1.0.0","name":"mesh","plugins":[
            {"type":"calico","policy":{"k8s_auth_token":"planted-token"},"etcd_password":"planted-password","mtu":1440},
            {"type":"redirect-cni","logFile":"/var/log/redirect-cni.log"}]}"#;
        fs::write(net.join("10-mesh.conflist"), conf).expect("write a file");
        fs::write(net.join("calico-kubeconfig"), "user: {token: planted-kubeconfig}").expect("write a file");
        let log = "ADD of shop/web: enrolled\nAuthorization: Bearer planted-bearer\nseen eyJhbGciOi.planted.jwt here\n\
            -----BEGIN RSA PRIVATE KEY-----\nplanted-pem\n-----END RSA PRIVATE KEY-----\nlast line\n";
        fs::write(root.join("var/log/redirect-cni.log"), log).expect("write a file");
        let file = node.dir().join("report.tar.gz");
        let run = || {
            let mut command = node.redirect();
            command.env("PLANTED", "planted-env").arg("report").arg("--host-root").arg(&root);
            Outcome::of(command.arg("--file").arg(&file))
        };
        let outcome = run();
        assert!(outcome.code == Some(0) && outcome.stdout.contains("report.tar.gz has"), "{outcome:?}");
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&file).expect("the archive")));
        let mut all = String::new();
        let mut names = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            names.push(entry.path().expect("a path").display().to_string());
            entry.read_to_string(&mut all).expect("text");
        }
        for secret in SECRETS {
            assert!(!all.contains(secret), "{secret} is in the report");
        }
        for part in [
            "RC0101",
            "ADD of shop/web: enrolled",
            "last line",
            "1440",
            "listener_added",
            "\"connect4\"",
            "Linux version",
        ] {
            assert!(all.contains(part), "{part} is not in the report: {names:?}");
        }
        for name in [
            "doctor.json",
            "attachments.json",
            "pins",
            "cni/10-mesh.conflist",
            "plugin.log",
            "metrics",
            "outcomes.json",
        ] {
            assert!(names.contains(&format!("redirect-report/{name}")), "{name}: {names:?}");
        }
        // What is there is not written over.
        let again = run();
        assert!(again.code == Some(1) && again.stderr.contains("report.tar.gz"), "{again:?}");
    });
}
