//! What the driver's events say, charged to the work that causes them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use mongodb::bson::Document;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::command::CommandEvent;
use mongodb::options::ServerAddress;

use super::shape;
use crate::db::query::UNATTRIBUTED;
use crate::memory;
use crate::meter::table::Key;
use crate::meter::{Meter, Suspect};
use crate::resource::Resource;
use crate::scope;
use crate::time::{Instant, nanos};

/// The connections of one client that are out for a command.
///
/// A connection goes out in the task of its user and comes back in a task of the pool, so what is
/// charged when it comes back has to be kept. One lock, held for a map access; the driver's pool
/// itself takes more than that for each command.
#[derive(Debug, Default)]
pub(super) struct Connections {
    out: Mutex<HashMap<u64, Out, FixedState>>,
}

#[derive(Debug)]
struct Out {
    meter: Arc<Meter>,
    since: Instant,
}

impl Connections {
    pub(super) fn handle(&self, event: &CmapEvent) {
        match event {
            CmapEvent::ConnectionCheckedOut(event) => {
                let Some(meter) = scope::current() else {
                    UNATTRIBUTED.fetch_add(1, Relaxed);
                    return;
                };
                let since = Instant::now();
                for meter in meter.chain() {
                    add_connection_wait(meter, event.duration);
                    meter.count_command(since);
                }
                self.with(|out| {
                    // A map that grows grows for all work, not for this.
                    memory::aside(|| {
                        out.insert(id(&event.address, event.connection_id), Out { meter, since })
                    })
                });
            }
            CmapEvent::ConnectionCheckoutFailed(event) => {
                let meter = scope::current();
                let chain = meter.iter().flat_map(|meter| meter.chain());
                chain.for_each(|meter| add_connection_wait(meter, event.duration));
            }
            CmapEvent::ConnectionCheckedIn(event) => {
                self.back(id(&event.address, event.connection_id));
            }
            // One that breaks while it is out may never be checked in.
            CmapEvent::ConnectionClosed(event) => {
                self.back(id(&event.address, event.connection_id))
            }
            _ => {}
        }
    }

    fn back(&self, id: u64) {
        if let Some(Out { meter, since }) = self.with(|out| out.remove(&id)) {
            let now = Instant::now();
            meter.chain().for_each(|meter| meter.end_command(since, now));
        }
    }

    fn with<T>(&self, access: impl FnOnce(&mut HashMap<u64, Out, FixedState>) -> T) -> T {
        // No access panics half way, so a poisoned map is whole.
        access(&mut self.out.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn add_connection_wait(meter: &Meter, wait: Duration) {
    meter.add(Resource::ConnectionWait, nanos(wait), Suspect::Nobody);
}

/// One number for a connection: ids are unique within the pool of one server only.
fn id(address: &ServerAddress, connection: u32) -> u64 {
    FixedState::default().hash_one((address, connection))
}

/// The commands of one client.
#[derive(Debug, Default)]
pub(super) struct Commands;

impl Commands {
    pub(super) fn handle(&self, event: &CommandEvent) {
        let Some(meter) = scope::current() else { return };
        match event {
            CommandEvent::Started(event) => {
                let text = memory::aside(|| shape::of(&event.command_name, &event.command));
                let key = Key::of(&text);
                let begins = event.command.get_bool("startTransaction") == Ok(true);
                for meter in meter.chain() {
                    meter.count_command_text(key, &text);
                    if begins {
                        meter.add(Resource::Transactions, 1, Suspect::Statement(key));
                    }
                }
                memory::aside(|| drop(text));
            }
            CommandEvent::Succeeded(event) => {
                let documents = documents(&event.reply);
                let add =
                    |meter: &Meter| meter.add(Resource::Rows, documents, Suspect::TopStatement);
                meter.chain().for_each(add);
            }
            _ => {}
        }
    }
}

/// How many documents a reply hands out: those of a batch, or the one of a find-and-modify.
fn documents(reply: &Document) -> u64 {
    let Ok(cursor) = reply.get_document("cursor") else {
        return reply.get_document("value").map_or(0, |_| 1);
    };
    let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"));
    batch.map_or(0, |batch| batch.len() as u64)
}
