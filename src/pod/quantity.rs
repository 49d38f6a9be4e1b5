//! Pure: quantities as numbers.

/// A quantity in billionths.
pub(crate) fn nano(quantity: &str) -> Option<i128> {
    let split = quantity.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+')).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let factor: f64 = match suffix {
        "n" => 1.0,
        "u" => 1e3,
        "m" => 1e6,
        "" => 1e9,
        "k" => 1e12,
        "M" => 1e15,
        "G" => 1e18,
        "T" => 1e21,
        "P" => 1e24,
        "E" => 1e27,
        "Ki" => 1e9 * 1024.0,
        "Mi" => 1e9 * 1024f64.powi(2),
        "Gi" => 1e9 * 1024f64.powi(3),
        "Ti" => 1e9 * 1024f64.powi(4),
        "Pi" => 1e9 * 1024f64.powi(5),
        "Ei" => 1e9 * 1024f64.powi(6),
        exponent => 1e9 * 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    match number.parse::<i128>() {
        Ok(whole) => whole.checked_mul(factor as i128),
        Err(_) => Some((number.parse::<f64>().ok()? * factor) as i128),
    }
}

/// A quantity in thousandths, rounded up, as the amount of a processor is counted.
pub(crate) fn milli(quantity: &str) -> Option<i64> {
    i64::try_from((nano(quantity)? + 999_999).div_euclid(1_000_000)).ok()
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(quantity: &str) -> Option<i64> {
    i64::try_from((nano(quantity)? + 999_999_999).div_euclid(1_000_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        for (text, want) in
            [("1", 1e9), ("500m", 5e8), ("1.5", 1.5e9), ("2Ki", 2048e9), ("1e3", 1e12), ("1Gi", 1073741824e9)]
        {
            assert_eq!(nano(text), Some(want as i128), "{text}");
        }
        assert_eq!(nano("x"), None);
        assert_eq!(
            (milli("1.5"), milli("100u"), whole("1.5Gi"), whole("1m")),
            (Some(1500), Some(1), Some(1610612736), Some(1))
        );
    }
}
