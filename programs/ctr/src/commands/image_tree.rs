//! `images inspect`: what an image consists of, as a tree.

use clap::Args;
use corten_api::services::{content, images as api};
use corten_types::{Descriptor, Error, Labels, Platform, Result, media_type, timestamp};
use serde::Deserialize;

use crate::client::{Daemon, error};
use crate::container::read_blob;
use crate::output;

/// Documents are small; what is larger is not shown.
const DOCUMENT: i64 = 8 << 20;
const LINE: &str = "───────────────────────";

/// What an image consists of.
#[derive(Debug, Args)]
pub struct ImageTree {
    /// With labels and documents.
    #[arg(long)]
    content: bool,
    #[arg(default_value = "", value_name = "IMAGE")]
    name: String,
}

/// What an index or manifest refers to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Children {
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
}

impl ImageTree {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::not_found("image \"\""));
        }
        let request = api::GetImageRequest { name: self.name.clone() };
        let found = daemon.images().get(request).await.map_err(error)?.into_inner().image;
        let image = found.ok_or_else(|| Error::not_found(format!("image {:?}", self.name)))?;
        let mut out = format!("{}\n", image.name);
        let time = |time: Option<prost_types::Timestamp>| {
            output::go_time(timestamp::to_system(&time.unwrap_or_default()))
        };
        out += &format!("│    Created: {}\n", time(image.created_at));
        out += &format!("│    Updated: {}\n", time(image.updated_at));
        for (key, value) in sorted(&image.labels) {
            out += &format!("│    Label {key:?}: {value:?}\n");
        }
        let target = Descriptor::try_from(image.target.unwrap_or_default())?;
        self.node(daemon, &target, "", true, &mut out).await?;
        print!("{out}");
        Ok(())
    }

    /// A blob, and what it refers to.
    async fn node(
        &self,
        daemon: &Daemon,
        blob: &Descriptor,
        indent: &str,
        is_last: bool,
        out: &mut String,
    ) -> Result<()> {
        let (branch, more) = if is_last { ("└── ", "    ") } else { ("├── ", "│   ") };
        *out += &format!("{indent}{branch}{} @{} ({} bytes)\n", blob.media_type, blob.digest, blob.size);
        let indent = format!("{indent}{more}");
        if let Some(platform) = &blob.platform
            && !platform.architecture.is_empty()
        {
            *out += &format!("{indent}│    Platform: {}\n", shown(platform));
        }
        let request = content::InfoRequest { digest: blob.digest.to_string() };
        let info = match daemon.content().info(request).await.map_err(error) {
            Ok(info) => info.into_inner().info.unwrap_or_default(),
            Err(missing) if missing.is_not_found() => {
                *out += &format!("{indent}└──  Content does not exist locally, skipping\n");
                return Ok(());
            }
            Err(failed) => return Err(failed),
        };
        let kind = blob.media_type.as_str();
        let has_children = media_type::is_index(kind) || media_type::is_manifest(kind);
        let is_document = has_children || media_type::is_config(kind) || kind.ends_with("+json");
        let data = match is_document && blob.size <= DOCUMENT {
            true => read_blob(daemon, blob.digest.as_str()).await?,
            false => Vec::new(),
        };
        if self.content && is_document {
            // A line leads on to what is below.
            let indent = if has_children { format!("{indent}│   ") } else { indent.clone() };
            boxed(&info.labels, &data, &indent, out);
        }
        if !has_children {
            return Ok(());
        }
        let children: Children = serde_json::from_slice(&data)
            .map_err(|bad| Error::invalid_argument(format!("{}: {bad}", blob.digest)))?;
        let all: Vec<Descriptor> =
            children.config.into_iter().chain(children.layers).chain(children.manifests).collect();
        for (at, child) in all.iter().enumerate() {
            Box::pin(self.node(daemon, child, &indent, at + 1 == all.len(), out)).await?;
        }
        Ok(())
    }
}

fn sorted(labels: &Labels) -> Vec<(&String, &String)> {
    let mut list: Vec<_> = labels.iter().collect();
    list.sort();
    list
}

/// `os/arch[/variant]`, without a variant that goes without saying.
fn shown(platform: &Platform) -> String {
    let platform = platform.normalized();
    let variant = if platform.variant.is_empty() { String::new() } else { format!("/{}", platform.variant) };
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// Labels and the document of a blob.
fn boxed(labels: &Labels, data: &[u8], indent: &str, out: &mut String) {
    if !labels.is_empty() {
        *out += &format!("{indent}┌────────Labels─────────\n");
        for (key, value) in sorted(labels) {
            *out += &format!("{indent}│{key:?}: {value:?}\n");
        }
        *out += &format!("{indent}└{LINE}\n");
    }
    if !data.is_empty() {
        *out += &format!("{indent}┌────────Content────────\n");
        for line in indented(&String::from_utf8_lossy(data)).lines() {
            *out += &format!("{indent}│{line}\n");
        }
        *out += &format!("{indent}└{LINE}\n");
    }
}

/// JSON with its fields in their order, a line for each.
fn indented(text: &str) -> String {
    let (mut out, mut level, mut in_string, mut escaped) = (String::new(), 0_usize, false, false);
    let new_line = |out: &mut String, level: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("   ", level));
    };
    let mut chars = text.trim().chars().peekable();
    while let Some(char) = chars.next() {
        if in_string {
            out.push(char);
            in_string = escaped || char != '"';
            escaped = !escaped && char == '\\';
            continue;
        }
        match char {
            ' ' | '\n' | '\r' | '\t' => {}
            '"' => {
                in_string = true;
                out.push(char);
            }
            '{' | '[' => {
                out.push(char);
                while chars.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                if let Some(end) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    level += 1;
                    new_line(&mut out, level);
                }
            }
            '}' | ']' => {
                level = level.saturating_sub(1);
                new_line(&mut out, level);
                out.push(char);
            }
            ',' => {
                out.push(char);
                new_line(&mut out, level);
            }
            ':' => out.push_str(": "),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_order_and_their_texts() {
        let text = r#"{"b":[1,{"x":"a,{\"\\"}],"a":{ },"c":[]}"#;
        let lines = indented(text);
        let want = "{\n   \"b\": [\n      1,\n      {\n         \"x\": \"a,{\\\"\\\\\"\n      }\n   ],\n   \"a\": {},\n   \"c\": []\n}";
        assert_eq!(lines, want);
    }
}
