//! Sides measured round by round, so that what slows the machine down slows down all of them.

use std::time::{Duration, Instant};

/// One of the things that are compared: measures a round, in nanoseconds for each turn.
pub struct Side<'a> {
    pub name: String,
    round: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Side<'a> {
    pub fn new(name: impl Into<String>, round: impl FnMut() -> f64 + 'a) -> Self {
        Self { name: name.into(), round: Box::new(round) }
    }
}

/// What was measured of one side, a value a round.
pub struct Series {
    pub name: String,
    pub values: Vec<f64>,
}

/// Measures all sides in turn, in another order each round, for so long.
///
/// Values of the same index were measured right after each other.
pub fn interleave(mut sides: Vec<Side<'_>>, time: Duration) -> Vec<Series> {
    const WARM_UP: usize = 3;
    const FEWEST: usize = 9;
    let mut all: Vec<_> =
        sides.iter().map(|side| Series { name: side.name.clone(), values: Vec::new() }).collect();
    let until = Instant::now() + time;
    let count = sides.len();
    for round in 0.. {
        if round >= WARM_UP + FEWEST && Instant::now() > until {
            break;
        }
        for step in 0..count {
            let forward = (round + step) % count;
            let side = if round / count % 2 == 0 { forward } else { count - 1 - forward };
            let value = (sides[side].round)();
            if round >= WARM_UP {
                all[side].values.push(value);
            }
        }
    }
    all
}

/// The quartiles: below them is a quarter, a half, three quarters.
pub fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    quartiles(values)[1]
}

/// How each side compares with the first one, round by round.
pub fn print_ratios(title: &str, all: &[Series]) {
    println!("\n{title}\n");
    println!("| side | median ns | ratio | half of the rounds within |");
    println!("|---|---:|---:|---|");
    let base = &all[0].values;
    for Series { name, values } in all {
        let ratios = values.iter().zip(base).map(|(this, base)| this / base);
        let [low, ratio, high] = quartiles(ratios);
        let this = median(values.iter().copied());
        println!("| {name} | {this:.1} | {ratio:.3} | {low:.3} to {high:.3} |");
    }
}

/// What each side adds to the first one, and that against what the side of this name adds.
pub fn print_added(title: &str, all: &[Series], yardstick: &str) {
    println!("\n{title}\n");
    println!(
        "| side | median ns | adds ns | half of the rounds within | of what {yardstick} adds |"
    );
    println!("|---|---:|---:|---|---:|");
    let base = &all[0].values;
    let added =
        |series: &Series| quartiles(series.values.iter().zip(base).map(|(this, base)| this - base));
    let whole =
        all.iter().find(|series| series.name == yardstick).map_or(f64::NAN, |s| added(s)[1]);
    for series in all {
        let [low, adds, high] = added(series);
        let this = median(series.values.iter().copied());
        let share = adds / whole;
        println!(
            "| {} | {this:.1} | {adds:.1} | {low:.1} to {high:.1} | {share:.2}x |",
            series.name
        );
    }
}
