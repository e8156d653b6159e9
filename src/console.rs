//! What a user sees: result lines on stdout, warnings on stderr, bars on a terminal.
//!
//! Bars appear only where stderr is a terminal; in a pipe there are plain lines alone. `NO_COLOR` is respected. A
//! closed pipe ends the output, never the work. All that reaches the terminal passes here: text of others is made plain, and in
//! messages short.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::text;

/// Where a command writes; one a process.
pub struct Console {
    bar: RefCell<ProgressBar>,
    bars: bool,
    colour: bool,
    silent: bool,
    /// Whether the reader of stdout is gone.
    closed: Cell<bool>,
    error: RefCell<Option<io::Error>>,
}

impl Console {
    pub fn new() -> Self {
        // Any value but the empty one asks for no colour (no-color.org).
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            bar: RefCell::new(ProgressBar::hidden()),
            bars: io::stderr().is_terminal(),
            colour: !no_color,
            silent: false,
            closed: Cell::new(false),
            error: RefCell::new(None),
        }
    }

    /// Writes nothing; for tests.
    pub fn silent() -> Self {
        Self { bars: false, silent: true, ..Self::new() }
    }

    /// A line of results on stdout. What goes wrong is kept for [`Console::finish`].
    pub fn line(&self, text: impl AsRef<str>) {
        if self.silent || self.closed.get() {
            return;
        }
        let write = || {
            let mut stdout = io::stdout().lock();
            for line in text.as_ref().split('\n') {
                writeln!(stdout, "{}", text::line(line))?;
            }
            stdout.flush()
        };
        if let Err(error) = self.bar.borrow().suspend(write) {
            self.closed.set(true);
            if error.kind() != io::ErrorKind::BrokenPipe {
                *self.error.borrow_mut() = Some(error);
            }
        }
    }

    /// A line for the person at the terminal, on stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.silent {
            // Nobody is left to tell where stderr itself is gone.
            let _ = self.bar.borrow().suspend(|| writeln!(io::stderr(), "{}", text::message(text.as_ref())));
        }
    }

    /// Replaces the bar: `label` and a count up to `len`.
    pub fn bar(&self, label: impl Into<String>, len: usize) {
        if !self.bars {
            return;
        }
        self.bar.borrow().finish_and_clear();
        let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr_with_hz(10));
        let template = match self.colour {
            true => "{prefix} {bar:32.green/dim} {pos}/{len} {msg} {eta}",
            false => "{prefix} {bar:32} {pos}/{len} {msg} {eta}",
        };
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        bar.set_style(style.progress_chars("━━─"));
        bar.set_prefix(text::message(&label.into()));
        *self.bar.borrow_mut() = bar;
    }

    /// Moves the bar to `position`.
    pub fn at(&self, position: usize) {
        self.bar.borrow().set_position(position as u64);
    }

    /// Told what is done and of how much, draws a bar, from the first call on and anew where the count starts over; answers
    /// whether the work goes on, which `stop` ends.
    pub fn watch<'a>(
        &'a self,
        label: String,
        stop: impl Fn() -> bool + 'a,
    ) -> impl FnMut(usize, usize) -> bool + 'a {
        let mut shown = None;
        move |done, total| {
            if shown.replace(done).is_none_or(|shown| shown > done) {
                self.bar(label.clone(), total);
            }
            self.at(done);
            !stop()
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.borrow().finish_and_clear();
    }

    /// What went wrong with stdout, a closed pipe aside.
    pub fn finish(&self) -> io::Result<()> {
        self.clear();
        match self.error.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}
