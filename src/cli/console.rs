//! The user at the terminal: result lines on stdout, warnings on stderr, bars, and interrupts.
//!
//! Bars appear only where stderr is a terminal; in a pipe there are plain lines alone. `NO_COLOR` is respected. A
//! closed pipe ends the output, never the work. All that reaches the terminal passes here: text of others is made plain, and in
//! messages short.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt;
use crate::engine::StopFlag;
use crate::progress::{Event, ProgressSink};
use crate::text;

/// Where a command writes, and how the user stops it; one a process.
pub struct Console {
    bar: RefCell<ProgressBar>,
    bars: bool,
    colour: bool,
    /// Whether the reader of stdout is gone.
    closed: Cell<bool>,
    error: RefCell<Option<io::Error>>,
    /// Requested by a signal, once they are caught.
    stop: OnceCell<StopFlag>,
}

impl Console {
    pub fn new() -> Self {
        // Any value but the empty one asks for no colour (no-color.org).
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            bar: RefCell::new(ProgressBar::hidden()),
            bars: io::stderr().is_terminal(),
            colour: !no_color,
            closed: Cell::new(false),
            error: RefCell::new(None),
            stop: OnceCell::new(),
        }
    }

    /// Catches Ctrl-C and termination signals from now on; returns what they request.
    pub fn catch_interrupts(&self) -> io::Result<&StopFlag> {
        match self.stop.get() {
            Some(stop) => Ok(stop),
            None => {
                let stop = interrupt::catch()?;
                Ok(self.stop.get_or_init(|| stop))
            }
        }
    }

    /// A line of results on stdout. What goes wrong is kept for [`Console::finish`].
    pub fn line(&self, text: impl AsRef<str>) {
        if self.closed.get() {
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

    /// [`Console::line`] for each.
    pub fn lines(&self, lines: impl IntoIterator<Item: AsRef<str>>) {
        lines.into_iter().for_each(|line| self.line(line));
    }

    /// A line for the person at the terminal, on stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        // Nobody is left to tell where stderr itself is gone.
        let _ = self.bar.borrow().suspend(|| writeln!(io::stderr(), "{}", text::message(text.as_ref())));
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

impl ProgressSink for Console {
    fn event(&self, event: Event) {
        match event {
            Event::Begin { task, total } => self.bar(task, total),
            Event::Done(done) => self.at(done),
            Event::End => self.clear(),
            Event::Result(text) => self.line(text),
            Event::Note(text) => self.note(text),
            Event::Warning(text) => self.note(format!("warning: {text}")),
        }
    }

    fn stop(&self) -> bool {
        self.stop.get().is_some_and(StopFlag::requested)
    }
}
