//! The pages for a browser, opened in one: what they say, that they need nothing from anywhere, and that
//! nothing on them is cut off. And the screen of `redirect top`.
//!
//! With `PAGES=FOLDER` in the environment the pages and their pictures stay there, to be looked at.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::cli::Outcome;
use harness::{Family, Node, binary, browser, kernel_test};
use serde_json::Value;
use tempfile::TempDir;

fn browse(arguments: &[String], page: &str) -> String {
    // Nothing is found by name: what a page wants from the network, it does not get.
    let mut all = vec!["--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"];
    all.extend(arguments.iter().map(String::as_str).chain([page]));
    String::from_utf8_lossy(&browser::browse(60, &all)).into_owned()
}

/// Opens a page in light, dark and on a narrow screen, and takes its pictures; what it consists of.
fn open(file: &Path) -> String {
    let url = format!("file://{}", file.display());
    if let Some(folder) = std::env::var_os("PAGES").map(PathBuf::from) {
        let name = file.file_stem().expect("a name").to_string_lossy();
        std::fs::copy(file, folder.join(format!("{name}.html"))).expect("keep the page");
        for (kind, more) in [
            ("light", vec!["--window-size=1200,1500"]),
            ("dark", vec!["--window-size=1200,1500", "--blink-settings=preferredColorScheme=0"]),
            ("narrow", vec!["--window-size=480,1500"]),
        ] {
            let picture = folder.join(format!("{name}-{kind}.png"));
            let shot = format!("--screenshot={}", picture.display());
            let arguments: Vec<_> = more.iter().map(|flag| (*flag).to_owned()).chain([shot]).collect();
            browse(&arguments, &url);
        }
    }
    browse(&["--dump-dom".to_owned()], &url)
}

/// A page must not ask for anything.
fn assert_self_contained(html: &str) {
    for mark in ["http://", "https://", "src=", "@import", "url(\"", "<script"] {
        assert!(!html.contains(mark), "the page has {mark}");
    }
}

/// Has a script look at the page in the browser: what sticks out, and what the keyboard reaches.
fn measured(html: &str) -> Value {
    let script = r#"<script>
        const texts = [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
        const svg = document.querySelector("svg").getBoundingClientRect();
        const out = texts.filter(r => r.left < svg.left || r.right > svg.right + 1 || r.bottom > svg.bottom + 1).length;
        let over = 0;
        for (const a of texts) for (const b of texts) if (a !== b && a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 4 && b.top < a.bottom - 4) over++;
        const keys = document.querySelectorAll("svg [tabindex='0'][aria-label]").length;
        const wide = document.documentElement.scrollWidth > window.innerWidth;
        document.body.setAttribute("data-seen", JSON.stringify({out, over, keys, wide}));
    </script>"#;
    let folder = TempDir::new().expect("make a directory");
    let file = folder.path().join("page.html");
    std::fs::write(&file, format!("{html}{script}")).expect("write a page");
    let arguments = ["--dump-dom", "--window-size=1200,1500"].map(str::to_owned);
    let dom = browse(&arguments, &format!("file://{}", file.display()));
    let (_, rest) = dom.split_once("data-seen=\"").expect("the script has run");
    let seen = rest.split('"').next().expect("a value").replace("&quot;", "\"");
    serde_json::from_str(&seen).expect("JSON")
}

/// A pod with traffic of every kind.
struct Scene {
    _pods: [harness::Pod; 2],
    _sidecars: [harness::Sidecar; 2],
    app: harness::Process,
    open: Vec<harness::Socket>,
}

fn scene(node: &Node) -> Scene {
    let (web, shop) = (node.pod("web"), node.pod("reviews"));
    node.attach(&web, &["--exclude-outbound-ports", "9", "--dns-capture"]);
    node.attach(&shop, &[]);
    let sidecars = [web.sidecar(), shop.sidecar()];
    let app = web.app();
    let mut open = Vec::new();
    for to in ["192.0.2.10:80", "198.51.100.7:3306"] {
        open.push(app.connect(to.parse().expect("an address")).expect("the sidecar accepts"));
    }
    open.push(shop.app().connect(web.at(Family::V4, 8080)).expect("the sidecar accepts"));
    let _ = app.connect("10.77.0.1:9".parse().expect("an address"));
    Scene { _pods: [web, shop], _sidecars: sidecars, app, open }
}

#[test]
fn the_picture_of_a_pod() {
    kernel_test(|node| {
        let scene = scene(node);
        let file = node.dir().join("web.html");
        let outcome = Outcome::of(node.redirect().args(["show", "web", "--html"]).arg(&file));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let html = std::fs::read_to_string(&file).expect("the page");
        assert_self_contained(&html);
        let dom = open(&file);
        for part in [
            "Interception in container web",
            "198.51.100.7:3306",
            "traffic.sidecar.istio.io/excludeOutboundPorts",
            "DNS proxy",
            "captured: 2",
            "not captured, out: 1",
            "outbound_redirected",
        ] {
            assert!(dom.contains(part), "{part} is not on the page:\n{dom}");
        }
        let seen = measured(&html);
        assert!(seen["keys"].as_u64() >= Some(11), "{seen}");
        assert_eq!(
            (&seen["out"], &seen["over"], &seen["wide"]),
            (&0.into(), &0.into(), &false.into()),
            "{seen}"
        );
        // The counters are live: the page is written again.
        let mut again = node.redirect();
        again.args(["show", "web", "--every", "1", "--html"]).arg(&file);
        let mut again = again.stdout(Stdio::null()).spawn().expect("start the tool");
        let _more = scene.app.connect("192.0.2.10:81".parse().expect("an address"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&file).is_ok_and(|html| html.contains("captured: 3")) {
            assert!(Instant::now() < deadline, "the page is not written again");
            std::thread::sleep(Duration::from_millis(100));
        }
        again.kill().expect("end the tool");
        again.wait().expect("it ends");
        drop(scene.open);
    });
}

#[test]
fn the_nodes_mesh() {
    kernel_test(|node| {
        let scene = scene(node);
        let file = node.dir().join("mesh.html");
        let mut flows = node.redirect();
        flows.args(["flows", "--seconds", "4", "--html"]).arg(&file);
        let flows = flows.stdout(Stdio::piped()).spawn().expect("start the tool");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            for to in ["192.0.2.10:80", "10.77.0.3:9080", "10.77.0.1:9"] {
                let _ = scene.app.connect(to.parse().expect("an address"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let output = flows.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let html = std::fs::read_to_string(&file).expect("the page");
        assert_self_contained(&html);
        let dom = open(&file);
        for part in ["reviews:9080", "192.0.2.10:80", "to-outbound", "excluded-port", "direct"] {
            assert!(dom.contains(part), "{part} is not on the page:\n{dom}");
        }
        let seen = measured(&html);
        assert!(seen["keys"].as_u64() >= Some(3) && seen["out"] == 0 && seen["wide"] == false, "{seen}");
        drop(scene.open);
    });
}

#[test]
fn top_shows_pods_and_programs_and_measures_only_while_it_runs() {
    kernel_test(|node| {
        let scene = scene(node);
        let measuring =
            || std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").expect("the setting");
        assert_eq!(measuring().trim(), "0");
        let name = format!("redirect-top-{}", std::process::id());
        let tmux = |arguments: &[&str]| {
            let output =
                Command::new("tmux").args(["-L", &name]).args(arguments).output().expect("start tmux");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let command = format!(
            "{} --bpffs {} --state-dir {} top",
            binary("redirect").display(),
            node.bpffs().display(),
            node.state_dir().display()
        );
        tmux(&["new-session", "-d", "-x", "150", "-y", "40", &command]);
        let deadline = Instant::now() + Duration::from_secs(30);
        let screen = loop {
            for _ in 0..20 {
                let _ = scene.app.connect("192.0.2.10:82".parse().expect("an address"));
            }
            let screen = tmux(&["capture-pane", "-p"]);
            let connect4 = screen.lines().find(|line| line.contains("connect4")).unwrap_or_default();
            let runs =
                connect4.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>();
            if screen.contains("web") && runs.first().is_some_and(|runs| *runs > 0) && runs.len() > 1 {
                break screen;
            }
            assert!(Instant::now() < deadline, "top shows:\n{screen}");
            std::thread::sleep(Duration::from_millis(200));
        };
        if let Some(folder) = std::env::var_os("PAGES").map(PathBuf::from) {
            std::fs::write(folder.join("top.txt"), tmux(&["capture-pane", "-p", "-e"]))
                .expect("keep the screen");
        }
        for part in ["2 pods", "0 refused or dropped", "REFUSED", "NS/RUN", "guard_egress", "q quits"] {
            assert!(screen.contains(part), "{part} is not there:\n{screen}");
        }
        tmux(&["send-keys", "q"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Command::new("tmux")
            .args(["-L", &name, "has-session"])
            .output()
            .expect("start tmux")
            .status
            .success()
        {
            assert!(Instant::now() < deadline, "q does not end it");
            std::thread::sleep(Duration::from_millis(50));
        }
        let without = Outcome::of(node.redirect().arg("top"));
        assert!(without.code == Some(1) && without.stderr.contains("needs a terminal"), "{without:?}");
        drop(scene.open);
    });
}
