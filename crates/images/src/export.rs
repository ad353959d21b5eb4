//! From the stores into an archive (spec 03 §9): an OCI layout that `docker load` reads too. The same images give the
//! same bytes.

use std::collections::BTreeMap;

use corten_types::{Context, Descriptor, Digest, Digester, Error, Reference, Result, media_type};
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::ImageService;
use crate::labels;
use crate::manifest::Manifest;
use crate::naming::{IMAGE_NAME, REF_NAME};
use crate::platforms::Platforms;
use crate::progress::ProgressSender;

const PIECE: usize = 256 << 10;
const BLOCK: u64 = 512;

/// What an archive holds.
#[derive(Clone, Debug, Default)]
pub struct ExportRequest {
    /// The images; one without a name is only in the index.
    pub images: Vec<(String, Descriptor)>,
    /// Of an index, the platforms whose content goes along; all that are named where it is all.
    pub platforms: Platforms,
    /// Leave out `manifest.json`, by which `docker load` goes.
    pub skip_compatibility_manifest: bool,
    /// Leave out layers that may not be handed on.
    pub skip_non_distributable: bool,
}

enum Entry {
    Folder,
    Document(Vec<u8>, u32),
    Blob(Box<Descriptor>),
}

impl ImageService {
    /// Writes images as a tar archive.
    ///
    /// # Errors
    /// NotFound `no manifest found for platform`, and for content that is missing.
    pub async fn export(
        &self,
        ctx: &Context,
        mut output: impl AsyncWrite + Unpin + Send,
        request: &ExportRequest,
        progress: &ProgressSender,
    ) -> Result<()> {
        progress.event("Exporting");
        // Everything is looked up before the first byte goes out.
        let entries = self.entries(ctx, request)?;
        for (name, entry) in &entries {
            self.entry(ctx, &mut output, name, entry, progress).await?;
        }
        output.write_all(&[0; 2 * BLOCK as usize]).await?;
        output.shutdown().await?;
        progress.event("Completed export");
        Ok(())
    }

    fn entries(&self, ctx: &Context, request: &ExportRequest) -> Result<BTreeMap<String, Entry>> {
        let mut entries = BTreeMap::new();
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        entries.insert("oci-layout".to_owned(), Entry::Document(layout, 0o444));
        entries.insert("blobs/".to_owned(), Entry::Folder);
        let (mut manifests, mut docker) = (Vec::new(), Vec::<(Digest, Value)>::new());
        for (name, target) in &request.images {
            let mut blobs = Vec::new();
            self.tree(ctx, target, &request.platforms, &mut |one| blobs.push(one.clone()))?;
            blobs.retain(|one| {
                !(request.skip_non_distributable && media_type::is_non_distributable(&one.media_type))
            });
            if media_type::is_index(&target.media_type)
                && !blobs.iter().any(|one| media_type::is_manifest(&one.media_type))
            {
                return Err(Error::not_found("no manifest found for platform"));
            }
            for blob in blobs {
                entries.insert(format!("blobs/{}/", blob.digest.algorithm().as_str()), Entry::Folder);
                let record = self.shared.content.info(ctx, &blob.digest)?;
                if i64::try_from(record.size).ok() != Some(blob.size) {
                    let text = format!("{} has {} bytes, not {}", blob.digest, record.size, blob.size);
                    return Err(Error::failed_precondition(text));
                }
                entries.insert(path(&blob.digest), Entry::Blob(Box::new(blob)));
            }
            manifests.push(self.described(ctx, name, target));
            if !request.skip_compatibility_manifest {
                self.for_docker(ctx, name, target, request, &mut docker)?;
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        entries.insert("index.json".to_owned(), Entry::Document(index.to_string().into_bytes(), 0o644));
        if !docker.is_empty() {
            let list = Value::Array(docker.into_iter().map(|(_, one)| one).collect()).to_string();
            entries.insert("manifest.json".to_owned(), Entry::Document(list.into_bytes(), 0o644));
        }
        Ok(entries)
    }

    /// An image's line in the index: with its name and where it came from.
    fn described(&self, ctx: &Context, name: &str, target: &Descriptor) -> Descriptor {
        let mut target = target.clone();
        if let Ok(known) = self.shared.content.info(ctx, &target.digest) {
            let sources = known.labels.into_iter().filter(|(key, _)| labels::is_source(key));
            target.annotations.extend(sources);
        }
        if !name.is_empty() {
            let tag = name.parse::<Reference>().ok().and_then(|one| one.tag().map(str::to_owned));
            target.annotations.insert(REF_NAME.to_owned(), tag.unwrap_or_else(|| name.to_owned()));
            target.annotations.insert(IMAGE_NAME.to_owned(), name.to_owned());
        }
        target
    }

    /// Adds an image's best manifest to what `docker load` reads; several names of one are one entry.
    fn for_docker(
        &self,
        ctx: &Context,
        name: &str,
        target: &Descriptor,
        request: &ExportRequest,
        docker: &mut Vec<(Digest, Value)>,
    ) -> Result<()> {
        let host = Platforms::like(&[corten_types::Platform::host()]);
        let chosen = if request.platforms.is_all() { &host } else { &request.platforms };
        let mut selected = self.select(ctx, target, chosen);
        if request.platforms.is_all() {
            // What is not for this machine is still an image.
            selected = selected.or_else(|_| self.select(ctx, target, &request.platforms));
        }
        let selected = match selected {
            Err(error) if error.is_not_found() && request.platforms.is_all() => return Ok(()),
            other => other?,
        };
        let tag = familiar(name);
        if let Some((_, known)) = docker.iter_mut().find(|(digest, _)| *digest == selected.descriptor.digest)
        {
            if let (Some(tags), Some(tag)) = (known["RepoTags"].as_array_mut(), tag) {
                tags.push(tag.into());
            }
            return Ok(());
        }
        let Manifest { config, layers, .. } = &selected.manifest;
        let layers: Vec<String> = layers.iter().map(|layer| path(&layer.digest)).collect();
        let one = json!({"Config": path(&config.digest), "RepoTags": tag.into_iter().collect::<Vec<_>>(), "Layers": layers});
        docker.push((selected.descriptor.digest, one));
        Ok(())
    }

    async fn entry(
        &self,
        ctx: &Context,
        output: &mut (impl AsyncWrite + Unpin),
        name: &str,
        entry: &Entry,
        progress: &ProgressSender,
    ) -> Result<()> {
        let blob = match entry {
            Entry::Folder => {
                return Ok(output.write_all(&header(name, 0, 0o755, b'5')?).await?);
            }
            Entry::Document(data, mode) => {
                output.write_all(&header(name, data.len() as u64, *mode, b'0')?).await?;
                output.write_all(data).await?;
                return pad(output, data.len() as u64).await;
            }
            Entry::Blob(blob) => blob,
        };
        let reader = self.shared.content.reader(ctx, &blob.digest)?;
        let mut meter = progress.meter(crate::blob::ingest_key(blob), None, blob);
        output.write_all(&header(name, reader.size(), 0o444, b'0')?).await?;
        let (mut digester, mut offset, mut piece) =
            (Digester::new(blob.digest.algorithm()), 0, vec![0; PIECE]);
        loop {
            let count = reader.read_at(&mut piece, offset)?;
            let data = piece.get(..count).unwrap_or_default();
            if data.is_empty() {
                break;
            }
            digester.update(data);
            output.write_all(data).await?;
            offset += count as u64;
            meter.advance("exporting", offset);
        }
        let found = digester.finish();
        if found != blob.digest || offset != reader.size() {
            return Err(Error::failed_precondition(format!(
                "content of {} is damaged: {offset} bytes of digest {found}",
                blob.digest
            )));
        }
        meter.event("complete", offset);
        pad(output, offset).await
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// As docker shows a name: `alpine:latest`. Nothing for a name without a tag.
fn familiar(name: &str) -> Option<String> {
    let reference: Reference = name.parse().ok()?;
    reference.tag()?;
    let short = name.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
    Some(short.unwrap_or(name).to_owned())
}

async fn pad(output: &mut (impl AsyncWrite + Unpin), size: u64) -> Result<()> {
    let rest = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
    Ok(output.write_all(vec![0; rest].as_slice()).await?)
}

/// The header of an entry, of no time and of nobody.
fn header(name: &str, size: u64, mode: u32, kind: u8) -> Result<[u8; 512]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|error| Error::invalid_argument(format!("{name}: {error}")))?;
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    Ok(*header.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_docker_does() {
        assert_eq!(familiar("docker.io/library/alpine:latest").as_deref(), Some("alpine:latest"));
        assert_eq!(familiar("docker.io/a/b:1").as_deref(), Some("a/b:1"));
        assert_eq!(familiar("reg.example/a:1").as_deref(), Some("reg.example/a:1"));
        assert_eq!(familiar("nothing"), None);
    }

    #[test]
    fn large_blobs_have_headers_that_readers_understand() {
        let written = header("blobs/sha256/x", 20 << 30, 0o444, b'0').unwrap();
        assert_eq!(tar::Header::from_byte_slice(&written).entry_size().unwrap(), 20 << 30);
    }
}
