//! The shape of a command: equal for commands that differ only in ids and values.

use std::fmt::Write;

use ::redis::{Arg, Cmd, Pipeline};

/// The highest number of kinds of commands that are named of a pipeline.
const MOST_COMMANDS: usize = 4;
/// The highest number of parts of a key that are distinguished.
const MOST_PARTS: usize = 8;
/// A part of a key that is longer than this is taken for an id.
const LONGEST_PART: usize = 32;

/// Commands whose second word belongs to the command and is not a key.
const OF_TWO_WORDS: [&str; 16] = [
    "ACL", "BITOP", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "FUNCTION", "LATENCY",
    "MEMORY", "OBJECT", "PUBSUB", "SCRIPT", "SLOWLOG", "XGROUP", "XINFO",
];

/// Commands without a key after their name.
const WITHOUT_KEY: [&str; 17] = [
    "AUTH",
    "DBSIZE",
    "DISCARD",
    "ECHO",
    "EXEC",
    "FLUSHALL",
    "FLUSHDB",
    "HELLO",
    "INFO",
    "KEYS",
    "MULTI",
    "PING",
    "RANDOMKEY",
    "SCAN",
    "SELECT",
    "TIME",
    "WAIT",
];

/// Commands with a script, then the number of their keys, then the keys.
const SCRIPTS: [&str; 6] = ["EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"];

/// "GET user:*".
pub(super) fn of_command(command: &Cmd) -> String {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        _ => b"",
    });
    let mut shape = String::from_utf8_lossy(words.next().unwrap_or_default()).to_ascii_uppercase();
    let name = shape.clone();
    let is_one_of = |names: &[&str]| names.contains(&&*name);
    if is_one_of(&OF_TWO_WORDS) {
        if let Some(word) = words.next().and_then(|word| std::str::from_utf8(word).ok()) {
            shape.push(' ');
            shape.push_str(&word.to_ascii_uppercase());
        }
    } else if is_one_of(&SCRIPTS) {
        // The text of a script is long and may contain values, and its hash is of no use to a
        // reader.
        words.next();
        let count = words.next();
        if count != Some(b"0".as_slice())
            && let Some(key) = words.next()
        {
            push_key(&mut shape, key);
        }
    } else if !is_one_of(&WITHOUT_KEY)
        && let Some(key) = words.next()
    {
        push_key(&mut shape, key);
    }
    shape
}

/// "pipeline of GET user:*, EXPIRE user:*".
pub(super) fn of_pipeline(pipeline: &Pipeline) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for command in pipeline.cmd_iter() {
        let kind = of_command(command);
        if kinds.contains(&kind) {
            continue;
        }
        if kinds.len() == MOST_COMMANDS {
            kinds.push("..".to_owned());
            break;
        }
        kinds.push(kind);
    }
    let name = if pipeline.is_transaction() { "transaction" } else { "pipeline" };
    format!("{name} of {}", kinds.join(", "))
}

fn push_key(shape: &mut String, key: &[u8]) {
    shape.push(' ');
    match std::str::from_utf8(key) {
        Ok(key) => push_folded(shape, key),
        Err(_) => shape.push('*'),
    }
}

/// Writes a key without the ids in it.
///
/// Its parts are separated by `:`, `/` and `.`. A part with a digit in it is an id, and so is a
/// long one, and the last one if no other is: "user:alice" becomes "user:*".
fn push_folded(shape: &mut String, key: &str) {
    const SEPARATORS: [char; 3] = [':', '/', '.'];
    let mut has_id = false;
    let mut rest = key;
    for position in 0.. {
        if position == MOST_PARTS {
            shape.push('*');
            return;
        }
        let (part, next) = match rest.find(SEPARATORS) {
            // A separator is one byte.
            Some(at) => (&rest[..at], Some(rest.split_at(at).1)),
            None => (rest, None),
        };
        let is_last_chance = next.is_none() && position > 0 && !has_id;
        if is_id(part) || is_last_chance {
            has_id = true;
            shape.push('*');
        } else {
            // Escaped, so that a line break in a key does not forge a line of a log.
            let _ = write!(shape, "{}", part.escape_debug());
        }
        let Some(next) = next else { return };
        shape.push_str(&next[..1]);
        rest = &next[1..];
    }
}

fn is_id(part: &str) -> bool {
    part.len() > LONGEST_PART || part.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use ::redis::{cmd, pipe};

    use super::*;

    fn of(words: &[&str]) -> String {
        let mut command = cmd(words[0]);
        words[1..].iter().for_each(|word| drop(command.arg(word).clone()));
        of_command(&command)
    }

    #[test]
    fn ids_are_folded_out_of_keys() {
        for (key, shape) in [
            ("user:1", "user:*"),
            ("user:alice", "user:*"),
            ("user:42:profile", "user:*:profile"),
            ("user:{42}:profile", "user:*:profile"),
            ("session:9f86d081-884c-4d63", "session:*"),
            ("session/af/9e", "session/af/*"),
            ("shop.posts.page", "shop.posts.*"),
            ("leaderboard", "leaderboard"),
            ("user42", "*"),
            ("abcdefghijklmnopqrstuvwxyzabcdefghijklmnop", "*"),
            ("", ""),
            (":", ":*"),
            ("a:b:c:d:e:f:g:h:i", "a:b:c:d:e:f:g:h:*"),
            ("ü:1\n2", "ü:*"),
            ("a\nb", "a\\nb"),
        ] {
            assert_eq!(of(&["GET", key]), format!("GET {shape}"));
        }
        let mut command = cmd("GET");
        command.arg(&[0xff_u8, 0xfe][..]);
        assert_eq!(of_command(&command), "GET *");
    }

    #[test]
    fn no_value_is_part_of_a_shape() {
        assert_eq!(of(&["set", "user:1", "secret"]), "SET user:*");
        assert_eq!(of(&["MGET", "user:1", "post:2"]), "MGET user:*");
        assert_eq!(of(&["AUTH", "secret"]), "AUTH");
        assert_eq!(of(&["PING"]), "PING");
        assert_eq!(of(&["SCAN", "0", "MATCH", "user:*"]), "SCAN");
        assert_eq!(of(&["CLIENT", "setname", "web-7"]), "CLIENT SETNAME");
        assert_eq!(of(&["EVAL", "return 'secret'", "1", "user:7", "secret"]), "EVAL user:*");
        assert_eq!(of(&["EVALSHA", "9e3b", "0", "secret"]), "EVALSHA");
        assert_eq!(of(&["EVALSHA", "9e3b"]), "EVALSHA");
    }

    #[test]
    fn a_pipeline_names_its_first_kinds() {
        let mut pipeline = pipe();
        pipeline.get("user:1").get("user:2").expire("user:1", 60);
        assert_eq!(of_pipeline(&pipeline), "pipeline of GET user:*, EXPIRE user:*");
        pipeline.atomic();
        assert_eq!(of_pipeline(&pipeline), "transaction of GET user:*, EXPIRE user:*");
        for kind in ["a", "b", "c", "d"] {
            pipeline.get(kind);
        }
        let expected = "transaction of GET user:*, EXPIRE user:*, GET a, GET b, ..";
        assert_eq!(of_pipeline(&pipeline), expected);
    }
}
