//! What is in a datagram of the handshake without secrets, whose packets are not encrypted: frames (RFC 9000 §19).

use super::plain::{CONNECTION_ID, TAG};

/// What a packet says, as far as anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// Bytes of a stream.
    Piece { stream: u64, offset: u64, bytes: &'a [u8] },
    /// Streams that the other side may open.
    MaxStreams { bidi: bool, streams: u64 },
}

/// Everything in a datagram's packets after the handshake's. A stateless reset shows nothing, or nonsense.
pub(super) fn sniff(datagram: &[u8]) -> Vec<Said<'_>> {
    let (mut said, mut rest) = (Vec::new(), Reader(datagram));
    while let Some(&first) = rest.0.first() {
        let whole = match first & 0x80 {
            0 => short(&mut rest, &mut said),
            _ => skip_long(&mut rest),
        };
        if whole.is_none() {
            break;
        }
    }
    said
}

/// A packet of the handshake.
fn skip_long(rest: &mut Reader<'_>) -> Option<()> {
    let first = rest.byte()?;
    let version = rest.take(4)?;
    for _ in 0..2 {
        let len = rest.byte()?;
        rest.take(len.into())?;
    }
    match (first >> 4 & 3, version) {
        (_, [0, 0, 0, 0]) | (3, _) => return rest.take(rest.0.len()).map(drop),
        (0, _) => {
            let token = rest.number()?;
            rest.take(token as usize)?;
        }
        _ => (),
    }
    let len = rest.number()?;
    rest.take(len as usize).map(drop)
}

fn short<'a>(rest: &mut Reader<'a>, said: &mut Vec<Said<'a>>) -> Option<()> {
    let first = rest.byte()?;
    rest.take(CONNECTION_ID)?;
    rest.take(usize::from(first & 3) + 1)?;
    let len = rest.0.len().checked_sub(TAG)?;
    let mut frames = Reader(rest.take(len)?);
    rest.take(TAG)?;
    while !frames.0.is_empty() {
        said.extend(frame(&mut frames)?);
    }
    Some(())
}

/// The next frame; `Some(None)` if nobody asks for such.
fn frame<'a>(from: &mut Reader<'a>) -> Option<Option<Said<'a>>> {
    let kind = from.number()?;
    let numbers = match kind {
        // Padding, ping, handshake done, acknowledge at once.
        0x00 | 0x01 | 0x1e | 0x1f => 0,
        0x02 | 0x03 => {
            from.number()?;
            from.number()?;
            2 * from.number()? + 1 + if kind == 3 { 3 } else { 0 }
        }
        0x08..=0x0f => return piece(kind, from).map(Some),
        0x12 | 0x13 => {
            let streams = from.number()?;
            return Some(Some(Said::MaxStreams { bidi: kind == 0x12, streams }));
        }
        // Reset stream.
        0x04 => 3,
        // Stop sending, how far a stream may go, what is blocked.
        0x05 | 0x11 | 0x15 => 2,
        0x10 | 0x14 | 0x16 | 0x17 | 0x19 => 1,
        0x06 => {
            from.number()?;
            let len = from.number()?;
            from.take(len as usize)?;
            0
        }
        // A new connection id with its reset token.
        0x18 => {
            from.number()?;
            from.number()?;
            let len = from.byte()?;
            from.take(usize::from(len) + 16)?;
            0
        }
        0x1a | 0x1b => from.take(8).map(|_| 0)?,
        0x1c | 0x1d => {
            (0..0x1d - kind + 1).try_for_each(|_| from.number().map(drop))?;
            let len = from.number()?;
            from.take(len as usize)?;
            0
        }
        _ => return None,
    };
    for _ in 0..numbers {
        from.number()?;
    }
    Some(None)
}

fn piece<'a>(kind: u64, from: &mut Reader<'a>) -> Option<Said<'a>> {
    let stream = from.number()?;
    let offset = if kind & 4 == 0 { 0 } else { from.number()? };
    let len = if kind & 2 == 0 { from.0.len() } else { from.number()? as usize };
    Some(Said::Piece { stream, offset, bytes: from.take(len)? })
}

/// Bytes that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A number of 1, 2, 4 or 8 bytes, as its first two bits say.
    fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let more = self.take((1 << (first >> 6)) - 1)?;
        Some(more.iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_between_those_that_nobody_asks_for() {
        let mut datagram = vec![0x41];
        datagram.extend([7; CONNECTION_ID]);
        datagram.extend([0, 5]);
        // An acknowledgement with one more range, a limit of 64 streams, padding, a stream with offset and length, one without.
        datagram
            .extend([0x02, 9, 1, 1, 2, 0, 1, 0x13, 0x40, 0x40, 0, 0x0e, 2, 0x41, 0x00, 2, 8, 9, 0x08, 6, 1]);
        datagram.extend([0; TAG]);
        let pieces = [
            Said::MaxStreams { bidi: false, streams: 64 },
            Said::Piece { stream: 2, offset: 256, bytes: &[8, 9] },
            Said::Piece { stream: 6, offset: 0, bytes: &[1] },
        ];
        assert_eq!(sniff(&datagram), pieces);
    }
}
