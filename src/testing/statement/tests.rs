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
        ("UPDATE t SET a = NULL, b = DEFAULT WHERE c = 1", "UPDATE t SET a = ?, b = ? WHERE c = ?"),
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
