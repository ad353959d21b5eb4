//! Moving images: between registries, archives and the store, and under other names (spec 03 §10).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corten_api::services::transfer::{TransferRequest, transfer_server};
use corten_api::transfer_types::{self as objects, AuthRequest, AuthResponse, AuthType};
use corten_images::naming::ImageReference;
use corten_images::progress::{self, Progress, ProgressReceiver};
use corten_images::{
    Destination, ExportRequest, Image, ImportRequest, Platforms, PullRequest, PushRequest, Unpack, Verifier,
};
use corten_registry::{Credential, CredentialRequest, Credentials, Resolver, ResolverOptions, Scheme, Trace};
use corten_types::{Any, Context, Error, ErrorClass, Result as Outcome};
use tokio::task::JoinHandle;
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status};

use super::streaming::Stream;
use super::{Services, context, required, status};

/// Bytes of an archive between the store and its stream.
const PIPE: usize = 256 << 10;
/// Entries of a log that wait for their client.
const LOG_LINES: usize = 1024;
/// How long the rest of a log may take.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// The two ends of a transfer that can be told apart.
enum Transfer {
    Pull(objects::OciRegistry, objects::ImageStore),
    Import(objects::ImageImportStream, objects::ImageStore),
    Tag(objects::ImageStore, objects::ImageStore),
    Push(objects::ImageStore, objects::OciRegistry),
    Export(objects::ImageStore, objects::ImageExportStream),
    Echo(objects::ImageImportStream, objects::ImageExportStream),
}

const KNOWN: [&str; 7] = [
    "OCIRegistry",
    "ImageStore",
    "ImageImportStream",
    "ImageExportStream",
    "ReadStream",
    "WriteStream",
    "ContainerPath",
];

fn name(any: &Any) -> Outcome<&str> {
    let name = corten_api::message_name(&any.type_url)
        .strip_prefix("containerd.types.transfer.")
        .unwrap_or_default();
    if KNOWN.contains(&name) || corten_api::is_registered(&any.type_url) {
        Ok(name)
    } else {
        Err(Error::unknown(format!("type with url {}: not found", any.type_url)))
    }
}

impl Transfer {
    fn read(source: &Any, destination: &Any) -> Outcome<Self> {
        use corten_api::unpack;
        match (name(source)?, name(destination)?) {
            ("OCIRegistry", "ImageStore") => Ok(Self::Pull(unpack(source)?, unpack(destination)?)),
            ("ImageImportStream", "ImageStore") => Ok(Self::Import(unpack(source)?, unpack(destination)?)),
            ("ImageStore", "ImageStore") => Ok(Self::Tag(unpack(source)?, unpack(destination)?)),
            ("ImageStore", "OCIRegistry") => Ok(Self::Push(unpack(source)?, unpack(destination)?)),
            ("ImageStore", "ImageExportStream") => Ok(Self::Export(unpack(source)?, unpack(destination)?)),
            ("ImageImportStream", "ImageExportStream") => {
                Ok(Self::Echo(unpack(source)?, unpack(destination)?))
            }
            _ => {
                let (from, to) = (&source.type_url, &destination.type_url);
                let text = format!("method Transfer not implemented for {from} to {to}");
                Err(Error::bare(ErrorClass::NotImplemented, text))
            }
        }
    }
}

/// Reads a request as far as nothing is done.
#[cfg(fuzzing)]
pub fn read_only(request: &[u8]) {
    let Ok(request) = <TransferRequest as prost::Message>::decode(request) else { return };
    let (Some(source), Some(to)) = (request.source, request.destination) else { return };
    match Transfer::read(&source, &to) {
        Ok(Transfer::Pull(_, to) | Transfer::Import(_, to)) => drop(destination(to)),
        Ok(Transfer::Export(_, to)) => drop(chosen(to.platforms)),
        _ => {}
    }
}

#[tonic::async_trait]
impl transfer_server::Transfer for Services {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request);
        let request = request.into_inner();
        let source = required(request.source, "source")?;
        let destination = required(request.destination, "destination")?;
        let transfer = Transfer::read(&source, &destination).map_err(status)?;
        let ctx = ctx?;
        let (sender, receiver) = progress::channel();
        let listener = request.options.unwrap_or_default().progress_stream;
        let mut told = None;
        if !listener.is_empty() {
            let stream = self.streams.take(&ctx.namespace, &listener).await.map_err(status)?;
            told = Some(tokio::spawn(tell(receiver, stream)));
        }
        let done = match transfer {
            Transfer::Pull(from, to) => self.pull(&ctx, from, to, &sender).await,
            Transfer::Import(from, to) => self.import(&ctx, from, to, &sender).await,
            Transfer::Tag(from, to) => self.tag(&ctx, &from, &to).await,
            Transfer::Push(from, to) => self.push(&ctx, from, to, &sender).await,
            Transfer::Export(from, to) => self.export(&ctx, from, to, &sender).await,
            Transfer::Echo(from, to) => self.echo(&ctx, &from, &to).await,
        };
        drop(sender);
        if let Some(told) = told {
            // The client sees all of it before it sees the end.
            let _ = told.await;
        }
        done.map(Response::new).map_err(status)
    }
}

impl Services {
    async fn pull(
        &self,
        ctx: &Context,
        from: objects::OciRegistry,
        to: objects::ImageStore,
        progress: &progress::ProgressSender,
    ) -> Outcome<()> {
        let (resolver, log) = self.resolver(ctx, from.resolver).await?;
        let verifier = self.settings.verifier.clone().map(|verifier| verifier as Arc<dyn Verifier>);
        let request = PullRequest { reference: from.reference, destination: destination(to), verifier };
        let done = self.image_service.pull(ctx, &resolver, &request, progress).await;
        drop(resolver);
        finish(log).await;
        done.map(drop)
    }

    /// Access to registries as the client wants it, and what sends it the log of that.
    async fn resolver(
        &self,
        ctx: &Context,
        options: Option<objects::RegistryResolver>,
    ) -> Outcome<(Resolver, Option<JoinHandle<()>>)> {
        let options = options.unwrap_or_default();
        let mut credentials: Option<Arc<dyn Credentials>> = None;
        if !options.auth_stream.is_empty() {
            let stream = self.streams.take(&ctx.namespace, &options.auth_stream).await?;
            credentials = Some(Arc::new(Asked(tokio::sync::Mutex::new(stream))));
        }
        let (trace, log) = self.trace(ctx, &options).await?;
        let resolver = Resolver::new(ResolverOptions {
            hosts_dirs: match options.host_dir.as_str() {
                "" => self.settings.hosts_dirs.clone(),
                dir => vec![dir.into()],
            },
            default_scheme: match options.default_scheme.as_str() {
                "http" => Some(Scheme::Http),
                "https" => Some(Scheme::Https),
                _ => None,
            },
            headers: options.headers.into_iter().collect(),
            parts: self.settings.parts,
            credentials,
            user_agent: format!("containerd/{}", crate::VERSION),
            limits: Arc::clone(&self.settings.limits),
            trace,
            ..ResolverOptions::default()
        });
        Ok((resolver, log))
    }

    /// Where requests and answers are shown: to the client if it has a stream for them, else in our own log.
    async fn trace(
        &self,
        ctx: &Context,
        options: &objects::RegistryResolver,
    ) -> Outcome<(Option<Trace>, Option<JoinHandle<()>>)> {
        if options.http_debug() == objects::HttpDebug::Disabled {
            return Ok((None, None));
        }
        if options.logs_stream.is_empty() {
            let trace: Trace = Arc::new(|lines| tracing::debug!("{}", lines.trim_end()));
            return Ok((Some(trace), None));
        }
        let stream = self.streams.take(&ctx.namespace, &options.logs_stream).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(LOG_LINES);
        // Who reads too slowly misses some.
        let trace: Trace = Arc::new(move |lines| drop(sender.try_send(Ok(lines.to_owned().into()))));
        let lines = StreamReader::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let log = tokio::spawn(async move {
            if let Err(error) = stream.send(lines).await {
                tracing::debug!(%error, "the log of a transfer is not read");
            }
        });
        Ok((Some(trace), Some(log)))
    }

    async fn push(
        &self,
        ctx: &Context,
        from: objects::ImageStore,
        to: objects::OciRegistry,
        progress: &progress::ProgressSender,
    ) -> Outcome<()> {
        let image = self.images.get(ctx, &from.name)?;
        let (resolver, log) = self.resolver(ctx, to.resolver).await?;
        let request = PushRequest {
            reference: to.reference,
            target: image.target,
            platforms: chosen(from.platforms),
            max_concurrent_uploads: self.settings.uploads,
        };
        let done = self.image_service.push(ctx, &resolver, &request, progress).await;
        drop(resolver);
        finish(log).await;
        done
    }

    async fn export(
        &self,
        ctx: &Context,
        from: objects::ImageStore,
        to: objects::ImageExportStream,
        progress: &progress::ProgressSender,
    ) -> Outcome<()> {
        let mut names = vec![from.name];
        for one in from.extra_references {
            if one.is_prefix {
                return Err(Error::not_implemented("prefix lookup on export"));
            }
            names.push(one.name);
        }
        let names = names.into_iter().filter(|name| !name.is_empty());
        let images = names.map(|name| self.images.get(ctx, &name).map(|image| (image.name, image.target)));
        let platforms = match (to.all_platforms, to.platforms) {
            (true, _) => Platforms::all(),
            (false, none) if none.is_empty() => Platforms::like(&[corten_types::Platform::host()]),
            (false, some) => chosen(some),
        };
        let request = ExportRequest {
            images: images.collect::<Outcome<_>>()?,
            platforms,
            skip_compatibility_manifest: to.skip_compatibility_manifest,
            skip_non_distributable: to.skip_non_distributable,
        };
        let stream = self.streams.take(&ctx.namespace, &to.stream).await?;
        let (near, far) = tokio::io::duplex(PIPE);
        let export = self.image_service.export(ctx, near, &request, progress);
        // What the archive is wrong with says more than that it ended early.
        let (exported, sent) = tokio::join!(export, stream.send(far));
        match exported {
            Err(error) if sent.is_ok() => Err(error),
            _ => sent,
        }
    }

    /// Sends an archive back as it comes.
    async fn echo(
        &self,
        ctx: &Context,
        from: &objects::ImageImportStream,
        to: &objects::ImageExportStream,
    ) -> Outcome<()> {
        let incoming = self.streams.take(&ctx.namespace, &from.stream).await?;
        let outgoing = self.streams.take(&ctx.namespace, &to.stream).await?;
        outgoing.send(StreamReader::new(Box::pin(incoming.bytes()))).await
    }

    async fn import(
        &self,
        ctx: &Context,
        from: objects::ImageImportStream,
        to: objects::ImageStore,
        progress: &progress::ProgressSender,
    ) -> Outcome<()> {
        let stream = self.streams.take(&ctx.namespace, &from.stream).await?;
        let input = StreamReader::new(Box::pin(stream.bytes()));
        let request = ImportRequest {
            destination: destination(to),
            media_type: from.media_type,
            force_compress: from.force_compress,
        };
        self.image_service.import(ctx, input, &request, progress).await.map(drop)
    }

    async fn tag(&self, ctx: &Context, from: &objects::ImageStore, to: &objects::ImageStore) -> Outcome<()> {
        let source = self.images.get(ctx, &from.name)?;
        if to.name.is_empty() {
            return Err(Error::not_found("no image name found"));
        }
        let image = Image::new(to.name.clone(), source.target, to.labels.clone());
        match self.images.create(ctx, image.clone(), None).await {
            Err(error) if error.is_already_exists() => {
                self.images.update(ctx, image, Vec::new(), None).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

fn chosen(platforms: Vec<corten_api::types::Platform>) -> Platforms {
    Platforms::like(&platforms.into_iter().map(Into::into).collect::<Vec<_>>())
}

fn destination(store: objects::ImageStore) -> Destination {
    let reference = |one: objects::ImageReference| ImageReference {
        name: one.name,
        is_prefix: one.is_prefix,
        allow_overwrite: one.allow_overwrite,
        add_digest: one.add_digest,
        skip_named_digest: one.skip_named_digest,
    };
    let unpack = |one: objects::UnpackConfiguration| Unpack {
        platform: one.platform.map(Into::into).unwrap_or_else(corten_types::Platform::host),
        snapshotter: one.snapshotter,
        ..Unpack::default()
    };
    Destination {
        name: store.name,
        labels: store.labels,
        platforms: store.platforms.into_iter().map(Into::into).collect(),
        all_metadata: store.all_metadata,
        manifest_limit: usize::try_from(store.manifest_limit).unwrap_or(0),
        extra_references: store.extra_references.into_iter().map(reference).collect(),
        unpacks: store.unpacks.into_iter().map(unpack).collect(),
        ..Destination::default()
    }
}

/// Waits for the rest of a log to be sent, but not for a client that does not read.
async fn finish(log: Option<JoinHandle<()>>) {
    if let Some(log) = log {
        let abort = log.abort_handle();
        if tokio::time::timeout(LOG_PATIENCE, log).await.is_err() {
            abort.abort();
        }
    }
}

/// Passes progress on until it ends.
async fn tell(mut progress: ProgressReceiver, stream: Stream) {
    while let Some(Progress { event, name, parents, progress: done, total, descriptor }) =
        progress.recv().await
    {
        let message = objects::Progress {
            event,
            name,
            parents,
            progress: done,
            total,
            desc: descriptor.map(Into::into),
        };
        if stream.outgoing.send(Ok(corten_api::pack(&message))).await.is_err() {
            return;
        }
    }
}

/// The client is asked for secrets through a stream.
struct Asked(tokio::sync::Mutex<Stream>);

#[async_trait::async_trait]
impl Credentials for Asked {
    async fn get(&self, request: CredentialRequest) -> Outcome<Option<Credential>> {
        let question = AuthRequest {
            host: request.host,
            reference: request.reference,
            wwwauthenticate: request.challenges,
        };
        let mut stream = self.0.lock().await;
        let gone = || Error::unknown("the client closed its stream of credentials");
        stream.outgoing.send(Ok(corten_api::pack(&question))).await.map_err(|_| gone())?;
        let answer = stream.incoming.message().await.map_err(|_| gone())?.ok_or_else(gone)?;
        let answer: AuthResponse = corten_api::unpack(&answer)?;
        Ok(match answer.auth_type() {
            AuthType::None => None,
            AuthType::Credentials => {
                Some(Credential::Basic { username: answer.username, secret: answer.secret })
            }
            AuthType::Refresh => Some(Credential::Refresh(answer.secret)),
            AuthType::Header => Some(Credential::Header(answer.secret)),
        })
    }
}
