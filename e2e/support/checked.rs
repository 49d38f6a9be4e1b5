//! `docs/provider-checks.md`: what providers do, from the checks that they pass. Each test of a provider has a column
//! there, which must be what came of its checks; with `VNODE_UPDATE_DOCS` it is written anew.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use vnode::provider::conformance::{Report, Verdict};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/provider-checks.md");
const CLAIM: &str = "claim";

/// What stands before the table, its columns without the first, and its cells by claim and column.
struct Table {
    head: String,
    columns: Vec<String>,
    cells: HashMap<(String, String), String>,
}

fn parse(text: &str) -> Table {
    let at = text.find(&format!("| {CLAIM} |")).unwrap_or(text.len());
    let cut = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    let mut lines = text[at..].lines().filter(|l| l.starts_with('|')).map(cut);
    let columns: Vec<String> = lines.next().into_iter().flatten().skip(1).collect();
    let mut cells = HashMap::new();
    for line in lines {
        let claim = line.first().cloned().unwrap_or_default();
        cells.extend(columns.iter().zip(line.into_iter().skip(1)).map(|(c, cell)| ((claim.clone(), c.clone()), cell)));
    }
    Table { head: text[..at].to_owned(), columns, cells }
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// Compares a report with the column of a provider, or writes the column.
pub fn record(column: &str, report: &Report) {
    // Tests run at the same time, and each has a column.
    let mut file = File::options().read(true).write(true).open(PATH).expect(PATH);
    file.lock().expect("a lock");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    let mut table = parse(&text);
    let said = report.outcomes.iter().map(|o| {
        let cell = if o.verdict == Verdict::Passed { "yes" } else { "–" };
        ((words(o.name), column.to_owned()), cell.to_owned())
    });
    let said: HashMap<_, _> = said.collect();
    if std::env::var_os("VNODE_UPDATE_DOCS").is_none() {
        for (place, cell) in said {
            let (claim, got) = (&place.0, table.cells.get(&place));
            let how = "VNODE_UPDATE_DOCS=1 with this test writes the column anew";
            assert_eq!(got, Some(&cell), "docs/provider-checks.md: {claim:?} of {column} ({how})");
        }
        return;
    }
    table.cells.extend(said);
    table.columns.push(column.to_owned());
    table.columns.sort();
    table.columns.dedup();
    let mut out = table.head;
    out += &format!("| {CLAIM} | {} |\n|---{}|\n", table.columns.join(" | "), "|:-:".repeat(table.columns.len()));
    for outcome in &report.outcomes {
        let claim = words(outcome.name);
        let cell = |c: &String| table.cells.get(&(claim.clone(), c.clone())).cloned().unwrap_or_else(|| "?".into());
        let cells: Vec<String> = table.columns.iter().map(cell).collect();
        out += &format!("| {claim} | {} |\n", cells.join(" | "));
    }
    file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(out.as_bytes())).expect("written");
}
