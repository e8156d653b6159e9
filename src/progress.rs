//! What a session reports while it works, and how it is asked to stop.

/// Receives what a session reports. A session is an evaluation, a training run or a selection.
pub trait ProgressSink {
    fn event(&self, event: Event);

    /// Asked between steps and between batches; `true` ends the session, which saves what is done.
    fn stop(&self) -> bool {
        false
    }
}

/// Something that happened in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A task of `total` units begins, in place of the one before.
    Begin { task: &'a str, total: usize },
    /// So many units of the task are done.
    Done(usize),
    /// The task has ended or was interrupted, and no other begins at once.
    End,
    /// A line of results, as soon as they are known.
    Result(&'a str),
    /// A line that is neither a result nor a warning.
    Note(&'a str),
    /// What is or may be wrong, in a line.
    Warning(&'a str),
}

/// Ignores every event and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl ProgressSink for Silent {
    fn event(&self, _event: Event) {}
}

/// Ignores every event; the function says whether to stop.
#[derive(Clone, Copy, Debug)]
pub struct StopWhen<F>(pub F);

impl<F: Fn() -> bool> ProgressSink for StopWhen<F> {
    fn event(&self, _event: Event) {}

    fn stop(&self) -> bool {
        (self.0)()
    }
}

/// The progress of a session inside of another one: its tasks bear a label, and its results are not reported.
#[derive(Clone, Copy)]
pub struct Inner<'a> {
    pub outer: &'a dyn ProgressSink,
    /// In front of the name of each task.
    pub label: &'a str,
}

impl ProgressSink for Inner<'_> {
    fn event(&self, event: Event) {
        match event {
            Event::Begin { task, total } => {
                self.outer.event(Event::Begin { task: &format!("{}{task}", self.label), total });
            }
            Event::Result(_) => {}
            event => self.outer.event(event),
        }
    }

    fn stop(&self) -> bool {
        self.outer.stop()
    }
}

/// Callback with the number of units done and their total; returns `false` to stop.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// A [`Watch`] that reports the units as `task`, which begins with the first call and anew
/// where the count starts over; returns `false` to stop.
pub fn watch(progress: &dyn ProgressSink, task: String) -> impl FnMut(usize, usize) -> bool {
    let mut reported = None;
    move |done, total| {
        if reported.replace(done).is_none_or(|before| before > done) {
            progress.event(Event::Begin { task: &task, total });
        }
        progress.event(Event::Done(done));
        !progress.stop()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Recorded(RefCell<Vec<String>>);

    impl ProgressSink for Recorded {
        fn event(&self, event: Event) {
            self.0.borrow_mut().push(format!("{event:?}"));
        }
    }

    #[test]
    fn a_task_begins_anew_where_the_count_starts_over() {
        let recorded = Recorded::default();
        let mut callback = watch(&recorded, "images".into());
        for done in [2, 4, 1] {
            assert!(callback(done, 4));
        }
        drop(callback);
        let begin = r#"Begin { task: "images", total: 4 }"#;
        assert_eq!(recorded.0.into_inner(), [begin, "Done(2)", "Done(4)", begin, "Done(1)"]);
        assert!(!watch(&StopWhen(|| true), String::new())(1, 2));
    }

    #[test]
    fn an_inner_session_labels_its_tasks_and_keeps_its_results() {
        let recorded = Recorded::default();
        let inner = Inner { outer: &recorded, label: "test of best " };
        inner.event(Event::Begin { task: "clean", total: 3 });
        inner.event(Event::Result("clean: 100 %"));
        inner.event(Event::Warning("no gradient"));
        let expected = [r#"Begin { task: "test of best clean", total: 3 }"#, r#"Warning("no gradient")"#];
        assert_eq!(recorded.0.into_inner(), expected);
        assert!(Inner { outer: &StopWhen(|| true), label: "" }.stop());
    }
}
