//! The headers of a stream.

use crate::codec::CodecError;

/// Names and values, in order. Names are in lower case and occur once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a header; its name is written in lower case, as the protocol has it.
    pub fn set(&mut self, name: &str, value: &str) {
        let name = name.to_ascii_lowercase();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name, value.to_owned())),
        }
    }

    /// The first value of a header. The case of the name does not matter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    /// All headers; several values of one are separated by NUL.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block of a frame, before it is compressed.
    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let number = |block: &mut Vec<u8>, n: usize| {
            block.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
        };
        number(&mut block, self.0.len());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            number(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    /// Reads a block, which must be whole and nothing more.
    pub(crate) fn from_block(mut block: &[u8], max: usize) -> Result<Self, CodecError> {
        let bad = CodecError::Headers;
        let count = number(&mut block)?;
        if count > max {
            return Err(bad("there are too many"));
        }
        let mut all = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            let (name, value) = (text(&mut block)?, text(&mut block)?);
            if name.is_empty() {
                return Err(bad("one has no name"));
            }
            if name.bytes().any(|b| b.is_ascii_uppercase() || b == 0) {
                return Err(bad("a name is not in lower case"));
            }
            if all.iter().any(|(n, _)| *n == name) {
                return Err(bad("a name occurs twice"));
            }
            all.push((name, value));
        }
        if block.is_empty() { Ok(Self(all)) } else { Err(bad("more follows than was announced")) }
    }
}

fn number(block: &mut &[u8]) -> Result<usize, CodecError> {
    let (bytes, rest) = block.split_first_chunk::<4>().ok_or(CodecError::Headers("the block ends early"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn text(block: &mut &[u8]) -> Result<String, CodecError> {
    let length = number(block)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(CodecError::Headers("the block ends early"))?;
    *block = rest;
    String::from_utf8(bytes.to_vec()).map_err(|_| CodecError::Headers("one is not UTF-8"))
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.set(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_the_first_value_counts() {
        let mut headers = Headers::from([("streamType", "error"), ("Port", "80\0 81")]);
        assert_eq!((headers.get("StreamType"), headers.get("port")), (Some("error"), Some("80")));
        headers.set("STREAMTYPE", "data");
        assert_eq!((headers.get("streamtype"), headers.len()), (Some("data"), 2));
    }

    #[test]
    fn a_block_that_is_not_exact_is_refused() {
        let block = Headers::from([("a", "b")]).to_block();
        assert!(Headers::from_block(&block, 1).is_ok());
        assert!(Headers::from_block(&block, 0).is_err());
        for end in 0..block.len() {
            assert!(Headers::from_block(&block[..end], 9).is_err(), "{end}");
        }
        for bad in [
            &b"\0\0\0\x01\0\0\0\0\0\0\0\0"[..],
            b"\0\0\0\x01\0\0\0\x01A\0\0\0\0",
            b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01a\0\0\0\0",
            b"\0\0\0\x01\0\0\0\x01a\0\0\0\x01\xff",
            b"\0\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x01\xff\xff\xff\xff",
        ] {
            assert!(Headers::from_block(bad, usize::MAX).is_err(), "{bad:?}");
        }
    }
}
