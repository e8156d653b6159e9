//! Axes: from values to places on a plot, ticks at round numbers, and the words next to them.

/// Powers of ten that a logarithmic axis names at most; of more only some.
const MOST_DECADES: f64 = 16.0;
/// How many ticks a linear axis aims at.
const TICKS: f64 = 5.0;
/// Larger values are drawn at the edge, and a range that is narrower than its inverse is that of one value: sums, differences
/// and quotients stay finite.
const LARGEST: f64 = 1e300;
/// Tolerance for a value that should lie on a tick and misses it by rounding.
const SLACK: f64 = 1e-9;

/// Maps values of one dimension to [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Ascending, each within the axis.
    pub ticks: Vec<f64>,
    /// Distance of the ticks of a linear axis.
    step: f64,
}

impl Axis {
    /// A linear axis around `values`, its ends on ticks.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let (low, high) = match high - low > (SLACK * low.abs().max(high.abs())).max(1.0 / LARGEST) {
            true => (low, high),
            // One value: the axis reaches as far to both sides as the value is large.
            false => (low - low.abs().max(1.0) * 0.5, high + high.abs().max(1.0) * 0.5),
        };
        Self::with_step(low, high, round_step((high - low) / TICKS))
    }

    /// A linear axis around `values` and 0.
    pub fn from_zero(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let (low, high) = (low.min(0.0), high.max(0.0));
        let high = if high - low > 1.0 / LARGEST { high } else { low + 1.0 };
        Self::with_step(low, high, round_step((high - low) / TICKS))
    }

    /// A linear axis that ends exactly at the first and last of whole numbers, with ticks at whole numbers.
    pub fn counts(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        // Of large numbers the next one is farther away than 1.
        let high = high.max(low + (2.0 * SLACK * low.abs()).max(1.0));
        let step = round_step((high - low) / TICKS).max(1.0).ceil();
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        let ticks = (first..=last).map(|k| k as f64 * step).collect();
        Self { low, high, log: false, ticks, step }
    }

    /// A logarithmic axis around the positive ones of `values`, with ticks at powers of ten, and at 2 and 5 times those
    /// where there are few.
    pub fn logarithmic(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values.into_iter().filter(|&value| value > 0.0)).unwrap_or((1.0, 10.0));
        let (low, high) = (low.max(1.0 / LARGEST), high.max(1.0 / LARGEST));
        let decades = high.log10() - low.log10();
        // A little air, so that no point lies on the frame.
        let (low, high) = (low / 1.5, high * 1.5);
        let factors: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let decade = |value: f64| value.log10().floor() as i32;
        let stride = (decades / MOST_DECADES).ceil().max(1.0) as usize;
        let ticks = (decade(low)..=decade(high))
            .step_by(stride)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)))
            .filter(|&tick| tick >= low && tick <= high)
            .collect();
        Self { low, high, log: true, ticks, step: 0.0 }
    }

    fn with_step(low: f64, high: f64, step: f64) -> Self {
        let first = (low / step + SLACK).floor() as i64;
        let last = (high / step - SLACK).ceil() as i64;
        let ticks: Vec<f64> = (first..=last).map(|k| k as f64 * step).collect();
        Self { low: first as f64 * step, high: last as f64 * step, log: false, ticks, step }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high one, beyond them outside, but never far; what is no number lies at
    /// the low end.
    pub fn place(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.low } else { bounded(value) };
        let place = match self.log {
            true => {
                let (value, low) = (value.max(1.0 / LARGEST).ln(), self.low.ln());
                (value - low) / (self.high.ln() - low)
            }
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(-1.0, 2.0)
    }

    /// The ends of the axis.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// The word next to a tick, with the decimals that the distance of the ticks calls for.
    pub fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if self.log {
            return significant(tick, 1);
        }
        if !(1e-3..1e6).contains(&largest) {
            return significant(tick, 2);
        }
        let decimals = (0..6).find(|&d| is_whole(self.step * 10f64.powi(d))).unwrap_or(6);
        format!("{tick:.*}", decimals as usize).replace('-', "\u{2212}")
    }
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6 * value.abs().max(1.0)
}

fn bounded(value: f64) -> f64 {
    value.clamp(-LARGEST, LARGEST)
}

/// The smallest and the largest finite value.
fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|value| value.is_finite()).map(bounded).fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    factors
        .map(|factor| factor * power)
        .into_iter()
        .find(|&round| round >= step * (1.0 - SLACK))
        .unwrap_or(step)
}

/// `value` to `digits` significant digits, without trailing zeros: 0.0123, 1,234, 1.2e9.
pub fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "\u{2013}".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let power = value.abs().log10().floor() as i32;
    let text = if (-4..6).contains(&power) {
        let decimals = (digits as i32 - 1 - power).max(0) as usize;
        let text = format!("{value:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').into(),
            false => thousands(&text),
        }
    } else {
        let text = format!("{value:.*e}", digits - 1);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let mantissa = match mantissa.contains('.') {
            true => mantissa.trim_end_matches('0').trim_end_matches('.'),
            false => mantissa,
        };
        format!("{mantissa}e{exponent}")
    };
    text.replace('-', "\u{2212}")
}

/// `value` with `decimals` decimals; a large one in its significant digits, and a dash for what is no number.
pub fn fixed(value: f64, decimals: usize) -> String {
    match value.abs() < 1e9 {
        true => format!("{value:.decimals$}"),
        false => significant(value, 3),
    }
}

/// 1234567 as 1,234,567.
fn thousands(whole: &str) -> String {
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    if digits.len() < 5 {
        return whole.into();
    }
    let mut text = String::from(sign);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time: 3.2 s, 4 min 05 s, 2 h 10 min.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "\u{2013}".into();
    }
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        ..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_end_on_round_ticks_around_every_value() {
        let axis = Axis::linear([0.13, 0.47]);
        assert_eq!(
            axis.ticks.iter().map(|&tick| axis.label(tick)).collect::<Vec<_>>(),
            ["0.1", "0.2", "0.3", "0.4", "0.5"]
        );
        assert_eq!((axis.place(0.1), axis.place(0.5)), (0.0, 1.0));
        assert!((axis.place(0.3) - 0.5).abs() < 1e-12);
        // Values on a tick add no empty one.
        let axis = Axis::linear([0.0, 50.0]);
        assert_eq!(axis.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let axis = Axis::linear([-0.02, 0.07]);
        assert_eq!(axis.label(axis.ticks[0]), "\u{2212}0.02");
        for values in [[0.0, 1e-7], [3.0, 3.0], [0.0, 0.0], [-5e8, 2e9], [f64::NAN, 2.0]] {
            let axis = Axis::linear(values);
            assert!((2..=8).contains(&axis.ticks.len()), "{values:?}: {axis:?}");
            for value in values.into_iter().filter(|value| value.is_finite()) {
                assert!((-1e-9..=1.0 + 1e-9).contains(&axis.place(value)), "{values:?}: {axis:?}");
            }
        }
        assert_eq!(Axis::linear([]).ends(), (0.0, 1.0));
        assert_eq!(Axis::from_zero([20.0, 47.0]).ends(), (0.0, 50.0));
    }

    #[test]
    fn counts_have_whole_ticks_and_end_where_the_data_ends() {
        let axis = Axis::counts([1.0, 4.0]);
        assert_eq!((axis.ticks.clone(), axis.place(4.0)), (vec![1.0, 2.0, 3.0, 4.0], 1.0));
        let axis = Axis::counts([1.0, 110.0]);
        assert_eq!(axis.ticks, [25.0, 50.0, 75.0, 100.0]);
        assert_eq!(axis.label(25.0), "25");
        assert_eq!(Axis::counts([1.0]).ends(), (1.0, 2.0));
    }

    #[test]
    fn logarithmic_axes_are_even_in_ratios() {
        let axis = Axis::logarithmic([1.0, 1e4, 0.0, -3.0]);
        assert_eq!(axis.ticks, [1.0, 10.0, 100.0, 1e3, 1e4]);
        let step = axis.place(10.0) - axis.place(1.0);
        assert!((axis.place(1e4) - axis.place(1e3) - step).abs() < 1e-12);
        assert!(axis.place(1.0) > 0.0 && axis.place(1e4) < 1.0);
        assert_eq!(Axis::logarithmic([3.0, 30.0]).ticks, [2.0, 5.0, 10.0, 20.0]);
        assert_eq!(Axis::logarithmic([1e12, 1e15]).label(1e13), "1e13");
    }

    #[test]
    fn numbers_are_short_and_right() {
        for (value, digits, text) in [
            (0.0, 3, "0"),
            (0.012345, 3, "0.0123"),
            (2.0, 3, "2"),
            (1234.5, 3, "1234"),
            (123_456.0, 3, "123,456"),
            (1.5e9, 3, "1.5e9"),
            (-0.5, 2, "\u{2212}0.5"),
            (0.00001, 2, "1e\u{2212}5"),
            (f64::NAN, 3, "\u{2013}"),
        ] {
            assert_eq!(significant(value, digits), text, "{value}");
        }
        for (seconds, text) in
            [(0.04, "0.0 s"), (99.9, "99.9 s"), (245.2, "4 min 05 s"), (7805.0, "2 h 10 min")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
