//! Which commit is being built, for `--version` and `dotmac_build_info`.
//!
//! `DOTMAC_LICENSE_BUILD_COMMIT` says it where there is no repository, as in the image's build; else git does. Neither: "unknown".

use std::path::Path;
use std::process::Command;

/// What the binary is made of: a change there makes the commit a dirty one.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "build.rs", "src", "crates", "migrations"];

fn main() {
    println!("cargo::rerun-if-env-changed=DOTMAC_LICENSE_BUILD_COMMIT");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    // A commit or a checkout appends to the log of HEAD. A path that does not exist would have cargo build anew each time.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    let told = std::env::var("DOTMAC_LICENSE_BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = told.or_else(head).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=DOTMAC_LICENSE_COMMIT={commit}");
}

/// The commit that is checked out, marked where the sources differ from it.
fn head() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
