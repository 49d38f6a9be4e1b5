//! The types of rules in CEL: what cel-go's checker refuses in an expression that parses.
//!
//! [`lex`] cuts the text into tokens, [`mod@check`] reads them by precedence and tells the type of each part. Wherever a
//! type is not known for certain it is `dyn`, which fits everywhere: a good rule is never refused.

mod check;
mod lex;

use serde_json::Value;

pub(super) use check::check;

/// An expression with another in the place of a variable; `None` when there is nothing to replace.
pub(super) fn replaced(text: &str, variable: &str, by: &str) -> Option<String> {
    let tokens = lex::tokens(text)?;
    let (mut out, mut done) = (String::new(), 0);
    for (i, (token, at)) in tokens.iter().enumerate() {
        let selected = i > 0 && tokens[i - 1].0 == lex::Token::Sign(".");
        if *token == lex::Token::Name(variable) && !selected {
            out += &text[done..*at];
            out += by;
            done = at + variable.len();
        }
    }
    (done > 0).then(|| out + &text[done..])
}

/// The fields that an expression asks of a variable; `None` when it asks for the variable as a whole, or for fields
/// whose names are written otherwise.
pub(super) fn fields_asked<'t>(text: &'t str, variable: &str) -> Option<Vec<&'t str>> {
    use lex::Token::{Name, Sign};
    let tokens: Vec<_> = lex::tokens(text)?.into_iter().map(|(token, _)| token).collect();
    let places = (0..tokens.len()).filter(|i| tokens[*i] == Name(variable) && (*i == 0 || tokens[i - 1] != Sign(".")));
    let asked = places.map(|i| match &tokens[i + 1..] {
        [Sign("."), Sign("?"), Name(field), ..] | [Sign("."), Name(field), ..] => {
            // A method is asked of the whole.
            let called = tokens.get(i + 3) == Some(&Sign("(")) && tokens[i + 2] != Sign("?");
            (!called && !field.contains("__")).then_some(*field)
        }
        _ => None,
    });
    asked.collect()
}

/// What a rule's text has at a byte.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) said: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type<'a> {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    List(Box<Self>),
    /// Its keys are strings.
    Map(Box<Self>),
    /// By its schema; `true` for a whole object, which has a name, a kind and a version.
    Object(&'a Value, bool),
}

impl<'a> Type<'a> {
    /// The type of what a schema describes; `None` for what rules cannot see. apiserver: `SchemaDeclType`.
    pub(super) fn of(schema: &'a Value, root: bool) -> Option<Self> {
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Self::Dyn);
        }
        Some(match (schema["type"].as_str()?, schema["format"].as_str()) {
            ("array", _) => Self::List(Box::new(Self::of(&schema["items"], false)?)),
            ("object", _) if schema["additionalProperties"].is_object() => {
                Self::Map(Box::new(Self::of(&schema["additionalProperties"], false)?))
            }
            ("object", _) => Self::Object(schema, root || schema["x-kubernetes-embedded-resource"] == true),
            ("string", Some("byte")) => Self::Bytes,
            ("string", Some("duration")) => Self::Duration,
            ("string", Some("date" | "date-time")) => Self::Timestamp,
            ("string", _) => Self::Text,
            ("boolean", _) => Self::Bool,
            ("number", _) => Self::Double,
            ("integer", _) => Self::Int,
            _ => return None,
        })
    }

    /// The type of an object's field, named as rules name it.
    fn field(schema: &'a Value, root: bool, name: &str) -> Option<Self> {
        let given = schema["properties"].as_object().into_iter().flatten();
        let known = given.into_iter().find(|(key, _)| escaped(key).is_some_and(|key| key == name));
        match (known.and_then(|(_, schema)| Self::of(schema, false)), name) {
            (_, "metadata") if root => Some(Self::Dyn),
            (None, "apiVersion" | "kind") if root => Some(Self::Text),
            (found, _) => found,
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether a value may be of both types.
    fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::Null, other) | (other, Self::Null) => {
                matches!(other, Self::Null | Self::Duration | Self::Timestamp | Self::Object(..))
            }
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.fits(b),
            (a, b) => a == b,
        }
    }
}

impl std::fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::List(of) => return write!(f, "list({of})"),
            Self::Map(of) => return write!(f, "map(string, {of})"),
            Self::Object(..) => "object",
        })
    }
}

const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as rules write it; `None` when they cannot. apiserver: `cel.Escape`.
fn escaped(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit() || !fine(c)) || !name.chars().all(fine) {
        return None;
    }
    let name = name.replace("__", "__underscores__");
    Some(name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}
