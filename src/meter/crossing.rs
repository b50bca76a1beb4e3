//! The first crossing of each limit of a unit of work.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::flags::Flags;
use super::recording::current_span;
use super::table::Counted;
use super::{Meter, Suspect};
use crate::budget::Bounds;
use crate::error::Cut;
use crate::memory;
use crate::report;
use crate::resource::Resource;
use crate::violation::{Cause, Severity, Violation};

impl Meter {
    pub(super) fn check(&self, resource: Resource, observed: u64, suspect: Suspect) {
        let bounds = self.bounds(resource, suspect);
        if observed > bounds.soft || observed > bounds.hard {
            self.cross(resource, observed, suspect);
        }
    }

    /// The limits on a resource; on repetitions those of the statement that is repeated.
    #[inline]
    pub(super) fn bounds(&self, resource: Resource, suspect: Suspect) -> Bounds {
        match (resource, suspect) {
            (Resource::RepeatedQueries, Suspect::Statement(key)) => {
                self.limits().on_repetitions(key)
            }
            _ => self.limits().on(resource),
        }
    }

    /// Reports which limit the observed value has crossed.
    #[cold]
    fn cross(&self, resource: Resource, observed: u64, suspect: Suspect) {
        match self.bounds(resource, suspect).hard {
            hard if observed > hard => self.cross_hard(resource, observed, hard, suspect),
            _ => self.cross_soft(resource, observed, suspect),
        }
    }

    /// Checks a limit on a time that has ended, so that nothing is left to be cut.
    pub(super) fn check_afterwards(&self, resource: Resource, observed: u64) {
        let limits = self.limits();
        let (soft, hard) = (limits.soft(resource), limits.hard(resource));
        if observed > hard {
            self.cross_once(resource, Severity::Hard, observed, hard, Suspect::Time);
        } else if observed > soft {
            self.cross_once(resource, Severity::Soft, observed, soft, Suspect::Time);
        }
    }

    /// Reports that a soft limit was crossed.
    #[cold]
    pub(super) fn cross_soft(&self, resource: Resource, observed: u64, suspect: Suspect) {
        let limit = self.bounds(resource, suspect).soft;
        self.cross_once(resource, Severity::Soft, observed, limit, suspect);
    }

    /// Reports that a hard limit was reached, which cuts the work.
    #[cold]
    pub(crate) fn cross_hard(
        &self,
        resource: Resource,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) {
        // A call that takes too long is cut by itself; the work goes on.
        if resource != Resource::ExternalTimeout && self.cut().is_none() {
            // The cut is set before the bit in `crossed`, since whoever finds that bit set relies
            // on the cut. Another thread may have set it first.
            memory::aside(|| {
                let violation = self.violation(resource, Severity::Hard, observed, limit, suspect);
                drop(self.rare().cut.set(Cut::new(violation)));
                self.flags.set(Flags::CUT);
            });
        }
        self.cross_once(resource, Severity::Hard, observed, limit, suspect);
        self.wake();
    }

    fn cross_once(
        &self,
        resource: Resource,
        severity: Severity,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) {
        let soft = 1 << resource.index();
        let hard = soft << Resource::COUNT;
        // The report of a hard crossing includes that of the soft one.
        let (news, known) = match severity {
            Severity::Soft => (soft, soft | hard),
            Severity::Hard | Severity::Caller => (soft | hard, hard),
        };
        if self.crossed.fetch_or(news, Relaxed) & known != 0 {
            return;
        }
        memory::aside(|| {
            let make = || self.violation(resource, severity, observed, limit, suspect);
            report::violation(self, resource, self.whose(resource, severity), make);
        });
    }

    /// The severity of a crossing: that of a deadline which the caller has set differs from that of
    /// our own.
    fn whose(&self, resource: Resource, severity: Severity) -> Severity {
        match severity {
            Severity::Hard
                if resource == Resource::TotalTime && self.limits().is_caller_deadline =>
            {
                Severity::Caller
            }
            severity => severity,
        }
    }

    pub(crate) fn violation(
        &self,
        resource: Resource,
        severity: Severity,
        observed: u64,
        limit: u64,
        suspect: Suspect,
    ) -> Violation {
        let statement = |counted: Counted<'_>| Cause::Statement {
            text: counted.text.into_owned(),
            executions: counted.count,
            time: Duration::from_nanos(counted.nanos),
            waiting: None,
            allocated: None,
        };
        let cause = match suspect {
            #[cfg(feature = "redis")]
            Suspect::Cache(key) => self.caches().and_then(|all| all.counted(key)).map(statement),
            #[cfg(feature = "redis")]
            Suspect::TopCacheCall => {
                let all = self.used(Resource::CacheCalls);
                self.caches().and_then(|table| table.most(all)).map(statement)
            }
            Suspect::Nobody => None,
            Suspect::Statement(key) => self.statements.counted(key).map(statement),
            Suspect::TopStatement => self.top_statement().map(statement),
            Suspect::External(key) => {
                self.externals().and_then(|all| all.counted(key)).map(|counted| Cause::External {
                    name: counted.text.into_owned(),
                    calls: counted.count,
                    time: Duration::from_nanos(counted.nanos),
                    waiting: None,
                    allocated: None,
                })
            }
            Suspect::Time => Some(self.cause_of_time()),
            Suspect::Memory(total) => Some(self.cause_of_memory(total)),
            Suspect::Connection => Some(self.cause_of_connection_wait()),
            #[cfg(feature = "http")]
            Suspect::Idling(last) => Some(self.cause_of_idling(last, observed)),
            Suspect::OwnCode => {
                Some(Cause::OwnCode { longest_poll: self.longest_poll(), allocated: None })
            }
        };
        Violation {
            resource,
            severity: self.whose(resource, severity),
            limit: resource.amount(limit),
            observed: resource.amount(observed),
            work: self.name.to_string(),
            attributes: self.origin().attributes.clone(),
            begun_by: self.origin().begun_by.as_ref().map(ToString::to_string),
            place: current_span().metadata().map(|span| span.name().to_owned()),
            cause,
        }
    }

    /// The statement that was executed most often; `None` if it may be one of those that are not
    /// distinguished.
    fn top_statement(&self) -> Option<Counted<'_>> {
        self.statements.most(self.used(Resource::Queries))
    }
}
