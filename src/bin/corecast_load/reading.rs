//! The maker's streams as [`Reader`](crate::reader::Reader) reads them: adverts, the fetches that follow, and their answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use corecast::types::{ArtifactId, HashKind, TopicId};
use corecast::wire::{
    BatchBuilder, BatchReader, Change, FetchRequest, Frame, Hello, Open, ReplyHead, STREAM_BATCH, Update,
};
use quinn_proto::{Connection, Dir, ReadError, StreamEvent, StreamId};

use crate::subnet::fault::{Exit, Fault};

/// The one topic.
pub(crate) const TOPIC: TopicId = TopicId(1);

/// A stream that has begun and not ended.
enum Incoming {
    /// No byte yet.
    New,
    Batch(BatchReader),
    /// The answer to a fetch, as far as it has come.
    Reply(ArtifactId, Vec<u8>),
}

/// See the module.
pub(crate) struct Reading {
    hello: Hello,
    open: Open,
    streams: BTreeMap<StreamId, Incoming>,
    /// Streams with something to read.
    news: BTreeSet<StreamId>,
    /// What is still to be asked for.
    wanted: VecDeque<ArtifactId>,
}

fn wrong(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Exit::Software, error.to_string())
}

impl Reading {
    pub(crate) fn new(hello: Hello, slots: u32, artifact_bytes: u32) -> Reading {
        let open = Open { topic: TOPIC, slots, artifact_bytes };
        let (streams, news, wanted) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Reading { hello, open, streams, news, wanted }
    }

    /// Says who speaks, and that it takes part in the topic.
    pub(crate) fn greet(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let mut batch = BatchBuilder::new(256);
        batch.push(&Frame::Hello(self.hello));
        batch.push(&Frame::Open(self.open));
        let stream = connection.streams().open(Dir::Uni).ok_or_else(|| wrong(&"a peer grants no streams"))?;
        write_all(connection, stream, &batch.finish())
    }

    pub(crate) fn handle_event(&mut self, event: &StreamEvent) {
        if let StreamEvent::Readable { id } = event {
            self.news.insert(*id);
        }
    }

    /// Reads what there is, asks for what is adverted, and delivers the bodies that are whole.
    pub(crate) fn read(
        &mut self,
        connection: &mut Connection,
        deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        while let Some(stream) = connection.streams().accept(Dir::Uni) {
            self.streams.insert(stream, Incoming::New);
            self.news.insert(stream);
        }
        while let Some(stream) = self.news.pop_first() {
            self.read_stream(connection, stream, deliver)?;
        }
        self.ask(connection)
    }

    fn read_stream(
        &mut self,
        connection: &mut Connection,
        stream: StreamId,
        deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Some(mut incoming) = self.streams.remove(&stream) else { return Ok(()) };
        let mut receiver = connection.recv_stream(stream);
        let Ok(mut chunks) = receiver.read(true) else { return Ok(()) };
        let whole = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => self.take(&mut incoming, &chunk.bytes, deliver)?,
                Ok(None) => break Some(true),
                Err(ReadError::Blocked) => break None,
                Err(ReadError::Reset(_)) => break Some(false),
            }
        };
        // The caller transmits after each turn, whether or not this asks for it.
        let _ = chunks.finalize();
        match (whole, incoming) {
            (None, incoming) => drop(self.streams.insert(stream, incoming)),
            (Some(true), Incoming::Reply(id, reply)) => self.answered(id, &reply, deliver)?,
            (Some(_), _) => {}
        }
        Ok(())
    }

    /// Takes a stream's next bytes.
    fn take(
        &mut self,
        incoming: &mut Incoming,
        bytes: &Bytes,
        deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        match incoming {
            Incoming::New => match bytes.split_first() {
                None => Ok(()),
                Some((&STREAM_BATCH, rest)) => {
                    let mut batch = BatchReader::default();
                    self.frames(&mut batch, rest, deliver)?;
                    *incoming = Incoming::Batch(batch);
                    Ok(())
                }
                Some((other, _)) => Err(wrong(&format!("a stream of type {other}; it knows batches alone"))),
            },
            Incoming::Batch(batch) => self.frames(batch, bytes, deliver),
            Incoming::Reply(_, reply) => {
                reply.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn frames(
        &mut self,
        batch: &mut BatchReader,
        bytes: &[u8],
        deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut frames = Vec::new();
        batch.read(bytes, &mut frames).map_err(|error| wrong(&error))?;
        for frame in frames {
            let Frame::Update(Update { topic: TOPIC, change, .. }) = frame else { continue };
            match change {
                Change::Advert { id, .. } => self.wanted.push_back(id),
                Change::Push { body, .. } => deliver(&body)?,
                Change::Clear => {}
            }
        }
        Ok(())
    }

    /// Asks for as much as the maker lets it have open.
    fn ask(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        while !self.wanted.is_empty()
            && let Some(stream) = connection.streams().open(Dir::Bi)
            && let Some(id) = self.wanted.pop_front()
        {
            write_all(connection, stream, &FetchRequest { topic: TOPIC, id }.encode())?;
            self.streams.insert(stream, Incoming::Reply(id, Vec::new()));
        }
        Ok(())
    }

    fn answered(
        &mut self,
        id: ArtifactId,
        reply: &[u8],
        deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        match ReplyHead::decode(reply).map_err(|error| wrong(&error))? {
            Some((ReplyHead::Found { size }, head)) => {
                let body = reply.get(head..).unwrap_or_default();
                if body.len() != size as usize || HashKind::Blake3.id(body) != id {
                    return Err(wrong(&"an answer holds another body than was asked for"));
                }
                deliver(body)
            }
            Some((ReplyHead::Busy, _)) => {
                self.wanted.push_back(id);
                Ok(())
            }
            // It was aborted meanwhile.
            Some((ReplyHead::NotFound, _)) | None => Ok(()),
        }
    }
}

/// Writes a whole stream. It is short, and windows are open.
fn write_all(connection: &mut Connection, stream: StreamId, bytes: &[u8]) -> Result<(), Fault> {
    let mut sender = connection.send_stream(stream);
    let written = sender.write(bytes).map_err(|error| wrong(&error))?;
    if written < bytes.len() {
        return Err(wrong(&"a window is closed for a request"));
    }
    sender.finish().map_err(|error| wrong(&error))
}
