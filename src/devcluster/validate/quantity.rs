//! Quantities as the API server writes them. apimachinery: `resource.Quantity`, `CanonicalizeBytes`.

use serde_json::Value;

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// How the client wrote an amount, which decides how it is written again.
enum Suffix {
    Binary(u32),
    Decimal(i32),
    Exponent(i32),
}

/// Rewrites a quantity in its shortest exact form; what is none, or needs rounding, stays as it is.
pub(crate) fn canonical(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Some(written) = rewrite(&text)
        && value.as_str() != Some(&written)
    {
        *value = written.into();
    } else if value.is_number() {
        *value = text.into();
    }
}

fn rewrite(text: &str) -> Option<String> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() && fraction.is_empty() && number != "0." && number != ".0" || fraction.contains('.') {
        return None;
    }
    let mut digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let mut exponent = -i32::try_from(fraction.len()).ok()?;
    let suffix = read_suffix(suffix)?;
    let sign = if negative { "-" } else { "" };
    if digits == 0 {
        return Some("0".into());
    }
    if let Suffix::Binary(power) = suffix {
        let scaled = digits.checked_mul(1i128.checked_shl(10 * power)?)?;
        let unit = 10i128.checked_pow(exponent.unsigned_abs())?;
        if scaled % unit != 0 {
            return None;
        }
        let mut amount = scaled / unit;
        if amount >= 1024 {
            let mut power = 0;
            while amount % 1024 == 0 && power + 1 < BINARY.len() {
                amount /= 1024;
                power += 1;
            }
            return Some(format!("{sign}{amount}{}", BINARY[power]));
        }
        // Small amounts are written in decimals.
        (digits, exponent) = (amount, 0);
    }
    let (shift, scientific) = match suffix {
        Suffix::Decimal(shift) => (shift, false),
        Suffix::Exponent(shift) => (shift, true),
        Suffix::Binary(_) => (0, false),
    };
    exponent = exponent.checked_add(shift)?;
    while digits % 10 == 0 {
        digits /= 10;
        exponent += 1;
    }
    // Less than a billionth is rounded up, and more than there are suffixes for keeps its zeros.
    if exponent < -9 {
        return None;
    }
    while exponent.rem_euclid(3) != 0 || exponent > 18 {
        digits = digits.checked_mul(10)?;
        exponent -= 1;
    }
    if scientific {
        return Some(if exponent == 0 { format!("{sign}{digits}") } else { format!("{sign}{digits}e{exponent}") });
    }
    let (name, _) = DECIMAL.iter().find(|(_, power)| *power == exponent)?;
    Some(format!("{sign}{digits}{name}"))
}

fn read_suffix(suffix: &str) -> Option<Suffix> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some(Suffix::Decimal(*power));
    }
    if let Some(power) = BINARY.iter().position(|name| *name == suffix) {
        return Some(Suffix::Binary(u32::try_from(power).ok()?));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-18..=18).contains(&exponent).then_some(Suffix::Exponent(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_written_in_their_shortest_exact_form() {
        for (given, want) in [
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1000m", "1"),
            ("2000", "2k"),
            ("1500", "1500"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-1", "1200e-3"),
            ("+5", "5"),
            ("-1", "-1"),
            ("0m", "0"),
            ("1.10", "1100m"),
            ("100E", "100E"),
            ("1000E", "1000E"),
            ("1.1Ki", "1.1Ki"),
            ("nope", "nope"),
            ("1.2.3", "1.2.3"),
        ] {
            let mut value = Value::from(given);
            canonical(&mut value);
            assert_eq!(value, want, "{given}");
        }
        let mut number = Value::from(2);
        canonical(&mut number);
        assert_eq!(number, "2");
    }
}
