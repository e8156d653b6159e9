//! Convolutions of every instruction set against f64, over every shape of the network at widths 16, 32 and 64.

use super::conv::{LEAST, PackedConv};
use super::conv_weight::weight_gradient;
use super::epilogue::{Added, Epilogue};
use super::isa::Isa;
use super::maps::{BORDER, Maps};
use super::memory::Aligned;
use super::numbers::{Format, Number, Numbers, high_and_low};
use crate::model::{Conv, ResNet};
use crate::philox::{Key, Purpose, symmetric};

/// Half the distance of two bf16 numbers near 1.
const BF16: f64 = 1.0 / 256.0;

/// Results in f64 with the sums of magnitudes that bound their rounding.
struct Oracle {
    values: Vec<f64>,
    magnitudes: Vec<f64>,
    /// Products of a sum at most.
    terms: usize,
}

impl Oracle {
    fn new(len: usize, terms: usize) -> Self {
        Self { values: vec![0.0; len], magnitudes: vec![0.0; len], terms }
    }

    fn add(&mut self, at: usize, a: f32, b: f32) {
        let product = f64::from(a) * f64::from(b);
        self.values[at] += product;
        self.magnitudes[at] += product.abs();
    }

    /// Every element within the rounding of a sum of N terms, and the whole within what such errors add up to at random.
    /// Both with what rounding to `stored` adds.
    fn check(&self, actual: &[f32], before: f32, stored: Option<Format>, what: &str) {
        assert_eq!(actual.len(), self.values.len(), "{what}");
        let unit = f64::from(f32::EPSILON) / 2.0;
        let (mut error, mut size) = (0.0f64, 0.0f64);
        for (at, (&actual, (&value, &magnitude))) in
            actual.iter().zip(self.values.iter().zip(&self.magnitudes)).enumerate()
        {
            let expected = value + f64::from(before);
            let difference = (f64::from(actual) - expected).abs();
            let bound = unit * (self.terms + 2) as f64 * (magnitude + f64::from(before.abs()))
                + stored.map_or(0.0, |_| BF16 * expected.abs());
            assert!(
                difference <= bound,
                "{what}: element {at} is {actual}, expected {expected} within {bound:e}"
            );
            error += difference * difference;
            size += expected * expected;
        }
        let (relative, bound) = ((error / size).sqrt(), 8.0 * unit * (self.terms as f64).sqrt());
        let bound = bound + stored.map_or(0.0, |_| BF16);
        assert!(relative <= bound, "{what}: relative error {relative:e}, expected at most {bound:e}");
    }
}

fn random(seed: u64, number: u32, len: usize) -> Vec<f32> {
    let key = Key { seed, purpose: Purpose::Generation, epoch: 0, step: 0 };
    let blocks = (0..len.div_ceil(4)).flat_map(|block| key.block(number, block as u32));
    blocks.take(len).map(|word| symmetric(word, 1.0)).collect()
}

fn sum_of_pair(word: f32) -> f32 {
    f32::from_bits(word.to_bits() << 16) + f32::from_bits(word.to_bits() & 0xFFFF_0000)
}

/// Every shape once.
fn shapes(width: usize) -> Vec<Conv> {
    let mut shapes: Vec<Conv> = Vec::new();
    for conv in ResNet::resnet18(width, 10).convs() {
        let shape =
            |conv: &Conv| (conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.in_side);
        if shapes.iter().all(|known| shape(known) != shape(&conv)) {
            shapes.push(conv);
        }
    }
    shapes
}

/// Calls `each(input element, weight, output element)` for every product of a convolution of `batch` images.
fn products(conv: &Conv, batch: usize, mut each: impl FnMut(usize, usize, usize)) {
    let Conv { in_channels, out_channels, kernel, stride, in_side, .. } = *conv;
    let out_side = conv.out_side();
    for output in 0..batch * out_side * out_side {
        let (n, y, x) = (output / (out_side * out_side), output / out_side % out_side, output % out_side);
        for tap in 0..kernel * kernel {
            let (line, column) = (y * stride + tap / kernel, x * stride + tap % kernel);
            let inside = |at: usize| at >= conv.padding() && at < in_side + conv.padding();
            if !(inside(line) && inside(column)) {
                continue;
            }
            let pixel = (n * in_side + line - conv.padding()) * in_side + column - conv.padding();
            for k in 0..out_channels {
                for c in 0..in_channels {
                    let weight = (k * in_channels + c) * kernel * kernel + tap;
                    each(pixel * in_channels + c, weight, output * out_channels + k);
                }
            }
        }
    }
}

fn check(width: usize, batch: usize, seed: u64) {
    println!("seed {seed}");
    [Format::F32, Format::Bf16].into_iter().for_each(|format| check_format(format, width, batch, seed));
}

fn check_format(format: Format, width: usize, batch: usize, seed: u64) {
    let (isas, lacking) = Isa::present();
    if !lacking.is_empty() {
        println!("skipped, as this CPU lacks them: {}", lacking.join(", "));
    }
    for conv in shapes(width) {
        let (inputs, outputs) = (batch * conv.input_len(), batch * conv.output_len());
        let (mut x, mut dy, weights) =
            (random(seed, 0, inputs), random(seed, 1, outputs), random(seed, 2, conv.weight_len()));
        dy.iter_mut().for_each(|value| *value = format.round(*value));
        let mut rounded = weights.clone();
        rounded.iter_mut().for_each(|value| *value = format.round(*value));
        // The stem sees an image almost as it is.
        let image = format == Format::Bf16 && conv.in_channels == 3;
        if !image {
            x.iter_mut().for_each(|value| *value = format.round(*value));
        }
        let seen = |x: f32| if image { sum_of_pair(high_and_low(x)) } else { x };
        let taps = conv.kernel * conv.kernel;
        let mut forward = Oracle::new(outputs, taps * conv.in_channels);
        let mut backward = Oracle::new(inputs, taps * conv.out_channels);
        let mut gradient = Oracle::new(conv.weight_len(), batch * conv.out_side() * conv.out_side());
        products(&conv, batch, |i, w, o| {
            forward.add(o, seen(x[i]), rounded[w]);
            backward.add(i, dy[o], rounded[w]);
            gradient.add(w, x[i], dy[o]);
        });
        for isa in &isas {
            let what = |pass: &str| format!("{} {format:?}, width {width}, {} {pass}", isa.name, conv.name);
            let numbers = Numbers { format, isa };
            check_one(&conv, numbers, (&x, &dy, &weights), [&forward, &backward, &gradient], what);
        }
    }
}

/// Values as maps, after which lies NaN.
fn maps_of(maps: Maps, format: Format, values: &[f32]) -> Aligned {
    let len = maps.side * maps.channels;
    let batch = values.len() / (maps.side * len);
    let mut words = Aligned::zeros(maps.words(batch));
    words[batch * maps.image()..].fill(f32::NAN);
    for (image, values) in words.chunks_exact_mut(maps.image()).zip(values.chunks_exact(maps.side * len)) {
        for (y, values) in values.chunks_exact(len).enumerate() {
            match format {
                Format::F32 => maps.line_mut::<f32>(image, y).copy_from_slice(values),
                Format::Bf16 => {
                    let numbers = maps.line_mut::<half::bf16>(image, y).iter_mut();
                    numbers.zip(values).for_each(|(number, value)| *number = Number::nearest(*value));
                }
            }
        }
    }
    words
}

/// The values of maps, whose borders must be zero.
fn values_of(maps: Maps, format: Format, batch: usize, words: &[f32]) -> Vec<f32> {
    let mut values = Vec::new();
    for image in words.chunks_exact(maps.image()).take(batch) {
        for y in 0..maps.side {
            match format {
                Format::F32 => values.extend(maps.line::<f32>(image, y)),
                Format::Bf16 => {
                    values.extend(maps.line::<half::bf16>(image, y).iter().map(|number| number.get()));
                }
            }
        }
        let words = |at: usize| image[at].to_bits();
        let inside = |at: usize| (BORDER..maps.side + BORDER).contains(&at);
        let border = (0..image.len()).filter(|at| {
            let (y, x) = (at / maps.pitch(), at % maps.pitch() / maps.pixel());
            !(inside(y) && inside(x))
        });
        assert!(border.into_iter().all(|at| words(at) == 0), "a border was written");
    }
    values
}

fn check_one(
    conv: &Conv,
    numbers: Numbers,
    (x, dy, weights): (&[f32], &[f32], &[f32]),
    [forward, backward, gradient]: [&Oracle; 3],
    what: impl Fn(&str) -> String,
) {
    let format = numbers.format;
    let batch = x.len() / conv.input_len();
    let mut packed = PackedConv::new(conv, numbers);
    packed.pack(weights, None);
    let [input, output] = [Maps::input, Maps::output].map(|of| of(conv, format));
    let image = conv.in_channels < LEAST;
    // What lies after the last image is NaN: nothing may depend on it.
    let x = if image { x.to_vec() } else { maps_of(input, format, x).to_vec() };
    let dy_len = dy.len();
    let dy = maps_of(output, format, dy);
    for add in [false, true] {
        // What is not added to is overwritten whatever it was.
        let (start, before) = if add { (0.5, 0.5) } else { (f32::NAN, 0.0) };
        let added = if add { Added::Present } else { Added::Nothing };
        let epilogue = Epilogue { added, ..Epilogue::default() };
        let stored = if format == Format::Bf16 { Some(format) } else { None };
        let mut out = maps_of(output, format, &vec![start; dy_len]);
        packed.forward(batch, &x, &mut out, &epilogue);
        forward.check(&values_of(output, format, batch, &out), before, stored, &what("forward"));
        if image && !add {
            let mut dx = vec![start; x.len()];
            packed.image_gradient(batch, &dy, &mut dx);
            backward.check(&dx, before, None, &what("image gradient"));
        } else if !image {
            let mut dx = maps_of(input, format, &vec![start; backward.values.len()]);
            packed.input_gradient(batch, &dy, &mut dx, &epilogue);
            backward.check(&values_of(input, format, batch, &dx), before, stored, &what("input gradient"));
        }
        let mut sums = vec![start; weights.len()];
        let mut partials = Aligned::zeros(0);
        weight_gradient(conv, numbers, batch, &x, &dy, &mut partials, &mut sums, add);
        gradient.check(&sums, before, None, &what("weight gradient"));
    }
}

#[test]
fn width_16_of_three_images() {
    check(16, 3, 101);
}

#[test]
fn width_32_of_two_images() {
    check(32, 2, 102);
}

#[test]
fn width_64() {
    check(64, 1, 103);
}

/// More images than a panel of the weight gradient and a task of the others hold, and not a multiple of them.
#[test]
fn width_16_of_many_images() {
    check(16, 17, 104);
}

#[test]
fn an_instruction_set_is_chosen_by_name_or_refused() {
    let (present, _) = Isa::present();
    for isa in present {
        assert_eq!(Isa::named(Some(isa.name)).map(|isa| isa.name).ok(), Some(isa.name));
    }
    let refusal = Isa::named(Some("mmx")).map(|isa| isa.name).unwrap_err().to_string();
    assert!(refusal.contains("SECATEUR_CPU=mmx: expected one of"), "{refusal}");
    assert!(refusal.contains("portable"), "{refusal}");
}
