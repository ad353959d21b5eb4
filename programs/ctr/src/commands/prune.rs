//! `prune`: containers that have ended and images that no container uses are removed.

use std::collections::HashSet;
use std::io::{BufRead, IsTerminal};

use clap::Args;
use corten_api::services::{containers as records, images, tasks as api};
use corten_api::task_types::Status;
use corten_types::{Error, Result};

use crate::client::{Daemon, error};
use crate::commands::containers;

/// Remove containers that have ended, and images that none uses.
#[derive(Debug, Args)]
pub struct Prune {
    /// Images too.
    #[arg(short, long)]
    all: bool,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Only tell what would be removed.
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let (ended, used) = ended(daemon).await?;
        let images = if self.all { unused(daemon, &used).await? } else { Vec::new() };
        if ended.is_empty() && images.is_empty() {
            eprintln!("nothing to remove in namespace {:?}", daemon.namespace);
            return Ok(());
        }
        if self.dry_run {
            ended.iter().for_each(|id| println!("container {id}"));
            images.iter().for_each(|name| println!("image {name}"));
            return Ok(());
        }
        if !self.force && !agreed(ended.len(), images.len())? {
            return Ok(());
        }
        for id in ended {
            containers::delete(daemon, &id, false).await?;
            println!("container {id}");
        }
        let last = images.len().saturating_sub(1);
        for (at, name) in images.into_iter().enumerate() {
            // The collector runs once, with the last one.
            let request = images::DeleteImageRequest { name: name.clone(), sync: at == last, target: None };
            daemon.images().delete(request).await.map_err(error)?;
            println!("image {name}");
        }
        Ok(())
    }
}

/// Remove images that no container uses.
#[derive(Debug, Args)]
pub struct PruneImages {
    /// All of them; without it none is removed.
    #[arg(long)]
    all: bool,
}

impl PruneImages {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if !self.all {
            crate::log::warning("No images pruned. `image prune` requires --all to be specified.");
            return Ok(());
        }
        let request = records::ListContainersRequest::default();
        let all = daemon.containers().list(request).await.map_err(error)?.into_inner().containers;
        let used = all.into_iter().map(|one| one.image).collect();
        for name in unused(daemon, &used).await? {
            let request = images::DeleteImageRequest { name: name.clone(), sync: false, target: None };
            daemon.images().delete(request).await.map_err(error)?;
            crate::log::info(&format!("deleted image: {name}\n"));
        }
        Ok(())
    }
}

/// Containers without a running process, and the images of the others.
async fn ended(daemon: &Daemon) -> Result<(Vec<String>, HashSet<String>)> {
    let request = records::ListContainersRequest::default();
    let all = daemon.containers().list(request).await.map_err(error)?.into_inner().containers;
    let tasks =
        daemon.tasks().list(api::ListTasksRequest::default()).await.map_err(error)?.into_inner().tasks;
    let alive = |status| !matches!(status, Status::Stopped | Status::Unknown);
    let alive: HashSet<String> =
        tasks.into_iter().filter(|task| alive(task.status())).map(|task| task.id).collect();
    let (kept, ended): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| alive.contains(&one.id));
    let used = kept.into_iter().map(|one| one.image).collect();
    Ok((ended.into_iter().map(|one| one.id).collect(), used))
}

async fn unused(daemon: &Daemon, used: &HashSet<String>) -> Result<Vec<String>> {
    let request = images::ListImagesRequest::default();
    let all = daemon.images().list(request).await.map_err(error)?.into_inner().images;
    Ok(all.into_iter().map(|image| image.name).filter(|name| !used.contains(name)).collect())
}

/// Asks whoever sits there; nobody there is no consent.
fn agreed(containers: usize, images: usize) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let text = "this removes containers or images: say --force where nobody can be asked";
        return Err(Error::failed_precondition(text));
    }
    let images = if images == 0 { String::new() } else { format!(" and {images} images") };
    eprintln!("This removes {containers} containers{images}. Go on? [y/N]");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
