//! Reads numbers off the front of a byte slice; running out is an error, never a panic.

use super::WireError;
use crate::types::{ArtifactId, Attribute, AttributeTooLong};

pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

macro_rules! read_number {
    ($name:ident, $number:ty) => {
        pub(super) fn $name(&mut self) -> Result<$number, WireError> {
            self.array().map(<$number>::from_le_bytes)
        }
    };
}

impl<'a> Cursor<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Cursor<'a> {
        Cursor { rest }
    }

    read_number!(u8, u8);
    read_number!(u16, u16);
    read_number!(u32, u32);
    read_number!(u64, u64);

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn id(&mut self) -> Result<ArtifactId, WireError> {
        self.array().map(ArtifactId)
    }

    pub(super) fn attribute(&mut self) -> Result<Attribute, WireError> {
        let len = usize::from(self.u8()?);
        Attribute::new(self.take(len)?).map_err(|AttributeTooLong(found)| WireError::Attribute { found })
    }

    /// A number at seven bits a byte, the lowest first (LEB128), in no more bytes than it takes.
    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            let (padded, overflows) = (shift > 0 && byte == 0, shift == 63 && byte > 1);
            if padded || overflows {
                return Err(WireError::Value { field: "varint", found: byte.into() });
            }
            if byte < 0x80 {
                return Ok(number);
            }
        }
        // The tenth byte either ends the number or overflows it.
        Err(WireError::Value { field: "varint", found: number })
    }

    /// Bytes that are left.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Fails when bytes are left over.
    pub(super) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(WireError::Trailing { extra }),
        }
    }
}
