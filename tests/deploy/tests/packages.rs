//! What `cargo xtask dist` makes: the same bytes twice, checksums, the bill of materials; the Debian package
//! installed, used and removed on a small Debian; the RPM as rpm itself reads it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::{MachineLock, binary};
use serde_json::Value;

use redirect_deploy_tests::helm::{Helm, root};
use redirect_deploy_tests::page::{page, rows};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The network that a node has before us.
const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "mesh",
  "plugins": [
    { "type": "bridge", "bridge": "cni0" }
  ]
}
"#;

/// Where `cargo xtask dist` puts everything.
pub(crate) fn dist() -> PathBuf {
    let debug = binary("redirect").canonicalize().expect("the tool is built");
    let dist = debug.ancestors().nth(2).expect("it is in target/debug").join("dist");
    assert!(dist.join("redirect").is_file(), "nothing in {}: run `cargo xtask dist`", dist.display());
    dist
}

/// The file in a folder that begins and ends so.
#[track_caller]
fn made(folder: &Path, begin: &str, end: &str) -> PathBuf {
    let names: Vec<String> = fs::read_dir(folder)
        .expect("the folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(begin) && name.ends_with(end) && name.contains(VERSION))
        .collect();
    assert_eq!(names.len(), 1, "{begin}..{end} in {}: {names:?}", folder.display());
    folder.join(&names[0])
}

/// Debian's name for this machine's architecture.
fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn deb() -> PathBuf {
    made(&dist(), "redirect-cni_", &format!("_{}.deb", architecture()))
}

#[track_caller]
fn text(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", say(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn say(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}

#[test]
fn packing_twice_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for out in [&one, &two] {
        let mut pack = Command::new(binary("redirect-dist"));
        pack.arg("--root").arg(root()).arg("--binaries").arg(dist()).arg("--out").arg(out.path());
        // Neither the hour nor the place nor the language makes a difference.
        let zone = if out.path() == one.path() { ("UTC", "C") } else { ("Asia/Tokyo", "C.UTF-8") };
        text(pack.env("TZ", zone.0).env("LC_ALL", zone.1));
    }
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).expect("the folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let all = names(one.path());
    assert_eq!(all, names(two.path()));
    assert!(all.len() >= 7, "{all:?}");
    for name in &all {
        let read = |folder: &Path| fs::read(folder.join(name)).expect("a file");
        let (one, two) = (read(one.path()), read(two.path()));
        assert!(one == two, "{name} differs between two runs");
        println!("{:>10} bytes  {name}", one.len());
    }
    // Those are the sums of what is there.
    text(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(one.path()));
    let sums = fs::read_to_string(one.path().join("SHA256SUMS")).expect("sums");
    let summed: BTreeSet<_> = sums.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(all.iter().all(|name| name == "SHA256SUMS" || summed.contains(name.as_str())), "{summed:?}");
}

#[test]
fn the_sizes_are_those_that_the_page_says() {
    let mut found = 0;
    for row in rows(&page("install.md"), "<!-- sizes -->") {
        let name = row[0].trim_matches('`').split('`').next().expect("a name");
        let said: u64 = row[1].replace(',', "").parse().expect("a number of KiB");
        let Ok(file) = fs::metadata(dist().join(name)) else {
            // The page has the sizes for one architecture.
            assert_ne!(std::env::consts::ARCH, "x86_64", "there is no {name}");
            continue;
        };
        let size = file.len().div_ceil(1024);
        assert!(size.abs_diff(said) * 10 <= size, "docs/install.md: {name} has {size} KiB and not {said}");
        found += 1;
    }
    assert!(found > 0, "docs/install.md says no size");
}

#[test]
fn the_chart_in_its_archive_is_the_chart() {
    let archive = made(&dist(), "redirect-cni-", ".tgz");
    let packed = Helm::of(&archive).render(&serde_json::json!({}));
    let folder = Helm::start().render(&serde_json::json!({}));
    assert_eq!(packed.objects, folder.objects);
    assert!(packed.container()["image"].as_str().is_some_and(|image| image.ends_with(VERSION)));
}

#[test]
fn binaries_chart_and_packages_have_one_version() {
    let said = text(Command::new(dist().join("redirect")).arg("--version"));
    assert!(said.contains(VERSION), "{said}");
    let field = text(Command::new("dpkg-deb").args(["--field"]).arg(deb()).arg("Version"));
    assert_eq!(field.trim(), VERSION);
    let rpm = made(&dist(), "redirect-cni-", &format!(".{}.rpm", std::env::consts::ARCH));
    let query = ["--query", "--package", "--queryformat", "%{VERSION} %{LICENSE}"];
    assert_eq!(text(Command::new("rpm").args(query).arg(&rpm)), format!("{VERSION} MIT OR Apache-2.0"));
}

#[test]
fn the_bill_of_materials_has_the_crates_that_are_linked_and_no_other() {
    let bill = fs::read_to_string(made(&dist(), "redirect-cni-", ".cdx.json")).expect("the bill");
    let bill: Value = serde_json::from_str(&bill).expect("JSON");
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let found: BTreeSet<String> = bill["components"]
        .as_array()
        .expect("components")
        .iter()
        .map(|component| {
            assert!(component["purl"].is_string() && component["licenses"].is_array(), "{component}");
            format!(
                "{} v{}",
                component["name"].as_str().expect("a name"),
                component["version"].as_str().expect("a version")
            )
        })
        .collect();
    // The same by cargo's own account of the two.
    let mut tree = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    tree.current_dir(root()).args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]);
    tree.args(["--format", "{p}", "--package", "redirect-tool", "--package", "redirect-cni"]);
    let linked: BTreeSet<String> = text(&mut tree)
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let missing: Vec<_> = linked.difference(&found).collect();
    assert!(missing.is_empty(), "linked and not in the bill: {missing:?}");
    assert!(found.contains(&format!("redirect-tool v{VERSION}")), "{found:?}");
    for of_tests in ["proptest", "rcgen", "redirect-harness", "indicatif"] {
        assert!(
            !found.iter().any(|name| name.starts_with(&format!("{of_tests} "))),
            "{of_tests} is not linked"
        );
    }
}

#[test]
fn the_rpm_has_the_same_files_as_the_debian_package() {
    let rpm = made(&dist(), "redirect-cni-", &format!(".{}.rpm", std::env::consts::ARCH));
    let of_rpm = text(Command::new("rpm").args(["--query", "--package", "--list"]).arg(&rpm));
    let of_rpm: BTreeSet<&str> = of_rpm.lines().collect();
    let of_deb = text(Command::new("dpkg-deb").arg("--contents").arg(deb()));
    let files = of_deb.lines().filter(|line| !line.starts_with('d'));
    let of_deb: BTreeSet<String> = files
        .filter_map(|line| line.split(" ./").nth(1))
        .map(|path| format!("/{}", path.split(" -> ").next().expect("a path")))
        .collect();
    assert_eq!(of_rpm, of_deb.iter().map(String::as_str).collect());
    let operators = text(Command::new("rpm").args(["--query", "--package", "--configfiles"]).arg(&rpm));
    assert_eq!(operators, "/etc/default/redirect-cni-agent\n/etc/redirect-cni/plugin.json\n");
    text(Command::new("rpm").args(["--checksig", "--nosignature"]).arg(&rpm));
}

/// A small Debian on an overlay, in a mount namespace of its own, with a bpf file system.
pub(crate) struct Debian {
    dir: tempfile::TempDir,
}

impl Debian {
    pub(crate) fn new() -> Debian {
        let dir = tempfile::tempdir().expect("a folder");
        for sub in ["mount", "layers"] {
            fs::create_dir(dir.path().join(sub)).expect("a folder");
        }
        Debian { dir }
    }

    /// Runs a script in it as root. What it leaves is gone afterwards.
    pub(crate) fn run(&self, script: &str) -> Output {
        let lower = harness::envoy::cache().expect("a cache").join("debian/bookworm");
        assert!(lower.join("usr/bin/dpkg").exists(), "no small Debian: run `cargo xtask setup deploy`");
        let at = self.dir.path().display();
        // The layers live in a memory file system of the namespace, so nothing is left of them on the
        // machine.
        let outside = format!(
            "set -e\nmount -t tmpfs tmpfs {at}/layers\nmkdir {at}/layers/up {at}/layers/work\n\
             mount -t overlay overlay -o lowerdir={lower},upperdir={at}/layers/up,workdir={at}/layers/work {at}/mount\n\
             mount -t proc proc {at}/mount/proc\nmount -t sysfs sysfs {at}/mount/sys\n\
             mount -t bpf bpf {at}/mount/sys/fs/bpf\nmount --rbind /sys/fs/cgroup {at}/mount/sys/fs/cgroup\n\
             mount -t tmpfs tmpfs {at}/mount/run\ncp {deb} {at}/mount/package.deb\n\
             cat > {at}/mount/script\nexec chroot {at}/mount /bin/sh -e /script\n",
            lower = lower.display(),
            deb = deb().display(),
        );
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "sh",
            "-c",
        ]);
        command
            .arg(outside)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let script = format!("{STATE}\n{script}\n");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("unshare starts");
        child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("it reads the script");
        child.wait_with_output().expect("it ends")
    }
}

/// What is on the system apart from what dpkg writes about every package, and apart from the log.
const STATE: &str = r#"
state() {
    find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /var/lib/dpkg -o -path /var/log \) -prune -o -print \
        | grep -v -e '^/package.deb$' -e '^/script$' -e '^/before$' -e '^/after$' -e '^/var/cache' | sort
    find /run /sys/fs/bpf | sort
}
mkdir -p /opt/cni/bin /etc/cni/net.d
"#;

#[test]
fn the_debian_package_is_installed_used_and_removed_and_nothing_stays() {
    let _lock = MachineLock::take();
    let debian = Debian::new();
    let script = format!(
        r#"cat > /etc/cni/net.d/10-mesh.conflist <<'LIST'
{LIST}LIST
cp /etc/cni/net.d/10-mesh.conflist /list
state > /before
dpkg --install /package.deb
dpkg --verify redirect-cni
redirect --version
test -f /usr/share/man/man1/redirect.1 && test -f /usr/share/bash-completion/completions/redirect
test ! -e /opt/cni/bin/redirect-cni
redirect node enable
cmp /opt/cni/bin/redirect-cni /usr/lib/redirect-cni/redirect-cni
cat /etc/cni/net.d/10-mesh.conflist
redirect install
ls /sys/fs/bpf/redirect-cni
echo '{{"cniVersion":"1.0.0","name":"mesh","type":"redirect-cni","podSource":"annotations","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":null}},"prevResult":{{"ips":[]}}}}' \
    | CNI_COMMAND=ADD CNI_CONTAINERID=c0ffee CNI_IFNAME=eth0 CNI_NETNS=/x CNI_ARGS='K8S_POD_NAMESPACE=a;K8S_POD_NAME=b' /opt/cni/bin/redirect-cni
# An upgrade: what the operator changed stays, and a plugin that is in use is replaced.
echo '{{"podSource": "annotations", "dnsCapture": true}}' > /etc/redirect-cni/plugin.json
echo old > /opt/cni/bin/redirect-cni
dpkg --install /package.deb
cmp /opt/cni/bin/redirect-cni /usr/lib/redirect-cni/redirect-cni
grep -q dnsCapture /etc/redirect-cni/plugin.json
grep -q '"dnsCapture":true' /etc/cni/net.d/10-mesh.conflist
dpkg --remove redirect-cni
cmp /etc/cni/net.d/10-mesh.conflist /list
test ! -e /opt/cni/bin/redirect-cni
test ! -e /sys/fs/bpf/redirect-cni
test -f /etc/redirect-cni/plugin.json
dpkg --purge redirect-cni
state > /after
diff /before /after
echo nothing stays"#
    );
    let output = debian.run(&script);
    let said = say(&output);
    assert!(output.status.success() && said.contains("nothing stays"), "{said}");
    assert!(said.contains(r#""podSource":"annotations""#), "the entry has the keys of plugin.json: {said}");
    assert!(said.contains(r#"{"ips":[]}"#), "the plugin answers: {said}");
}

#[test]
fn removing_a_package_that_was_never_enabled_works_without_a_bpf_file_system() {
    let _lock = MachineLock::take();
    let debian = Debian::new();
    let script = "umount /sys/fs/bpf\nrm -r /opt/cni /etc/cni\ndpkg --install /package.deb\ndpkg --purge redirect-cni\n\
                  test ! -e /usr/bin/redirect && test ! -e /etc/redirect-cni && echo gone";
    let output = debian.run(script);
    assert!(output.status.success() && say(&output).contains("gone"), "{}", say(&output));
}
