//! Keys that an object of a JSON document has twice, which the parser lets pass: the last one counts.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most that one answer tells of.
const LIMIT: usize = 100;

/// The duplicate fields of a document that parses, in their order.
pub(crate) fn find(body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut path = String::new();
    let walk = Walk { path: &mut path, found: &mut found, places: None };
    // What does not parse has been refused before.
    let _ = walk.deserialize(&mut serde_json::Deserializer::from_slice(body));
    found
}

/// Most fields whose order is kept in mind.
const PLACES: usize = 10_000;

/// Brings faults such as `unknown field "a.b"` into the order of a document's fields; what is not in it stays behind.
pub(crate) fn in_order_of(body: &[u8], faults: &mut [String]) {
    let (mut path, mut found, mut places) = (String::new(), Vec::new(), HashMap::new());
    let walk = Walk { path: &mut path, found: &mut found, places: Some(&mut places) };
    // A document of another type has no order that could be told.
    if walk.deserialize(&mut serde_json::Deserializer::from_slice(body)).is_err() {
        return;
    }
    let quoted: HashMap<_, _> = places.into_iter().map(|(path, place)| (format!("{path:?}"), place)).collect();
    let place = |fault: &String| {
        let at = fault.find('"').map_or(fault.as_str(), |at| &fault[at..]);
        quoted.get(at).copied().unwrap_or(usize::MAX)
    };
    faults.sort_by_key(place);
}

/// What a [`Visitor`] without a value does with all that holds no keys.
macro_rules! pass_over_scalars {
    () => {
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }

        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }

        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }

        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }

        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    };
}
pub(super) use pass_over_scalars;

struct Walk<'a> {
    path: &'a mut String,
    found: &'a mut Vec<String>,
    places: Option<&'a mut HashMap<String, usize>>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        let length = self.path.len();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            if self.found.len() >= LIMIT {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key.0);
            if !seen.insert(key) {
                self.found.push(format!("duplicate field {:?}", self.path));
            }
            if let Some(places) = self.places.as_deref_mut().filter(|places| places.len() < PLACES) {
                let place = places.len();
                places.entry(self.path.clone()).or_insert(place);
            }
            map.next_value_seed(Walk { path: self.path, found: self.found, places: self.places.as_deref_mut() })?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let length = self.path.len();
        for i in 0.. {
            self.path.push_str(&format!("[{i}]"));
            let item = Walk { path: self.path, found: self.found, places: self.places.as_deref_mut() };
            let next = items.next_element_seed(item)?;
            self.path.truncate(length);
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }

    pass_over_scalars!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_twice_is_told_with_its_path() {
        let body = br#"{"a":{"x":1,"x":2,"y":[{"z":1},{"z":1,"z":null}]},"b":"s","b":true}"#;
        let want = ["duplicate field \"a.x\"", "duplicate field \"a.y[1].z\"", "duplicate field \"b\""];
        assert_eq!(find(body), want);
        assert!(find(br#"{"a":[1,2,{"b":{}}],"c":{"a":1}}"#).is_empty());
        assert!(find(b"{").is_empty());
    }

    #[test]
    fn faults_follow_the_order_of_the_document() {
        let mut faults: Vec<_> = ["a", "b.c[1].d", "x"].iter().map(|f| format!("unknown field {f:?}")).collect();
        in_order_of(br#"{"x":1,"b":{"c":[{},{"d":1}]},"a":2}"#, &mut faults);
        assert_eq!(faults, ["unknown field \"x\"", "unknown field \"b.c[1].d\"", "unknown field \"a\""]);
        in_order_of(b"x: 1", &mut faults);
        assert_eq!(faults[0], "unknown field \"x\"", "YAML keeps the order there is");
    }
}
