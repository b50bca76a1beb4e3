//! The text of a statement without its values, so that executions of it can be told to be the same.

use sqlparser::dialect::{Dialect, GenericDialect, MySqlDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, Tokenizer, Word};

/// Folds values, lists of values, comments and white space. What is no SQL that the tokenizer knows stays
/// as it is.
///
/// The database is named as sqlx names it; an unknown one is taken for something like the standard.
pub(super) fn normalise(sql: &str, database: &str) -> String {
    let mut dialects: Vec<&dyn Dialect> =
        vec![&GenericDialect {}, &PostgreSqlDialect {}, &MySqlDialect {}, &SQLiteDialect {}];
    let own = match database {
        "PostgreSQL" => 1,
        "MySQL" => 2,
        "SQLite" => 3,
        _ => 0,
    };
    dialects.swap(0, own);
    let tokens =
        dialects.into_iter().find_map(|dialect| Tokenizer::new(dialect, sql).tokenize().ok());
    match tokens {
        Some(tokens) => print(&fold(tokens)),
        None => sql.trim().to_owned(),
    }
}

/// A token, or what stands for several of them.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Token(Token),
    Value,
    Space,
}

impl Piece {
    fn is(&self, token: &Token) -> bool {
        matches!(self, Self::Token(own) if own == token)
    }

    fn is_keyword(&self, keywords: &[Keyword]) -> bool {
        matches!(self, Self::Token(Token::Word(word)) if keywords.contains(&word.keyword))
    }
}

fn fold(tokens: Vec<Token>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(tokens.len());
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let piece = match token {
            Token::Whitespace(_) => Piece::Space,
            Token::Number(..) => {
                drop_signs(&mut pieces);
                Piece::Value
            }
            token if is_value(&token) => Piece::Value,
            Token::Word(ref word)
                if is_absence(word, tokens.peek()) && expects_operand(&pieces) =>
            {
                Piece::Value
            }
            token => Piece::Token(token),
        };
        if piece != Piece::Space || pieces.last().is_some_and(|last| *last != Piece::Space) {
            pieces.push(piece);
        }
    }
    let is_end = |piece: &Piece| *piece == Piece::Space || piece.is(&Token::SemiColon);
    while pieces.last().is_some_and(is_end) {
        pieces.pop();
    }
    fold_lists(&pieces)
}

fn is_value(token: &Token) -> bool {
    match token {
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::TripleSingleQuotedString(_)
        | Token::TripleDoubleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::SingleQuotedByteStringLiteral(_)
        | Token::DoubleQuotedByteStringLiteral(_)
        | Token::SingleQuotedRawStringLiteral(_)
        | Token::DoubleQuotedRawStringLiteral(_)
        | Token::NationalStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::HexStringLiteral(_)
        | Token::Placeholder(_) => true,
        Token::Word(word) => {
            word.quote_style.is_none() && matches!(word.keyword, Keyword::TRUE | Keyword::FALSE)
        }
        _ => false,
    }
}

/// Whether it stands for a value that is missing: `NULL`, or `DEFAULT` that is not MySQL's function.
fn is_absence(word: &Word, next: Option<&Token>) -> bool {
    word.quote_style.is_none()
        && match word.keyword {
            Keyword::NULL => true,
            Keyword::DEFAULT => next != Some(&Token::LParen),
            _ => false,
        }
}

/// Removes the signs of the number that comes next; what subtracts or adds it stays.
fn drop_signs(pieces: &mut Vec<Piece>) {
    loop {
        let signed = trim_end(pieces);
        let Some((Piece::Token(Token::Minus | Token::Plus), before)) = signed.split_last() else {
            return;
        };
        if !expects_operand(before) {
            return;
        }
        let length = before.len();
        pieces.truncate(length);
    }
}

/// Whether an operand comes next, so that a sign belongs to it and `NULL` is a value.
///
/// Not so behind `IS`, `NOT`, a type or a column: there `NULL` is part of a test or of a definition. Words
/// that are no operators may be columns (`date - 1`), so only those count that cannot be.
fn expects_operand(pieces: &[Piece]) -> bool {
    const OPERATORS: [Keyword; 19] = [
        Keyword::ALL,
        Keyword::AND,
        Keyword::BETWEEN,
        Keyword::BY,
        Keyword::CASE,
        Keyword::DISTINCT,
        Keyword::ELSE,
        Keyword::HAVING,
        Keyword::ILIKE,
        Keyword::LIKE,
        Keyword::LIMIT,
        Keyword::OFFSET,
        Keyword::OR,
        Keyword::RETURNING,
        Keyword::SELECT,
        Keyword::THEN,
        Keyword::WHEN,
        Keyword::WHERE,
        Keyword::UNION,
    ];
    match trim_end(pieces).last() {
        None | Some(Piece::Value | Piece::Space) => false,
        Some(piece @ Piece::Token(Token::Word(word))) => {
            word.quote_style.is_none() && piece.is_keyword(&OPERATORS)
        }
        Some(Piece::Token(token)) => !matches!(
            token,
            Token::RParen | Token::RBracket | Token::RBrace | Token::Period | Token::DoubleColon
        ),
    }
}

/// Makes one of all the items of a list after `IN`, `VALUES` or `ARRAY` that are alike.
fn fold_lists(pieces: &[Piece]) -> Vec<Piece> {
    let mut folded: Vec<Piece> = Vec::with_capacity(pieces.len());
    let mut rest = pieces;
    while let Some((piece, after)) = rest.split_first() {
        folded.push(piece.clone());
        rest = after;
        let spaces = rest.iter().take_while(|piece| **piece == Piece::Space).count();
        let (space, list) = rest.split_at(spaces);
        if piece.is_keyword(&[Keyword::VALUES, Keyword::VALUE]) {
            let (items, length) = items(list);
            if is_list_of_groups(&items) {
                folded.extend_from_slice(space);
                folded.extend(distinct(&items));
                rest = &list[length..];
            }
        } else if piece.is_keyword(&[Keyword::IN, Keyword::ARRAY])
            && let [open, inner @ ..] = list
            && (open.is(&Token::LParen) || open.is(&Token::LBracket))
        {
            let (items, length) = items(inner);
            if items.iter().all(|item| item.iter().all(is_simple)) && !items.is_empty() {
                folded.extend_from_slice(space);
                folded.push(open.clone());
                folded.extend(distinct(&items));
                rest = match &inner[length..] {
                    [Piece::Space, close @ ..] => close,
                    close => close,
                };
            }
        }
    }
    folded
}

/// Whether it can be part of an item of a list of values: no query, and no column.
fn is_simple(piece: &Piece) -> bool {
    match piece {
        Piece::Value | Piece::Space => true,
        // A type, as in `$1::uuid`.
        Piece::Token(Token::Word(word)) => word.keyword != Keyword::SELECT,
        Piece::Token(token) => matches!(
            token,
            Token::LParen
                | Token::RParen
                | Token::LBracket
                | Token::RBracket
                | Token::Comma
                | Token::DoubleColon
                | Token::Minus
                | Token::Plus
        ),
    }
}

fn is_list_of_groups(items: &[&[Piece]]) -> bool {
    let is_group = |item: &&[Piece]| {
        item.first().is_some_and(|first| first.is(&Token::LParen))
            && item.last().is_some_and(|last| last.is(&Token::RParen))
    };
    !items.is_empty() && items.iter().all(is_group)
}

/// The items of a list up to where it ends, without the space around them, and how long all of it is.
fn items(list: &[Piece]) -> (Vec<&[Piece]>, usize) {
    let (mut items, mut start, mut depth, mut end) = (Vec::new(), 0, 0_usize, list.len());
    for (position, piece) in list.iter().enumerate() {
        match piece {
            Piece::Token(Token::LParen | Token::LBracket) => depth = depth.saturating_add(1),
            Piece::Token(Token::RParen | Token::RBracket) if depth == 0 => {
                end = position;
                break;
            }
            Piece::Token(Token::RParen | Token::RBracket) => depth = depth.saturating_sub(1),
            Piece::Token(Token::Comma) if depth == 0 => {
                items.push(trim(&list[start..position]));
                start = position.saturating_add(1);
            }
            // A word behind a group, as `ON CONFLICT` behind rows, ends the list.
            Piece::Token(Token::Word(_))
                if depth == 0
                    && trim(&list[start..position])
                        .last()
                        .is_some_and(|p| p.is(&Token::RParen)) =>
            {
                end = position;
                break;
            }
            _ => {}
        }
    }
    let last = trim(&list[start..end]);
    if !last.is_empty() {
        items.push(last);
    }
    // The space before what follows is no part of the list.
    let length = match end.checked_sub(1).and_then(|before| list.get(before)) {
        Some(Piece::Space) if end < list.len() => end.saturating_sub(1),
        _ => end,
    };
    (items, length)
}

fn trim(mut item: &[Piece]) -> &[Piece] {
    while let [Piece::Space, rest @ ..] | [rest @ .., Piece::Space] = item {
        item = rest;
    }
    item
}

fn trim_end(mut pieces: &[Piece]) -> &[Piece] {
    while let [before @ .., Piece::Space] = pieces {
        pieces = before;
    }
    pieces
}

/// Each item once, in the order in which it comes first.
fn distinct(items: &[&[Piece]]) -> Vec<Piece> {
    let mut all: Vec<Vec<Piece>> = Vec::new();
    for item in items {
        let item = item.to_vec();
        if !all.contains(&item) {
            all.push(item);
        }
    }
    let comma = [Piece::Token(Token::Comma), Piece::Space];
    all.join(&comma[..])
}

fn print(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Token(token) => text.push_str(&token.to_string()),
            Piece::Value => text.push('?'),
            Piece::Space => text.push(' '),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(database: &str, pairs: &[(&str, &str)]) {
        for (sql, normal) in pairs {
            assert_eq!(normalise(sql, database), *normal);
            assert_eq!(normalise(normal, database), *normal, "it changes again");
        }
    }

    #[test]
    fn values_are_folded() {
        let pairs = [
            ("SELECT name FROM authors WHERE id = 7", "SELECT name FROM authors WHERE id = ?"),
            ("SELECT 'it''s', x'0f', 1.5e3, TRUE", "SELECT ?, ?, ?, ?"),
            (
                "select a.b from \"Strange Name\" a where c = $1",
                "select a.b from \"Strange Name\" a where c = ?",
            ),
            ("SELECT * FROM posts LIMIT 10 OFFSET 20", "SELECT * FROM posts LIMIT ? OFFSET ?"),
            ("SELECT ?1, :name, @name", "SELECT ?, :name, @name"),
        ];
        check("SQLite", &pairs[..4]);
        check("SQLite", &[("SELECT ?1, ?", "SELECT ?, ?")]);
        check(
            "PostgreSQL",
            &[
                ("SELECT $tag$it's$tag$, E'a\\'b', $1::uuid", "SELECT ?, ?, ?::uuid"),
                (
                    "SELECT data->>'name' FROM t WHERE tags @> '{a}'",
                    "SELECT data->>? FROM t WHERE tags @> ?",
                ),
            ],
        );
        check(
            "MySQL",
            &[(
                "SELECT `order` FROM t WHERE a = \"eve\" # who\n AND b = ?",
                "SELECT `order` FROM t WHERE a = ? AND b = ?",
            )],
        );
    }

    #[test]
    fn lists_of_any_length_are_one() {
        check(
            "PostgreSQL",
            &[
                (
                    "SELECT a FROM t WHERE b IN (1, 2,3) AND c = $4",
                    "SELECT a FROM t WHERE b IN (?) AND c = ?",
                ),
                ("SELECT a FROM t WHERE b IN ($1)", "SELECT a FROM t WHERE b IN (?)"),
                ("SELECT a FROM t WHERE b IN ( -1, 2 )", "SELECT a FROM t WHERE b IN (?)"),
                (
                    "SELECT a FROM t WHERE (b, c) IN ((1, 2), (3, 4))",
                    "SELECT a FROM t WHERE (b, c) IN ((?, ?))",
                ),
                (
                    "SELECT a FROM t WHERE b = ANY(ARRAY[1, 2]::int[])",
                    "SELECT a FROM t WHERE b = ANY(ARRAY[?]::int[])",
                ),
                (
                    "SELECT a FROM t WHERE b IN ($1::uuid, $2::uuid)",
                    "SELECT a FROM t WHERE b IN (?::uuid)",
                ),
                (
                    "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4), ($5, $6)",
                    "INSERT INTO t (a, b) VALUES (?, ?)",
                ),
                (
                    "INSERT INTO t VALUES (1, now()), (2, now()) ON CONFLICT DO NOTHING RETURNING id",
                    "INSERT INTO t VALUES (?, now()) ON CONFLICT DO NOTHING RETURNING id",
                ),
            ],
        );
    }

    #[test]
    fn what_is_no_list_of_values_is_not_folded() {
        let same = [
            "SELECT a FROM t WHERE b IN (SELECT c FROM u WHERE d = ? AND e = ?)",
            "SELECT coalesce(?, ?), substr(a, ?, ?) FROM t",
            "UPDATE t SET a = ?, b = ? WHERE c = ?",
            "INSERT INTO t (a) SELECT ? UNION ALL SELECT ?",
        ];
        same.iter().for_each(|sql| check("SQLite", &[(sql, sql)]));
    }

    #[test]
    fn a_missing_value_is_a_value() {
        let pairs = [
            ("INSERT INTO t VALUES (1, NULL), (2, 3)", "INSERT INTO t VALUES (?, ?)"),
            ("INSERT INTO t VALUES (6, DEFAULT), (7, null)", "INSERT INTO t VALUES (?, ?)"),
            (
                "UPDATE t SET a = NULL, b = DEFAULT WHERE c = 1",
                "UPDATE t SET a = ?, b = ? WHERE c = ?",
            ),
            ("SELECT coalesce(a, NULL), NULL::int", "SELECT coalesce(a, ?), ?::int"),
            ("SELECT CASE WHEN a THEN NULL ELSE 1 END", "SELECT CASE WHEN a THEN ? ELSE ? END"),
            ("SELECT a FROM t WHERE b IN (1, NULL)", "SELECT a FROM t WHERE b IN (?)"),
        ];
        check("PostgreSQL", &pairs);
        check("MySQL", &pairs[..3]);
    }

    #[test]
    fn null_and_default_that_are_no_values_stay() {
        let same = [
            "SELECT a FROM t WHERE b IS NULL AND c IS NOT NULL",
            "INSERT INTO t DEFAULT VALUES",
            "INSERT INTO t (a) DEFAULT VALUES",
            "CREATE TABLE t (a INT NULL, b INT NOT NULL, c VARCHAR(?) NULL DEFAULT NULL)",
            "ALTER TABLE t ALTER COLUMN a DROP NOT NULL",
            "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES u (b) ON DELETE SET NULL",
            "ALTER TABLE t ALTER COLUMN a DROP DEFAULT",
            "SELECT \"null\", a.\"default\" FROM t",
        ];
        for database in ["PostgreSQL", "SQLite"] {
            same.iter().for_each(|sql| check(database, &[(sql, sql)]));
        }
        let function = "UPDATE t SET a = DEFAULT(a), b = `null`";
        check("MySQL", &[(function, function)]);
    }

    #[test]
    fn a_sign_is_part_of_a_number() {
        check(
            "SQLite",
            &[
                ("SELECT * FROM t WHERE a = -1", "SELECT * FROM t WHERE a = ?"),
                ("SELECT * FROM t WHERE a=- 1 OR b<+1.5", "SELECT * FROM t WHERE a=? OR b<?"),
                ("SELECT -1, - -2 LIMIT -1", "SELECT ?, ? LIMIT ?"),
                (
                    "SELECT a FROM t WHERE b BETWEEN -1 AND -2",
                    "SELECT a FROM t WHERE b BETWEEN ? AND ?",
                ),
                ("INSERT INTO t VALUES (-1, 2), (3, -4)", "INSERT INTO t VALUES (?, ?)"),
                ("SELECT a FROM t WHERE b * -2 = abs(-3)", "SELECT a FROM t WHERE b * ? = abs(?)"),
            ],
        );
    }

    #[test]
    fn what_subtracts_is_no_sign() {
        for (sql, normal) in [
            (
                "SELECT a - 1, b -1, date - 1, (a) - 1 FROM t",
                "SELECT a - ?, b -?, date - ?, (a) - ? FROM t",
            ),
            ("SELECT 2 - 1, a[1] - 1, -a", "SELECT ? - ?, a[?] - ?, -a"),
            ("UPDATE t SET n = n - -1 WHERE m = -$1", "UPDATE t SET n = n - ? WHERE m = -?"),
            ("SELECT \"select\" - 1", "SELECT \"select\" - ?"),
        ] {
            check("PostgreSQL", &[(sql, normal)]);
        }
    }

    #[test]
    fn comments_and_white_space_are_folded() {
        check(
            "SQLite",
            &[(
                "\n  SELECT a, -- the first\n\tb /* and the\n second */ FROM t ;\n",
                "SELECT a, b FROM t",
            )],
        );
    }

    #[test]
    fn what_is_no_sql_stays() {
        for text in ["SELECT 'no end", "", "SELECT \"no end"] {
            assert_eq!(normalise(text, "SQLite"), text);
        }
    }
}
