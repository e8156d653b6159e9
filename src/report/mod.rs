//! The report: run folders become one HTML page that needs no network.
//!
//! | file | what it holds |
//! |---|---|
//! | `read` | a run folder, read with patience |
//! | `compare` | speed-ups against full training, the front of accuracy against time |
//! | `overview`, `curves`, `kernels`, `images` | the sections: tables, plots of runs, roofline, pictures |
//! | `plot`, `scale`, `markup` | SVG plots, axes and numbers, escaping and styles |
//! | `page` | the sections on one page |

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
