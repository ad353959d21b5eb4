//! Publishing, forwarding, subscribing.

use corten_api::services::events::{self as api, events_server};
use corten_api::types::Envelope;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Base, context, required, status};

#[tonic::async_trait]
impl events_server::Events for Base {
    async fn publish(&self, request: Request<api::PublishRequest>) -> Result<Response<()>, Status> {
        let failed = |refused: Status| {
            Status::new(refused.code(), format!("failed publishing event: {}", refused.message()))
        };
        let ctx = context(&request).map_err(failed)?;
        let request = request.into_inner();
        self.exchange.publish_any(&ctx.namespace, &request.topic, request.event).map_err(status)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<api::ForwardRequest>) -> Result<Response<()>, Status> {
        let mut envelope = required(request.into_inner().envelope, "envelope")?;
        // The original reads an absent time as 1970 and lets it pass.
        envelope.timestamp.get_or_insert_default();
        self.exchange.forward(envelope).map_err(status)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = ReceiverStream<Result<Envelope, Status>>;

    async fn subscribe(
        &self,
        request: Request<api::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut subscription = self.exchange.subscribe(&request.into_inner().filters).map_err(status)?;
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    envelope = subscription.recv() => match envelope {
                        Some(envelope) => if sender.send(Ok((*envelope).clone())).await.is_err() { return },
                        None => {
                            let _ = sender.send(Err(Status::resource_exhausted("events were not read in time"))).await;
                            return;
                        }
                    },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
