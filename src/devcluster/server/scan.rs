//! What is wrong with a body that should be JSON, in the words of the API server's parser.

/// The fault of `body`, which does not parse.
pub(crate) fn fault(body: &[u8]) -> String {
    let mut scanner = Scanner { body, at: 0 };
    scanner.space();
    let found = scanner.value(0).and_then(|()| {
        scanner.space();
        scanner.peek().map_or(Ok(()), |byte| Err(scanner.unexpected(byte, "after top-level value")))
    });
    found.err().unwrap_or_else(|| "exceeded max depth".into())
}

const END: &str = "unexpected end of JSON input";

struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn need(&self) -> Result<u8, String> {
        self.peek().ok_or_else(|| END.to_owned())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn unexpected(&self, byte: u8, place: &str) -> String {
        let shown = match byte {
            b'\'' => r"'\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            b'\n' => r"'\n'".to_owned(),
            b'\t' => r"'\t'".to_owned(),
            b'\r' => r"'\r'".to_owned(),
            b'\\' => r"'\\'".to_owned(),
            0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
            // A byte is shown as the character of that number.
            _ => format!("'{}'", char::from(byte)),
        };
        format!("invalid character {shown} {place}")
    }

    fn value(&mut self, depth: usize) -> Result<(), String> {
        if depth > super::http::DEPTH_LIMIT {
            return Err("exceeded max depth".into());
        }
        match self.need()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            b'-' | b'0'..=b'9' => self.number(),
            byte => Err(self.unexpected(byte, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        self.space();
        if self.need()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            match self.need()? {
                b'"' => self.string()?,
                byte => return Err(self.unexpected(byte, "looking for beginning of object key string")),
            }
            self.space();
            match self.need()? {
                b':' => self.at += 1,
                byte => return Err(self.unexpected(byte, "after object key")),
            }
            self.space();
            self.value(depth + 1)?;
            self.space();
            match self.need()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                byte => return Err(self.unexpected(byte, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        self.space();
        if self.need()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            self.value(depth + 1)?;
            self.space();
            match self.need()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                byte => return Err(self.unexpected(byte, "after array element")),
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            let byte = self.need()?;
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    self.at += 1;
                    match self.need()? {
                        b'u' => {
                            for _ in 0..4 {
                                self.at += 1;
                                let digit = self.need()?;
                                if !digit.is_ascii_hexdigit() {
                                    return Err(self.unexpected(digit, r"in \u hexadecimal character escape"));
                                }
                            }
                        }
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                        byte => return Err(self.unexpected(byte, "in string escape code")),
                    }
                }
                0..0x20 => return Err(self.unexpected(byte, "in string literal")),
                _ => {}
            }
            self.at += 1;
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for wanted in word.bytes() {
            let byte = self.need()?;
            if byte != wanted {
                let place = format!("in literal {word} (expecting '{}')", char::from(wanted));
                return Err(self.unexpected(byte, &place));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - from
    }

    fn number(&mut self) -> Result<(), String> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.need()? == b'0' {
            self.at += 1;
        } else if self.digits() == 0 {
            let byte = self.need()?;
            return Err(self.unexpected(byte, "in numeric literal"));
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                let byte = self.need()?;
                return Err(self.unexpected(byte, "after decimal point in numeric literal"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                let byte = self.need()?;
                return Err(self.unexpected(byte, "in exponent of numeric literal"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_as_kubernetes_tells_them() {
        for (body, want) in [
            ("", END),
            ("{", END),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 2", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            (r#""\q""#, "invalid character 'q' in string escape code"),
            ("trux", "invalid character 'x' in literal true (expecting 'e')"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
        ] {
            assert_eq!(fault(body.as_bytes()), want, "{body}");
        }
    }
}
