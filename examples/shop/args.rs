//! What the command line asks for.

use std::ffi::OsString;

pub(crate) const USAGE: &str = "\
usage: cargo run --example shop [-- OPTIONS]

Without options: starts the shop, sends it requests, prints what each one used, and ends.

  --serve     serve until Ctrl-C, and print each violation as it comes
  --port N    the port to serve on (default 3000; 0 takes any that is free)
  --help      print this";

const DEFAULT_PORT: u16 = 3000;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    Drive,
    Serve { port: u16 },
    Help,
}

/// Reads the arguments; the error is a message for the person who typed them.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Plan, String> {
    let (mut serve, mut port) = (false, None);
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Plan::Help),
            "--serve" => serve = true,
            "--port" => {
                let value = args.next().ok_or("--port needs a number")?;
                port = Some(parse_port(&value)?);
            }
            other => match other.strip_prefix("--port=") {
                Some(value) => port = Some(parse_port(value)?),
                None => return Err(format!("unknown argument '{other}'")),
            },
        }
    }
    match (serve, port) {
        (true, port) => Ok(Plan::Serve { port: port.unwrap_or(DEFAULT_PORT) }),
        (false, None) => Ok(Plan::Drive),
        (false, Some(port)) => Err(format!("--port {port} is of use only together with --serve")),
    }
}

fn parse_port(value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("'{value}' is not a port: a number from 0 to 65535 is"))
}
