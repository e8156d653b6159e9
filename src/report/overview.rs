//! The tables of the page: what each run is, how it ended, its recipe, its environment, and what is missing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::compare::SpeedUp;
use super::markup::{Style, escape};
use super::read::{Clock, RunRecord};
use super::scale::{duration, fixed, significant};
use crate::clock::to_the_minute;

pub const NONE: &str = "\u{2013}";

/// The name of a run next to its colour and shape.
pub fn run_name(slot: usize, run: &RunRecord) -> String {
    let shape = Style::of_run(slot).shape(6.0, 6.0, "mark");
    format!(
        "<svg viewBox=\"0 0 12 12\" class=\"block\" aria-hidden=\"true\">{shape}</svg>{}",
        escape(&run.name)
    )
}

/// What a run trains with: objective, selection, acceleration.
pub fn method(run: &RunRecord) -> String {
    let mut words = vec![run.recipe("objective.method").unwrap_or("unknown").to_string()];
    if let Some(method) = run.recipe("selection.method").filter(|method| *method != "full") {
        let share = run.recipe("selection.fraction").and_then(|text| text.parse::<f64>().ok());
        words.push(match share.filter(|share| *share < 1.0) {
            Some(share) => format!("{method} {} %", significant(100.0 * share, 3)),
            None => method.into(),
        });
    }
    words.extend(run.recipe("accelerate.method").filter(|method| *method != "none").map(String::from));
    words.join(" + ")
}

fn percent(share: f64) -> String {
    format!("{} %", fixed(100.0 * share, 1))
}

/// A table of HTML: names of the columns, and which of them hold numbers; the first cell of a row is its name.
pub fn table(head: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let class = |numeric: bool| if numeric { " class=\"n\"" } else { "" };
    let mut html = String::from("<div class=\"scroll\"><table><thead><tr>");
    for (name, numeric) in head {
        html += &format!("<th{}>{name}</th>", class(*numeric));
    }
    html += "</tr></thead><tbody>\n";
    for row in rows {
        html += "<tr>";
        for (place, (cell, (_, numeric))) in row.iter().zip(head).enumerate() {
            let tag = if place == 0 { "th" } else { "td" };
            html += &format!("<{tag}{}>{cell}</{tag}>", class(*numeric));
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

/// One row a run: method, epochs, test accuracies of the best weights, training time, speed-up.
pub fn summary(runs: &[RunRecord], speed_ups: &[Result<SpeedUp, &str>], robust: Option<&str>) -> String {
    let (robust, clock) = (robust.unwrap_or("robust"), Clock::of(runs));
    let [best_robust, last_robust] = ["best", "last"].map(|weights| escape(&format!("{weights}: {robust}")));
    let head = [
        ("run", false),
        ("epochs", true),
        ("best: clean", true),
        (&best_robust, true),
        ("last: clean", true),
        (&last_robust, true),
        (clock.name(), true),
        ("images/s", true),
        ("speed-up", true),
        ("method", false),
    ];
    let row = |(slot, run): (usize, &RunRecord)| {
        let tested = |weights: &str, protocol: &str| {
            let found = run.test_accuracies().into_iter().find(|row| row.0 == weights && row.1 == protocol);
            found.map_or(NONE.into(), |row| percent(row.2))
        };
        let epochs = run.epochs.last().and_then(|epoch| epoch.number("epoch")).unwrap_or(0.0);
        let state = if run.result.is_some() { "" } else { " (under way)" };
        // A run with best weights that are also the last ones lists both; one without validation has no best.
        let best = run.result.as_ref().and_then(|result| result["best"]["epoch"].as_u64());
        let best = best.map_or(String::new(), |epoch| format!(", best {epoch}"));
        let rate = run.column("images").iter().map(|point| point.1).sum::<f64>()
            / (run.sum("seconds_attack") + run.sum("seconds_train"));
        vec![
            run_name(slot, run),
            format!("{epochs}{best}{state}"),
            tested("best", "clean"),
            tested("best", robust),
            tested("last", "clean"),
            tested("last", robust),
            if run.epochs.is_empty() { NONE.into() } else { duration(run.training_seconds(clock)) },
            significant(rate, 3),
            speed_ups[slot].as_ref().map_or(NONE.into(), |gain| format!("{}\u{D7}", fixed(gain.factor, 2))),
            escape(&method(run)),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().enumerate().map(row).collect();
    table(&head, &rows)
}

/// Every test accuracy of every run, folded away; nothing where there is none.
pub fn tests(runs: &[RunRecord]) -> String {
    let head =
        [("run", false), ("weights", false), ("protocol", false), ("accuracy", true), ("test images", true)];
    let mut rows = Vec::new();
    for (slot, run) in runs.iter().enumerate() {
        for (weights, protocol, accuracy, total) in run.test_accuracies() {
            let accuracy = format!("{} %", fixed(100.0 * accuracy, 2));
            rows.push(vec![
                run_name(slot, run),
                escape(weights),
                escape(protocol),
                accuracy,
                total.to_string(),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!("<details><summary>All test accuracies</summary>{}</details>\n", table(&head, &rows))
}

/// Recipes side by side: keys whose values differ first and marked, the others folded away.
pub fn recipes(runs: &[RunRecord]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for run in runs {
        for (key, _) in &run.recipe {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
    }
    if keys.is_empty() {
        return "<p class=\"note\">No recipe could be read.</p>\n".into();
    }
    let values = |key: &str| -> Vec<Option<&str>> { runs.iter().map(|run| run.recipe(key)).collect() };
    let (same, differ): (Vec<&str>, Vec<&str>) = keys.into_iter().partition(|key| {
        let values = values(key);
        values.iter().all(|value| *value == values[0])
    });
    let mut html = String::new();
    if runs.len() > 1 {
        let words = match differ.len() {
            0 => "The recipes are the same.".into(),
            1 => "One key differs.".to_string(),
            count => format!("{count} keys differ."),
        };
        html +=
            &format!("<p class=\"note\">{words} A value that is not the first run\u{2019}s is marked.</p>\n");
    }
    if !differ.is_empty() {
        let rows = differ.iter().map(|&key| {
            let texts = values(key).into_iter().map(|value| value.unwrap_or(NONE).into());
            Row { key, texts: texts.collect(), marks: true, code: false }
        });
        html += &side_by_side(runs, &rows.collect::<Vec<_>>());
    }
    let title = match runs.len() {
        1 => format!("All {} keys", same.len()),
        _ => format!("{} keys with one value in all runs", same.len()),
    };
    if !same.is_empty() {
        let rows: Vec<Vec<String>> =
            same.iter().map(|key| vec![escape(key), escape(values(key)[0].unwrap_or(NONE))]).collect();
        let open = if runs.len() == 1 { " open=\"open\"" } else { "" };
        let table = table(&[("key", false), ("value", false)], &rows);
        html += &format!("<details{open}><summary>{title}</summary>{table}</details>\n");
    }
    html
}

/// A line of a table with a column for each run.
struct Row<'a> {
    key: &'a str,
    texts: Vec<String>,
    /// Whether a text that is not the first run's is marked.
    marks: bool,
    code: bool,
}

fn side_by_side(runs: &[RunRecord], rows: &[Row]) -> String {
    let names = Vec::from_iter(runs.iter().enumerate().map(|(slot, run)| run_name(slot, run)));
    let head = [""].into_iter().chain(names.iter().map(String::as_str)).map(|name| (name, false));
    let cells = |row: &Row| {
        let cell = |text: &String| {
            let safe = if row.code { format!("<code>{}</code>", escape(text)) } else { escape(text) };
            if row.marks && *text != row.texts[0] { format!("<mark>{safe}</mark>") } else { safe }
        };
        [escape(row.key)].into_iter().chain(row.texts.iter().map(cell)).collect()
    };
    table(&Vec::from_iter(head), &Vec::from_iter(rows.iter().map(cells)))
}

/// The machine, the build and the images of each run, by its last session.
pub fn environments(runs: &[RunRecord]) -> String {
    type Field = fn(&Value) -> String;
    let fields: [(&str, bool, bool, Field); 12] = [
        ("device", true, false, |s| {
            format!("{} ({})", text(&s["device"]["name"]), text(&s["device"]["kind"]))
        }),
        ("code", true, false, |s| text(&s["device"]["code"])),
        ("driver", true, false, |s| text(&s["device"]["driver"])),
        ("ranks", true, false, |s| text(&s["ranks"])),
        ("threads", true, false, |s| text(&s["threads"])),
        ("system", true, false, |s| text(&s["system"])),
        ("secateur", true, false, |s| text(&s["secateur"])),
        ("training images", true, false, |s| text(&s["training_images"])),
        ("test images", true, false, |s| text(&s["test_images"])),
        ("SHA-256 of the images", true, true, |s| text(&s["data_sha256"]).chars().take(12).collect()),
        ("started (UTC)", false, false, |s| {
            s["started_unix_seconds"].as_u64().map_or(NONE.into(), to_the_minute)
        }),
        ("command", false, true, |s| command(&s["command"])),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for (key, marks, code, field) in fields {
        let texts = runs.iter().map(|run| run.sessions.last().map_or(NONE.into(), field)).collect();
        rows.push(Row { key, texts, marks, code });
    }
    let sessions = runs.iter().map(|run| run.sessions.len().to_string()).collect();
    rows.insert(rows.len() - 1, Row { key: "sessions", texts: sessions, marks: false, code: false });
    side_by_side(runs, &rows)
}

/// A JSON value as a word.
fn text(value: &Value) -> String {
    match value {
        Value::Null => NONE.into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The command line, the program by its name alone.
fn command(words: &Value) -> String {
    let words: Vec<&str> = words.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let Some((program, arguments)) = words.split_first() else { return NONE.into() };
    let program = program.rsplit(['/', '\\']).next().unwrap_or(program);
    [&[program], arguments].concat().join(" ")
}

/// What each run lacks; nothing where every run is whole.
pub fn notes(runs: &[RunRecord], more: &[String]) -> String {
    let mut lines = BTreeSet::new();
    let mut html = String::new();
    let own = runs.iter().flat_map(|run| run.notes.iter().map(move |note| format!("{}: {note}", run.name)));
    for line in own.chain(more.iter().cloned()) {
        if lines.insert(line.clone()) {
            html += &format!("<li>{}</li>\n", escape(&line));
        }
    }
    if html.is_empty() { html } else { format!("<ul class=\"notes\">{html}</ul>\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_no_folder_of_the_program() {
        let words = serde_json::json!(["/somewhere/bin/secateur", "train", "--out", "runs/a"]);
        assert_eq!(command(&words), "secateur train --out runs/a");
        assert_eq!(command(&Value::Null), NONE);
    }
}
