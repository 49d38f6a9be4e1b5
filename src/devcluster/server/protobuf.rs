//! Request bodies in the Kubernetes protobuf encoding, turned into the JSON that the rest of the server works on.
//!
//! Typed clients send what they create in this form. An envelope names the type; a table names the fields of each
//! message, for their numbers alone don't say what they hold. Answers are always JSON, which those clients accept.
//!
//! A line of the table is either a message's name or ` number json-name kind`, the name being `.` when the fields of
//! the inner message are the outer one's. Kinds: `s`tring, `b`ytes, `i`nteger, b`o`ol, double `f`, `T`ime, `U` time in
//! microseconds, `Q`uantity, `I`nteger or string, `R`aw JSON, `L`ist of strings in a message, or a message's name; `[`
//! before it repeats, `{` maps strings to it, and `!` after it keeps a zero value, which is dropped otherwise because
//! the encoder writes fields that nobody set.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

const MAGIC: &[u8] = b"k8s\0";

/// Deeper than any built-in type goes.
const MAX_DEPTH: usize = 40;

static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let mut messages: HashMap<&str, Vec<Field>> = HashMap::new();
    let mut current = "";
    for line in include_str!("protobuf_fields.txt").lines().filter(|l| !l.starts_with('#')) {
        match line.strip_prefix(' ') {
            None => {
                current = line;
                messages.insert(current, Vec::new());
            }
            Some(field) => messages.entry(current).or_default().extend(Field::read(field)),
        }
    }
    messages
});

#[derive(Clone, Copy, PartialEq)]
enum Many {
    One,
    List,
    Map,
}

struct Field {
    number: u64,
    name: &'static str,
    kind: &'static str,
    many: Many,
    keep_zero: bool,
}

impl Field {
    fn read(line: &'static str) -> Option<Self> {
        let mut words = line.split(' ');
        let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        let (kind, keep_zero) = kind.strip_suffix('!').map_or((kind, false), |k| (k, true));
        let (many, kind) = match kind.as_bytes().first()? {
            b'[' => (Many::List, &kind[1..]),
            b'{' => (Many::Map, &kind[1..]),
            _ => (Many::One, kind),
        };
        Some(Self { number, name, kind, many, keep_zero })
    }
}

type Result<T> = std::result::Result<T, String>;

/// A value as it is on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed(_) => Err("proto: a number stands where bytes were expected".into()),
        }
    }

    fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "proto: a string is not UTF-8".into())
    }

    /// Negative numbers are sent in two's complement, whatever their width.
    fn integer(self) -> Result<i64> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Fixed(_) | Self::Bytes(_) => Err("proto: an integer was expected".into()),
        }
    }
}

/// The fields of a message in the order they come.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("proto: unexpected EOF")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".into())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length).map_err(|_| "proto: unexpected EOF")?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("proto: unexpected EOF")?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: u64) -> Result<u64> {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(self.take(length)?) {
            *to = *from;
        }
        Ok(u64::from_le_bytes(value))
    }

    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed(self.fixed(8)?),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(self.fixed(4)?),
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        match tag >> 3 {
            0 => Err("proto: illegal tag 0".into()),
            number => Ok(Some((number, wire))),
        }
    }
}

/// The last value of each of the fields 1 to 4; enough for the small messages that have a JSON form of their own.
fn few(bytes: &[u8]) -> Result<[Option<Wire<'_>>; 5]> {
    let mut found = [None; 5];
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        if let Some(slot) = usize::try_from(number).ok().and_then(|n| found.get_mut(n)) {
            *slot = Some(wire);
        }
    }
    Ok(found)
}

/// Decodes a request's body.
pub(crate) fn decode(body: &[u8]) -> Result<Value> {
    let body = body.strip_prefix(MAGIC).ok_or("provided data does not appear to be a protobuf message")?;
    let [_, type_meta, raw, encoding, media] = few(body)?;
    let text = |wire: Option<Wire<'_>>| wire.map_or(Ok(String::new()), |w| w.text().map(str::to_owned));
    let [_, api_version, kind, ..] = few(type_meta.map_or(Ok(&[][..]), Wire::bytes)?)?;
    let (api_version, kind) = (text(api_version)?, text(kind)?);
    let raw = raw.map_or(Ok(&[][..]), Wire::bytes)?;
    let encoding = text(encoding)?;
    if !encoding.is_empty() {
        return Err(format!("the content encoding {encoding:?} is not known"));
    }
    let mut object = match text(media)?.as_str() {
        "application/json" => match serde_json::from_slice(raw).map_err(|e| e.to_string())? {
            Value::Object(object) => object,
            _ => return Err("a JSON object was expected".into()),
        },
        _ => {
            let name = match kind.as_str() {
                // Sent with the version of whatever is deleted.
                "DeleteOptions" => "meta.DeleteOptions".to_owned(),
                _ => format!("{api_version}.{kind}"),
            };
            let fields = MESSAGES
                .get(name.as_str())
                .ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?}"))?;
            message(fields, raw, 0)?
        }
    };
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message(fields: &[Field], bytes: &[u8], depth: usize) -> Result<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return Err("proto: nested too deep".into());
    }
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        let Some(field) = fields.iter().find(|f| f.number == number) else {
            continue;
        };
        match field.many {
            Many::One => match value(field.kind, wire, depth)? {
                Value::Null => {}
                Value::Object(inner) if field.name == "." => object.extend(inner),
                zero if !field.keep_zero && is_zero(&zero) => {}
                value => {
                    object.insert(field.name.into(), value);
                }
            },
            Many::List => {
                let Value::Array(list) = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new())) else {
                    continue;
                };
                match (field.kind, wire) {
                    ("i", Wire::Bytes(packed)) => {
                        let mut packed = Reader(packed);
                        while !packed.0.is_empty() {
                            list.push(packed.varint()?.cast_signed().into());
                        }
                    }
                    _ => list.push(value(field.kind, wire, depth)?),
                }
            }
            Many::Map => {
                let [_, key, mapped, ..] = few(wire.bytes()?)?;
                let key = key.map_or(Ok(""), Wire::text)?;
                let mapped = value(field.kind, mapped.unwrap_or(Wire::Bytes(&[])), depth)?;
                if let Value::Object(map) = object.entry(field.name).or_insert_with(|| Value::Object(Map::new())) {
                    map.insert(key.to_owned(), mapped);
                }
            }
        }
    }
    Ok(object)
}

fn value(kind: &str, wire: Wire<'_>, depth: usize) -> Result<Value> {
    Ok(match kind {
        "s" => wire.text()?.into(),
        "b" => STANDARD.encode(wire.bytes()?).into(),
        "i" => wire.integer()?.into(),
        "o" => (wire.integer()? != 0).into(),
        "f" => match wire {
            Wire::Fixed(bits) => f64::from_bits(bits).into(),
            Wire::Number(_) | Wire::Bytes(_) => return Err("proto: a double was expected".into()),
        },
        "T" | "U" => time(kind, wire.bytes()?)?,
        "Q" => few(wire.bytes()?)?[1].map_or(Ok(""), Wire::text)?.into(),
        "I" => {
            let [_, is_text, integer, text, _] = few(wire.bytes()?)?;
            match is_text.map_or(Ok(0), Wire::integer)? {
                0 => integer.map_or(Ok(0), Wire::integer)?.into(),
                _ => text.map_or(Ok(""), Wire::text)?.into(),
            }
        }
        "R" => match few(wire.bytes()?)?[1].map_or(Ok(&[][..]), Wire::bytes)? {
            [] => Value::Null,
            raw => serde_json::from_slice(raw).map_err(|e| e.to_string())?,
        },
        "L" => {
            let (mut items, mut reader) = (Vec::new(), Reader(wire.bytes()?));
            while let Some((number, item)) = reader.field()? {
                if number == 1 {
                    items.push(item.text()?.into());
                }
            }
            Value::Array(items)
        }
        name => {
            let fields = MESSAGES.get(name).ok_or_else(|| format!("proto: the message {name} is not known"))?;
            Value::Object(message(fields, wire.bytes()?, depth + 1)?)
        }
    })
}

/// An empty message is the zero time, which JSON writes as null.
fn time(kind: &str, bytes: &[u8]) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let [_, seconds, nanos, ..] = few(bytes)?;
    let seconds = seconds.map_or(Ok(0), Wire::integer)?;
    let nanos = i32::try_from(nanos.map_or(Ok(0), Wire::integer)?).map_err(|e| e.to_string())?;
    let time = jiff::Timestamp::new(seconds, if kind == "U" { nanos } else { 0 }).map_err(|e| e.to_string())?;
    let format = if kind == "U" { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 128, "one byte holds the length");
        [&[number << 3 | 2, length], content].concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC, &bytes(1, &meta), &bytes(2, raw), &bytes(3, b""), &bytes(4, b"")].concat()
    }

    #[test]
    fn a_config_map_becomes_its_json() {
        let metadata = [bytes(1, b"settings"), bytes(2, b""), bytes(8, b""), vec![7 << 3, 0]].concat();
        let entry = [bytes(1, b"a"), bytes(2, b"1")].concat();
        let blob = [bytes(1, b"b"), bytes(2, b"\xff")].concat();
        let raw = [bytes(1, &metadata), bytes(2, &entry), bytes(3, &blob), vec![4 << 3, 0]].concat();
        let wanted = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
            "data": {"a": "1"}, "binaryData": {"b": "/w=="}, "immutable": false,
        });
        assert_eq!(decode(&envelope("v1", "ConfigMap", &raw)).unwrap(), wanted);
    }

    #[test]
    fn inlined_messages_and_special_types_take_their_json_form() {
        let volume = [bytes(1, b"tmp"), bytes(2, &bytes(2, b""))].concat();
        let port = [bytes(1, b""), bytes(4, &[vec![1 << 3, 1], bytes(3, b"web")].concat())].concat();
        let pod = bytes(2, &bytes(1, &volume));
        assert_eq!(
            decode(&envelope("v1", "Pod", &pod)).unwrap()["spec"]["volumes"],
            json!([{"name": "tmp", "emptyDir": {}}])
        );
        let service = bytes(2, &bytes(1, &port));
        assert_eq!(decode(&envelope("v1", "Service", &service)).unwrap()["spec"]["ports"][0]["targetPort"], "web");
    }

    #[test]
    fn every_field_of_the_table_has_a_known_kind() {
        for (message, fields) in MESSAGES.iter() {
            for field in fields {
                let known = "sbiofTUQIRL".contains(field.kind) || MESSAGES.contains_key(field.kind);
                assert!(known, "{message} {}: {}", field.name, field.kind);
            }
        }
    }

    #[test]
    fn bodies_that_lie_about_themselves_are_refused() {
        for body in [b"".to_vec(), b"{}".to_vec(), MAGIC.to_vec(), envelope("v1", "Nothing", b""), {
            let mut cut = envelope("v1", "ConfigMap", &bytes(1, b""));
            cut.truncate(20);
            cut
        }] {
            assert!(decode(&body).is_err(), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(raw in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode(&raw);
            let _ = decode(&[MAGIC, &raw].concat());
            for (api_version, kind) in [("v1", "Pod"), ("v1", "Event"), ("policy/v1", "Eviction"), ("apps/v1", "Deployment")] {
                let _ = decode(&envelope(api_version, kind, &raw));
            }
        }
    }
}
