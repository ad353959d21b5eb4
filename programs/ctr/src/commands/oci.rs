//! `oci`.

use clap::Subcommand;
use corten_oci::spec::Spec;
use corten_types::{Platform, Result, ResultExt};
use serde_json::json;

use crate::json::{Document, print};

/// The OCI's specifications.
#[derive(Debug, Subcommand)]
pub enum Oci {
    /// The one that containers begin with, as JSON.
    Spec {
        /// Of another platform, as linux/arm64 or windows/amd64.
        #[arg(long, default_value = "")]
        platform: String,
    },
}

impl Oci {
    pub fn run(self, namespace: &str) -> Result<()> {
        let Self::Spec { platform } = self;
        let platform: Platform = match platform.is_empty() {
            true => Platform::host(),
            false => platform.parse().context("failed to generate spec")?,
        };
        let mut spec = match platform.os.as_str() {
            "windows" => Spec::windows(),
            _ => Spec::new(namespace, ""),
        };
        if spec.value()["linux"].is_object() {
            spec.value_mut()["linux"]["cgroupsPath"] = json!(format!("/{namespace}"));
        }
        print(&Document::spec(spec.value().clone()));
        Ok(())
    }
}
