//! The grammar of label selectors, with the API server's words for what breaks it.
//!
//! A selector is a list of requirements: `key`, `!key`, `key=value` (or `==`, `!=`, `>`, `<`), `key in (a, b)`,
//! `key notin (a)`. apimachinery: `labels.Parse`.

use super::Label;
use crate::server::meta;
use crate::status::{ApiError, Result};

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";
const SYMBOLS: &[char] = &['=', '!', '(', ')', ',', '>', '<'];

/// Parses a whole selector; nothing but blanks selects everything.
pub(super) fn parse(text: &str) -> Result<Vec<Label>> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    parser.selector().map_err(ApiError::bad_request)
}

/// Symbols and words; the empty token is the end.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if SYMBOLS.contains(&first) {
            match rest.as_bytes() {
                [b'=' | b'!', b'=', ..] => 2,
                _ => 1,
            }
        } else {
            rest.find(|c: char| SYMBOLS.contains(&c) || matches!(c, ' ' | '\t' | '\r' | '\n')).unwrap_or(rest.len())
        };
        // A blank that is none of the four is a word of its own.
        let length = if length == 0 { first.len_utf8() } else { length };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    found
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(SYMBOLS)
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Label>, String> {
        let mut labels = Vec::new();
        match self.peek() {
            "" => return Ok(labels),
            token if token == "!" || is_word(token) => {}
            token => return Err(format!("found '{token}', expected: !, identifier, or 'end of string'")),
        }
        loop {
            labels.push(self.requirement().map_err(|fault| format!("unable to parse requirement: {fault}"))?);
            match self.next() {
                "" => return Ok(labels),
                "," => {}
                token => return Err(format!("found '{token}', expected: ',' or 'end of string'")),
            }
            let token = self.peek();
            if token != "!" && !is_word(token) {
                return Err(format!("found '{token}', expected: identifier after ','"));
            }
        }
    }

    fn requirement(&mut self) -> Result<Label, String> {
        let absent = self.peek() == "!";
        if absent {
            self.next();
        }
        let key = self.next();
        if !is_word(key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(fault) = meta::qualified_name_fault(key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {fault}"));
        }
        let key = key.to_owned();
        if absent {
            return Ok(Label::Absent(key));
        }
        if matches!(self.peek(), "" | ",") {
            return Ok(Label::Exists(key));
        }
        match self.next() {
            "=" | "==" => Ok(Label::In(key.clone(), vec![self.value(&key)?])),
            "!=" => Ok(Label::NotIn(key.clone(), vec![self.value(&key)?])),
            ">" => Ok(Label::Greater(key.clone(), self.number(&key)?)),
            "<" => Ok(Label::Less(key.clone(), self.number(&key)?)),
            "in" => Ok(Label::In(key.clone(), self.values(&key)?)),
            "notin" => Ok(Label::NotIn(key.clone(), self.values(&key)?)),
            token => Err(format!("found '{token}', expected: {OPERATORS}")),
        }
    }

    fn value(&mut self, key: &str) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if is_word(token) => checked(key, 0, self.next()),
            token => Err(format!("found '{token}', expected: identifier")),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let value = self.value(key)?;
        value.parse().map_err(|_| {
            format!("values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, String> {
        match self.next() {
            "(" => {}
            token => return Err(format!("found '{token}' expected: '('")),
        }
        let mut values = Vec::new();
        loop {
            values.push(match self.peek() {
                "," | ")" => String::new(),
                token if is_word(token) => checked(key, values.len(), self.next())?,
                token => return Err(format!("found '{token}', expected: ',', ')' or identifier")),
            });
            match self.next() {
                "," => {}
                ")" => return Ok(values),
                token => return Err(format!("found '{token}', expected: ',' or ')'")),
            }
        }
    }
}

fn checked(key: &str, at: usize, value: &str) -> Result<String, String> {
    match meta::label_value_fault(value) {
        Some(fault) => Err(format!("values[{at}][{key}]: Invalid value: {value:?}: {fault}")),
        None => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_as_the_api_server_tells_them() {
        for (selector, said) in [
            ("a b c", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a>x", "unable to parse requirement: values[0]: Invalid value: \"x\""),
            ("-a", "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist"),
            ("a=-", "unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label"),
        ] {
            let error = parse(selector).unwrap_err();
            assert!(error.code == 400 && error.message.starts_with(said), "{selector}: {error}");
        }
    }

    #[test]
    fn blanks_and_empty_values_mean_what_they_should() {
        let one = |text: &str| parse(text).unwrap().remove(0);
        assert_eq!(parse("  ").unwrap(), []);
        assert_eq!(one("a ="), Label::In("a".into(), vec![String::new()]));
        assert_eq!(one("a in ( ,b)"), Label::In("a".into(), vec![String::new(), "b".into()]));
        assert_eq!(one("a in ()"), Label::In("a".into(), vec![String::new()]));
        assert_eq!(one("in in (in)"), Label::In("in".into(), vec!["in".into()]));
        assert_eq!(parse("a,!b,example.com/c!=d").unwrap().len(), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ab=!(),<>in \u{a0}-]{0,24}") {
            let _ = parse(&text);
        }
    }
}
