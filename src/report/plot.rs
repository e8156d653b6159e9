//! Plots as inline SVG: lines and points over two axes, and horizontal bars.
//!
//! A plot is 400 units wide and its letters 12 high, so that it can be read at the width of a phone; the page lays
//! plots side by side where there is room. Each point and bar says its numbers as a hover title.

use super::markup::{Style, escape};
use super::scale::{Axis, fixed, significant};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 236.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 38.0;
/// Points of a line that get a shape each; of a longer one only the last does.
const SHAPES: usize = 16;
/// Points of a line that get a hover title.
const TITLES: usize = 120;

/// A line, or points alone.
pub struct Series {
    pub name: String,
    pub style: Style,
    /// Ascending in x where a line joins them.
    pub points: Vec<(f64, f64)>,
    pub joined: bool,
    /// Words for each point; the names and numbers of the axes where there are none.
    pub titles: Option<Vec<String>>,
}

/// Series over two axes.
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub x_name: String,
    pub y_name: String,
    /// A thin line behind the series, such as a roof or a front.
    pub guides: Vec<Vec<(f64, f64)>>,
    pub series: Vec<Series>,
}

fn x_of(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn y_of(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

impl Plot {
    /// Where a point of the data lies in the drawing.
    pub fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x_of(&self.x, x), y_of(&self.y, y))
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (i, &point) in points.iter().enumerate() {
            let (x, y) = self.place(point);
            path += &format!("{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
        }
        path
    }

    /// The plot as a `<figure>`.
    pub fn figure(&self) -> String {
        figure(&self.title, HEIGHT, &self.description(), &self.drawing())
    }

    /// The plot as an SVG file: title, drawing, and each series by name below it.
    pub fn document(&self, style: &str) -> String {
        let (top, row) = (24.0, 18.0);
        let height = top + HEIGHT + row * self.series.len() as f64 + 6.0;
        let mut svg = format!(
            "<rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" class=\"card\"/>\
             <text class=\"name\" x=\"{LEFT}\" y=\"18\">{}</text><g transform=\"translate(0 {top})\">{}</g>",
            escape(&self.title),
            self.drawing()
        );
        for (i, series) in self.series.iter().enumerate() {
            let y = top + HEIGHT + row * (i as f64 + 0.5);
            let (shape, base) = (series.style.shape(LEFT + 6.0, y, "mark"), y + 4.5);
            let x = LEFT + 18.0;
            svg += &format!("{shape}<text x=\"{x}\" y=\"{base:.1}\">{}</text>", escape(&series.name));
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" aria-label=\"{}\">\n<style>{style}</style>\n{svg}\n</svg>\n",
            escape(&self.description())
        )
    }

    fn description(&self) -> String {
        format!("{}: {} over {}", self.title, self.y_name, self.x_name)
    }

    fn drawing(&self) -> String {
        let mut svg = self.frame();
        for guide in &self.guides {
            svg += &format!("<path class=\"guide\" d=\"{}\"/>", self.path(guide));
        }
        for (i, series) in self.series.iter().enumerate() {
            if series.joined && series.points.len() > 1 {
                // Lines that coincide lie on each other like ribbons, the first one widest, so that each is seen.
                let above = self.series[i + 1..].iter().filter(|other| other.points == series.points).count();
                let under = ["", " under1", " under2"][above.min(2)];
                let (class, dash) = (series.style.class(), series.style.dash());
                svg += &format!(
                    "<path class=\"line {class}{under}\"{dash} d=\"{}\"/>",
                    self.path(&series.points)
                );
            }
        }
        for series in &self.series {
            self.marks(series, &mut svg);
        }
        svg
    }

    /// Grid, ticks and the names of the axes.
    fn frame(&self) -> String {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut svg = String::new();
        for &tick in &self.y.ticks {
            let (y, label) = (y_of(&self.y, tick), self.y.label(tick));
            let (x, base) = (LEFT - 6.0, y + 4.0);
            svg += &format!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            svg += &format!("<text class=\"tick end\" x=\"{x:.1}\" y=\"{base:.1}\">{label}</text>");
        }
        for &tick in &self.x.ticks {
            let (x, label) = (x_of(&self.x, tick), self.x.label(tick));
            let base = floor + 16.0;
            svg += &format!("<path class=\"axis\" d=\"M{x:.1} {floor:.1}v4\"/>");
            svg += &format!("<text class=\"tick mid\" x=\"{x:.1}\" y=\"{base:.1}\">{label}</text>");
        }
        svg += &format!("<path class=\"axis\" d=\"M{LEFT} {floor:.1}H{right}\"/>");
        let (x, y) = (right, HEIGHT - 5.0);
        svg + &format!("<text class=\"tick end\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(&self.x_name))
    }

    /// Shapes and hover titles.
    fn marks(&self, series: &Series, svg: &mut String) {
        let count = series.points.len();
        let stride = count.div_ceil(TITLES).max(1);
        for (i, &point) in series.points.iter().enumerate() {
            let last = i + 1 == count;
            if !(last || i.is_multiple_of(stride)) {
                continue;
            }
            let title = match &series.titles {
                Some(titles) => titles[i].clone(),
                None => format!(
                    "{}: {} {}, {} {}",
                    series.name,
                    self.x_name,
                    significant(point.0, 6),
                    self.y_name,
                    significant(point.1, 4)
                ),
            };
            let (x, y) = self.place(point);
            let shown = !series.joined || (!series.style.dashed && (count <= SHAPES || last));
            let shape = if shown { series.style.shape(x, y, "mark") } else { String::new() };
            *svg += &format!(
                "<g><title>{}</title>{shape}<circle class=\"touch\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\"/></g>",
                escape(&title)
            );
        }
    }
}

/// One horizontal bar, of one part or of several contiguous ones.
pub struct Bar {
    pub name: String,
    /// Class of the colour, name and length of each part.
    pub parts: Vec<(String, String, f64)>,
    /// What stands at the right end of the bar.
    pub value: String,
}

const BAR_ROW: f64 = 40.0;
const BAR_HEIGHT: f64 = 15.0;
/// Room for the words after the longest bar.
const BAR_VALUE: f64 = 74.0;

/// Bars over one axis that begins at 0. `mark` draws a line across at a value.
pub fn bars(title: &str, axis_name: &str, bars: &[Bar], mark: Option<f64>) -> String {
    let total = |bar: &Bar| bar.parts.iter().map(|(_, _, length)| length).sum::<f64>();
    let axis = Axis::from_zero(bars.iter().map(total).chain(mark));
    let width = WIDTH - BAR_VALUE;
    let place = |value: f64| 1.0 + axis.place(value) * (width - 1.0);
    let floor = TOP + bars.len() as f64 * BAR_ROW;
    let mut svg = String::new();
    for &tick in &axis.ticks {
        let (x, y, label) = (place(tick), floor + 16.0, axis.label(tick));
        let anchor = if tick == 0.0 { "start" } else { "mid" };
        svg += &format!("<path class=\"grid\" d=\"M{x:.1} {TOP}V{floor:.1}\"/>");
        svg += &format!("<text class=\"tick {anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{label}</text>");
    }
    for (row, bar) in bars.iter().enumerate() {
        let top = TOP + row as f64 * BAR_ROW;
        let (base, y) = (top + 12.0, top + 17.0);
        svg += &format!("<text class=\"name\" x=\"0\" y=\"{base:.1}\">{}</text>", escape(&bar.name));
        let mut from = 0.0;
        for (class, name, length) in bar.parts.iter().filter(|(_, _, length)| *length > 0.0) {
            let (left, right) = (place(from), place(from + length));
            from += length;
            let (width, what) = (right - left, escape(&format!("{}: {name}", bar.name)));
            svg += &format!(
                "<rect class=\"area {class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\">\
                 <title>{what}</title></rect>"
            );
        }
        let (x, base) = (place(from) + 6.0, y + 12.0);
        svg += &format!("<text class=\"value\" x=\"{x:.1}\" y=\"{base:.1}\">{}</text>", escape(&bar.value));
    }
    if let Some(mark) = mark {
        svg += &format!("<path class=\"guide\" d=\"M{:.1} {TOP}V{floor:.1}\"/>", place(mark));
    }
    let height = floor + 38.0;
    let (x, y) = (width, height - 5.0);
    svg += &format!("<text class=\"tick end\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(axis_name));
    figure(title, height, &format!("{title}: bars of {axis_name}"), &svg)
}

/// Areas stacked on each other over a common x; the sum of each column is 1 or less.
pub fn stacked(title: &str, x_name: &str, areas: &[(String, &str, Vec<f64>)], x: &[f64]) -> String {
    let plot = Plot {
        title: title.into(),
        x: Axis::counts(x.iter().copied()),
        y: Axis::linear([0.0, 100.0]),
        x_name: x_name.into(),
        y_name: "%".into(),
        guides: Vec::new(),
        series: Vec::new(),
    };
    let mut below = vec![0.0; x.len()];
    let mut svg = plot.frame();
    let mut touch = String::new();
    for (class, name, shares) in areas {
        let above: Vec<f64> = below.iter().zip(shares).map(|(below, share)| below + 100.0 * share).collect();
        let top: Vec<(f64, f64)> = x.iter().copied().zip(above.iter().copied()).collect();
        let floor: Vec<(f64, f64)> = x.iter().copied().zip(below).rev().collect();
        let outline = [top, floor].concat();
        svg += &format!("<path class=\"area {class}\" d=\"{}Z\"/>", plot.path(&outline));
        for ((&at, share), (&high, low)) in
            x.iter().zip(shares).zip(above.iter().zip(outline[x.len()..].iter().rev()))
        {
            let (px, py) = plot.place((at, (high + low.1) / 2.0));
            let words = format!("{x_name} {at}: {name} {} %", fixed(100.0 * share, 1));
            touch += &format!(
                "<circle class=\"touch\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7\"><title>{}</title></circle>",
                escape(&words)
            );
        }
        below = above;
    }
    figure(title, HEIGHT, title, &(svg + &touch))
}

fn figure(title: &str, height: f64, description: &str, svg: &str) -> String {
    format!(
        "<figure class=\"plot\"><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{}\">{svg}</svg></figure>\n",
        escape(title),
        escape(description)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        Plot {
            title: "Loss & more".into(),
            x: Axis::counts([1.0, 5.0]),
            y: Axis::linear([0.0, 2.0]),
            x_name: "epoch".into(),
            y_name: "loss".into(),
            guides: Vec::new(),
            series: vec![Series {
                name: "<a>".into(),
                style: Style::of_run(0),
                points,
                joined: true,
                titles: None,
            }],
        }
    }

    #[test]
    fn the_corners_of_the_data_are_the_corners_of_the_frame() {
        let plot = plot(Vec::new());
        assert_eq!(plot.place((1.0, 0.0)), (LEFT, HEIGHT - BOTTOM));
        assert_eq!(plot.place((5.0, 2.0)), (WIDTH - RIGHT, TOP));
        let (x, y) = plot.place((3.0, 1.0));
        assert!((x - (LEFT + WIDTH - RIGHT) / 2.0).abs() < 1e-9);
        assert!((y - (TOP + HEIGHT - BOTTOM) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_joins_the_mapped_points_and_each_says_its_numbers() {
        let svg = plot(vec![(1.0, 2.0), (5.0, 0.5)]).figure();
        assert!(svg.contains("d=\"M46.0 10.0L388.0 151.0\""), "{svg}");
        assert!(svg.contains("<title>&lt;a&gt;: epoch 5, loss 0.5</title>"), "{svg}");
        assert!(svg.contains("<figcaption>Loss &amp; more</figcaption>"));
    }

    #[test]
    fn of_lines_that_coincide_the_lower_is_wider() {
        let mut plot = plot(vec![(1.0, 1.0), (2.0, 2.0)]);
        assert!(!plot.figure().contains("under"));
        let again = Series {
            name: "b".into(),
            style: Style::of_run(1),
            points: plot.series[0].points.clone(),
            joined: true,
            titles: None,
        };
        plot.series.push(again);
        let svg = plot.figure();
        assert!(svg.contains("class=\"line c0 under1\"") && svg.contains("class=\"line c1\""), "{svg}");
    }

    #[test]
    fn bars_are_as_long_as_their_numbers() {
        let bar = |parts: &[f64]| Bar {
            name: "run".into(),
            parts: parts.iter().map(|&part| ("c0".into(), format!("{part} s"), part)).collect(),
            value: String::new(),
        };
        let svg = bars("Time", "seconds", &[bar(&[60.0, 0.0, 40.0]), bar(&[25.0])], None);
        let widths: Vec<f64> = svg
            .split("<rect")
            .skip(1)
            .map(|rect| rect.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 3);
        let whole = WIDTH - BAR_VALUE - 1.0;
        for (width, share) in widths.iter().zip([0.6, 0.4, 0.25]) {
            assert!((width - share * whole).abs() < 0.06, "{widths:?}");
        }
    }

    #[test]
    fn stacked_shares_lie_on_each_other() {
        let areas = [("s0".into(), "low", vec![0.25, 0.5]), ("s1".into(), "high", vec![0.75, 0.5])];
        let svg = stacked("Groups", "epoch", &areas, &[1.0, 2.0]);
        // The second area begins where the first ends, and reaches the top of the frame.
        let floor = HEIGHT - BOTTOM;
        let quarter = floor - 0.25 * (floor - TOP);
        let half = floor - 0.5 * (floor - TOP);
        assert!(
            svg.contains(&format!("M46.0 {quarter:.1}L388.0 {half:.1}L388.0 {floor:.1}L46.0 {floor:.1}Z")),
            "{svg}"
        );
        assert!(
            svg.contains(&format!("M46.0 {TOP:.1}L388.0 {TOP:.1}L388.0 {half:.1}L46.0 {quarter:.1}Z")),
            "{svg}"
        );
        assert!(svg.contains("<title>epoch 2: high 50.0 %</title>"));
    }
}
