//! Blobs and ingests.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use corten_api::services::content::{self as api, WriteAction, content_server};
use corten_content::{BlobReader, IngestStatus, Store, Writer, WriterOptions};
use corten_metadata::BlobRecord;
use corten_types::{Context, Digest, Error, ErrorClass, Result as Outcome};
use futures_util::stream;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::encoded::{Messages, Method, PREFIX, prefix};
use super::unknown::received;
use super::{
    Answers, MessageLimits, Services, answers, at_length, context, paths, required, status, timestamp,
};

/// Infos in one message of a list.
const BLOCK: usize = 100;
/// Bytes in one message of a read: what the processor's caches hold between the file and the socket.
const CHUNK: usize = 256 << 10;
/// Bytes before a blob's in such a message, at most.
const MOST_HEAD: usize = PREFIX + 32;
/// Messages of a read that are on their way at once, mostly.
const USED: usize = 3;

fn info(blob: BlobRecord) -> api::Info {
    api::Info {
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        created_at: timestamp(blob.created_at),
        updated_at: timestamp(blob.updated_at),
        labels: blob.labels,
    }
}

fn ingest(ingest: IngestStatus) -> api::Status {
    api::Status {
        started_at: timestamp(ingest.started_at),
        updated_at: timestamp(ingest.updated_at),
        r#ref: ingest.reference,
        offset: i64::try_from(ingest.offset).unwrap_or(i64::MAX),
        total: i64::try_from(ingest.total).unwrap_or(i64::MAX),
        expected: ingest.expected.map(|digest| digest.to_string()).unwrap_or_default(),
    }
}

/// A digest, with the answer of `Info` and `Update` for one that is none.
fn digest(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|_| status(Error::bare(ErrorClass::InvalidArgument, format!("{text:?} failed validation"))))
}

#[tonic::async_trait]
impl content_server::Content for Services {
    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let ctx = context(&request)?;
        let blob = self.content.info(&ctx, &digest(&request.into_inner().digest)?).map_err(status)?;
        Ok(Response::new(api::InfoResponse { info: Some(info(blob)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::UpdateResponse>, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let new = required(request.info, "info")?;
        let blob =
            self.content.update(&ctx, &digest(&new.digest)?, new.labels, &paths(request.update_mask)).await;
        Ok(Response::new(api::UpdateResponse { info: Some(info(blob.map_err(status)?)) }))
    }

    type ListStream = Answers<api::ListContentResponse>;

    async fn list(
        &self,
        request: Request<api::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let ctx = context(&request)?;
        let filters = request.into_inner().filters;
        let blobs = at_length(|| self.content.list(&ctx, &filters)).map_err(status)?;
        let infos: Vec<api::Info> = blobs.into_iter().map(info).collect();
        Ok(Response::new(answers(
            infos.chunks(BLOCK).map(|block| api::ListContentResponse { info: block.to_vec() }).collect(),
        )))
    }

    async fn delete(&self, request: Request<api::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        let digest: Digest = request.into_inner().digest.parse().map_err(status)?;
        self.content.delete(&ctx, &digest).await.map_err(status)?;
        Ok(Response::new(()))
    }

    type ReadStream = Answers<api::ReadContentResponse>;

    async fn read(
        &self,
        _request: Request<api::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        Err(Status::internal("blobs are read by the other server"))
    }

    async fn status(
        &self,
        request: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusResponse>, Status> {
        let ctx = context(&request);
        let reference = request.into_inner().r#ref;
        let ctx = ctx.map_err(|refused| {
            let text = format!("could not get status for ref {reference:?}: {}", refused.message());
            Status::new(refused.code(), text)
        })?;
        let found = self.content.status(&ctx, &reference).map_err(super::status)?;
        Ok(Response::new(api::StatusResponse { status: Some(ingest(found)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<api::ListStatusesRequest>,
    ) -> Result<Response<api::ListStatusesResponse>, Status> {
        let ctx = context(&request)?;
        let found = self.content.statuses(&ctx, &request.into_inner().filters).map_err(status)?;
        Ok(Response::new(api::ListStatusesResponse { statuses: found.into_iter().map(ingest).collect() }))
    }

    type WriteStream = ReceiverStream<Result<api::WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<api::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let ctx = context(&request)?;
        let (store, mut requests) = (self.content.clone(), request.into_inner());
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = write(&store, &ctx, &mut requests, &sender).await {
                // The client may have gone.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn abort(&self, request: Request<api::AbortRequest>) -> Result<Response<()>, Status> {
        let ctx = context(&request)?;
        self.content.abort(&ctx, &request.into_inner().r#ref).await.map_err(status)?;
        Ok(Response::new(()))
    }
}

/// The answer of `Read` is put together where the bytes are read.
#[derive(Clone)]
pub struct Read;

impl Method for Read {
    const PATH: &'static str = "/containerd.services.content.v1.Content/Read";
    type Request = api::ReadContentRequest;

    async fn answer(
        services: Services,
        request: Request<api::ReadContentRequest>,
        _: MessageLimits,
    ) -> Result<Messages, Status> {
        let ctx = context(&request)?;
        let request = request.into_inner();
        let digest: Digest =
            request.digest.parse().map_err(|error: Error| status(error.context(&request.digest)))?;
        let blob = services.content.reader(&ctx, &digest).map_err(status)?;
        let offset = u64::try_from(request.offset).unwrap_or(0);
        if offset > blob.size() {
            let text = format!("read past object length {} bytes", blob.size());
            return Err(status(Error::bare(ErrorClass::OutOfRange, text)));
        }
        let rest = blob.size() - offset;
        let length =
            u64::try_from(request.size).ok().filter(|size| *size > 0).map_or(rest, |size| size.min(rest));
        let reading = Reading { blob, start: offset, length, sent: 0, used: VecDeque::new() };
        Ok(Box::pin(stream::try_unfold(reading, |mut reading| async {
            Ok(reading.next().await.map_err(status)?.map(|message| (message, reading)))
        })))
    }
}

/// A blob on its way to a client.
struct Reading {
    blob: BlobReader,
    start: u64,
    length: u64,
    sent: u64,
    /// The last messages, whose memory is used again when they are gone.
    used: VecDeque<Bytes>,
}

impl Reading {
    /// The next `ReadContentResponse`, whose offset counts from the first byte sent (spec 01 §2.1).
    async fn next(&mut self) -> Outcome<Option<Bytes>> {
        let size = usize::try_from(self.length - self.sent).unwrap_or(CHUNK).min(CHUNK);
        if size == 0 {
            return Ok(None);
        }
        // Fields 1 and 2, the latter's bytes following.
        let mut fields = Vec::new();
        if self.sent > 0 {
            encode_key(1, WireType::Varint, &mut fields);
            encode_varint(self.sent, &mut fields);
        }
        encode_key(2, WireType::LengthDelimited, &mut fields);
        encode_varint(size as u64, &mut fields);
        let head = [&prefix(fields.len() + size), fields.as_slice()].concat();
        let used = if self.used.len() < USED { None } else { self.used.pop_front() };
        let room = || BytesMut::with_capacity(MOST_HEAD + size);
        let mut message = used.and_then(|used| used.try_into_mut().ok()).unwrap_or_else(room);
        message.resize(head.len() + size, 0);
        let (start, data) = message.split_at_mut(head.len());
        start.copy_from_slice(&head);
        let from = self.start + self.sent;
        let cached = self.blob.read_cached(data, from);
        if cached < size {
            let (blob, begin) = (self.blob.clone(), head.len() + cached);
            let read = move || {
                let rest = message.get_mut(begin..).unwrap_or_default();
                blob.read_exact_at(rest, from + cached as u64).map(|()| message)
            };
            let ended = tokio::task::spawn_blocking(read).await;
            message = ended.map_err(|error| Error::internal(format!("read: {error}")))??;
        }
        let message = message.freeze();
        self.used.push_back(message.clone());
        self.sent += size as u64;
        Ok(Some(message))
    }
}

/// The conversation of a write (spec 01 §2.3).
async fn write(
    store: &Store,
    ctx: &Context,
    requests: &mut Streaming<api::WriteContentRequest>,
    sender: &mpsc::Sender<Result<api::WriteContentResponse, Status>>,
) -> Result<(), Status> {
    let Some(first) = requests.message().await.map_err(received)? else {
        return Err(status(Error::unknown("EOF")));
    };
    if first.r#ref.is_empty() {
        let text = "first message must have a reference";
        return Err(status(Error::bare(ErrorClass::InvalidArgument, text)));
    }
    let reference = first.r#ref.clone();
    let options = WriterOptions {
        reference: reference.clone(),
        total: u64::try_from(first.total).unwrap_or(0),
        // Nothing is checked here until the commit.
        expected: first.expected.parse().ok(),
    };
    let mut writer = store.writer(ctx, options).await.map_err(status)?;
    let mut talk = Talk { total: first.total, ..Talk::default() };
    let mut message = Some(first);
    while let Some(request) = message {
        if !request.expected.is_empty() {
            talk.expected.clone_from(&request.expected);
        }
        if let Ok(expected) = request.expected.parse::<Digest>()
            && store.info(ctx, &expected).is_ok()
        {
            drop(writer);
            store.abort(ctx, &reference).await.ok();
            let text = format!("blob with expected digest {expected} exists");
            return Err(status(Error::bare(ErrorClass::AlreadyExists, text)));
        }
        let commits = request.action == i32::from(WriteAction::Commit);
        let back = step(writer, request, &mut talk).await.map_err(status)?;
        if sender.send(Ok(talk.response.clone())).await.is_err() || commits {
            return Ok(());
        }
        let Some(back) = back else { return Ok(()) };
        writer = back;
        message = requests.message().await.map_err(received)?;
    }
    Ok(())
}

/// What is kept from message to message. One answer is filled again and again: what a STAT told, later
/// answers repeat.
#[derive(Default)]
struct Talk {
    total: i64,
    expected: String,
    response: api::WriteContentResponse,
}

/// One message of it; the writer comes back unless it was committed.
async fn step(
    mut writer: Writer,
    request: api::WriteContentRequest,
    talk: &mut Talk,
) -> Outcome<Option<Writer>> {
    if let Ok(total @ 1..) = u64::try_from(request.total) {
        writer.set_total(total);
        talk.total = request.total;
    }
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let Talk { total, expected, response } = talk;
    response.action = request.action;
    response.offset = signed(writer.offset());
    let action = WriteAction::try_from(request.action);
    if action == Ok(WriteAction::Stat) {
        let known = writer.status();
        response.digest = writer.digest().to_string();
        response.started_at = timestamp(known.started_at);
        response.updated_at = timestamp(known.updated_at);
        response.total = *total;
    }
    if !matches!(action, Ok(WriteAction::Write | WriteAction::Commit)) {
        return Ok(Some(writer));
    }
    let (offset, data) = (u64::try_from(request.offset).unwrap_or(0), request.data);
    if offset > 0 && offset != writer.offset() {
        let text = format!("write @{offset} must occur at current offset {}", writer.offset());
        return Err(Error::bare(ErrorClass::OutOfRange, text));
    }
    let writer = tokio::task::spawn_blocking(move || -> Outcome<Writer> {
        if offset == 0 && writer.offset() > 0 {
            writer.truncate()?;
        }
        if !data.is_empty() {
            writer.write_shared(&data)?;
        }
        Ok(writer)
    })
    .await
    .map_err(|error| Error::internal(format!("write: {error}")))??;
    response.offset = signed(writer.offset());
    response.digest = writer.digest().to_string();
    if action != Ok(WriteAction::Commit) {
        return Ok(Some(writer));
    }
    let Ok(size) = u64::try_from(*total) else {
        let (reference, offset) = (writer.status().reference, writer.offset());
        let text = format!("{reference:?} failed size validation: {offset} != {total}");
        return Err(Error::failed_precondition(text));
    };
    // Sizes are compared first, also when the digest is none.
    let wanted = Some(expected.as_str()).filter(|text| !text.is_empty()).map(str::parse::<Digest>);
    if matches!(wanted, Some(Err(_))) && (size == 0 || size == writer.offset()) {
        let text = format!("unexpected commit digest {}, expected {expected}", writer.digest());
        return Err(Error::failed_precondition(text));
    }
    let wanted = wanted.and_then(Result::ok);
    response.digest = writer.commit(size, wanted.as_ref(), request.labels).await?.to_string();
    Ok(None)
}
