//! Names and texts of others are escaped wherever they leave: they forge no line of a log and hide
//! none.

use std::fmt::{Debug, Display};
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use request_budget::db::Query;
use request_budget::report::{self, Attributes, Climb, Growth, Report, Reporter};
use request_budget::testing::{Record, Scaling, measure};
use request_budget::{Budget, BudgetExt, Cut, ExternalExt, Limit, Violation};
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::failure;

/// Each of these may be a part of a name: controls, line breaks, and marks that are invisible or
/// change the direction.
const HAZARDS: &str = "\0\t\n\u{b}\r\u{8}\u{1b}\u{1e}\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{2028}\u{2029}\
                       \u{ad}\u{180e}\u{200b}\u{200d}\u{2060}\u{206a}\u{feff}\u{fff9}\u{e0001}\
                       \u{e0041}\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\
                       \u{2066}\u{2067}\u{2068}\u{2069}";

fn is_hazard(c: char) -> bool {
    c.is_control() || HAZARDS.contains(c)
}

/// All that has left, each text by where it left.
#[derive(Debug, Clone, Default)]
struct Texts(Arc<Mutex<Vec<(String, String)>>>);

impl Texts {
    fn push(&self, place: &str, text: String) {
        self.0.lock().unwrap().push((place.to_owned(), text));
    }

    fn show(&self, place: &str, shown: &(impl Display + Debug + Serialize)) {
        self.push(place, shown.to_string());
        self.push(place, format!("{shown:?}"));
        self.push(place, serde_json::to_string(shown).unwrap());
    }

    fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Reporter for Texts {
    fn violation(&self, violation: &Violation) {
        self.show("Violation", violation);
    }

    fn finished(&self, report: &Report<'_>) {
        self.push("Name", format!("{} {0:?}", report.work()));
        self.push("begun by", format!("{:?}", report.begun_by().map(ToString::to_string)));
        self.show("Attributes", report.attributes());
    }
}

impl<S: Subscriber> Layer<S> for Texts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("request_budget") {
            event.record(&mut self.clone());
        }
    }
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(&format!("event: {field}"), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(&format!("event: {field}"), format!("{value:?}"));
    }
}

/// The same text as the name of everything that has one.
async fn work(text: &str) -> Result<(), Cut> {
    for _ in 0..2 {
        drop(Query::start(text)?);
        async {}.external(text.to_owned()).await?;
    }
    Ok(())
}

/// What leaves of work that is named so, in production.
fn emitted(text: &str) -> Vec<(String, String)> {
    // Names of a run each are not told apart for long.
    report::limit_events(u32::MAX);
    let texts = Texts::default();
    let heard = tracing_subscriber::registry().with(texts.clone());
    let name = || text.to_owned();
    let attributes = || Attributes::new().with(name(), text);
    let climbs = texts.clone();
    let growth = Growth::new().warm_up(0).bytes(0);
    let growth = growth.with_listener(move |climb: &Climb| climbs.show("Climb", climb));
    let soft = Budget::new().queries(1).external_calls(1).writes(0).rows(0);
    let hard = Budget::new().queries(Limit::hard(1));
    let calls = Budget::new().external_calls(Limit::hard(1));
    let named = hard.clone().exempt(name(), calls.clone());
    texts.push("Budget", format!("{named} {named:?}"));
    let timeout = Budget::new().external_timeout_for(name(), Duration::from_secs(1));
    texts.push("Budget", format!("{timeout} {timeout:?}"));
    tracing::subscriber::with_default(heard, || {
        let mut begun = None;
        let outer = async {
            for budget in [soft, hard, calls] {
                let one = work(text).budgeted(name(), budget).with_attributes(attributes());
                let cut = one.with_reporter(texts.clone()).await.and_then(|done| done).err();
                if let Some(cut) = cut {
                    texts.push("Cut", format!("{cut} {cut:?}"));
                    texts.show("Cut's violation", cut.violation());
                }
            }
            for _ in 0..2 {
                let leak = async { *black_box(Box::leak(Box::new([0_u8; 64]))) };
                leak.budgeted(name(), Budget::new()).with_reporter(growth.clone()).await.unwrap();
            }
            begun = Some(work(text).budgeted("inner", Budget::new().queries(1)));
        };
        outer.budgeted(name(), Budget::new()).now_or_never().unwrap().unwrap();
        let inner = begun.unwrap().with_reporter(texts.clone());
        inner.now_or_never().unwrap().unwrap().unwrap();
    });
    texts.take()
}

/// What failing assertions print, and the record as a file.
fn printed(text: &str) -> [String; 6] {
    let run = || measure(work(text)).now_or_never().unwrap();
    let record: Record<_> = run();
    let budget = Budget::new().queries(1).repeated_queries(1).external_calls(1).writes(0).rows(0);
    let timeout = Budget::new().external_timeout(Duration::ZERO);
    let scaling =
        Scaling::from_iter([(1, measure(async { Ok(()) }).now_or_never().unwrap()), (2, run())]);
    [
        failure(|| record.assert_within(budget)),
        failure(|| record.assert_no_repeated_statements()),
        failure(|| record.assert_no_external_calls()),
        failure(|| record.assert_within(timeout)),
        failure(|| scaling.assert_constant_queries()),
        serde_json::to_string_pretty(&record).unwrap(),
    ]
}

fn check_emitted(text: &str) {
    let all = emitted(text);
    for (place, text) in &all {
        assert!(!text.contains(is_hazard), "{place}: {text:?}");
    }
    // Nothing passes because nothing was there.
    let places = [
        "Violation",
        "Cut",
        "Cut's violation",
        "Name",
        "begun by",
        "Attributes",
        "Climb",
        "Budget",
    ];
    let fields = ["work", "attributes", "begun_by", "statement", "external", "message"];
    let fields = fields.map(|field| format!("event: {field}"));
    for place in places.into_iter().chain(fields.iter().map(String::as_str)) {
        let is_named = |(other, text): &(String, String)| other == place && text.contains("bob");
        assert!(all.iter().any(is_named), "{place}");
    }
}

fn check_printed(text: &str) {
    let lines = |all: &[String; 6]| all.each_ref().map(|said| said.lines().count());
    let said = printed(text);
    assert_eq!(lines(&said), lines(&printed("bob and eve")));
    for said in said {
        assert!(said.contains("bob"), "{said}");
        assert!(!said.contains(|c| c != '\n' && is_hazard(c)), "{said:?}");
    }
}

#[test]
fn no_character_of_a_name_forges_a_line_or_hides_one() {
    for hazard in HAZARDS.chars() {
        for text in [format!("bob{hazard}ERROR app: eve"), format!("{hazard}bob{hazard}{hazard}")] {
            check_emitted(&text);
            check_printed(&text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_forges_a_line_or_hides_one(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(HAZARDS.chars().collect::<Vec<_>>()),
            any::<char>(),
            prop::char::range(' ', '~'),
        ], 0..40),
    ) {
        let text = format!("bob{}", parts.into_iter().collect::<String>());
        check_emitted(&text);
        check_printed(&text);
    }
}
