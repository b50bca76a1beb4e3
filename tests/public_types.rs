//! Every public type can be named, and is `Send`, `Sync`, `Unpin`, `Debug` and so on as promised.
//!
//! The compiler does the checking. It is needed because rustc's own lints are silent inside
//! `pin_project!`, and because an auto trait is lost by a change deep inside.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::future::Ready;
use std::hash::Hash;
use std::path::Path;

use request_budget::alloc::CountingAllocator;
use request_budget::db::{Query, SqlxEvents};
use request_budget::deadline::{Detachable, External};
use request_budget::http::{
    BodyError, BudgetService, ByRoute, DeadlineLayer, DeadlineService, ExternalError,
    ExternalFuture, ExternalHttpClient, ExternalLayer, ExternalMiddleware, ExternalService,
    GrpcStatus, Naming, Policy, ProblemDetails, QueueTime, Reject, ResponseBody, ResponseFuture,
};
use request_budget::mongodb::{Client, ClientSession, Detail, StartSession, StartTransaction};
use request_budget::report::{Attributes, Climb, Growth, Name, Outcome, Report, Reporter, Tally};
use request_budget::resource::{Amount, Unit};
use request_budget::scope::InCurrentBudget;
use request_budget::sqlx::{BorrowedConnection, Connection, Pool, PoolConnection, Transaction};
use request_budget::task::{
    Blocking, Budgeted, Describe, JobNaming, JobPolicy, TaskBudgetService, TryBudgeted,
};
use request_budget::testing::{
    CallSite, Comparison, ExternalCall, Place, Ratchet, Record, Recorder, RecorderBody,
    RecorderFuture, RecorderLayer, RecorderService, Scaling, Statement, Unrelated,
};
use request_budget::{
    Budget, BudgetExt, BudgetLayer, Cause, Cut, ExternalExt, Limit, Resource, Severity,
    TaskBudgetLayer, Usage, Violation,
};
use serde::Serialize;
use sqlx::Sqlite;

/// Of no use for anything but to be wrapped.
struct Opaque;

/// May go to another thread, but not be shared with it.
type Local = Cell<u8>;

fn everywhere<T: Debug + Send + Sync + Unpin + 'static>() {}

fn data<T: Debug + Clone + PartialEq + Send + Sync + Unpin + 'static>() {}

fn handle<T: Debug + Clone + Send + Sync + Unpin + 'static>() {}

fn plain<T: Debug + Copy + Eq + Hash + Send + Sync + Unpin + 'static>() {}

fn displayed<T: Display>() {}

fn serialised<T: Serialize>() {}

fn error<T: Error + Send + Sync + Unpin + 'static>() {}

fn shared<T: Send + Sync>() {}

fn sent<T: Send>() {}

fn debugged<T: Debug>() {}

fn copied<T: Debug + Copy + Send + Sync + Unpin>() {}

#[test]
fn settings_and_findings_are_data() {
    data::<Budget>();
    plain::<Limit<u64>>();
    plain::<Resource>();
    plain::<Unit>();
    plain::<Amount>();
    plain::<Severity>();
    plain::<Outcome>();
    data::<Usage>();
    data::<Violation>();
    data::<Cause>();
    data::<Cut>();
    handle::<Name>();
    data::<Attributes>();
    data::<Climb>();
    handle::<Growth>();
    handle::<Record<u8>>();
    handle::<Statement>();
    handle::<ExternalCall>();
    handle::<CallSite>();
    handle::<Place>();
    handle::<Scaling>();
    handle::<Ratchet>();
    handle::<Comparison>();
    copied::<Report<'_>>();
    copied::<Tally<'_>>();
    copied::<QueueTime>();
    copied::<Detail>();
}

#[test]
fn what_people_read_is_displayed_and_what_machines_read_is_serialised() {
    displayed::<Resource>();
    displayed::<Amount>();
    displayed::<Outcome>();
    displayed::<Usage>();
    displayed::<Violation>();
    displayed::<Cause>();
    displayed::<Name>();
    displayed::<Attributes>();
    displayed::<Climb>();
    serialised::<Resource>();
    serialised::<Unit>();
    serialised::<Amount>();
    serialised::<Severity>();
    serialised::<Outcome>();
    serialised::<Usage>();
    serialised::<Violation>();
    serialised::<Cause>();
    serialised::<Attributes>();
    serialised::<Climb>();
    serialised::<Record<Opaque>>();
    serialised::<Statement>();
    serialised::<ExternalCall>();
    displayed::<Place>();
    displayed::<Comparison>();
}

#[test]
fn errors_are_errors() {
    error::<Cut>();
    error::<BodyError>();
    error::<ExternalError>();
}

#[test]
fn layers_and_services_are_handles() {
    handle::<BudgetLayer<Budget>>();
    handle::<BudgetLayer<Budget, ByRoute>>();
    handle::<BudgetService<(), Budget>>();
    handle::<ByRoute>();
    handle::<ProblemDetails>();
    handle::<GrpcStatus>();
    handle::<ExternalLayer>();
    handle::<ExternalService<()>>();
    handle::<DeadlineLayer>();
    handle::<DeadlineService<()>>();
    handle::<Recorder>();
    handle::<RecorderLayer>();
    handle::<RecorderService<()>>();
    handle::<TaskBudgetLayer<&str, Budget>>();
    handle::<TaskBudgetService<(), &str, Budget>>();
    everywhere::<Blocking>();
    everywhere::<ExternalMiddleware>();
    handle::<ExternalHttpClient>();
    sent::<BudgetService<Local, Budget>>();
    sent::<TaskBudgetService<Local, &str, Budget>>();
}

#[test]
fn futures_and_bodies_are_what_they_wrap() {
    shared::<ResponseFuture<Opaque>>();
    shared::<ResponseBody<Opaque>>();
    shared::<RecorderFuture<Opaque>>();
    shared::<RecorderBody<Opaque>>();
    shared::<Unrelated<Opaque>>();
    shared::<ExternalFuture<Opaque>>();
    shared::<External<Opaque>>();
    shared::<Budgeted<Opaque>>();
    shared::<TryBudgeted<Opaque>>();
    shared::<InCurrentBudget<Opaque>>();
    sent::<ResponseFuture<Local>>();
    sent::<ResponseBody<Local>>();
    sent::<RecorderFuture<Local>>();
    sent::<RecorderBody<Local>>();
    sent::<Unrelated<Local>>();
    sent::<ExternalFuture<Local>>();
    sent::<External<Local>>();
    sent::<Budgeted<Local>>();
    sent::<TryBudgeted<Local>>();
    sent::<InCurrentBudget<Local>>();
}

#[test]
fn futures_and_bodies_can_be_debugged_whatever_they_wrap() {
    debugged::<ResponseFuture<Opaque>>();
    debugged::<ResponseBody<Opaque>>();
    debugged::<RecorderFuture<Opaque>>();
    debugged::<RecorderBody<Opaque>>();
    debugged::<Unrelated<Opaque>>();
    debugged::<ExternalFuture<Opaque>>();
    debugged::<External<Opaque>>();
    debugged::<Budgeted<Opaque>>();
    debugged::<TryBudgeted<Opaque>>();
    debugged::<InCurrentBudget<Opaque>>();
}

#[test]
fn a_carried_future_can_be_moved_if_what_it_carries_can() {
    everywhere::<InCurrentBudget<Ready<()>>>();
}

#[test]
fn databases_are_handles_and_connections_are_values() {
    handle::<Pool<Sqlite>>();
    everywhere::<Connection<Sqlite>>();
    everywhere::<PoolConnection<Sqlite>>();
    everywhere::<BorrowedConnection<'static, Sqlite>>();
    everywhere::<Transaction<'static, Sqlite>>();
    handle::<request_budget::redis::Connection<u8>>();
    handle::<Client>();
    everywhere::<ClientSession>();
    sent::<StartSession<'_>>();
    debugged::<StartSession<'_>>();
    sent::<StartTransaction<'_>>();
    debugged::<StartTransaction<'_>>();
    sent::<request_budget::diesel::Instrumentation>();
    debugged::<request_budget::diesel::Instrumentation>();
    everywhere::<Query>();
    everywhere::<SqlxEvents>();
    handle::<CountingAllocator>();
    shared::<CountingAllocator<Opaque>>();
}

#[test]
fn hooks_can_be_kept_behind_a_pointer() {
    fn hook<T: ?Sized + Debug + Send + Sync + 'static>() {}
    hook::<dyn Reporter>();
    hook::<dyn Reject>();
    // These are generic over the request's body and chosen when the layer is made.
    fn kept(_: &dyn Policy<()>, _: &dyn Naming<()>) {}
    kept(&Budget::new(), &ByRoute::default());
    fn kept_for_jobs(_: &dyn JobPolicy<()>, _: &dyn JobNaming<()>, _: &dyn Describe<()>) {}
    kept_for_jobs(&Budget::new(), &"job", &());
}

#[test]
fn what_can_be_spawned_can_be_detached() {
    fn detachable<T: Detachable>() {}
    detachable::<Ready<Opaque>>();
}

#[test]
fn methods_are_there_for_every_future() {
    drop((Box::pin(async {}).budgeted("task", Budget::new()), async {}.in_current_budget()));
    drop(async {}.external("payments"));
}

#[test]
fn no_public_type_is_missing_here() {
    let mut public = BTreeSet::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut public);
    assert!(public.len() > 30, "{public:?}");
    let here = include_str!("public_types.rs");
    let words = here.split(|c: char| !c.is_alphanumeric()).collect::<BTreeSet<_>>();
    public.retain(|name| !words.contains(name.as_str()));
    assert_eq!(public, BTreeSet::new());
}

/// Adds the names of the types and traits that are declared public in this folder.
fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("can be read").path();
        if path.is_dir() {
            collect(&path, names);
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("source code");
        for line in source.lines() {
            let line = line.trim_start();
            let declared = ["pub struct ", "pub enum ", "pub trait "];
            let name = declared.iter().find_map(|start| line.strip_prefix(start));
            let name = name.and_then(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
            names.extend(name.map(str::to_owned));
        }
    }
}
