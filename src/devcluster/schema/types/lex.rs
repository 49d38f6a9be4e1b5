//! The tokens of CEL.

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'t> {
    Name(&'t str),
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Sign(&'t str),
}

const SIGNS: &[&str] = &[
    "<=", ">=", "==", "!=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// The tokens with the bytes where they begin; `None` for text that is no CEL.
pub(super) fn tokens(text: &str) -> Option<Vec<(Token<'_>, usize)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        } else if let Some(found) = quoted(rest) {
            found?
        } else if first.is_ascii_digit() {
            number(rest)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            (Token::Name(&rest[..length]), length)
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign))?;
            (Token::Sign(sign), sign.len())
        };
        found.push((token, at));
        at += length;
    }
    Some(found)
}

/// A string or bytes in any of the quotes there are; `Some(None)` for one without an end.
fn quoted(text: &str) -> Option<Option<(Token<'_>, usize)>> {
    let letters = text.bytes().take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
    let (prefix, rest) = text.split_at(letters.min(2));
    let quote = ["'''", "\"\"\"", "'", "\""].into_iter().find(|quote| rest.starts_with(quote))?;
    let raw = prefix.contains(['r', 'R']);
    let mut at = quote.len();
    while !rest.get(at..)?.starts_with(quote) {
        let step = rest[at..].chars().next().map(char::len_utf8);
        let Some(step) = step else { return Some(None) };
        at += step;
        if !raw && &rest[at - step..at] == "\\" {
            at += rest[at..].chars().next().map_or(0, char::len_utf8);
        }
    }
    let token = if prefix.contains(['b', 'B']) { Token::Bytes } else { Token::Text };
    Some(Some((token, prefix.len() + at + quote.len())))
}

fn number(text: &str) -> (Token<'_>, usize) {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    if text.starts_with("0x") || text.starts_with("0X") {
        let length = 2 + bytes[2..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        return (Token::Int, length);
    }
    let mut length = digits(0);
    let mut double = false;
    if bytes.get(length) == Some(&b'.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
        double = true;
    }
    if matches!(bytes.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
            double = true;
        }
    }
    match bytes.get(length) {
        Some(b'u' | b'U') if !double => (Token::Uint, length + 1),
        _ if double => (Token::Double, length),
        _ => (Token::Int, length),
    }
}
