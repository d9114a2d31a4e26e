//! `completions`: what a shell needs to complete this program's commands.

use std::io::{Write, stdout};

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Failure};

#[derive(Args)]
#[command(
    after_help = "bash:  dotmac-license-proxy completions bash > ~/.local/share/bash-completion/completions/dotmac-license-proxy
zsh:   dotmac-license-proxy completions zsh > \"${fpath[1]}/_dotmac-license-proxy\"
fish:  dotmac-license-proxy completions fish > ~/.config/fish/completions/dotmac-license-proxy.fish"
)]
pub(super) struct Options {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // Into memory first: `generate` panics where nobody reads on.
    let mut script = Vec::new();
    generate(options.shell, &mut command, name, &mut script);
    stdout().write_all(&script).context("standard output can't be written")?;
    Ok(())
}
