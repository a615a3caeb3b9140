//! The two ways in which the flood puts artifacts on streams. A message is its length, its stamp, and its body.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use crate::work::Board;
use crate::{Failure, Shape, Work};

/// Bytes before a body: length u32, maker u32, slot u32.
const HEAD: usize = 12;
/// Messages that wait for one peer.
const QUEUE: usize = 64;
/// Messages up to this size are copied together into blocks: quinn handles few large pieces far better than many small.
const COALESCE: usize = 16 << 10;
/// Bytes of such a block.
const BLOCK: usize = 64 << 10;

/// An artifact on its way.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) maker: u32,
    pub(crate) slot: u32,
    pub(crate) body: Bytes,
}

impl Message {
    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let parts = [self.body.len() as u32, self.maker, self.slot];
        head.chunks_mut(4).zip(parts).for_each(|(to, part)| to.copy_from_slice(&part.to_le_bytes()));
        head
    }
}

/// Starts the sending side of one connection; what goes into the queue goes to the peer.
pub(crate) fn sender(shape: Shape, connection: Connection) -> mpsc::Sender<Message> {
    let (queue, messages) = mpsc::channel(QUEUE);
    match shape {
        Shape::Long => drop(tokio::spawn(send_long(connection, messages))),
        Shape::Uni => drop(tokio::spawn(send_uni(connection, messages))),
    }
    queue
}

async fn send_long(connection: Connection, mut messages: mpsc::Receiver<Message>) -> Result<(), Failure> {
    let mut stream = connection.open_uni().await?;
    let mut batch = Vec::with_capacity(QUEUE);
    while messages.recv_many(&mut batch, QUEUE).await > 0 {
        let mut block = BytesMut::new();
        for message in batch.drain(..) {
            block.put_slice(&message.head());
            if message.body.len() <= COALESCE {
                block.put_slice(&message.body);
                if block.len() >= BLOCK {
                    stream.write_chunk(block.split().freeze()).await?;
                }
            } else {
                stream.write_all_chunks(&mut [block.split().freeze(), message.body]).await?;
            }
        }
        if !block.is_empty() {
            stream.write_chunk(block.freeze()).await?;
        }
    }
    Ok(())
}

async fn send_uni(connection: Connection, mut messages: mpsc::Receiver<Message>) -> Result<(), Failure> {
    while let Some(message) = messages.recv().await {
        let stream = connection.open_uni().await?;
        tokio::spawn(send_one(stream, message));
    }
    Ok(())
}

async fn send_one(mut stream: SendStream, message: Message) -> Result<(), Failure> {
    let head = Bytes::copy_from_slice(&message.head());
    stream.write_all_chunks(&mut [head, message.body]).await?;
    stream.finish()?;
    Ok(())
}

/// Takes every stream of a peer and checks off what comes.
pub(crate) async fn receive(connection: Connection, board: Arc<Board>) {
    while let Ok(stream) = connection.accept_uni().await {
        let board = board.clone();
        tokio::spawn(async move {
            let mut stream = stream;
            // An end before the end of a message: the run is over.
            let _ = read(&mut stream, &board).await;
            let _ = stream.stop(VarInt::from_u32(0));
        });
    }
}

/// Counts messages as their last byte comes.
async fn read(stream: &mut RecvStream, board: &Board) -> Result<(), Failure> {
    let mut head = BytesMut::new();
    let mut body: Option<Body> = None;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        let mut bytes = chunk.bytes;
        while !bytes.is_empty() {
            let open = match &mut body {
                Some(open) => open,
                None => {
                    head.put(bytes.split_to(bytes.len().min(HEAD - head.len())));
                    if head.len() < HEAD {
                        break;
                    }
                    body.insert(Body::begin(&mut head, board.work()))
                }
            };
            let part = bytes.split_to(bytes.len().min(open.missing));
            open.take(&part);
            if open.missing == 0
                && let Some(done) = body.take()
            {
                board.arrived(done.maker, done.slot, done.len);
                done.end();
            }
        }
    }
    Ok(())
}

struct Body {
    maker: usize,
    slot: usize,
    len: usize,
    missing: usize,
    whole: Option<BytesMut>,
    hasher: Option<Box<blake3::Hasher>>,
    hashed: usize,
}

impl Body {
    /// Bytes hashed at a time, as in corecast: BLAKE3 is fast on long pieces.
    const STEP: usize = 128 << 10;

    fn begin(head: &mut BytesMut, work: Work) -> Body {
        let [len, maker, slot] = [(); 3].map(|()| head.get_u32_le() as usize);
        let whole = (work >= Work::Deliver).then(|| BytesMut::with_capacity(len));
        let hasher = (work == Work::Verify).then(|| Box::new(blake3::Hasher::new()));
        Body { maker, slot, len, missing: len, whole, hasher, hashed: 0 }
    }

    fn take(&mut self, part: &[u8]) {
        self.missing -= part.len();
        let Some(whole) = &mut self.whole else { return };
        whole.extend_from_slice(part);
        let new = &whole[self.hashed..];
        if let Some(hasher) = &mut self.hasher
            && (new.len() >= Body::STEP || self.missing == 0)
        {
            hasher.update(new);
            self.hashed = whole.len();
        }
    }

    /// The receiver has what it wanted.
    fn end(self) {
        std::hint::black_box((self.whole.map(BytesMut::freeze), self.hasher.map(|hasher| hasher.finalize())));
    }
}
