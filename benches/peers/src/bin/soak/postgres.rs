//! A PostgreSQL that can be restarted: `benches/peers/postgres.sh` starts it, and ends it when we
//! do.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Server {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pub url: String,
}

impl Server {
    /// Starts one, or says why that cannot be.
    pub fn start() -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("postgres.sh");
        let child =
            Command::new("bash").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| error.to_string())?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("is a pipe"));
        let mut this = Self { child, commands, answers, url: String::new() };
        this.url = this.answer().ok_or("postgres.sh has said why it does not start")?;
        Ok(this)
    }

    /// Stops it by this signal (`INT` has it end sessions, `QUIT` drops everything), waits so many
    /// seconds, and starts it again.
    pub fn restart(&mut self, signal: &str, down: f64) -> Result<(), String> {
        let commands = self.commands.as_mut().expect("is there until it is dropped");
        writeln!(commands, "{signal} {down:.2}").map_err(|error| error.to_string())?;
        self.answer().map(drop).ok_or_else(|| "PostgreSQL does not start again".to_owned())
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).ok()?;
        (!line.is_empty()).then(|| line.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input is what it waits for.
        drop(self.commands.take());
        drop(self.child.wait());
    }
}
