//! Identifiers. The 32-byte ones print as lower-case hexadecimal and parse from it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is not a 32-byte id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, found {found}")]
pub struct ParseIdError {
    found: String,
}

fn parse_hex(text: &str) -> Result<[u8; 32], ParseIdError> {
    let wrong = |found: String| ParseIdError { found };
    if text.len() != 64 {
        return Err(wrong(format!("{} characters", text.chars().count())));
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong("a character that is no digit".into()))?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong(format!("{pair:?}")))?;
    }
    Ok(bytes)
}

macro_rules! id32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        /// All 32 bytes at once, without a length: every id has the same.
        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                state.write(&self.0);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id32! {
    /// A node's Ed25519 public key (RFC 8032): its name in the registry and its identity in TLS.
    NodeId
}

id32! {
    /// The hash of an artifact's bytes: BLAKE3-256, or SHA-256 where the topic says so ([`HashKind`](super::HashKind)).
    ArtifactId
}

impl ArtifactId {
    /// The lane that carries this artifact in a subnet of `lanes` lanes: the id's first eight bytes, little-endian,
    /// modulo `lanes`. Every member computes the same, so an artifact never crosses lanes.
    pub fn lane(&self, lanes: u16) -> u16 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        let prefix = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        (prefix % u64::from(lanes.max(1))) as u16
    }
}

/// One application protocol's artifacts. The number is the same on every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u16);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Grows with every change of the membership record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryVersion(pub u64);

/// A member's place in the sorted membership: dense, so that per-peer state is a plain vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u16);

impl PeerIndex {
    /// As an index into per-peer vectors.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The place that an active artifact occupies in its sender's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// As an index into slot tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Grows with every change of one sender's table of one topic and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// Counts the connections that this lane has had, over all peers. Local: it never crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(pub u64);

/// Names one stream of one peer between engine and transport, for as long as the stream lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub u64);

/// Up to 64 opaque bytes (a height, an expiry) by which a filter decides without the body. Clones share them: tables name an
/// artifact in several places, and most have none.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Attribute(Option<Arc<[u8]>>);

/// An attribute may have at most [`Attribute::MAX`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attribute has {0} bytes; at most {max} are allowed", max = Attribute::MAX)]
pub struct AttributeTooLong(pub usize);

impl Attribute {
    /// The most bytes an attribute may have.
    pub const MAX: usize = 64;

    /// The attribute without bytes.
    pub const EMPTY: Attribute = Attribute(None);

    /// Copies `bytes`; fails when there are more than [`Attribute::MAX`].
    pub fn new(bytes: &[u8]) -> Result<Attribute, AttributeTooLong> {
        match bytes.len() {
            0 => Ok(Attribute::EMPTY),
            1..=Self::MAX => Ok(Attribute(Some(bytes.into()))),
            long => Err(AttributeTooLong(long)),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attribute({:02x?})", self.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_parses_from_what_it_prints() {
        let id = ArtifactId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_wrong_digit_is_named() {
        let text = "zz".repeat(32);
        assert_eq!(
            text.parse::<NodeId>().unwrap_err().to_string(),
            "expected 64 hexadecimal digits, found \"zz\""
        );
        assert!("ab".parse::<NodeId>().is_err());
        assert!("ü".repeat(32).parse::<NodeId>().is_err());
    }

    #[test]
    fn the_lane_is_the_prefix_modulo_lanes() {
        let mut id = ArtifactId([0xff; 32]);
        id.0[..8].copy_from_slice(&11u64.to_le_bytes());
        assert_eq!(id.lane(4), 3);
        assert_eq!(id.lane(1), 0);
    }

    #[test]
    fn an_attribute_of_65_bytes_is_refused() {
        assert!(Attribute::new(&[1; 64]).is_ok());
        assert_eq!(Attribute::new(&[1; 65]), Err(AttributeTooLong(65)));
    }
}
