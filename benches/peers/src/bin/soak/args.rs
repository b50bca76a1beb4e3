//! What the command line asks for.

use std::time::Duration;

use crate::Urls;
use crate::ledger::Store;
use crate::works::{self, OTHER};

const USAGE: &str = "\
Usage: benches/soak [OPTIONS]
  --seconds N          how long, 600 unless given
  --seed N             of the random choices, 1 unless given
  --databases A,B      of sqlite, postgres, mariadb, mongodb; all unless given
  --without A,B        leaves kinds of work out: retry, or postgres/retry, or a whole database
  --only A,B           only these kinds
  --clients N          24 unless given
  --keep-going         does not stop after the first round with a failure
PostgreSQL is started anew, because it is restarted; MariaDB and MongoDB are those that the variables of
tests/run name, or throw-away ones.";

pub struct Args {
    pub time: Duration,
    pub seed: u64,
    pub clients: u64,
    pub keeps_going: bool,
    databases: Vec<String>,
    without: Vec<String>,
    only: Option<Vec<String>>,
}

impl Args {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut this = Self {
            time: Duration::from_secs(600),
            seed: 1,
            clients: 24,
            keeps_going: false,
            databases: Store::ALL.map(|store| store.name().to_owned()).to_vec(),
            without: Vec::new(),
            only: None,
        };
        let list = |value: String| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        while let Some(word) = words.next() {
            if word == "--keep-going" {
                this.keeps_going = true;
                continue;
            }
            if word == "--help" {
                return Err(USAGE.to_owned());
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"))?;
            let number = || value.parse().map_err(|_| format!("{word} {value}: no number"));
            match word.as_str() {
                "--seconds" => this.time = Duration::from_secs(number()?),
                "--seed" => this.seed = number()?,
                "--clients" => this.clients = number()?,
                "--databases" => this.databases = list(value),
                "--without" => this.without = list(value),
                "--only" => this.only = Some(list(value)),
                _ => return Err(format!("no such option: {word}\n{USAGE}")),
            }
        }
        let is_known = |name: &&String| Store::ALL.iter().any(|store| store.name() == *name);
        if let Some(unknown) = this.databases.iter().find(|name| !is_known(name)) {
            return Err(format!("no such database: {unknown}"));
        }
        Ok(this)
    }

    pub fn is_on(&self, store: Store) -> bool {
        self.databases.iter().any(|name| name == store.name())
    }

    /// The address of a server that somebody else runs; says so if there is none.
    pub fn url(&self, store: Store, variable: &str) -> Option<String> {
        let url = self.is_on(store).then(|| std::env::var(variable))?;
        if url.is_err() {
            println!("soak: {} is left out, {variable} is not set", store.name());
        }
        url.ok()
    }

    /// Long enough for a restart each, and enough of them to see memory grow.
    pub fn rounds(&self) -> u32 {
        (self.time.as_secs() / 15).clamp(4, 60) as u32
    }

    fn is_wanted(&self, path: &str) -> bool {
        let names = |word: &String| path.split('/').any(|part| part == word) || path[1..] == *word;
        !self.without.iter().any(names)
            && self.only.as_ref().is_none_or(|only| only.iter().any(names))
    }

    /// What clients ask for.
    pub fn paths(&self, urls: &Urls) -> Vec<String> {
        let stores = [
            (Store::Sqlite, &urls.sqlite),
            (Store::Postgres, &urls.postgres),
            (Store::Mariadb, &urls.mariadb),
            (Store::Mongodb, &urls.mongodb),
        ];
        let on = stores.into_iter().filter(|(_, url)| url.is_some());
        let of = |(store, _): (Store, _)| {
            let kinds = works::SQL
                .iter()
                .chain(&works::MONGODB)
                .filter(move |kind| works::has(store, kind));
            kinds.map(move |kind| format!("/{}/{kind}", store.name()))
        };
        let mut paths: Vec<_> = on.flat_map(of).collect();
        paths.sort();
        paths.dedup();
        paths.retain(|path| self.is_wanted(path));
        let other = OTHER.iter().map(|kind| format!("/other/{kind}"));
        // Somebody has to say whether the server is alive.
        paths.extend(other.filter(|path| path == "/other/hello" || self.is_wanted(path)));
        paths
    }
}
