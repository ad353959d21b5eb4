//! `images referrers`: what is attached to an image at its registry, such as signatures and attestations.

use clap::Args;
use corten_types::{Descriptor, Error, Reference, Result, ResultExt};

use super::Shown;
use crate::output::{self, Format, Table};
use crate::registry::Registry;

/// What is attached to an image at its registry: signatures, attestations, lists of what is in it.
#[derive(Debug, Args)]
pub struct Referrers {
    #[command(flatten)]
    registry: Registry,
    /// Only artifacts of this type.
    #[arg(long, default_value = "")]
    artifact_type: String,
    #[command(flatten)]
    shown: Shown,
    /// Its full name, with a tag or a digest.
    #[arg(required = true, value_name = "IMAGE")]
    reference: String,
}

impl Referrers {
    pub async fn run(self) -> Result<()> {
        let reference = match output::is_terminal() {
            true => Reference::familiar(&self.reference)?,
            false => self.reference.parse()?,
        };
        let local = self.registry.local()?;
        let target = local.resolver.resolve(&reference).await.context("failed to resolve image")?;
        let fetcher = local.resolver.fetcher(&reference)?;
        let found = fetcher.referrers(&target.digest, &self.artifact_type).await;
        let found = found.with_context(|| format!("failed to list what refers to {}", target.digest))?;
        if matches!(self.shown.format, Format::Json | Format::Yaml) && !self.shown.quiet {
            let list = serde_json::to_value(&found).map_err(|bad| Error::unknown(bad.to_string()))?;
            self.shown.format.show(&list.into());
            return Ok(());
        }
        let mut table = Table::wide(&["DIGEST", "ARTIFACT TYPE", "SIZE", "ANNOTATIONS"]);
        for one in found {
            let size = output::binary_size(one.size);
            let annotations = output::labels(&one.annotations, "-");
            table.row([one.digest.to_string(), kind(&one).to_owned(), size, annotations]);
        }
        table.show_as(&self.shown)
    }
}

/// The type of an artifact; of one that names none, that of its manifest.
fn kind(one: &Descriptor) -> &str {
    one.artifact_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(&one.media_type)
}
