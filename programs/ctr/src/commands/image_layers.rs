//! `images history` and `images tree`: where layers come from, and which images share them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::Args;
use corten_api::services::images as api;
use corten_types::{Platform, Result};
use serde::Deserialize;

use crate::client::{Daemon, error};
use crate::container::image::{self, Image};
use crate::output::{self, Format, Table, short_digest};

/// Most of a command that a line of people's tables has.
const COMMAND: usize = 60;

/// How an image came about: what made each layer, the newest first.
#[derive(Debug, Args)]
pub struct History {
    /// Whole commands and times.
    #[arg(long)]
    no_trunc: bool,
    /// The platform, os/arch; else this machine's.
    #[arg(long, default_value = "")]
    platform: String,
    /// How to show it.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[arg(required = true, value_name = "IMAGE")]
    name: String,
}

/// A step of a build, as an image's config tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    created: Option<String>,
    created_by: String,
    comment: String,
    empty_layer: bool,
}

impl History {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let platform = match self.platform.as_str() {
            "" => Platform::host(),
            named => named.parse()?,
        };
        let image = image::find(daemon, &self.name, &platform).await?;
        let config = image::read_json(daemon, image.config_digest()).await?;
        let steps: Vec<Step> = serde_json::from_value(config["history"].clone()).unwrap_or_default();
        let mut layers = image.layers().iter();
        // Layers that no step tells of are told of all the same.
        let mut rows: Vec<(Step, Option<i64>)> = steps
            .into_iter()
            .map(|step| {
                let size = if step.empty_layer { None } else { layers.next().map(|layer| layer.size) };
                (step, size)
            })
            .collect();
        rows.extend(layers.map(|layer| (Step::default(), Some(layer.size))));
        let is_short = !self.no_trunc && matches!(self.format, Format::Table | Format::Plain);
        let mut table = Table::wide(&["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
        for (step, size) in rows.into_iter().rev() {
            let by = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
            let by = if is_short { shortened(&by, COMMAND) } else { by };
            let created = step.created.unwrap_or_default();
            let created = match time(&created).filter(|_| is_short) {
                Some(at) => format!("{} ago", output::age(at)),
                None if created.is_empty() => "-".into(),
                None => created,
            };
            table.row([created, by, output::binary_size(size.unwrap_or(0)), step.comment]);
        }
        table.show(self.format)
    }
}

fn time(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(text.parse::<jiff::Timestamp>().ok()?).ok()
}

/// The beginning of a text that is too long.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Which layers the images share.
#[derive(Debug, Args)]
pub struct Layers {
    /// Names, or filters.
    #[arg(value_name = "[IMAGE|FILTER...]")]
    filters: Vec<String>,
}

/// A layer on those below it: its size, and what stands on it.
#[derive(Debug, Default)]
struct Node {
    size: i64,
    images: Vec<String>,
    above: BTreeMap<String, Node>,
}

impl Layers {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let filter = |text: String| match ["==", "!=", "~="].iter().any(|operator| text.contains(operator)) {
            true => text,
            false => format!("name=={text:?}"),
        };
        let request = api::ListImagesRequest { filters: self.filters.into_iter().map(filter).collect() };
        let found = daemon.images().list(request).await.map_err(error)?.into_inner().images;
        let (mut root, mut absent) = (Node::default(), Vec::new());
        for record in found {
            match image::find(daemon, &record.name, &Platform::host()).await {
                Ok(image) => root.add(&image),
                // Another platform's, or not fetched.
                Err(failed) if failed.is_not_found() => absent.push(record.name),
                Err(failed) => return Err(failed),
            }
        }
        let mut text = String::new();
        root.draw(&mut text);
        absent.iter().for_each(|name| text.push_str(&format!("{name} (not here for this platform)\n")));
        print!("{text}");
        Ok(())
    }
}

impl Node {
    fn add(&mut self, image: &Image) {
        let mut node = self;
        for (chain_id, layer) in image.chain().into_iter().zip(image.layers()) {
            node = node.above.entry(chain_id).or_default();
            node.size = layer.size;
        }
        node.images.push(image.record.name.clone());
    }

    /// Lines of all that is above, each layer below the one that it stands on.
    fn draw(&self, out: &mut String) {
        // Chains may be long: what is still to be drawn is on a list, not on the stack.
        let (mut roots, mut waiting) = (Vec::new(), Vec::new());
        self.images.iter().for_each(|name| out.push_str(&format!("{name} (no layers)\n")));
        self.queue("", &mut roots);
        while let Some((_, _, id, root)) = roots.pop() {
            out.push_str(&root.line(id));
            root.queue("", &mut waiting);
            while let Some((indent, is_last, id, node)) = waiting.pop() {
                out.push_str(&format!("{indent}{}{}", if is_last { "└── " } else { "├── " }, node.line(id)));
                node.queue(&format!("{indent}{}", if is_last { "    " } else { "│   " }), &mut waiting);
            }
        }
    }

    /// Puts what stands on this on a list, the first last.
    fn queue<'a>(&'a self, indent: &str, waiting: &mut Vec<(String, bool, &'a String, &'a Self)>) {
        let last = self.above.len();
        let children = self.above.iter().enumerate().rev();
        waiting.extend(children.map(|(at, (id, node))| (indent.to_owned(), at + 1 == last, id, node)));
    }

    fn line(&self, id: &str) -> String {
        let names =
            if self.images.is_empty() { String::new() } else { format!("  {}", self.images.join(", ")) };
        format!("{} {}{names}\n", short_digest(id), output::binary_size(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_on_those_below_them() {
        let leaf = |name: &str| Node { size: 1, images: vec![name.into()], above: BTreeMap::new() };
        let middle = Node {
            size: 2,
            images: vec![],
            above: [("c".into(), leaf("y")), ("d".into(), leaf("z"))].into(),
        };
        let base = Node {
            size: 3,
            images: vec!["x".into()],
            above: [("b".into(), middle), ("e".into(), leaf("w"))].into(),
        };
        let root = Node { above: [("a".into(), base)].into(), ..Node::default() };
        let mut text = String::new();
        root.draw(&mut text);
        let want = "a 3.0 B  x\n├── b 2.0 B\n│   ├── c 1.0 B  y\n│   └── d 1.0 B  z\n└── e 1.0 B  w\n";
        assert_eq!(text, want);
        assert_eq!(shortened("abcdef", 4), "abc…");
    }
}
