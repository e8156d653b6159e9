//! The pictures of the page: images before and after an attack, and examples of what a selection kept and dropped.
//!
//! The attack is the evaluation's own PGD through the engine, so a picture shows what the accuracies are of.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::read::Chosen;
use crate::batch::Batch;
use crate::data::DataSet;
use crate::data::pixel_order::to_pixels;
use crate::engine::{self, Engine, WeightSet};
use crate::evaluate::{PgdProtocol, predict};
use crate::model::layers::{IMAGE_LEN, IMAGE_SIDE};
use crate::ops::{AscentLoss, ImageSet, NO_CLASS};
use crate::philox::{Key, Purpose};

/// One image and what the attack made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attacked {
    pub label: String,
    pub clean_prediction: String,
    pub attacked_prediction: String,
    /// PNG files: the image, the adversarial image, and their difference, where grey is none and white is eps.
    pub clean: Vec<u8>,
    pub adversarial: Vec<u8>,
    pub perturbation: Vec<u8>,
}

/// A training image of a selection.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Position in the training set.
    pub sample: u32,
    pub label: String,
    /// None where it was dropped.
    pub weight: Option<f32>,
    pub png: Vec<u8>,
}

/// Attacks the first `count` test images with the engine's weights.
pub fn attack(
    engine: &mut Engine,
    data: &DataSet,
    protocol: &PgdProtocol,
    epsilon: f32,
    seed: u64,
    count: usize,
) -> engine::Result<Vec<Attacked>> {
    let mut test = data.test.clone();
    test.truncate(count.min(data.test.len()));
    let set = ImageSet::upload(engine, &test.pixels, &test.labels)?;
    let samples: Vec<u32> = (0..test.len() as u32).collect();
    let batch = Batch::alloc(engine, test.len())?.gathered(engine, &set, &samples, None)?;
    engine.fold_batch_norm(WeightSet::Live)?;
    let clean = predict(engine, &batch, false)?;
    let key = Key { seed, purpose: Purpose::EvaluationStart, epoch: 0, step: 0 };
    protocol.pgd(epsilon).perturb(engine, AscentLoss::CrossEntropy, key, &batch)?;
    let attacked = predict(engine, &batch, true)?;

    let (images, perturbed) = (engine.read(&batch.images)?, engine.read(&batch.perturbed)?);
    let name = |class: u32| match class {
        NO_CLASS => "none (logits not finite)".into(),
        class => data.class_names[class as usize].clone(),
    };
    let picture = |i: usize| {
        let (x, adversarial) =
            (&images[i * IMAGE_LEN..][..IMAGE_LEN], &perturbed[i * IMAGE_LEN..][..IMAGE_LEN]);
        let difference: Vec<f32> = x
            .iter()
            .zip(adversarial)
            .map(|(x, adversarial)| 0.5 + (adversarial - x) / (2.0 * epsilon))
            .collect();
        Attacked {
            label: name(test.labels[i]),
            clean_prediction: name(clean[i]),
            attacked_prediction: name(attacked[i]),
            clean: png(&bytes(x)),
            adversarial: png(&bytes(adversarial)),
            perturbation: png(&bytes(&difference)),
        }
    };
    Ok((0..test.len()).map(picture).collect())
}

/// Up to `count` samples that were chosen and up to `count` of `candidates` that were not. The chosen ones are those with
/// the largest weights, or spread evenly where the weights are one; so are the dropped ones. Samples that are not in the
/// training images are an error: the data is another.
pub fn examples(
    chosen: &Chosen,
    candidates: &[u32],
    data: &DataSet,
    count: usize,
) -> Result<(Vec<Example>, Vec<Example>), String> {
    if let Some(sample) = chosen.samples.iter().find(|&&sample| sample as usize >= data.train.len()) {
        return Err(format!(
            "the subset holds image {sample}, expected one of the {} training images",
            data.train.len()
        ));
    }
    let mut kept: Vec<(u32, f32)> =
        chosen.samples.iter().copied().zip(chosen.weights.iter().copied()).collect();
    let weighted = kept.windows(2).any(|pair| pair[0].1 != pair[1].1);
    if weighted {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        kept.truncate(count);
    } else {
        kept = spread(&kept, count);
    }
    let mut sorted = chosen.samples.clone();
    sorted.sort_unstable();
    let dropped: Vec<u32> =
        candidates.iter().copied().filter(|sample| sorted.binary_search(sample).is_err()).collect();
    let example = |sample: u32, weight: Option<f32>| Example {
        sample,
        label: data.class_names[data.train.labels[sample as usize] as usize].clone(),
        weight,
        png: png(&to_pixels(data.train.image(sample as usize))),
    };
    let kept = kept.into_iter().map(|(sample, weight)| example(sample, Some(weight))).collect();
    let dropped = spread(&dropped, count).into_iter().map(|sample| example(sample, None)).collect();
    Ok((kept, dropped))
}

/// Up to `count` items at even distances.
fn spread<T: Copy>(items: &[T], count: usize) -> Vec<T> {
    let taken = count.min(items.len());
    (0..taken).map(|i| items[i * items.len() / taken]).collect()
}

/// Values in [0, 1] as bytes.
fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().map(|value| (255.0 * value.clamp(0.0, 1.0)).round() as u8).collect()
}

/// A PNG file of one image, `32 x 32 x 3` bytes by rows.
fn png(pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let side = IMAGE_SIDE as u32;
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(pixels));
    written.expect("memory takes every byte, and the size is that of the header");
    file
}

/// A PNG file as the source of an `<img>`.
pub fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SetKind;

    fn decode(file: &[u8]) -> Vec<u8> {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (32, 32, png::ColorType::Rgb));
        pixels
    }

    #[test]
    fn a_png_holds_the_pixels() {
        let pixels: Vec<u8> = (0..3072).map(|i| (i * 37 % 251) as u8).collect();
        assert_eq!(decode(&png(&pixels)), pixels);
        assert_eq!(bytes(&[-0.1, 0.0, 0.5, 1.0, 7.0]), [0, 0, 128, 255, 255]);
        assert!(data_uri(b"\x89PNG").starts_with("data:image/png;base64,iVBORw"));
    }

    #[test]
    fn examples_are_the_weightiest_and_the_others_are_dropped() {
        let data = DataSet::open(SetKind::Generated, None, Some(20), Some(10)).unwrap();
        let candidates: Vec<u32> = (0..18).collect();
        let chosen = Chosen { epoch: 3, samples: vec![2, 5, 7, 11], weights: vec![0.5, 1.5, 0.5, 1.5] };
        let (kept, dropped) = examples(&chosen, &candidates, &data, 3).unwrap();
        assert_eq!(
            kept.iter().map(|e| (e.sample, e.weight)).collect::<Vec<_>>(),
            [(5, Some(1.5)), (11, Some(1.5)), (2, Some(0.5))]
        );
        assert!(
            dropped.len() == 3
                && dropped.iter().all(|e| !chosen.samples.contains(&e.sample) && e.sample < 18)
        );
        assert_eq!(kept[0].label, data.class_names[data.train.labels[5] as usize]);
        let pixels = decode(&kept[0].png);
        let planes = data.train.image(5);
        assert_eq!(
            [pixels[3 * 40], pixels[3 * 40 + 1], pixels[3 * 40 + 2]],
            [40, 1064, 2088].map(|i| planes[i])
        );

        let wrong = Chosen { epoch: 1, samples: vec![20], weights: vec![1.0] };
        assert!(examples(&wrong, &candidates, &data, 3).unwrap_err().contains("image 20"));
    }
}
