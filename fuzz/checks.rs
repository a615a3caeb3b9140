//! What must hold of any bytes: nothing panics, splits do not matter, and what decodes encodes to the same
//! bytes.
#![allow(dead_code)] // each fuzz target uses one of the two

use corecast::wire::{
    BatchBuilder, BatchReader, FetchRequest, Frame, MAX_BATCH, PushHead, ReplyHead, WireError,
};

/// The first byte says how long the pieces are in which the rest arrives.
pub(crate) fn batch(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else { return };
    if bytes.len() >= MAX_BATCH {
        return;
    }
    let whole = read(bytes, bytes.len());
    assert_eq!(whole, read(bytes, step.into()));
    let (frames, end) = whole;
    let mut batch = BatchBuilder::new(bytes.len());
    for frame in &frames {
        assert!(batch.fits(frame.encoded_len()));
        batch.push(frame);
    }
    let again = batch.finish();
    assert_eq!(again.len() - 1, frames.iter().map(Frame::encoded_len).sum::<usize>());
    assert_eq!(bytes.get(..again.len() - 1), again.get(1..), "decoding is one to one");
    assert!(end.is_err() || again.len() - 1 == bytes.len());
}

fn read(bytes: &[u8], step: usize) -> (Vec<Frame>, Result<(), WireError>) {
    let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        if let Err(error) = reader.read(piece, &mut frames) {
            return (frames, Err(error));
        }
    }
    (frames, reader.end())
}

/// All three heads are read from the same bytes.
pub(crate) fn heads(data: &[u8]) {
    if let Ok(Some((head, used))) = PushHead::decode(data) {
        assert_eq!(Some(&head.encode()[1..]), data.get(..used));
    }
    if let Ok(Some((head, used))) = ReplyHead::decode(data) {
        assert_eq!(Some(&head.encode()[..]), data.get(..used));
    }
    if let Ok(request) = FetchRequest::decode(data) {
        assert_eq!(&request.encode()[..], data);
    }
}
