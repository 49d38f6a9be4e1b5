//! The little of ASN.1 that an X.509 certificate is written in.
//!
//! rcgen keeps one value of each type in a name, but a user is in any number of groups (organizations), and a request's
//! subject must go into its certificate byte by byte.

use jiff::Timestamp;

pub(super) const COMMON_NAME: &[u8] = &[0x55, 4, 3];
pub(super) const ORGANIZATION: &[u8] = &[0x55, 4, 10];
pub(super) const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
pub(super) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
pub(super) const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];
pub(super) const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 35];

const BOOLEAN: u8 = 1;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const OBJECT_IDENTIFIER: u8 = 6;
const UTF8_STRING: u8 = 12;
const UTC_TIME: u8 = 23;
const GENERALIZED_TIME: u8 = 24;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let used = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
            out.push(0x80 | used.len() as u8);
            out.extend_from_slice(used);
        }
    }
    out.extend_from_slice(content);
    out
}

pub(super) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(SEQUENCE, &parts.concat())
}

pub(super) fn oid(bytes: &[u8]) -> Vec<u8> {
    tagged(OBJECT_IDENTIFIER, bytes)
}

/// Not negative.
pub(super) fn integer(bytes: &[u8]) -> Vec<u8> {
    let mut digits: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
    if digits.first().is_none_or(|first| *first > 0x7f) {
        digits.insert(0, 0);
    }
    tagged(INTEGER, &digits)
}

pub(super) fn octets(content: &[u8]) -> Vec<u8> {
    tagged(OCTET_STRING, content)
}

pub(super) fn bits(content: &[u8]) -> Vec<u8> {
    tagged(BIT_STRING, &[&[0], content].concat())
}

/// A set of numbered flags.
pub(super) fn flags(set: &[u8]) -> Vec<u8> {
    let mut bytes = [0u8; 2];
    for flag in set {
        bytes[usize::from(flag / 8)] |= 0x80 >> (flag % 8);
    }
    let used = if bytes[1] != 0 { 2 } else { 1 };
    let unused = bytes[used - 1].trailing_zeros().min(7) as u8;
    tagged(BIT_STRING, &[&[unused], &bytes[..used]].concat())
}

pub(super) fn explicit(number: u8, content: &[u8]) -> Vec<u8> {
    tagged(0xa0 | number, content)
}

pub(super) fn implicit(number: u8, content: &[u8]) -> Vec<u8> {
    tagged(0x80 | number, content)
}

pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let year = at.strftime("%Y").to_string().parse::<u32>().unwrap_or_default();
    match year {
        1950..=2049 => tagged(UTC_TIME, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()),
        _ => tagged(GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()),
    }
}

/// A name of one attribute each in this order.
pub(super) fn name(attributes: &[(&[u8], &str)]) -> Vec<u8> {
    let attribute =
        |(kind, value): &(&[u8], &str)| tagged(SET, &sequence(&[oid(kind), tagged(UTF8_STRING, value.as_bytes())]));
    sequence(&attributes.iter().map(attribute).collect::<Vec<_>>())
}

pub(super) fn extension(kind: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tagged(BOOLEAN, &[0xff]) } else { Vec::new() };
    sequence(&[oid(kind), critical, octets(value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_numbers_and_flags_are_as_short_as_they_can_be() {
        assert_eq!(octets(&[7]), [4, 1, 7]);
        assert_eq!(octets(&[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(octets(&[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(integer(&[0, 0, 5]), [2, 1, 5]);
        assert_eq!(integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[]), [2, 1, 0]);
        assert_eq!(flags(&[0, 2]), [3, 2, 5, 0b1010_0000]);
        assert_eq!(flags(&[8]), [3, 3, 7, 0, 0x80]);
    }

    #[test]
    fn times_beyond_2049_are_written_in_full() {
        assert_eq!(&time("2026-01-02T03:04:05Z".parse().unwrap())[2..], b"260102030405Z");
        assert_eq!(&time("2050-01-02T03:04:05Z".parse().unwrap())[2..], b"20500102030405Z");
    }
}
