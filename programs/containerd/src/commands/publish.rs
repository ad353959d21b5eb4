//! `publish`: how shims that do not speak ttrpc tell events.

use std::io::Read;
use std::path::PathBuf;

use corten_api::client::Headers;
use corten_api::services::events::PublishRequest;
use corten_api::services::events::events_client::EventsClient;
use corten_types::{Any, Error, ErrorClass, Result};
use prost::Message;
use tonic::transport::Endpoint;

/// The longest event, in bytes; the daemon takes none that is longer.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub struct Publish {
    /// The namespace of the event.
    #[arg(long, default_value = "")]
    namespace: String,
    /// Its topic.
    #[arg(long, default_value = "")]
    topic: String,
}

impl Publish {
    /// Sends standard input.
    ///
    /// # Errors
    /// InvalidArgument without a topic; what the daemon answers.
    pub fn run(self, address: Option<PathBuf>) -> Result<()> {
        if self.topic.is_empty() {
            return Err(Error::invalid_argument("topic required to publish event"));
        }
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(LONGEST).read_to_end(&mut bytes)?;
        let event = Any::decode(bytes.as_slice()).map_err(|error| Error::unknown(error.to_string()))?;
        let address = address.unwrap_or_else(|| corten_config::Config::default().grpc_address());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let failed = |error: &dyn std::fmt::Display| {
                let text = format!("connection error: dial unix://{}: {error}", address.display());
                Error::bare(ErrorClass::Unavailable, text)
            };
            let endpoint = Endpoint::try_from(format!("unix://{}", address.display()));
            let endpoint = endpoint.map_err(|error| failed(&error))?;
            let channel = endpoint.connect().await.map_err(|error| failed(&root(&error)))?;
            let namespace = Some(self.namespace.as_str()).filter(|name| !name.is_empty());
            let namespace = namespace.map(str::parse).transpose();
            let namespace = namespace.map_err(|_| Error::invalid_argument("malformed namespace"))?;
            let mut events = EventsClient::with_interceptor(channel, Headers { namespace, lease: None });
            let request = PublishRequest { topic: self.topic, event: Some(event) };
            let answer = events.publish(request).await;
            answer.map(drop).map_err(|status| Error::bare(ErrorClass::Unknown, status.message()))
        })
    }
}

/// What is at the bottom of an error, in the words of the system.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(source) = error.source() {
        return root(source);
    }
    let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    number.map_or_else(
        || error.to_string(),
        |number| Error::from(std::io::Error::from_raw_os_error(number)).message().to_owned(),
    )
}
