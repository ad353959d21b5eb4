//! The messages inside frames. Names and numbers are wire facts (spec 02 §4.1).

use prost::bytes::Bytes;

/// What a client sends in a request frame.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RequestMessage {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// Nanoseconds that the caller will wait; 0 for no limit.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// One entry of a request's metadata. Keys are lower case.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// What a server sends in a response frame: a status (absent or code 0 for success) or a payload.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResponseMessage {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub payload: Bytes,
}

/// `google.rpc.Status`, without its details: nothing in corten reads them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// A `google.rpc.Code`; 0 is success.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The text that clients see.
    #[prost(string, tag = "2")]
    pub message: String,
}
