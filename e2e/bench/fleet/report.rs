//! What was measured: one table with a column for each size, and the same as JSON.

use serde_json::{Value, json};

struct Row {
    figure: &'static str,
    unit: &'static str,
    target: &'static str,
    values: Vec<Option<f64>>,
}

/// Figures of fleets of several sizes.
#[derive(Default)]
pub struct Report {
    sizes: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    /// What is noted from now on is of a fleet of another size.
    pub fn begin(&mut self, size: String) {
        eprintln!("--- {size}");
        self.sizes.push(size);
    }

    /// Notes a figure, and says it at once. `target` says for which size it holds.
    pub fn note(&mut self, figure: &'static str, unit: &'static str, target: &'static str, value: f64) {
        eprintln!("{figure}: {} {unit}", short(value));
        let at = self.rows.iter().position(|r| r.figure == figure).unwrap_or_else(|| {
            self.rows.push(Row { figure, unit, target, values: Vec::new() });
            self.rows.len() - 1
        });
        let values = &mut self.rows[at].values;
        values.resize(self.sizes.len(), None);
        values[self.sizes.len() - 1] = Some(value);
    }

    /// The table.
    pub fn print(&self) {
        let cell = |value: Option<&Option<f64>>| value.copied().flatten().map_or("-".into(), short);
        let head: String = self.sizes.iter().map(|s| format!(" {s:>22} |")).collect();
        println!("| {:<58} | {:<8} |{head} {:<24} |", "figure", "unit", "target");
        let lines: String = self.sizes.iter().map(|_| format!("{:->24}|", ":")).collect();
        println!("|{:-<60}|{:-<10}|{lines}{:-<26}|", "", "", "");
        for row in &self.rows {
            let cells: String = (0..self.sizes.len()).map(|n| format!(" {:>22} |", cell(row.values.get(n)))).collect();
            println!("| {:<58} | {:<8} |{cells} {:<24} |", row.figure, row.unit, row.target);
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let row = |r: &Row| {
            let values: serde_json::Map<String, Value> =
                self.sizes.iter().zip(&r.values).filter_map(|(s, v)| Some((s.clone(), json!((*v)?)))).collect();
            json!({"figure": r.figure, "unit": r.unit, "target": r.target, "values": values})
        };
        json!({"figures": self.rows.iter().map(row).collect::<Vec<_>>()})
    }
}

/// Three digits are all that a noisy machine can tell.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
