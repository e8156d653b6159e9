//! The report: run folders become one HTML page that needs no network.

mod compare;
mod curves;
mod images;
mod kernels;
mod markup;
mod overview;
mod page;
mod plot;
mod read;
mod scale;

pub use images::{Attacked, Example, attack, examples};
pub use kernels::{Kernel, Kernels};
pub use page::{Gallery, Page};
pub use read::{Chosen, Epoch, ReportError, RunRecord, read_runs};
