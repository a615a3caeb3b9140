//! Both layers of protobuf: a request and its response, and the update inside.

use prost::{Message, Oneof};

/// A request on a stream of its own; the end of the stream ends it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpRequest {
    #[prost(string, tag = "1")]
    pub(super) uri: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HttpHeader>,
    #[prost(string, tag = "3")]
    pub(super) method: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpResponse {
    #[prost(uint32, tag = "1")]
    pub(super) status_code: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HttpHeader>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpHeader {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// What a slot holds now.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SlotUpdate {
    #[prost(uint64, tag = "1")]
    pub(super) commit_id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) slot_id: u64,
    #[prost(oneof = "Update", tags = "3, 4")]
    pub(super) update: Option<Update>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Update {
    #[prost(bytes, tag = "3")]
    Artifact(Vec<u8>),
    #[prost(bytes, tag = "4")]
    Id(Vec<u8>),
}

/// The two routes.
pub(super) const UPDATE: &str = "/artifact/update";
pub(super) const FETCH: &str = "/artifact/rpc";

pub(super) const OK: u32 = 200;
pub(super) const NO_CONTENT: u32 = 204;
pub(super) const BAD_REQUEST: u32 = 400;

pub(super) fn request(uri: &str, body: Vec<u8>) -> Vec<u8> {
    let method = "POST".to_owned();
    HttpRequest { uri: uri.to_owned(), headers: Vec::new(), method, body }.encode_to_vec()
}

pub(super) fn response(status_code: u32, body: Vec<u8>) -> Vec<u8> {
    HttpResponse { status_code, headers: Vec::new(), body }.encode_to_vec()
}
