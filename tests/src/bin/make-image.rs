//! Makes an image from folders or busybox and pushes it to a registry on loopback, or saves it.
//!
//! `make-image (--busybox | --layer FOLDER…) [--env K=V]… [--cmd WORD]… (--push HOST/NAME:TAG | --save FILE NAME)`

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use corten_tests::ImageBuilder;
use serde_json::json;

fn main() -> ExitCode {
    match make(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut builder = ImageBuilder::new();
    let (mut env, mut command) = (Vec::new(), Vec::new());
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    while let Some(flag) = args.next() {
        let mut value = || args.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--busybox" => builder = ImageBuilder::busybox(),
            "--layer" => builder = builder.layer(archive(Path::new(&value()?))?),
            "--env" => env.push(value()?),
            "--cmd" => command.push(value()?),
            "--push" => {
                let target = value()?;
                let (host, name) = target.split_once('/').context("--push HOST/NAME:TAG")?;
                return finish(builder, path, env, command).push(host, name);
            }
            "--save" => {
                let (file, name) = (value()?, args.next().context("--save FILE NAME")?);
                return finish(builder, path, env, command).save(Path::new(&file), &name);
            }
            other => bail!("unknown flag {other}"),
        }
    }
    bail!("nothing to do: --push or --save is missing")
}

fn finish(
    builder: ImageBuilder,
    path: &str,
    mut env: Vec<String>,
    command: Vec<String>,
) -> corten_tests::Image {
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, path.to_owned());
    }
    let builder = builder.set("Env", json!(env));
    if command.is_empty() { builder.build() } else { builder.set("Cmd", json!(command)).build() }
}

/// The folder as a tar archive, by the system's tar: owners, links and devices as they are.
fn archive(folder: &Path) -> Result<Vec<u8>> {
    let output = std::process::Command::new("tar")
        .args(["--numeric-owner", "--one-file-system", "--sort=name", "-C"])
        .arg(folder)
        .args(["-cf", "-", "."])
        .output()
        .context("tar")?;
    if !output.status.success() {
        bail!("tar {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
