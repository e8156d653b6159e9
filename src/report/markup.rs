//! Text that is safe inside HTML, and the styles that tell runs apart.
//!
//! Every tag is closed and every attribute quoted, so that the page is also well-formed XML.

/// `text` with the characters that HTML reads as markup written as entities; for content and for quoted attributes.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // What neither HTML nor XML allows.
            character if character.is_control() && !matches!(character, '\n' | '\t') => safe.push('\u{FFFD}'),
            character => safe.push(character),
        }
    }
    safe
}

/// Colours that the style sheet has for runs.
pub const COLOURS: usize = 6;
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// How one run or one kind of thing is drawn: colour, then dashes, and a shape for its points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    slot: usize,
    pub dashed: bool,
}

impl Style {
    /// Of the run number `slot`, the same in every plot.
    pub fn of_run(slot: usize) -> Self {
        Self { slot, dashed: false }
    }

    /// The same colour and shape, drawn thinner and dashed: a second quantity of the same run.
    pub fn second(self) -> Self {
        Self { dashed: true, ..self }
    }

    /// The class that sets the colour.
    pub fn class(self) -> String {
        format!("c{}{}", self.slot % COLOURS, if self.dashed { " thin" } else { "" })
    }

    /// The attribute that dashes a line, with a leading space, or nothing.
    pub fn dash(self) -> String {
        let dash = if self.dashed { "3 2" } else { DASHES[self.slot / COLOURS % DASHES.len()] };
        if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") }
    }

    /// The shape of a point around (x, y): circle, square, triangle or diamond.
    pub fn shape(self, x: f64, y: f64, class: &str) -> String {
        let class = format!("{class} {}", self.class());
        match self.slot % 4 {
            0 => format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.2"/>"#),
            1 => {
                let (x, y) = (x - 2.9, y - 2.9);
                format!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="5.8" height="5.8"/>"#)
            }
            2 => {
                let (top, low, left, right) = (y - 3.8, y + 2.8, x - 3.8, x + 3.8);
                format!(
                    r#"<path class="{class}" d="M{x:.1} {top:.1}L{right:.1} {low:.1}L{left:.1} {low:.1}Z"/>"#
                )
            }
            _ => {
                let (top, low, left, right) = (y - 4.2, y + 4.2, x - 4.2, x + 4.2);
                format!(
                    r#"<path class="{class}" d="M{x:.1} {top:.1}L{right:.1} {y:.1}L{x:.1} {low:.1}L{left:.1} {y:.1}Z"/>"#
                )
            }
        }
    }
}

/// A legend of lines: one entry a style.
pub fn legend(entries: &[(Style, String)]) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (style, name) in entries {
        let (class, dash, shape) = (style.class(), style.dash(), style.shape(13.0, 6.0, "mark"));
        html += &format!(
            "<li><svg viewBox=\"0 0 26 12\" class=\"swatch\" aria-hidden=\"true\"><path class=\"line {class}\"{dash} \
             d=\"M1 6H25\"/>{shape}</svg>{}</li>",
            escape(name)
        );
    }
    html + "</ul>\n"
}

/// A legend of filled areas: the class of each, and its name.
pub fn area_legend(entries: &[(String, &str)]) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (class, name) in entries {
        html += &format!(
            "<li><svg viewBox=\"0 0 12 12\" class=\"block\" aria-hidden=\"true\"><rect class=\"area {class}\" x=\"0.5\" \
             y=\"0.5\" width=\"11\" height=\"11\"/></svg>{}</li>",
            escape(name)
        );
    }
    html + "</ul>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_is_text() {
        assert_eq!(
            escape("<b a=\"1\" b='2'>&amp;\u{7}"),
            "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;amp;\u{FFFD}"
        );
        let html = legend(&[(Style::of_run(0), "<run>".into())]);
        assert!(html.contains("&lt;run&gt;") && !html.contains("<run>"));
    }

    #[test]
    fn no_two_of_the_first_24_runs_look_alike() {
        let looks: Vec<_> =
            (0..24).map(|run| (Style::of_run(run).class(), Style::of_run(run).dash())).collect();
        for (i, look) in looks.iter().enumerate() {
            assert!(!looks[..i].contains(look), "run {i}: {look:?}");
        }
    }
}
