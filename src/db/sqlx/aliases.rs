//! The types by database, under the names that sqlx gives its own.

use super::{Connection, Pool, PoolConnection, Transaction};

macro_rules! aliases {
    ($feature:literal: $($name:ident = $type:ident<$($lifetime:lifetime,)? $database:ident>, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[cfg(feature = $feature)]
        pub type $name$(<$lifetime>)? = $type<$($lifetime,)? sqlx::$database>;
    )*};
}

aliases! { "postgres":
    PgPool = Pool<Postgres>, "A metered pool of PostgreSQL.";
    PgPoolConnection = PoolConnection<Postgres>, "A metered connection of a pool of PostgreSQL.";
    PgConnection = Connection<Postgres>, "A metered connection to PostgreSQL.";
    PgTransaction = Transaction<'c, Postgres>, "A metered transaction of PostgreSQL.";
}

aliases! { "mysql":
    MySqlPool = Pool<MySql>, "A metered pool of MySQL or MariaDB.";
    MySqlPoolConnection = PoolConnection<MySql>, "A metered connection of a pool of MySQL or MariaDB.";
    MySqlConnection = Connection<MySql>, "A metered connection to MySQL or MariaDB.";
    MySqlTransaction = Transaction<'c, MySql>, "A metered transaction of MySQL or MariaDB.";
}

aliases! { "sqlite":
    SqlitePool = Pool<Sqlite>, "A metered pool of SQLite.";
    SqlitePoolConnection = PoolConnection<Sqlite>, "A metered connection of a pool of SQLite.";
    SqliteConnection = Connection<Sqlite>, "A metered connection to SQLite.";
    SqliteTransaction = Transaction<'c, Sqlite>, "A metered transaction of SQLite.";
}

aliases! { "any":
    AnyPool = Pool<Any>, "A metered pool of a database that is chosen at run time.";
    AnyPoolConnection = PoolConnection<Any>, "A metered connection of such a pool.";
    AnyConnection = Connection<Any>, "A metered connection to a database that is chosen at run time.";
    AnyTransaction = Transaction<'c, Any>, "A metered transaction of a database that is chosen at run time.";
}
