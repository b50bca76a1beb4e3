//! A blog on SeaORM, and what two versions of one page ask of its database.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use request_budget::testing::measure;
use request_budget::{Budget, BudgetExt, Violation};
use sea_orm::{
    ActiveModelTrait, Database, DatabaseConnection, DbErr, EntityTrait, QueryOrder, Schema, Set,
};

mod author {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "authors")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i32,
        pub(crate) name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod post {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "posts")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i32,
        pub(crate) title: String,
        pub(crate) author: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {
        #[sea_orm(
            belongs_to = "super::author::Entity",
            from = "Column::Author",
            to = "super::author::Column::Id"
        )]
        Author,
    }

    impl Related<super::author::Entity> for Entity {
        fn to() -> RelationDef {
            Relation::Author.def()
        }
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// A blog of twenty posts, in memory.
pub(crate) async fn open() -> Result<DatabaseConnection, DbErr> {
    let db = Database::connect("sqlite::memory:").await?;
    let schema = Schema::new(db.get_database_backend());
    for table in [
        schema.create_table_from_entity(author::Entity),
        schema.create_table_from_entity(post::Entity),
    ] {
        sea_orm::ConnectionTrait::execute(&db, &table).await?;
    }
    for id in 1..=20 {
        let author = author::ActiveModel { id: Set(id), name: Set(format!("author {id}")) };
        author.insert(&db).await?;
        let title = Set(format!("post {id}"));
        post::ActiveModel { id: Set(id), title, author: Set(id) }.insert(&db).await?;
    }
    Ok(db)
}

/// The posts with their authors, each asked for by itself.
async fn one_by_one(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let mut lines = Vec::new();
    for post in post::Entity::find().order_by_asc(post::Column::Id).all(db).await? {
        let author = author::Entity::find_by_id(post.author).one(db).await?;
        let author = author.map(|author| author.name).unwrap_or_default();
        lines.push(format!("{} by {author}", post.title));
    }
    Ok(lines)
}

/// The same, in one query.
async fn joined(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let posts = post::Entity::find().find_also_related(author::Entity);
    let posts = posts.order_by_asc(post::Column::Id).all(db).await?;
    let line = |(post, author): (post::Model, Option<author::Model>)| {
        format!("{} by {}", post.title, author.map(|author| author.name).unwrap_or_default())
    };
    Ok(posts.into_iter().map(line).collect())
}

/// Measures both versions of the page as a test would.
pub(crate) async fn compare(db: &DatabaseConnection) -> Result<String, DbErr> {
    let (page, before) = measured(one_by_one(db)).await?;
    let (same, after) = measured(joined(db)).await?;
    assert_eq!(page, same, "the pages are the same");
    Ok(format!("before: {before}\nafter: {after}"))
}

/// The page, and what it used: its limits that were crossed, and each statement with its place in
/// the code.
async fn measured(
    page: impl Future<Output = Result<Vec<String>, DbErr>>,
) -> Result<(Vec<String>, String), DbErr> {
    let budget = Budget::new().queries(5).repeated_queries(2);
    let over = Arc::new(Mutex::new(String::new()));
    let reporter = {
        let over = over.clone();
        move |violation: &Violation| {
            let mut over = over.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(over, "  over: {violation}");
        }
    };
    let page = page.budgeted("GET /posts", budget).with_reporter(reporter);
    let record = measure(page).await;
    let mut text = format!("{}\n", record.usage());
    text.push_str(&over.lock().unwrap_or_else(PoisonError::into_inner));
    for statement in record.statements() {
        let sites = statement.sites();
        let place = sites.first().and_then(|site| site.places.first());
        let place = place.map_or("(unknown)".to_owned(), ToString::to_string);
        let _ = writeln!(text, "  {} x at {place}: {}", statement.executions, statement.text);
    }
    let page = record.into_output().map_err(|cut| DbErr::Custom(cut.to_string()))?;
    Ok((page?, text))
}
