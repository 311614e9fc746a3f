//! The pages docs/install.md and docs/migrate.md: what sets values of the chart is rendered. The test `image`
//! (`image/page.rs`) runs their commands.

use redirect_deploy_tests::helm::Helm;
use redirect_deploy_tests::page::{page, values};

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
