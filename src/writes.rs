//! Recognises statements that change data or schema, by their first words.

/// The verbs of statements that change something, in SQL and in the commands of MongoDB.
const VERBS: [&str; 23] = [
    "INSERT",
    "UPDATE",
    "DELETE",
    "MERGE",
    "REPLACE",
    "UPSERT",
    "CREATE",
    "ALTER",
    "DROP",
    "TRUNCATE",
    "RENAME",
    "GRANT",
    "REVOKE",
    "COMMENT",
    "REFRESH",
    "LOAD",
    "IMPORT",
    "FINDANDMODIFY",
    "CREATEINDEXES",
    "DROPINDEXES",
    "DROPDATABASE",
    "BULKWRITE",
    "RENAMECOLLECTION",
];

/// Whether any statement of this text changes something.
///
/// Decides by the first word of each statement, and of each part of a `WITH`; comments and quoted
/// text are skipped. `EXPLAIN ANALYZE` executes the statement that it explains, and `COPY .. FROM`
/// writes. Writes by a function that a `SELECT` calls cannot be recognised.
pub(crate) fn is_write(text: &str) -> bool {
    let mut words = Words::new(text);
    loop {
        if is_write_statement(&mut words) {
            return true;
        }
        // Most texts are one statement, of which nothing more has to be read.
        if !words.rest.contains(';') || !words.skip_statement() {
            return false;
        }
    }
}

fn is_write_statement(words: &mut Words<'_>) -> bool {
    let mut first = words.next();
    // A query in parentheses.
    while first == Some(Token::Open) {
        first = words.next();
    }
    let Some(Token::Word(verb)) = first else {
        words.unread(first);
        return false;
    };
    let is = |name: &str| verb.eq_ignore_ascii_case(name);
    if is("WITH") {
        return is_write_with(words);
    }
    if is("EXPLAIN") {
        return is_executed_explain(words);
    }
    if is("COPY") {
        return is_copy_from(words);
    }
    is_verb(verb)
}

fn is_verb(word: &str) -> bool {
    VERBS.iter().any(|verb| word.eq_ignore_ascii_case(verb))
}

/// `WITH name (columns) AS [NOT] [MATERIALIZED] (part), .. statement`: any part may write.
fn is_write_with(words: &mut Words<'_>) -> bool {
    let mut depth = 0_u32;
    let mut before = Some(Token::Word("WITH"));
    while let Some(token) = words.next() {
        match (token, before) {
            (Token::Open, _) => depth = depth.saturating_add(1),
            (Token::Close, _) => depth = depth.saturating_sub(1),
            (Token::End, _) => {
                words.unread(Some(token));
                return false;
            }
            // The first word of a part, at any depth, because a part may have a `WITH` of its own.
            (Token::Word(word), Some(Token::Open)) if is_verb(word) => return true,
            // The statement after the last part.
            (Token::Word(word), Some(Token::Close)) if depth == 0 => {
                if is_verb(word) {
                    return true;
                }
                if ["SELECT", "VALUES", "TABLE"].iter().any(|s| word.eq_ignore_ascii_case(s)) {
                    return false;
                }
            }
            _ => {}
        }
        before = Some(token);
    }
    false
}

/// `EXPLAIN` executes its statement only with `ANALYZE`.
fn is_executed_explain(words: &mut Words<'_>) -> bool {
    let mut is_executed = false;
    while let Some(token) = words.next() {
        match token {
            Token::Word(word) if word.eq_ignore_ascii_case("ANALYZE") => is_executed = true,
            Token::Word(word) if word.eq_ignore_ascii_case("WITH") => {
                return is_write_with(words) && is_executed;
            }
            Token::Word(word) if is_verb(word) => return is_executed,
            Token::Word(word) if word.eq_ignore_ascii_case("SELECT") => return false,
            Token::End => {
                words.unread(Some(token));
                return false;
            }
            _ => {}
        }
    }
    false
}

/// `COPY table FROM` writes, `COPY table TO` and `COPY (query) TO` read.
fn is_copy_from(words: &mut Words<'_>) -> bool {
    let mut depth = 0_u32;
    while let Some(token) = words.next() {
        match token {
            Token::Open => depth = depth.saturating_add(1),
            Token::Close => depth = depth.saturating_sub(1),
            Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case("FROM") => return true,
            Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case("TO") => return false,
            Token::End => {
                words.unread(Some(token));
                return false;
            }
            _ => {}
        }
    }
    false
}

/// A token of a statement that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Open,
    Close,
    /// The end of one statement of several.
    End,
    /// Quoted text, or any other token.
    Other,
}

/// The tokens of a text, without its comments.
struct Words<'a> {
    rest: &'a str,
    unread: Option<Token<'a>>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, unread: None }
    }

    fn unread(&mut self, token: Option<Token<'a>>) {
        self.unread = token;
    }

    /// Skips to the end of the statement; returns whether another one may follow.
    fn skip_statement(&mut self) -> bool {
        std::iter::from_fn(|| self.next()).any(|token| token == Token::End)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        if let Some(token) = self.unread.take() {
            return Some(token);
        }
        loop {
            self.rest = self.rest.trim_start();
            if let Some(comment) = self.rest.strip_prefix("--") {
                self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                self.rest = after_comment(comment);
            } else {
                break;
            }
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let first = self.rest.chars().next()?;
        if is_word(first) {
            let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
            return Some(Token::Word(self.advance(end)));
        }
        if let '\'' | '"' | '`' = first {
            let quoted = &self.rest[1..];
            let end = quoted.find(first).map_or(self.rest.len(), |end| end.saturating_add(2));
            self.advance(end);
            return Some(Token::Other);
        }
        if let Some(end) = dollar_quoted(self.rest) {
            self.advance(end);
            return Some(Token::Other);
        }
        self.advance(first.len_utf8());
        Some(match first {
            '(' => Token::Open,
            ')' => Token::Close,
            ';' => Token::End,
            _ => Token::Other,
        })
    }

    fn advance(&mut self, by: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at(by);
        self.rest = rest;
        passed
    }
}

/// The text after a comment, which may contain nested ones.
fn after_comment(mut rest: &str) -> &str {
    let mut depth = 1_u32;
    while depth > 0 {
        let (Some(end), start) = (rest.find("*/"), rest.find("/*")) else { return "" };
        let (at, deeper) = match start {
            Some(start) if start < end => (start, depth.saturating_add(1)),
            _ => (end, depth.saturating_sub(1)),
        };
        depth = deeper;
        rest = &rest[at.saturating_add(2)..];
    }
    rest
}

/// The length of the text quoted as `$tag$ .. $tag$` in PostgreSQL, if one starts here.
fn dollar_quoted(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('$')?;
    let tag = &text[..inner.find('$')?.saturating_add(2)];
    let is_tag =
        tag[1..tag.len().saturating_sub(1)].chars().all(|c| c.is_alphanumeric() || c == '_');
    let is_placeholder = inner.starts_with(|c: char| c.is_ascii_digit());
    if !is_tag || is_placeholder {
        return None;
    }
    let end = text[tag.len()..].find(tag)?;
    Some(end.saturating_add(tag.len()).saturating_add(tag.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_change_something() {
        for text in [
            "INSERT INTO a VALUES (1)",
            "  update a set b = 1",
            "delete from a",
            "MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN DELETE",
            "REPLACE INTO a VALUES (1)",
            "CREATE TABLE a (i int)",
            "TRUNCATE a",
            "-- a comment\nINSERT INTO a VALUES (1)",
            "/* a /* nested; */ comment */ /**/ DROP TABLE a",
            "WITH a AS (SELECT 1) INSERT INTO b SELECT * FROM a",
            "with recursive a (x, y) as (select 1, 2), b as (select ')') update c set d = 1",
            "WITH gone AS (DELETE FROM a RETURNING *) SELECT * FROM gone",
            "WITH a AS NOT MATERIALIZED (/* */ INSERT INTO b VALUES (1) RETURNING *) SELECT 1",
            "WITH a AS (WITH b AS (UPDATE c SET d = 1 RETURNING *) SELECT * FROM b) SELECT 1",
            "EXPLAIN ANALYZE INSERT INTO a VALUES (1)",
            "EXPLAIN (ANALYZE, BUFFERS) UPDATE a SET b = 1",
            "COPY a (b, c) FROM STDIN",
            "SELECT 1; DELETE FROM a",
            "BEGIN; INSERT INTO a VALUES (1); COMMIT",
            "insert posts {..}",
            "findAndModify posts {..}",
        ] {
            assert!(is_write(text), "{text}");
        }
    }

    #[test]
    fn statements_that_change_nothing() {
        for text in [
            "",
            ";",
            "SELECT 1",
            "(SELECT 1) UNION (SELECT 2)",
            "SELECT 'INSERT INTO a'; SELECT 2",
            "SELECT $$; DELETE FROM a$$, $1, $2; SELECT 2",
            "SELECT $1; -- ; DELETE FROM a\n",
            "SELECT \"a;b\" FROM c WHERE d = 'it''s; DROP TABLE a' FOR UPDATE",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "WITH delete AS (SELECT 1), update (x) AS (SELECT 2) SELECT * FROM delete, update",
            "WITH a AS (SELECT insert FROM b) SELECT insert FROM a",
            "EXPLAIN INSERT INTO a VALUES (1)",
            "EXPLAIN ANALYZE SELECT 1",
            "COPY a TO STDOUT",
            "COPY (SELECT b FROM c) TO STDOUT",
            "SHOW TABLES",
            "SET statement_timeout = 1",
            "PRAGMA foreign_keys",
            "SELECT",
            "WITH",
            "/* not closed INSERT",
            "'not closed INSERT",
            "find posts {..}",
            "GET user:*",
        ] {
            assert!(!is_write(text), "{text}");
        }
    }

    #[test]
    fn a_long_text_is_read_to_its_end_once() {
        let values = "('x;y'), ".repeat(100_000);
        assert!(is_write(&format!("SELECT {values} 1; UPDATE a SET b = 1")));
        assert!(!is_write(&format!("SELECT {values} 1")));
    }
}
