//! The short-lived invocations of a shim binary: `start`, `delete` and `-info` (spec 02 §3).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use corten_api::bootstrap::{BootstrapParams, Extension, LogLevel};
use corten_api::task_v3::DeleteResponse;
use corten_api::types::RuntimeInfo;
use corten_types::{Any, Error, Result, ResultExt};
use prost::Message;

use crate::bootstrap::Endpoint;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::dialect::{Dialect, Dialects};
use crate::invoke::{Invocation, Output};

/// How a shim of 2.3 and newer begins to refuse what an older daemon sends.
const WRONG_DIALECT: &str = "shim was started through the deprecated API";

/// Runs `start`: a shim for the bundle's task, new or shared with its group.
pub(crate) async fn start(
    config: &Config,
    dialects: &Dialects,
    binary: &Path,
    bundle: &Bundle,
    options: Option<&Any>,
) -> Result<Endpoint> {
    let dialect = dialects.of(binary).await;
    let (output, failure) =
        start_once(config, binary, bundle, &input(config, bundle, options, dialect)).await?;
    let Some(failure) = failure else { return Endpoint::parse(&output) };
    if dialect == Dialect::Options && failure.message().contains(WRONG_DIALECT) {
        let input = input(config, bundle, options, Dialect::Bootstrap);
        let (output, failure) = start_once(config, binary, bundle, &input).await?;
        dialects.learn(binary, Dialect::Bootstrap);
        return failure.map_or_else(|| Endpoint::parse(&output), Err);
    }
    Err(failure)
}

async fn start_once(
    config: &Config,
    binary: &Path,
    bundle: &Bundle,
    input: &[u8],
) -> Result<(Vec<u8>, Option<Error>)> {
    let mut environment = environment(config, bundle);
    let extra = config.env.iter().filter_map(|entry| entry.split_once('='));
    environment.extend(extra.map(|(key, value)| (key.into(), value.into())));
    let invocation = Invocation {
        program: binary,
        arguments: arguments(config, bundle, false, "start"),
        environment,
        folder: Some(&bundle.path),
        input,
        combined: true,
        timeout: config.timeouts.start,
    };
    let output = run(invocation).await?;
    let failure = output
        .failure()
        .map(|failure| Error::unknown(format!("{}: {failure}", String::from_utf8_lossy(&output.stdout))));
    Ok((output.stdout, failure))
}

/// Runs `delete`: clears away what a dead shim left of the bundle's task.
pub(crate) async fn delete(config: &Config, binary: &Path, bundle: &Bundle) -> Result<DeleteResponse> {
    let invocation = Invocation {
        program: binary,
        arguments: arguments(config, bundle, true, "delete"),
        environment: environment(config, bundle),
        folder: Some(&bundle.path),
        input: &[],
        combined: false,
        timeout: config.timeouts.cleanup,
    };
    let output = run(invocation).await?;
    let warnings = String::from_utf8_lossy(&output.stderr);
    if !warnings.trim().is_empty() {
        tracing::warn!(namespace = %bundle.namespace, id = bundle.id, "cleanup warnings {warnings:?}");
    }
    match output.failure() {
        Some(failure) => Err(Error::unknown(format!("{}: {failure}", warnings.trim()))),
        None => DeleteResponse::decode(&*output.stdout)
            .map_err(|error| Error::unknown(format!("answer of {}: {error}", binary.display()))),
    }
}

/// Runs `-info`: what the runtime says about itself.
pub(crate) async fn info(config: &Config, binary: &Path, options: Option<&Any>) -> Result<RuntimeInfo> {
    let input = options.map(Message::encode_to_vec).unwrap_or_default();
    let invocation = Invocation {
        program: binary,
        arguments: vec!["-info".into()],
        environment: Vec::new(),
        folder: None,
        input: &input,
        combined: false,
        timeout: config.timeouts.cleanup,
    };
    let output = run(invocation).await?;
    if let Some(failure) = output.failure() {
        let warnings = String::from_utf8_lossy(&output.stderr);
        return Err(Error::unknown(format!("{}: {failure}", warnings.trim())))
            .with_context(|| format!("failed to run {} -info", binary.display()));
    }
    RuntimeInfo::decode(&*output.stdout)
        .map_err(|error| Error::unknown(format!("failed to unmarshal stdout into RuntimeInfo: {error}")))
}

async fn run(invocation: Invocation<'_>) -> Result<Output> {
    let (program, timeout) = (invocation.program, invocation.timeout);
    invocation.run().await.map_err(|error| match error.kind() {
        ErrorKind::TimedOut => Error::unknown(format!(
            "{} did not end within {timeout:?}: signal: killed: context deadline exceeded",
            program.display()
        )),
        _ => Error::unknown(format!("fork/exec {}: {}", program.display(), Error::from(error))),
    })
}

fn arguments(config: &Config, bundle: &Bundle, with_bundle: bool, action: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "-namespace".into(),
        bundle.namespace.as_str().into(),
        "-address".into(),
        config.grpc_address.clone().into(),
        "-publish-binary".into(),
        config.containerd_binary.clone().into(),
        "-id".into(),
        bundle.id.clone().into(),
    ];
    if with_bundle {
        arguments.extend(["-bundle".into(), bundle.path.clone().into()]);
    }
    if config.debug {
        arguments.push("-debug".into());
    }
    arguments.push(action.into());
    arguments
}

fn environment(config: &Config, bundle: &Bundle) -> Vec<(OsString, OsString)> {
    vec![
        ("GOMAXPROCS".into(), "2".into()),
        ("MAX_SHIM_VERSION".into(), "2".into()),
        ("TTRPC_ADDRESS".into(), config.ttrpc_address.clone().into()),
        ("GRPC_ADDRESS".into(), config.grpc_address.clone().into()),
        ("NAMESPACE".into(), bundle.namespace.as_str().into()),
    ]
}

fn input(config: &Config, bundle: &Bundle, options: Option<&Any>, dialect: Dialect) -> Vec<u8> {
    match dialect {
        Dialect::Options => options.map(Message::encode_to_vec).unwrap_or_default(),
        Dialect::Bootstrap => BootstrapParams {
            instance_id: bundle.id.clone(),
            namespace: bundle.namespace.to_string(),
            log_level: if config.debug { LogLevel::Debug } else { LogLevel::Info }.into(),
            containerd_version: config.containerd_version.clone(),
            containerd_ttrpc_address: config.ttrpc_address.clone(),
            containerd_grpc_address: config.grpc_address.clone(),
            containerd_binary: config.containerd_binary.to_string_lossy().into_owned(),
            extensions: options
                .map(|options| Extension { value: Some(options.clone()) })
                .into_iter()
                .collect(),
            socket_dir: Some(config.socket_dir.to_string_lossy().into_owned()),
        }
        .encode_to_vec(),
    }
}
