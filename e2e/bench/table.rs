//! A table of figures that is printed as they come.

/// A line of the table.
pub fn row(what: &str, value: String, target: &str) {
    println!("| {what:<58} | {value:>12} | {target:>10} |");
}

/// The head of the table.
pub fn heading() {
    println!("| {:<58} | {:>12} | {:>10} |", "figure", "measured", "target");
    println!("|{:-<60}|{:->14}|{:->12}|", "", ":", ":");
}
