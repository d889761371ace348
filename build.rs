//! Tells the program its commit and its target, for `--version`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=AUTODIST_COMMIT");
    println!("cargo::rustc-env=AUTODIST_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    // Packagers who build without a checkout may set it.
    if let Some(commit) = std::env::var("AUTODIST_COMMIT").ok().filter(|commit| !commit.is_empty()) {
        println!("cargo::rustc-env=AUTODIST_COMMIT={commit}");
        return;
    }
    // A tarball has no .git, and may lie inside another repository.
    if !Path::new(".git").exists() {
        return;
    }
    let Some(commit) = git(&["log", "-1", "--format=%h (%cs)"]) else { return };
    println!("cargo::rustc-env=AUTODIST_COMMIT={commit}");
    // A commit changes the branch that HEAD names; only this crate is built again for it.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().map(str::to_owned).chain(branch) {
        let path = git(&["rev-parse", "--git-path", &name]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
