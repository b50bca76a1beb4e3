use super::*;

fn count(table: &Table, text: &str) -> u64 {
    table.count(Key::of(text), text)
}

/// Counts more different texts than have an entry.
fn vary(table: &Table) {
    for n in 0..3_000 {
        count(table, &format!("SELECT {n}"));
    }
}

#[test]
fn each_text_has_its_own_count() {
    let table = Table::default();
    assert_eq!([count(&table, "a"), count(&table, "b"), count(&table, "a")], [1, 1, 2]);
    let most = table.most(3).expect("two texts were counted");
    assert_eq!((&*most.text, most.count), ("a", 2));
}

#[test]
fn every_execution_is_counted_or_left_out() {
    let table = Table::default();
    for _ in 0..2 {
        for n in 0..100_000 {
            count(&table, &n.to_string());
        }
    }
    let kept: u64 = table.iter().map(Entry::count).sum();
    assert_eq!(kept + table.left_out(), 200_000);
    assert!(table.iter().all(|entry| entry.count() == 2));
    let most: usize = Table::SIZES.iter().sum();
    assert!((most / 2..=most).contains(&table.iter().count()));
}

#[test]
fn the_texts_kept_are_bounded() {
    let table = Table::default();
    for n in 0..1_000 {
        count(&table, &format!("{n}{}", "x".repeat(10_000)));
    }
    assert!(table.iter().map(|entry| entry.text().len()).sum::<usize>() <= Table::MOST_BYTES);
}

#[test]
fn threads_agree_on_the_entries() {
    let table = Table::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..1_000 {
                    count(&table, &(n % 50).to_string());
                }
            });
        }
    });
    assert_eq!(table.iter().count(), 50);
    assert!(table.iter().all(|entry| entry.count() == 80));
}

#[test]
fn what_is_repeated_in_varied_work_is_counted() {
    let table = Table::default();
    vary(&table);
    let counts: Vec<_> = (0..50).map(|_| count(&table, "SELECT name")).collect();
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
    // Also with others in between.
    (3_000..6_000).for_each(|n| {
        count(&table, &format!("SELECT {n}"));
        count(&table, "SELECT name");
    });
    let most = table.most(9_050).expect("it was repeated");
    assert_eq!((&*most.text, most.count), ("SELECT name", 3_050));
    assert_eq!(table.repeated(Key::of("SELECT name")), 3_050);
    let most = table.iter().max_by_key(|entry| entry.count()).expect("texts were counted");
    assert_eq!((most.text(), most.count()), ("SELECT name", 3_050));
}

#[test]
fn no_more_than_the_limit_are_taken_in_varied_work() {
    let table = Table::default();
    vary(&table);
    let key = Key::of("SELECT name");
    let taken = (0..10).filter(|_| table.take(key, "SELECT name", 5).is_some()).count();
    assert_eq!((taken, table.repeated(key)), (5, 5));
    table.give_back(key);
    assert_eq!(table.take(key, "SELECT name", 5), Some(5));
}

#[test]
fn each_database_has_its_own_count() {
    let table = Table::default();
    let shards = [2, 3, 4].map(|n| Key::on(DatabaseId::numbered(n), "a"));
    let take = |key| table.take(key, "a", 2);
    assert_eq!(shards.map(take), [Some(1); 3]);
    assert_eq!(shards.map(take), [Some(2); 3]);
    assert_eq!(shards.map(take), [None; 3]);
    assert_eq!(shards.map(|key| table.repeated(key)), [2; 3]);
    table.give_back(shards[0]);
    table.give_back(shards[2]);
    assert_eq!(shards.map(|key| table.repeated(key)), [1, 2, 1]);
    let all: Vec<_> = table.iter().map(|entry| (entry.text(), entry.count())).collect();
    assert_eq!(all, [("a", 4)]);
}
