//! Compares what a test suite uses with what the file allows.

use std::fmt;
use std::path::Path;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

use super::{NONE_METERED, Needed, Suite};
use crate::report::suite::Noted;
use crate::violation::Line;

/// What the units of work of a suite use, compared with what the file allows.
///
/// Its `Display` is a table.
#[derive(Debug, Clone)]
pub struct Comparison {
    file: String,
    rows: Vec<Row>,
    /// How many names were compared.
    names: usize,
    is_metered: bool,
}

#[derive(Debug, Clone)]
struct Row {
    name: String,
    what: &'static str,
    allowed: String,
    needed: String,
    verdict: Verdict,
    exempt: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    More,
    New,
    Less,
    NotRun,
    Exempt,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::More => "needs more",
            Self::New => "is new",
            Self::Less => "can be lowered",
            Self::NotRun => "no test runs it",
            Self::Exempt => "exempt",
        }
    }
}

impl Comparison {
    pub(super) fn new(file: &Path, allowed: &Suite, needed: &Needed, memory_slack: u64) -> Self {
        let Needed { suite: needed, is_metered } = needed;
        let mut rows = Vec::new();
        for (name, needed) in needed {
            compare(&mut rows, name, allowed.get(name), needed, memory_slack);
        }
        for (name, allowed) in allowed.iter().filter(|(name, _)| !needed.contains_key(*name)) {
            rows.push(Row {
                name: name.clone(),
                what: "",
                allowed: String::new(),
                needed: String::new(),
                verdict: Verdict::NotRun,
                exempt: allowed.exempt.clone(),
            });
        }
        // A stable sort keeps the rows of one verdict in the order of names and resources.
        rows.sort_by_key(|row| row.verdict);
        Self {
            file: file.display().to_string(),
            rows,
            names: needed.len(),
            is_metered: *is_metered,
        }
    }

    /// Whether nothing uses more than the file allows.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.count(&[Verdict::More, Verdict::New]) == 0
    }

    /// Whether something uses less than the file allows, so that the file can be lowered.
    #[must_use]
    pub fn can_be_lowered(&self) -> bool {
        self.count(&[Verdict::Less]) > 0
    }

    /// How many names have a row with one of these verdicts.
    fn count(&self, verdicts: &[Verdict]) -> usize {
        let rows = self.rows.iter().filter(|row| verdicts.contains(&row.verdict));
        let mut names: Vec<_> = rows.map(|row| &row.name).collect();
        names.sort();
        names.dedup();
        names.len()
    }
}

fn compare(
    rows: &mut Vec<Row>,
    name: &str,
    allowed: Option<&Noted>,
    needed: &Noted,
    memory_slack: u64,
) {
    let before = rows.len();
    let is_new = allowed.is_none();
    let (mut allowed, mut needed) = (allowed.cloned().unwrap_or_default(), needed.clone());
    let exempt = needed.exempt.clone();
    let row = |what, allowed, needed, verdict| Row {
        name: name.to_owned(),
        what,
        allowed,
        needed,
        verdict,
        exempt: exempt.clone(),
    };
    for ((what, allowed), (_, needed)) in allowed.numbers().into_iter().zip(needed.numbers()) {
        let (allowed, needed) = (*allowed, *needed);
        let slack = if what == "memory" { memory_slack } else { 0 };
        let most = allowed.saturating_add(allowed.saturating_mul(slack) / 100);
        let verdict = match () {
            () if is_new && needed > 0 => Verdict::New,
            () if is_new => continue,
            () if needed > most => Verdict::More,
            () if needed.saturating_add(needed.saturating_mul(slack) / 100) < allowed => {
                Verdict::Less
            }
            () => continue,
        };
        let print = |n: u64| match what {
            "memory" => ByteSize::b(n).to_string(),
            _ => n.to_string(),
        };
        let allowed = if is_new { String::from("-") } else { print(allowed) };
        rows.push(row(what, allowed, print(needed), verdict));
    }
    if rows.len() == before {
        match (is_new, &exempt) {
            (true, _) => {
                rows.push(row("", String::from("-"), String::from("nothing"), Verdict::New));
            }
            (false, Some(_)) => {
                rows.push(row("", String::new(), String::new(), Verdict::Exempt));
            }
            (false, None) => {}
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, names, rows, is_metered } = self;
        let more = self.count(&[Verdict::More, Verdict::New]);
        match more {
            0 => writeln!(f, "{names} requests and jobs: none needs more than {file} allows")?,
            n => writeln!(f, "{n} of {names} requests and jobs: more than {file} allows")?,
        }
        if !is_metered {
            writeln!(f, "statements are not among it: {NONE_METERED}")?;
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["work", "uses", "allowed", "needed", "", "exempt because of"]);
        for row in rows {
            let exempt = row.exempt.as_deref().unwrap_or_default();
            let Row { name, what, allowed, needed, verdict, .. } = row;
            let [name, exempt] = [&**name, exempt].map(|text| Line(text).to_string());
            table.add_row([&*name, *what, allowed, needed, verdict.text(), &*exempt]);
        }
        for column in [2, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
