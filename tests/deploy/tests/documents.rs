//! The pages docs/install.md and docs/migrate.md: what can be run without a cluster is run as it stands
//! there, and what sets values of the chart is rendered.

use std::fs;

use harness::MachineLock;
use serde_json::{Value, json};

use crate::packages::{Debian, say};
use redirect_deploy_tests::helm::{Helm, root};

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the page")
}

/// The lines of blocks with this mark, block by block.
fn blocks(text: &str, mark: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == format!("```{mark}") {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The values that a command line sets, as Helm reads them: dots lead inside, and a dot behind a backslash
/// does not.
fn values(command: &str) -> Value {
    let mut values = json!({});
    let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    for pair in words.windows(2).filter(|pair| ["--set", "--set-string"].contains(&pair[0])) {
        let (path, value) = pair[1].split_once('=').expect("a value");
        let value = match value {
            "true" | "false" if pair[0] == "--set" => json!(value == "true"),
            text => json!(text),
        };
        let path = path.replace("\\.", "\0");
        let mut place = &mut values;
        for name in path.split('.') {
            place = &mut place[name.replace('\0', ".")];
        }
        *place = value;
    }
    values
}

#[test]
fn every_value_that_the_pages_set_is_one_of_the_chart() {
    let mut helm = Helm::start();
    let mut rendered = 0;
    for name in ["install.md", "migrate.md"] {
        for line in page(name).lines().filter(|line| line.contains("--set")) {
            let ours = line.contains("redirect-cni-0.1.0.tgz") || line.contains("global.platform");
            let alone = line.starts_with("| AKS") || line.starts_with("| any");
            // Other lines set values of Istio's charts.
            if ours || alone {
                helm.render(&values(&line.replace('`', " ")));
                rendered += 1;
            }
        }
    }
    assert!(rendered >= 10, "{rendered} command lines were found");
}

#[test]
fn values_are_read_as_helm_reads_them() {
    let set = values("helm install x --set a.b=true --set c=1 --set-string 'd.e\\.f/g=true'");
    assert_eq!(set, json!({ "a": { "b": true }, "c": "1", "d": { "e.f/g": "true" } }));
}

/// From nothing to a tried node and back, by the blocks of the page in their order.
#[test]
fn the_page_is_followed_literally_on_a_small_debian() {
    let _lock = MachineLock::take();
    let page = page("install.md");
    let (node, deb) = (blocks(&page, "sh node"), blocks(&page, "sh deb"));
    let ([look, verify, list], [install, uninstall]) = (&node[..], &deb[..]) else {
        panic!("the page has other blocks now: {node:?} {deb:?}")
    };
    let steps = [look, install, verify, list].map(|block| block.lines().count()).iter().sum::<usize>();
    let script = format!(
        r#"cp /package.deb /redirect-cni_0.1.0_amd64.deb; cd /
echo '{{"cniVersion":"1.0.0","name":"mesh","plugins":[{{"type":"bridge"}}]}}' > /etc/cni/net.d/10-mesh.conflist
dpkg -x /package.deb /archive; PATH=/archive/usr/bin:$PATH
{look}
rm -r /archive
begun=$(date +%s%N)
{install}
{verify}
{list}
echo "took $(( ($(date +%s%N) - begun) / 1000000 )) ms"
grep -q redirect-cni /etc/cni/net.d/10-mesh.conflist
{uninstall}
! grep -q redirect-cni /etc/cni/net.d/10-mesh.conflist
test ! -e /opt/cni/bin/redirect-cni
echo followed"#
    );
    let output = Debian::new().run(&script);
    let said = say(&output);
    assert!(output.status.success() && said.contains("followed"), "{said}");
    let took = said.lines().find(|line| line.starts_with("took ")).unwrap_or_default();
    println!("{steps} commands from nothing to a tried node: {took}");
}
