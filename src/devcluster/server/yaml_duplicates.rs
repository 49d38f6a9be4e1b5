//! Keys that an object of a YAML document has twice, with their lines. The parser takes the last of them.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::duplicates::pass_over_scalars;

/// Most that one answer tells of.
const LIMIT: usize = 100;

/// The keys that are there twice, as in `line 3: key "a" already set in map`.
pub(crate) fn find(body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(text) = std::str::from_utf8(body) else { return found };
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    // What does not parse has been refused before.
    let _ = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Walk(&mut found).deserialize(deserializer)
    });
    found
}

struct Walk<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<Spanned<Value>>()? {
            if self.0.len() >= LIMIT {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let name = key.value.to_string();
            let line = key.referenced.line();
            if !seen.insert(name.clone()) {
                self.0.push(format!("line {line}: key {name} already set in map"));
            }
            map.next_value_seed(Walk(&mut *self.0))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Walk(&mut *self.0))?.is_some() {}
        Ok(())
    }

    pass_over_scalars!();

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_twice_are_told_with_their_lines() {
        let body = b"a:\n  b: 1\n  b: 2\nl:\n- x: 1\n- x: 1\n  x: 2\na: null\n";
        let want = [
            "line 3: key \"b\" already set in map",
            "line 7: key \"x\" already set in map",
            "line 8: key \"a\" already set in map",
        ];
        assert_eq!(find(body), want);
        assert_eq!(find(b"{\"a\":1,\"a\":2}"), ["line 1: key \"a\" already set in map"]);
        assert!(find(b"a: 1\nb: [1, {c: 1}]\n").is_empty());
        assert!(find(b"{").is_empty());
    }
}
