//! Removes the values from the text of a statement, so that its executions can be recognised as the
//! same.

use sqlparser::dialect::{Dialect, GenericDialect, MySqlDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, Tokenizer, Word};

/// Folds values, lists of values, comments and white space. A text that the tokenizer does not
/// accept stays unchanged.
///
/// The database is named as in sqlx; an unknown one is treated as standard SQL.
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

/// Whether it is `NULL` or `DEFAULT` in the place of a value; `DEFAULT(column)` of MySQL is not.
fn is_absence(word: &Word, next: Option<&Token>) -> bool {
    word.quote_style.is_none()
        && match word.keyword {
            Keyword::NULL => true,
            Keyword::DEFAULT => next != Some(&Token::LParen),
            _ => false,
        }
}

/// Removes the signs of the number that follows, but keeps a binary `+` or `-`.
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

/// Whether an operand follows, so that a sign belongs to it and `NULL` is a value.
///
/// That is not so after `IS`, `NOT`, a type or a column, where `NULL` is part of a test or a
/// definition. Words that are not operators may be columns (`date - 1`), so only words that cannot
/// be columns count.
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

/// Replaces equal items of a list after `IN`, `VALUES` or `ARRAY` by one.
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

/// Whether it can be part of an item in a list of values, which contains no query and no column.
fn is_simple(piece: &Piece) -> bool {
    match piece {
        Piece::Value | Piece::Space => true,
        // A cast, as in `$1::uuid`.
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

/// The items of a list without the space around them, and the number of tokens up to its end.
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
            // A word after a group ends the list, as `ON CONFLICT` does after rows.
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
    // The space before the next token does not belong to the list.
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

/// Each distinct item, in the order of first occurrence.
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
mod tests;
