//! Charges the driver's events to the work that causes them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use mongodb::bson::Document;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::command::CommandEvent;
use mongodb::options::ServerAddress;

use super::shape;
use crate::memory;
use crate::meter::pools::PoolId;
use crate::meter::recording::{self, Kind};
use crate::meter::table::{DatabaseId, Key};
use crate::meter::{Meter, Suspect};
use crate::report::elsewhere::{count_unattributed, note_task};
use crate::resource::Resource;
use crate::scope;

/// The connections of one client that are out for a command.
///
/// A connection goes out in the task of its user and comes back in a task of the pool, so whose it
/// is has to be kept. One lock, held for a map access; the driver's pool itself takes more than
/// that for each command.
#[derive(Debug)]
pub(super) struct Connections {
    client: ClientId,
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    users: HashMap<u64, Arc<Meter>, FixedState>,
    /// Of connections that share the id with one that is out: options that were instrumented once
    /// can be cloned and made into several clients.
    more: Vec<(u64, Arc<Meter>)>,
}

impl Connections {
    pub(super) fn new(client: ClientId) -> Self {
        Self { client, out: Mutex::default() }
    }

    pub(super) fn handle(&self, event: &CmapEvent) {
        // The driver frees sessions and cluster times of the work in tasks of its own. Some of them
        // emit these events, on threads where perhaps no unit of work ever ends.
        memory::add_to_total();
        match event {
            CmapEvent::ConnectionCheckedOut(event) => {
                let Some(meter) = scope::current() else {
                    count_unattributed();
                    recording::record_elsewhere(Kind::Shape, None);
                    return;
                };
                let (chain, address) = (meter.chain(), &event.address);
                chain.for_each(|meter| add_connection_wait(&meter, address, event.duration));
                let id = self.client.connection(&event.address, event.connection_id);
                meter.begin_command(id, scope::is_carried);
                // What grows here grows for all work, not for this.
                self.with(|out| memory::aside(|| out.insert(id, meter)));
            }
            CmapEvent::ConnectionCheckoutFailed(event) => {
                let meter = scope::current();
                let chain = meter.iter().flat_map(|meter| meter.chain());
                let address = &event.address;
                chain.for_each(|meter| add_connection_wait(&meter, address, event.duration));
            }
            CmapEvent::ConnectionCheckedIn(event) => {
                self.back(&event.address, event.connection_id);
            }
            // One that breaks while it is out may never be checked in.
            CmapEvent::ConnectionClosed(event) => self.back(&event.address, event.connection_id),
            _ => {}
        }
    }

    fn back(&self, address: &ServerAddress, connection: u32) {
        let id = self.client.connection(address, connection);
        if let Some(meter) = self.with(|out| out.remove(id)) {
            meter.end_command(id);
        }
    }

    fn with<T>(&self, access: impl FnOnce(&mut Out) -> T) -> T {
        // No access panics midway, so a poisoned map is whole.
        access(&mut self.out.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Out {
    fn insert(&mut self, id: u64, user: Arc<Meter>) {
        if let Some(other) = self.users.insert(id, user) {
            self.more.push((id, other));
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Meter>> {
        let position = self.more.iter().position(|(other, _)| *other == id);
        match position {
            Some(position) => Some(self.more.swap_remove(position).1),
            None => self.users.remove(&id),
        }
    }
}

/// Distinguishes the connections of one client from those of all others.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientId(u64);

impl ClientId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }

    /// A database that this client reaches.
    fn database(self, name: &str) -> DatabaseId {
        DatabaseId::of(&(self.0, name))
    }

    /// One number for a connection: the driver's ids are unique within the pool of one server only.
    fn connection(self, address: &ServerAddress, connection: u32) -> u64 {
        FixedState::default().hash_one((self.0, address, connection))
    }
}

fn add_connection_wait(meter: &Meter, address: &ServerAddress, wait: Duration) {
    meter.add_connection_wait(wait, || {
        // Each unit of work has a longest wait, and of most it explains nothing: the name is not
        // worth its making.
        const LEAST: Duration = Duration::from_millis(1);
        if wait < LEAST {
            return PoolId::UNKNOWN;
        }
        memory::aside(|| PoolId::of(&format!("mongodb://{address}")))
    });
}

/// What the driver sends by itself, in tasks of its own.
const OF_DRIVER: [&str; 4] = ["abortTransaction", "endSessions", "killCursors", "killSessions"];

/// The commands of one client.
#[derive(Debug)]
pub(super) struct Commands {
    client: ClientId,
}

impl Commands {
    pub(super) fn new(client: ClientId) -> Self {
        Self { client }
    }

    pub(super) fn handle(&self, event: &CommandEvent) {
        let Some(meter) = scope::current() else {
            if let CommandEvent::Started(event) = event
                && !OF_DRIVER.contains(&&*event.command_name)
            {
                note_task();
            }
            return;
        };
        match event {
            CommandEvent::Started(event) => {
                let text = memory::aside(|| shape::of(&event.command_name, &event.command));
                let key = Key::on(self.client.database(&event.db), &text);
                let begins = event.command.get_bool("startTransaction") == Ok(true);
                let connection = &event.connection;
                let id = self.client.connection(&connection.address, connection.id);
                meter.name_command(id, key, &text);
                if begins {
                    let add = |meter: &Meter| {
                        meter.add(Resource::Transactions, 1, Suspect::Statement(key));
                    };
                    meter.chain().for_each(|meter| add(&meter));
                }
                memory::aside(|| drop(text));
            }
            CommandEvent::Succeeded(event) => {
                let connection = &event.connection;
                let id = self.client.connection(&connection.address, connection.id);
                meter.add_documents(id, documents(&event.reply));
            }
            _ => {}
        }
    }
}

/// How many documents a reply contains: those of a batch, or the one of a find-and-modify.
fn documents(reply: &Document) -> u64 {
    let Ok(cursor) = reply.get_document("cursor") else {
        return reply.get_document("value").map_or(0, |_| 1);
    };
    let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"));
    batch.map_or(0, |batch| batch.len() as u64)
}
