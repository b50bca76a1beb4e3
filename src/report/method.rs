//! Names of gRPC methods, whose number is bounded whatever clients send.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard};

/// A method that a client has called, by its path: "/pkg.Service/Method".
///
/// A client can call methods that do not exist. So a table has entries for a bounded number of
/// methods that are known to exist, and for a few that are not known yet. All others are named
/// `_other`.
#[derive(Debug)]
pub(crate) struct Method {
    path: Box<str>,
    /// Whether it has an entry, so that its own name is used.
    is_admitted: AtomicBool,
    /// Whether it has answered with anything but "unimplemented", so that it exists.
    exists: AtomicBool,
}

impl Method {
    fn new(path: &str, is_admitted: bool) -> Self {
        Self { path: path.into(), is_admitted: is_admitted.into(), exists: false.into() }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_admitted.load(Relaxed) { &self.path } else { "_other" })
    }
}

/// The methods of this process that have an entry.
pub(crate) struct Methods {
    places: RwLock<HashMap<Box<str>, Arc<Method>>>,
}

impl Methods {
    /// The number of entries for methods that exist.
    const MOST: usize = 512;
    /// The number of entries for methods that do not exist, or of which that is not known yet.
    const MOST_UNKNOWN: usize = 32;
    const LONGEST: usize = 200;

    fn new() -> Self {
        Self { places: RwLock::default() }
    }

    /// The table of this process, because the bound is on the number of all names.
    pub(crate) fn all() -> &'static Self {
        static ALL: LazyLock<Methods> = LazyLock::new(Methods::new);
        &ALL
    }

    /// Looks up the method of this path.
    pub(crate) fn named(&self, path: &str) -> Arc<Method> {
        if let Some(method) = self.read().get(path) {
            return Arc::clone(method);
        }
        if !is_method(path) {
            return Arc::new(Method::new("", false));
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let unknown = places.values().filter(|method| !method.exists.load(Relaxed)).count();
        let is_admitted = unknown < Self::MOST_UNKNOWN && places.len() < Self::MOST;
        let method = Arc::new(Method::new(path, is_admitted));
        if is_admitted {
            places.insert(path.into(), Arc::clone(&method));
        }
        method
    }

    /// Notes that a method has answered as only an existing one can.
    pub(crate) fn note_that_it_exists(&self, method: &Arc<Method>) {
        if method.exists.load(Relaxed) || method.path.is_empty() {
            return;
        }
        method.exists.store(true, Relaxed);
        if method.is_admitted.load(Relaxed) {
            return;
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if places.len() < Self::MOST {
            method.is_admitted.store(true, Relaxed);
            places.entry(method.path.clone()).or_insert_with(|| Arc::clone(method));
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Box<str>, Arc<Method>>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a path is of the form "/pkg.Service/Method".
fn is_method(path: &str) -> bool {
    let is_name = |name: &str, also: &[u8]| {
        let is_fine =
            |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || also.contains(&byte);
        !name.is_empty() && name.bytes().all(is_fine)
    };
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    path.len() <= Methods::LONGEST
        && parts.is_some_and(|(service, method)| is_name(service, b".") && is_name(method, b""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_named_by_its_path() {
        let methods = Methods::new();
        assert_eq!(methods.named("/pkg.Ledger/Get").to_string(), "/pkg.Ledger/Get");
        assert_eq!(methods.named("/Ledger/Get").to_string(), "/Ledger/Get");
        let long = format!("/pkg.Ledger/{}", "x".repeat(200));
        for bad in ["", "/", "/pkg.Ledger", "/pkg.Ledger/", "//Get", "/a/b/c", "/a/b%20", &long] {
            assert_eq!(methods.named(bad).to_string(), "_other", "{bad:?}");
        }
    }

    #[test]
    fn there_are_boundedly_many_names() {
        let methods = Methods::new();
        let mut names = std::collections::BTreeSet::new();
        for number in 0..10_000 {
            names.insert(methods.named(&format!("/pkg.Ledger/Junk{number}")).to_string());
        }
        assert_eq!(names.len(), Methods::MOST_UNKNOWN + 1, "and `_other`");
        // A method that exists still gets its name, once it has answered.
        let late = methods.named("/pkg.Ledger/Get");
        assert_eq!(late.to_string(), "_other");
        methods.note_that_it_exists(&late);
        assert_eq!(
            [late, methods.named("/pkg.Ledger/Get")].map(|n| n.to_string()),
            ["/pkg.Ledger/Get"; 2]
        );
        // A service that answers every method.
        for number in 0..10_000 {
            let method = methods.named(&format!("/pkg.Wild/Card{number}"));
            methods.note_that_it_exists(&method);
            names.insert(method.to_string());
        }
        assert_eq!(methods.read().len(), Methods::MOST);
        assert_eq!(names.len(), Methods::MOST, "with `_other`, and without the one above");
    }
}
