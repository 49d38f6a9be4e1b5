//! Reads an expression by precedence and tells the type of each part.

use super::lex::{Token, tokens};
use super::{Fault, Type};

/// Functions beyond those whose types are told here, with which Kubernetes compiles rules.
const FUNCTIONS: &[&str] = &[
    "type",
    "url",
    "ip",
    "cidr",
    "quantity",
    "semver",
    "isURL",
    "isIP",
    "isCIDR",
    "isQuantity",
    "isSemver",
    "getHost",
    "getHostname",
    "getPort",
    "getQuery",
    "getScheme",
    "getEscapedPath",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "containsIP",
    "containsCIDR",
    "masked",
    "prefixLength",
    "add",
    "sub",
    "sign",
    "asInteger",
    "asApproximateFloat",
    "isInteger",
    "compareTo",
    "isLessThan",
    "isGreaterThan",
    "major",
    "minor",
    "patch",
    "validate",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "replace",
    "split",
    "substring",
    "trim",
    "upperAscii",
    "join",
    "quote",
    "reverse",
    "format",
    "find",
    "findAll",
    "min",
    "max",
    "isSorted",
    "hasValue",
    "value",
    "or",
    "orValue",
    "optMap",
    "optFlatMap",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
];
/// Names before functions, as in `optional.of`.
const SPACES: &[&str] = &["optional", "format", "ip", "sets", "math", "strings", "base64", "lists"];
const TYPES: &[&str] =
    &["int", "uint", "double", "bool", "string", "bytes", "list", "map", "type", "null_type", "google", "dyn"];

/// A part of an expression: its type, and where cel-go says it is.
type Part<'a> = (Type<'a>, usize);

struct Reader<'t, 'a> {
    tokens: Vec<(Token<'t>, usize)>,
    next: usize,
    variables: Vec<(&'t str, Type<'a>)>,
    faults: Vec<Fault>,
}

/// The type of an expression, or what is wrong with it. What cannot be read here is `dyn`.
pub(in super::super) fn check<'a>(text: &str, variables: &[(&'static str, Type<'a>)]) -> Result<Type<'a>, Vec<Fault>> {
    let Some(tokens) = tokens(text) else { return Ok(Type::Dyn) };
    let mut reader = Reader { tokens, next: 0, variables: variables.to_vec(), faults: Vec::new() };
    match reader.expression() {
        Some((found, _)) if reader.next == reader.tokens.len() => match reader.faults.is_empty() {
            true => Ok(found),
            false => Err(reader.faults),
        },
        _ => Ok(Type::Dyn),
    }
}

impl<'t, 'a> Reader<'t, 'a> {
    fn peek(&self, sign: &str) -> bool {
        self.tokens.get(self.next).is_some_and(|(token, _)| *token == Token::Sign(sign))
    }

    /// Takes a sign when it is next, and tells where it was.
    fn take(&mut self, sign: &str) -> Option<usize> {
        let found = self.peek(sign).then(|| self.tokens[self.next].1);
        self.next += usize::from(found.is_some());
        found
    }

    fn name(&mut self) -> Option<(&'t str, usize)> {
        let &(Token::Name(name), at) = self.tokens.get(self.next)? else { return None };
        self.next += 1;
        Some((name, at))
    }

    fn fault(&mut self, at: usize, said: String) -> Type<'a> {
        self.faults.push(Fault { at, said });
        Type::Dyn
    }

    fn no_overload(&mut self, at: usize, function: &str, of: &str) -> Type<'a> {
        self.fault(at, format!("found no matching overload for '{function}' applied to '{of}'"))
    }

    fn expression(&mut self) -> Option<Part<'a>> {
        let condition = self.logic(0)?;
        let Some(at) = self.take("?") else { return Some(condition) };
        let yes = self.logic(0)?;
        self.take(":")?;
        let no = self.expression()?;
        Some((self.choice(at, &condition.0, yes.0, no.0), at))
    }

    fn choice(&mut self, at: usize, condition: &Type<'a>, yes: Type<'a>, no: Type<'a>) -> Type<'a> {
        if !condition.fits(&Type::Bool) || !yes.fits(&no) {
            return self.no_overload(at, "_?_:_", &format!("({condition}, {yes}, {no})"));
        }
        if yes == no { yes } else { Type::Dyn }
    }

    /// `||` and, one level below, `&&`.
    fn logic(&mut self, level: usize) -> Option<Part<'a>> {
        let sign = ["||", "&&"].get(level);
        let Some(sign) = sign else { return self.relation() };
        let mut left = self.logic(level + 1)?;
        while let Some(at) = self.take(sign) {
            let right = self.logic(level + 1)?;
            self.demand(&left, &Type::Bool);
            self.demand(&right, &Type::Bool);
            left = (Type::Bool, at);
        }
        Some(left)
    }

    fn demand(&mut self, (found, at): &Part<'a>, wanted: &Type<'a>) {
        if !found.fits(wanted) {
            self.fault(*at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    fn relation(&mut self) -> Option<Part<'a>> {
        let mut left = self.sum()?;
        loop {
            let sign = ["<=", ">=", "==", "!=", "<", ">"].into_iter().find(|sign| self.peek(sign));
            let found = match (sign, self.tokens.get(self.next)) {
                (Some(sign), Some(&(_, at))) => (sign, at),
                (None, Some(&(Token::Name("in"), at))) => ("in", at),
                _ => return Some(left),
            };
            self.next += 1;
            let right = self.sum()?;
            left = (self.related(found, &left.0, &right.0), found.1);
        }
    }

    fn related(&mut self, (sign, at): (&str, usize), left: &Type<'a>, right: &Type<'a>) -> Type<'a> {
        let ordered = |found: &Type<'a>| !matches!(found, Type::Null | Type::List(_) | Type::Map(_) | Type::Object(..));
        let fine = match (sign, right) {
            ("in", Type::List(of)) => left.fits(of),
            ("in", Type::Map(_)) => left.fits(&Type::Text),
            ("in", _) => *right == Type::Dyn,
            ("==" | "!=", _) => left.fits(right),
            _ if left.is_number() && right.is_number() => true,
            _ => left.fits(right) && ordered(left) && ordered(right),
        };
        if fine {
            return Type::Bool;
        }
        let name = if sign == "in" { "@in".to_owned() } else { format!("_{sign}_") };
        self.no_overload(at, &name, &format!("({left}, {right})"))
    }

    fn sum(&mut self) -> Option<Part<'a>> {
        let mut left = self.product()?;
        while let Some(sign) = ["+", "-"].into_iter().find(|sign| self.peek(sign)) {
            let at = self.take(sign)?;
            let right = self.product()?;
            left = (self.calculated(sign, at, left.0, right.0), at);
        }
        Some(left)
    }

    fn product(&mut self) -> Option<Part<'a>> {
        let mut left = self.unary()?;
        while let Some(sign) = ["*", "/", "%"].into_iter().find(|sign| self.peek(sign)) {
            let at = self.take(sign)?;
            let right = self.unary()?;
            left = (self.calculated(sign, at, left.0, right.0), at);
        }
        Some(left)
    }

    fn calculated(&mut self, sign: &str, at: usize, left: Type<'a>, right: Type<'a>) -> Type<'a> {
        use Type::{Bytes, Double, Duration, Dyn, List, Text, Timestamp};
        match (&left, &right, sign) {
            (Dyn, _, _) | (_, Dyn, _) => Dyn,
            (Double, Double, "%") => self.no_overload(at, "_%_", "(double, double)"),
            (a, b, _) if a == b && a.is_number() => left,
            (Text, Text, "+") | (Bytes, Bytes, "+") => left,
            (List(a), List(b), "+") if a.fits(b) => left,
            (Timestamp, Timestamp, "-") | (Duration, Duration, "+" | "-") => Duration,
            (Timestamp, Duration, "+" | "-") | (Duration, Timestamp, "+") => Timestamp,
            _ => self.no_overload(at, &format!("_{sign}_"), &format!("({left}, {right})")),
        }
    }

    fn unary(&mut self) -> Option<Part<'a>> {
        if let Some(at) = self.take("!") {
            let (found, _) = self.unary()?;
            let fine = found.fits(&Type::Bool);
            return Some((if fine { Type::Bool } else { self.no_overload(at, "!_", &format!("({found})")) }, at));
        }
        if let Some(at) = self.take("-") {
            let (found, _) = self.unary()?;
            let fine = matches!(found, Type::Int | Type::Double | Type::Dyn | Type::Duration);
            return Some((if fine { found } else { self.no_overload(at, "-_", &format!("({found})")) }, at));
        }
        self.member()
    }

    fn member(&mut self) -> Option<Part<'a>> {
        let mut part = self.primary()?;
        loop {
            if let Some(at) = self.take(".") {
                let maybe = self.take("?").is_some();
                let (name, _) = self.name()?;
                part = match self.take("(") {
                    Some(open) => (self.method(part, name, open)?, open),
                    None if maybe => (Type::Dyn, at),
                    None => (self.selected(&part.0, name, at), at),
                };
            } else if let Some(at) = self.take("[") {
                let maybe = self.take("?").is_some();
                let key = self.expression()?;
                self.take("]")?;
                part = (if maybe { Type::Dyn } else { self.indexed(part.0, &key.0, at) }, at);
            } else {
                return Some(part);
            }
        }
    }

    fn selected(&mut self, of: &Type<'a>, name: &str, at: usize) -> Type<'a> {
        match of {
            Type::Dyn => Type::Dyn,
            Type::Map(value) => (**value).clone(),
            Type::Object(schema, root) => match Type::field(schema, *root, name) {
                Some(found) => found,
                None => self.fault(at, format!("undefined field '{name}'")),
            },
            other => self.fault(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn indexed(&mut self, of: Type<'a>, key: &Type<'a>, at: usize) -> Type<'a> {
        match of {
            Type::Dyn => Type::Dyn,
            Type::List(item) if key.fits(&Type::Int) => *item,
            Type::Map(value) if key.fits(&Type::Text) => *value,
            other => self.no_overload(at, "_[_]", &format!("({other}, {key})")),
        }
    }

    /// What stands between parentheses, up to the closing one.
    fn arguments(&mut self, end: &str) -> Option<Vec<Part<'a>>> {
        let mut all = Vec::new();
        while self.take(end).is_none() {
            self.take("?");
            all.push(self.expression()?);
            if !self.peek(end) {
                self.take(",")?;
            }
        }
        Some(all)
    }

    fn method(&mut self, of: Part<'a>, name: &'t str, open: usize) -> Option<Type<'a>> {
        if matches!(name, "all" | "exists" | "exists_one" | "existsOne" | "map" | "filter") {
            return self.comprehension(of, name, open);
        }
        if matches!(name, "optMap" | "optFlatMap" | "bind") {
            return None;
        }
        let given = self.arguments(")")?;
        let one_text = matches!(&*given, [(found, _)] if found.fits(&Type::Text));
        let is = |wanted: Type<'a>| of.0.fits(&wanted);
        let found = match name {
            "size" => sized(&of.0).then_some(Type::Int).filter(|_| given.is_empty()),
            "startsWith" | "endsWith" | "contains" | "matches" => (is(Type::Text) && one_text).then_some(Type::Bool),
            "sum" => match &of.0 {
                Type::List(item) if item.is_number() || **item == Type::Duration => Some((**item).clone()),
                Type::List(item) => (**item == Type::Dyn).then_some(Type::Dyn),
                other => (*other == Type::Dyn).then_some(Type::Dyn),
            },
            "lowerAscii" | "upperAscii" | "trim" if is(Type::Text) => Some(Type::Text),
            "split" if is(Type::Text) => Some(Type::List(Box::new(Type::Text))),
            known if FUNCTIONS.contains(&known) => Some(Type::Dyn),
            unknown => return Some(self.undeclared(unknown, open)),
        };
        let applied = || format!("{}.({})", of.0, list(&given));
        Some(match found {
            Some(found) => found,
            None => {
                let applied = applied();
                self.no_overload(open, name, &applied)
            }
        })
    }

    fn undeclared(&mut self, name: &str, at: usize) -> Type<'a> {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn comprehension(&mut self, (of, at): Part<'a>, name: &str, open: usize) -> Option<Type<'a>> {
        let item = match &of {
            Type::List(item) => (**item).clone(),
            Type::Map(_) => Type::Text,
            Type::Dyn => Type::Dyn,
            other => {
                let said = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(at, said)
            }
        };
        let (variable, _) = self.name()?;
        self.take(",")?;
        self.variables.push((variable, item));
        let bodies = self.arguments(")")?;
        self.variables.pop();
        let ([.., body], true) = (&*bodies, bodies.len() == 1 || name == "map" && bodies.len() == 2) else {
            return None;
        };
        let boolean = body.0.fits(&Type::Bool);
        Some(match name {
            "map" => Type::List(Box::new(body.0.clone())),
            "filter" if !boolean => self.choice(open, &body.0, of.clone(), of),
            "filter" => of,
            "exists_one" | "existsOne" if !boolean => self.choice(open, &body.0, Type::Int, Type::Int),
            _ => {
                self.demand(body, &Type::Bool);
                Type::Bool
            }
        })
    }

    fn primary(&mut self) -> Option<Part<'a>> {
        let (token, at) = self.tokens.get(self.next)?.clone();
        self.next += 1;
        let found = match token {
            Token::Int => Type::Int,
            Token::Uint => Type::Uint,
            Token::Double => Type::Double,
            Token::Text => Type::Text,
            Token::Bytes => Type::Bytes,
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.take(")")?;
                return Some(inner);
            }
            Token::Sign("[") => {
                let items = self.arguments("]")?;
                Type::List(Box::new(self.alike(&items)))
            }
            Token::Sign("{") => self.map()?,
            Token::Sign(_) => return None,
            Token::Name("true" | "false") => Type::Bool,
            Token::Name("null") => Type::Null,
            Token::Name(name) if SPACES.contains(&name) && self.peek(".") => {
                self.take(".")?;
                self.name()?;
                self.take("(")?;
                self.arguments(")")?;
                Type::Dyn
            }
            Token::Name(name) => match self.take("(") {
                Some(open) => return Some((self.function(name, open)?, open)),
                None => self.variable(name, at),
            },
        };
        // A name with braces makes a message, of which there are none here.
        if self.peek("{") { None } else { Some((found, at)) }
    }

    fn variable(&mut self, name: &str, at: usize) -> Type<'a> {
        match self.variables.iter().rev().find(|(known, _)| *known == name) {
            Some((_, found)) => found.clone(),
            None if TYPES.contains(&name) => Type::Dyn,
            None => self.undeclared(name, at),
        }
    }

    fn map(&mut self) -> Option<Type<'a>> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        while self.take("}").is_none() {
            self.take("?");
            keys.push(self.expression()?);
            self.take(":")?;
            values.push(self.expression()?);
            if !self.peek("}") {
                self.take(",")?;
            }
        }
        let (key, value) = (self.alike(&keys), self.alike(&values));
        Some(if key == Type::Text { Type::Map(Box::new(value)) } else { Type::Dyn })
    }

    /// The one type of all items.
    fn alike(&mut self, items: &[Part<'a>]) -> Type<'a> {
        let Some((first, _)) = items.first() else { return Type::Dyn };
        items.iter().for_each(|item| self.demand(item, first));
        if items.iter().all(|(found, _)| found == first) { first.clone() } else { Type::Dyn }
    }

    fn function(&mut self, name: &str, open: usize) -> Option<Type<'a>> {
        let told = self.faults.len();
        let given = self.arguments(")")?;
        if name == "has" {
            let [(_, at)] = &*given else { return None };
            // The test itself is at the parenthesis.
            for fault in self.faults[told..].iter_mut().filter(|fault| fault.at == *at) {
                fault.at = open;
            }
            return Some(Type::Bool);
        }
        Some(match (name, &*given) {
            ("size", [(of, _)]) if sized(of) => Type::Int,
            ("size", _) => self.no_overload(open, "size", &format!("({})", list(&given))),
            ("int", _) => Type::Int,
            ("uint", _) => Type::Uint,
            ("double", _) => Type::Double,
            ("string", _) => Type::Text,
            ("bytes", _) => Type::Bytes,
            ("duration", _) => Type::Duration,
            ("timestamp", _) => Type::Timestamp,
            ("bool" | "matches", _) => Type::Bool,
            ("dyn", _) => Type::Dyn,
            (known, _) if FUNCTIONS.contains(&known) => Type::Dyn,
            _ => self.undeclared(name, open),
        })
    }
}

/// Whether there is a size to ask for.
fn sized(of: &Type<'_>) -> bool {
    matches!(of, Type::Text | Type::Bytes | Type::List(_) | Type::Map(_) | Type::Dyn)
}

fn list(given: &[Part<'_>]) -> String {
    given.iter().map(|(found, _)| found.to_string()).collect::<Vec<_>>().join(", ")
}
