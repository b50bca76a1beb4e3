//! Memory per unit of work, through a global allocator that counts.
//!
//! Install the allocator in the program; the library never does. Each thread counts what it
//! allocates and frees in cells of its own; a unit of work is charged the difference over each of
//! its polls.
//!
//! * **allocated**: bytes asked for. Growing an allocation in place or by a move adds the growth
//!   only.
//! * **memory**: the peak of live bytes (allocated minus freed) over the polls of the work.
//! * **retained**: the bytes still live when it ends, what it handed to other tasks included.
//!
//! The pieces of a response body leave the account when the server takes them, by their length.
//!
//! Live bytes never go below zero. Work that frees what others allocated (rows that a database
//! driver's own thread made, the request that the server parsed) would otherwise run up a credit
//! behind which its own growth could hide. Within one poll such frees still offset allocations, so
//! there the peak is a lower bound. Where one unit of work runs on several threads at once, its
//! peak is exact for each thread's poll and approximate for their sum.
//!
//! Not counted: what other threads allocate on behalf of the work, unless it was carried there with
//! [`in_current_budget`](crate::BudgetExt::in_current_budget); stacks; memory that never passed
//! through the global allocator; what this library notes of statements, and what subscribers and
//! reporters do with a violation or a report.
//!
//! # Examples
//!
//! ```
//! use request_budget::alloc::CountingAllocator;
//! use request_budget::{Budget, BudgetExt, Usage};
//!
//! #[global_allocator]
//! static ALLOC: CountingAllocator = CountingAllocator::system();
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let hog = async {
//!     drop(std::hint::black_box(vec![0_u8; 1 << 20]));
//!     Usage::current()
//! };
//! let usage = hog.budgeted("hog", Budget::new()).await.unwrap().unwrap();
//! assert_eq!(usage.memory, Some(1 << 20));
//! assert_eq!(usage.retained, Some(0));
//! # }
//! ```
//!
//! Any other allocator can be wrapped: `CountingAllocator::new(mimalloc::MiMalloc)`.

mod allocator;
pub(crate) mod counters;

pub use allocator::CountingAllocator;
