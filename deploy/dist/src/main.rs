//! Makes what is shipped out of the static binaries. `cargo xtask dist` builds those and calls it.
//!
//! Two runs on the same commit give the same bytes: one date for everything (that of the commit), sorted
//! names, no random numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;

mod archive;
mod chart;
mod deb;
mod image;
mod redhat;
mod release;
mod sbom;
mod tree;

use release::Release;
use tree::Tree;

/// Makes what is shipped out of the static binaries.
#[derive(Debug, Parser)]
struct Args {
    /// The workspace
    #[arg(long)]
    root: PathBuf,
    /// Where the static binaries are
    #[arg(long)]
    binaries: PathBuf,
    /// Where the static binaries for arm64 are, to make packages and image for it as well
    #[arg(long)]
    arm64: Option<PathBuf>,
    /// Where the result goes
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let mut targets = vec![(std::env::consts::ARCH, &args.binaries)];
    targets.extend(args.arm64.as_ref().map(|binaries| ("aarch64", binaries)));
    let release = |arch: &str| -> Result<Release> {
        Ok(Release {
            date: date(&args.root)?,
            root: args.root.clone(),
            out: args.out.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            arch: arch.into(),
        })
    };
    let generated = generate(&args.binaries)?;
    let (mut made, mut images) = (Vec::new(), Vec::new());
    for (arch, binaries) in targets {
        let release = release(arch)?;
        let tree = tree::installed(&release.root, binaries, generated.path())?;
        made.extend([
            tarball(&release, &tree)?,
            deb::build(&release, &tree)?,
            redhat::build(&release, &tree)?,
        ]);
        images.push((release, image_content(binaries)?));
    }
    for (release, content) in &images {
        made.push(image::build(release, content)?);
    }
    if images.len() > 1 {
        made.push(image::build_index(&images)?);
    }
    let archs: Vec<_> = images.iter().map(|(release, _)| release.arch.as_str()).collect();
    let release = release(archs[0])?;
    made.extend([chart::build(&release)?, sbom::build(&release, &archs)?]);
    made.push(checksums(&release, &made)?);
    for path in made {
        println!("{:>10} bytes  {}", fs::metadata(&path)?.len(), path.display());
    }
    Ok(())
}

/// The date of the commit, or of SOURCE_DATE_EPOCH where there is no repository.
fn date(root: &Path) -> Result<u64> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given.parse().with_context(|| format!("SOURCE_DATE_EPOCH={given:?} is no number of seconds"));
    }
    let git = Command::new("git").arg("-C").arg(root).args(["log", "-1", "--format=%ct"]).output();
    let text =
        git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    text.parse()
        .context("this is no git repository: set SOURCE_DATE_EPOCH to the date that the files shall bear")
}

/// Man pages and completions, as the tool itself writes them.
fn generate(binaries: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().context("cannot make a directory for man pages")?;
    let tool = binaries.join("redirect");
    let output = Command::new(&tool).arg("generate").arg(folder.path()).output();
    let output = output.with_context(|| format!("cannot start {}", tool.display()))?;
    ensure!(
        output.status.success(),
        "{} generate failed: {}",
        tool.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder)
}

fn tarball(release: &Release, tree: &Tree) -> Result<PathBuf> {
    let name = format!("redirect-cni-{}-{}", release.version, release.arch);
    let path = release.out.join(format!("{name}.tar.gz"));
    fs::write(&path, archive::gzip(&archive::tar(tree, &format!("{name}/"), release.date)?)?)?;
    Ok(path)
}

/// The image has the two binaries and what a resolver and a TLS client look for nowhere else: nothing.
fn image_content(binaries: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    for name in ["redirect", "redirect-cni"] {
        tree.copy(&format!("usr/bin/{name}"), 0o755, &binaries.join(name))?;
    }
    Ok(tree)
}

fn checksums(release: &Release, made: &[PathBuf]) -> Result<PathBuf> {
    let mut lines = Vec::new();
    for path in made {
        let name = path.file_name().and_then(|name| name.to_str()).context("a file name that is no text")?;
        lines.push(format!("{}  {name}\n", image::hex(&fs::read(path)?)));
    }
    let path = release.out.join("SHA256SUMS");
    fs::write(&path, lines.concat())?;
    Ok(path)
}
