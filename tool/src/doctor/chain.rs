//! What the runtime's network configuration says.

use std::fs;
use std::path::{Path, PathBuf};

use redirect_agent::conflist::files;
use redirect_user::doctor::checks::{
    BINARY, CAPABILITIES, CILIUM_EXCLUSIVE, ENTRY, ISTIO_CNI, LAST, ONE_LIST,
};
use redirect_user::doctor::{Finding, Says};
use serde_json::Value;

/// The type of the plugin's entry, which is its file name.
const TYPE: &str = "redirect-cni";

/// Looks into the folders of configurations and of plugins. `before` an installation there is no entry yet.
pub(super) fn examine(conf_dir: &Path, bin_dir: &Path, before: bool) -> Vec<Finding> {
    let files = match files::files(conf_dir) {
        Ok(files) => files,
        Err(error) => return untried(before, &error.to_string()),
    };
    let mut findings =
        vec![ONE_LIST.says(one_list(conf_dir, &files)), CILIUM_EXCLUSIVE.says(cilium_exclusive(conf_dir))];
    let Some((file, chain)) = files.iter().find_map(|file| Some((file, chain(file)?))) else {
        let why = format!("no valid network configuration in {}", conf_dir.display());
        findings.push(ISTIO_CNI.says(Says::Untried(why.clone())));
        if !before {
            let checks = [&ENTRY, &LAST, &CAPABILITIES, &BINARY];
            findings.extend(checks.map(|check| check.says(Says::Untried(why.clone()))));
        }
        return findings;
    };
    findings.push(ISTIO_CNI.says(istio_cni(file, &chain)));
    if !before {
        findings.extend([
            ENTRY.says(entry(file, &chain)),
            LAST.says(last(file, &chain)),
            CAPABILITIES.says(capabilities(&chain)),
            BINARY.says(binary(bin_dir, &chain)),
        ]);
    }
    findings
}

fn untried(before: bool, why: &str) -> Vec<Finding> {
    let first = [&ONE_LIST, &CILIUM_EXCLUSIVE, &ISTIO_CNI];
    let later = [&ENTRY, &LAST, &CAPABILITIES, &BINARY];
    let checks = first.into_iter().chain(later.into_iter().filter(|_| !before));
    checks.map(|check| check.says(Says::Untried(why.to_owned()))).collect()
}

/// The entries of a file, if a runtime would take it.
fn chain(file: &Path) -> Option<Vec<Value>> {
    let text = fs::read_to_string(file).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    value["name"].as_str().filter(|name| !name.is_empty())?;
    match &value["plugins"] {
        Value::Array(plugins) if !plugins.is_empty() => Some(plugins.clone()),
        Value::Null if value["type"].is_string() => Some(vec![value]),
        _ => None,
    }
}

fn is_ours(entry: &Value) -> bool {
    entry["type"] == TYPE
}

fn one_list(conf_dir: &Path, files: &[PathBuf]) -> Says {
    let names: Vec<_> =
        files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
    match names.as_slice() {
        [] => Says::Warning(format!("{} has none", conf_dir.display())),
        [one] => Says::Found(one.clone()),
        [first, rest @ ..] => {
            Says::Warning(format!("the runtime takes {first}, and {} never", rest.join(", ")))
        }
    }
}

/// Cilium renames what it does not want beside its own file.
fn cilium_exclusive(conf_dir: &Path) -> Says {
    let entries = fs::read_dir(conf_dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let taken: Vec<_> = names.filter(|name| name.ends_with(".cilium_bak")).collect();
    match taken.first() {
        None => Says::Found("no file was taken away".into()),
        Some(name) => Says::Warning(format!("{name}: Cilium has taken a configuration away")),
    }
}

fn istio_cni(file: &Path, chain: &[Value]) -> Says {
    match chain.iter().any(|entry| entry["type"] == "istio-cni") {
        true => Says::Warning(format!("{} has an entry istio-cni", file.display())),
        false => Says::Found("it is not there".into()),
    }
}

fn entry(file: &Path, chain: &[Value]) -> Says {
    match chain.iter().filter(|entry| is_ours(entry)).count() {
        0 => Says::Warning(format!("{} has none: new pods are not redirected", file.display())),
        1 => Says::Found(format!("in {}", file.display())),
        count => Says::Warning(format!("{} has {count} of them", file.display())),
    }
}

fn last(file: &Path, chain: &[Value]) -> Says {
    match chain.iter().position(is_ours) {
        None => Says::Untried(format!("{} has no entry of ours", file.display())),
        Some(place) => match chain.get(place + 1) {
            None => Says::Found("it is".into()),
            Some(behind) => Says::Warning(format!("{} comes behind it", behind["type"])),
        },
    }
}

/// Without the annotations the plugin cannot tell a pod with a sidecar from another.
fn capabilities(chain: &[Value]) -> Says {
    let Some(entry) = chain.iter().find(|entry| is_ours(entry)) else {
        return Says::Untried("there is no entry of ours".into());
    };
    let declared = |name: &str| entry["capabilities"][name] == true;
    let lacks: Vec<_> = ["io.kubernetes.cri.pod-annotations", "cgroupPath"]
        .into_iter()
        .filter(|name| !declared(name))
        .collect();
    if lacks.is_empty() {
        return Says::Found("both are declared".into());
    }
    let text = format!("{} is not declared", lacks.join(" and "));
    let by_annotations = entry["podSource"] == "annotations";
    match by_annotations && lacks.contains(&"io.kubernetes.cri.pod-annotations") {
        true => Says::Missing(format!("{text}, and podSource is \"annotations\"")),
        false => Says::Warning(text),
    }
}

fn binary(bin_dir: &Path, chain: &[Value]) -> Says {
    let path = bin_dir.join(TYPE);
    let executable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).map(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    match executable(&path) {
        Ok(true) => Says::Found(path.display().to_string()),
        Ok(false) => Says::Missing(format!("{} cannot be executed", path.display())),
        Err(error) if chain.iter().any(is_ours) => Says::Missing(format!("{}: {error}", path.display())),
        Err(error) => Says::Warning(format!("{}: {error}", path.display())),
    }
}
