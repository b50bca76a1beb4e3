//! The texts for which a table has no place any more: how often those run that run most often.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Counted, Entry, Key, Table};
use crate::memory;

/// Counts of the most frequent of any number of texts, in bounded memory.
///
/// This is the sketch Space-Saving: each of a fixed number of counters belongs to one text, and a
/// text that has none takes over the counter with the lowest count, which it inherits. So a place
/// says at most how often its text was seen; less what was inherited, it says at least how often.
/// That lower bound is exact from the moment the text took its place, and a text that comes more
/// often than once in as many other texts as there are places keeps it. Only the lower bound is
/// ever shown, and compared with limits.
///
/// Behind a lock, and each access looks at all places: work with so many different statements has
/// more to wait for. Texts are kept only of what is repeated, so ever new texts cost no allocation.
#[derive(Debug)]
pub(super) struct Crowd {
    summary: Mutex<Summary>,
    /// What was repeated, at the moment when somebody asked for it.
    settled: OnceLock<Settled>,
}

#[derive(Debug, Default)]
struct Summary {
    /// Apart from the rest, to be looked through quickly. 0 where the place is free.
    keys: Vec<u64>,
    counts: Vec<u64>,
    places: Vec<Place>,
    total: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Place {
    inherited: u64,
    nanos: u64,
    text: Option<Box<str>>,
}

#[derive(Debug)]
pub(super) struct Settled {
    pub(super) entries: Box<[Entry]>,
    pub(super) left_out: u64,
}

impl Crowd {
    pub(super) const PLACES: usize = 256;

    pub(super) fn new() -> Self {
        Self { summary: Mutex::new(Summary::new()), settled: OnceLock::new() }
    }

    /// Counts one more of this text, unless that would certainly be more than so many.
    pub(super) fn take(&self, key: Key, text: &str, most: u64) -> Option<u64> {
        let summary = &mut *self.lock();
        let place = summary.place(key.raw());
        if summary.seen_at_least(place) >= most {
            return None;
        }
        summary.counts[place] = summary.counts[place].saturating_add(1);
        summary.total = summary.total.saturating_add(1);
        let count = summary.seen_at_least(place);
        if count > 1 && summary.places[place].text.is_none() {
            summary.keep(place, text);
        }
        Some(count)
    }

    /// Takes back one that was counted; another text may have taken its place since.
    pub(super) fn give_back(&self, key: Key) {
        let summary = &mut *self.lock();
        summary.total = summary.total.saturating_sub(1);
        if let Some(place) =
            summary.find(key.raw()).filter(|place| summary.seen_at_least(*place) > 0)
        {
            summary.counts[place] = summary.counts[place].saturating_sub(1);
        }
    }

    pub(super) fn add_time(&self, key: Key, nanos: u64) {
        let summary = &mut *self.lock();
        if let Some(place) = summary.find(key.raw()) {
            let time = &mut summary.places[place].nanos;
            *time = time.saturating_add(nanos);
        }
    }

    /// How often this text was seen at least.
    pub(super) fn find(&self, key: Key) -> Option<Counted<'static>> {
        let summary = self.lock();
        summary.find(key.raw()).map(|place| summary.counted(place))
    }

    /// The text that was seen most often, and how often any other was seen at most.
    pub(super) fn most(&self) -> Option<(Counted<'static>, u64)> {
        let summary = self.lock();
        let place = (0..Self::PLACES).max_by_key(|place| summary.seen_at_least(*place))?;
        let others = (0..Self::PLACES).filter(|other| *other != place);
        let others_at_most = others.map(|other| summary.counts[other]).max()?;
        Some((summary.counted(place), others_at_most))
    }

    /// How often any text of these was seen, all in all.
    pub(super) fn total(&self) -> u64 {
        self.lock().total
    }

    /// The texts that were repeated, as they are when this is called first.
    pub(super) fn settled(&self) -> &Settled {
        self.settled.get_or_init(|| memory::aside(|| self.lock().settle()))
    }

    fn lock(&self) -> MutexGuard<'_, Summary> {
        // No access panics midway, so a poisoned summary is whole.
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Summary {
    fn new() -> Self {
        let mut places = Vec::new();
        places.resize_with(Crowd::PLACES, Place::default);
        Self {
            keys: vec![0; Crowd::PLACES],
            counts: vec![0; Crowd::PLACES],
            places,
            total: 0,
            bytes: 0,
        }
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.keys.iter().position(|other| *other == key)
    }

    /// The place of this text, taken now if need be from the one that was seen least.
    fn place(&mut self, key: u64) -> usize {
        if let Some(place) = self.find(key) {
            return place;
        }
        let least = self.counts.iter().enumerate().min_by_key(|(_, count)| **count);
        let place = least.map_or(0, |(place, _)| place);
        self.keys[place] = key;
        let new = Place { inherited: self.counts[place], ..Place::default() };
        let text = std::mem::replace(&mut self.places[place], new).text;
        if let Some(text) = text {
            self.bytes = self.bytes.saturating_sub(text.len());
            memory::aside(|| drop(text));
        }
        place
    }

    fn seen_at_least(&self, place: usize) -> u64 {
        self.counts[place].saturating_sub(self.places[place].inherited)
    }

    /// Keeps a text, or its beginning, or nothing while too much is kept.
    fn keep(&mut self, place: usize, text: &str) {
        let text = Table::beginning(text);
        let bytes = self.bytes.saturating_add(text.len());
        if bytes <= Table::MOST_BYTES {
            self.bytes = bytes;
            self.places[place].text = Some(memory::aside(|| text.into()));
        }
    }

    fn counted(&self, place: usize) -> Counted<'static> {
        let Place { nanos, text, .. } = &self.places[place];
        let text = text.as_deref().unwrap_or_default().to_owned().into();
        Counted { text, count: self.seen_at_least(place), nanos: *nanos }
    }

    fn settle(&self) -> Settled {
        let repeated = (0..Crowd::PLACES).filter(|place| self.seen_at_least(*place) > 1);
        let entry = |place: usize| {
            let Counted { text, count, nanos } = self.counted(place);
            Entry::settled(Key::from_raw(self.keys[place]), count, nanos, text.into_owned().into())
        };
        let entries: Box<[Entry]> = repeated.map(entry).collect();
        let told = entries.iter().map(Entry::count).sum();
        Settled { entries, left_out: self.total.saturating_sub(told) }
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "small numbers")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(text: u64) -> Key {
        Key::of(&text.to_string())
    }

    fn see(crowd: &Crowd, text: u64) -> u64 {
        crowd.take(key(text), &text.to_string(), u64::MAX).expect("there is no limit")
    }

    /// Some texts again and again, and many others in between.
    fn texts() -> impl Strategy<Value = Vec<u64>> {
        let text = prop_oneof![2 => 0..20_u64, 1 => 20..400_u64, 5 => 400..1_000_000_u64];
        prop::collection::vec(text, 1..6_000)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        #[test]
        fn a_count_is_a_lower_bound_and_not_far_from_the_truth(texts in texts()) {
            let (crowd, mut exact) = (Crowd::new(), HashMap::<u64, u64>::new());
            for text in &texts {
                let times = exact.entry(*text).or_default();
                *times += 1;
                prop_assert!((1..=*times).contains(&see(&crowd, *text)));
            }
            // What a place inherits is at most what all places share, divided by them.
            let error = texts.len() as u64 / Crowd::PLACES as u64;
            for (text, times) in &exact {
                let counted = crowd.find(key(*text)).map_or(0, |counted| counted.count);
                prop_assert!(counted <= *times && counted >= times.saturating_sub(error));
            }
            let settled = crowd.settled();
            let told = settled.entries.iter().map(Entry::count).sum::<u64>();
            prop_assert_eq!(told + settled.left_out, texts.len() as u64);
            for entry in &settled.entries {
                let text: u64 = entry.text().parse().expect("the text is kept");
                prop_assert!((2..=exact[&text]).contains(&entry.count()));
            }
        }

        #[test]
        fn what_is_given_back_was_never_there(texts in texts(), other in 0..20_u64) {
            let crowd = Crowd::new();
            for text in &texts {
                see(&crowd, *text);
                see(&crowd, other);
                crowd.give_back(key(other));
            }
            let own = texts.iter().filter(|text| **text == other).count() as u64;
            prop_assert!(crowd.find(key(other)).is_none_or(|counted| counted.count <= own));
            prop_assert_eq!(crowd.total(), texts.len() as u64);
        }
    }

    #[test]
    fn what_comes_often_enough_is_counted_exactly() {
        let crowd = Crowd::new();
        for round in 1..=1_000 {
            assert_eq!(see(&crowd, 0), round);
            // The places that the others take by turns are all but one.
            for n in 1..Crowd::PLACES as u64 - 1 {
                see(&crowd, round * 1_000 + n);
            }
        }
        let (most, others) = crowd.most().expect("it was seen");
        assert_eq!((&*most.text, most.count), ("0", 1_000));
        assert!(others < 1_000, "{others}");
    }

    #[test]
    fn no_more_than_the_limit_are_taken() {
        let crowd = Crowd::new();
        let take = || crowd.take(key(7), "7", 2);
        assert_eq!([take(), take(), take(), take()], [Some(1), Some(2), None, None]);
        assert_eq!(crowd.total(), 2);
    }

    #[test]
    fn the_texts_kept_are_bounded() {
        let crowd = Crowd::new();
        for n in 0..2_000_u64 {
            let text = format!("{n}{}", "x".repeat(10_000));
            for _ in 0..3 {
                crowd.take(Key::of(&text), &text, u64::MAX);
            }
        }
        let entries = &crowd.settled().entries;
        assert!(entries.iter().map(|entry| entry.text().len()).sum::<usize>() <= Table::MOST_BYTES);
        assert!(entries.iter().any(|entry| !entry.text().is_empty()));
    }
}
