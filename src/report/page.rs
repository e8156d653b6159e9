//! The page: one HTML file that asks nothing of a network, for any screen, either theme, and paper.
//!
//! Its policy forbids scripts and every request.

use super::compare::{robust_protocol, speed_ups};
use super::images::{Attacked, Example, data_uri};
use super::kernels::Kernels;
use super::markup::escape;
use super::read::RunRecord;
use super::{curves, overview};
use crate::clock;

const STYLE: &str = include_str!("style.css");

/// The pictures of one run.
#[derive(Clone, Debug, Default)]
pub struct Gallery {
    /// The name of the run.
    pub run: String,
    /// How the images were attacked, in words.
    pub attack: String,
    pub attacked: Vec<Attacked>,
    /// The epoch of the selection, what it kept, and what it dropped.
    pub selection: Option<(u32, Vec<Example>, Vec<Example>)>,
}

/// All that a page shows.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub runs: Vec<RunRecord>,
    pub galleries: Vec<Gallery>,
    pub kernels: Option<Kernels>,
    /// What was left out, besides the runs' own notes.
    pub notes: Vec<String>,
    /// Seconds since 1970.
    pub made: u64,
}

/// A section, or nothing where it has no content.
fn section(title: &str, content: &str) -> String {
    match content.is_empty() {
        true => String::new(),
        false => format!("<section><h2>{title}</h2>\n{content}</section>\n"),
    }
}

fn plots(content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<div class=\"plots\">{content}</div>\n") }
}

impl Page {
    /// The file.
    pub fn html(&self) -> String {
        let runs = &self.runs;
        let gains = speed_ups(runs);
        let robust = robust_protocol(runs);
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let title = format!("secateur report: {}", names.join(", "));

        let mut body = String::new();
        body +=
            &section("Runs", &(overview::summary(runs, &gains, robust.as_deref()) + &overview::tests(runs)));
        body += &section("Notes", &overview::notes(runs, &self.notes));
        let curve = plots(&curves::curves(runs));
        let groups = curves::groups(runs);
        let legend = if curve.is_empty() { String::new() } else { curves::run_legend(runs) };
        body += &section("Training", &format!("{legend}{curve}{groups}"));
        let costs = curves::time_split(runs) + &curves::speed_ups(runs, &gains);
        let words = if runs.len() > 1 { self.costs_note(&gains) } else { String::new() };
        body += &section("Time", &if costs.is_empty() { costs } else { plots(&costs) + &words });
        let protocols = robust.iter().map(String::as_str).chain(["clean"]);
        let trade = protocols.filter_map(|name| Some(curves::trade(runs, name)?.figure()));
        let trade = plots(&trade.collect::<String>());
        let words = "<p class=\"note\">Seconds are those of attack, train and selection, by the CPU clock where all runs have it; the dotted front joins the runs that no \
                     other beats in both.</p>\n";
        let legend = curves::run_legend(runs);
        body += &section(
            "Accuracy against time",
            &if trade.is_empty() { trade } else { format!("{words}{legend}{trade}") },
        );
        let pictures: String = self.galleries.iter().map(Gallery::attacked).collect();
        let words = "<p class=\"note\">Down each column: the image, the adversarial image, and their difference (grey: none). \
                     Below: the label, then the predictions before and after the attack, wrong ones underlined.</p>\n";
        body +=
            &section("Images", &if pictures.is_empty() { pictures } else { words.to_string() + &pictures });
        body += &section("Selection", &self.galleries.iter().map(Gallery::selection).collect::<String>());
        body += &section("Kernels", &self.kernels.as_ref().map_or(String::new(), Kernels::section));
        body += &section("Recipe", &overview::recipes(runs));
        body += &section("Environment", &overview::environments(runs));

        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;; img-src data:; \
             style-src &#39;unsafe-inline&#39;\"/>\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header><h1>{}</h1><p>secateur {} · {} UTC</p></header>\n<main>\n{body}</main>\n</body>\n</html>\n",
            escape(&title),
            if runs.len() == 1 { escape(names[0]) } else { format!("{} runs", runs.len()) },
            env!("CARGO_PKG_VERSION"),
            clock::to_the_minute(self.made),
        )
    }

    /// Robust accuracy against time as an SVG file; `None` where no run has both.
    pub fn figure(&self) -> Option<String> {
        Some(curves::trade(&self.runs, &robust_protocol(&self.runs)?)?.document(STYLE))
    }

    /// Which runs have no speed-up, and why.
    fn costs_note(&self, gains: &[Result<super::compare::SpeedUp, &str>]) -> String {
        let mut html = String::from(
            "<p class=\"note\">The speed-up compares seconds of attack, train and selection with those of full training \
             (all samples, the whole attack) of the same objective.",
        );
        for (run, gain) in self.runs.iter().zip(gains) {
            if let Err(reason) = gain {
                html += &format!(" {}: {reason}.", escape(&run.name));
            }
        }
        html + "</p>\n"
    }
}

fn image(png: &[u8], words: &str) -> String {
    let words = escape(words);
    format!("<img src=\"{}\" width=\"32\" height=\"32\" alt=\"{words}\" title=\"{words}\"/>", data_uri(png))
}

impl Gallery {
    fn attacked(&self) -> String {
        if self.attacked.is_empty() {
            return String::new();
        }
        let mut html = format!(
            "<h3>{}</h3><p class=\"note\">{}</p><ul class=\"images\">\n",
            escape(&self.run),
            escape(&self.attack)
        );
        for picture in &self.attacked {
            let label = &picture.label;
            let prediction = |class: &str| match class == label {
                true => escape(class),
                false => format!("<span class=\"wrong\">{}</span>", escape(class)),
            };
            html += &format!(
                "<li>{}{}{}{}<br/><span class=\"muted\">{} → {}</span></li>\n",
                image(&picture.clean, &format!("{label}, clean, predicted {}", picture.clean_prediction)),
                image(
                    &picture.adversarial,
                    &format!("{label}, attacked, predicted {}", picture.attacked_prediction)
                ),
                image(&picture.perturbation, "perturbation"),
                escape(label),
                prediction(&picture.clean_prediction),
                prediction(&picture.attacked_prediction)
            );
        }
        html + "</ul>\n"
    }

    fn selection(&self) -> String {
        let Some((epoch, kept, dropped)) = &self.selection else { return String::new() };
        let list = |title: &str, examples: &[Example]| {
            let mut html = format!("<h3>{title}</h3><ul class=\"images\">\n");
            for example in examples {
                let weight = example.weight.map_or(String::new(), |weight| format!(", weight {weight:.3}"));
                html += &format!(
                    "<li>{}{}<br/><span class=\"muted\">{}{weight}</span></li>\n",
                    image(&example.png, &format!("training image {}, {}", example.sample, example.label)),
                    escape(&example.label),
                    example.sample
                );
            }
            html + "</ul>\n"
        };
        let run = escape(&self.run);
        let kept = list(&format!("{run}: kept for epoch {epoch}"), kept);
        match dropped.is_empty() {
            true => kept,
            false => kept + &list(&format!("{run}: dropped"), dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::markup::COLOURS;

    /// The colours of the light theme, then those of the dark one.
    fn themes() -> [Vec<(String, [f64; 3])>; 2] {
        let (light, dark) = STYLE.split_once("prefers-color-scheme: dark").unwrap();
        let dark = dark.split("\n}").next().unwrap();
        [light, dark].map(|text| {
            let parts = text.split("--").skip(1).filter_map(|part| part.split_once(": #"));
            let channel = |hex: &str, i: usize| {
                f64::from(u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()) / 255.0
            };
            let linear = |v: f64| if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) };
            parts.map(|(name, hex)| (name.into(), [0, 1, 2].map(|i| linear(channel(hex, i))))).collect()
        })
    }

    fn colour(theme: &[(String, [f64; 3])], name: &str) -> [f64; 3] {
        theme.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no --{name}")).1
    }

    /// WCAG 2.2.
    fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
        let luminance = |c: [f64; 3]| 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    fn times(matrix: [[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row[0] * v[0] + row[1] * v[1] + row[2] * v[2])
    }

    /// Björn Ottosson's OKLab, where a distance of 0.02 is just noticeable.
    fn oklab(rgb: [f64; 3]) -> [f64; 3] {
        let lms = times(
            [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]],
            rgb.map(|v| v.clamp(0.0, 1.0)),
        );
        times(
            [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]],
            lms.map(|v| v.max(0.0).cbrt()),
        )
    }

    #[test]
    fn words_and_lines_can_be_read_in_both_themes() {
        for theme in themes() {
            let of = |name: &str| colour(&theme, name);
            for ground in ["card", "page"] {
                assert!(contrast(of("ink"), of(ground)) >= 7.0);
                assert!(contrast(of("muted"), of(ground)) >= 4.5);
            }
            assert!(contrast(of("ink"), of("mark")) >= 7.0);
            for run in 0..COLOURS {
                let actual = contrast(of(&format!("c{run}")), of("card"));
                assert!(actual >= 3.0, "c{run}: {actual}");
            }
            for (a, b) in [("s0", "s1"), ("s1", "s2"), ("s2", "s3")] {
                let actual = contrast(of(a), of(b));
                assert!(actual >= 1.5, "{a}, {b}: {actual}");
            }
        }
    }

    #[test]
    fn runs_differ_for_every_kind_of_sight() {
        // Machado, Oliveira and Fernandes, 2009, at full severity.
        let sights = [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
            [
                [1.255528, -0.076749, -0.178779],
                [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900],
            ],
        ];
        for theme in themes() {
            for (kind, sight) in sights.iter().enumerate() {
                let seen: Vec<[f64; 3]> = (0..COLOURS)
                    .map(|run| oklab(times(*sight, colour(&theme, &format!("c{run}")))))
                    .collect();
                for a in 0..COLOURS {
                    for b in 0..a {
                        let squares = [0, 1, 2].map(|i| (seen[a][i] - seen[b][i]).powi(2));
                        let distance = squares.iter().sum::<f64>().sqrt();
                        assert!(distance >= 0.095, "sight {kind}, runs {a} and {b}: {distance:.3}");
                    }
                }
            }
        }
    }
}
