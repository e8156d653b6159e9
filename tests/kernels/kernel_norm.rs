//! BatchNorm kernels against f64 oracles, over every shape of the network at widths 16, 32 and 64, in one and in two sets of
//! images.

use half::bf16;
use secateur::cuda::driver::Address;
use secateur::cuda::launch::norm::*;
use secateur::cuda::layout::{Layout, STEM_CHANNELS, packed_len, packed_offset, shape};
use secateur::model::ResNet;
use secateur::model::layers::{BN_EPSILON, BN_MOMENTUM, WIDTHS};

use crate::common::*;

/// Rows of a set from which the reductions over its tiles, and over its [`SHORT_BLOCK`]s of rows, go round and round, as those of a
/// batch of 128 and more do.
const MANY_ROWS: usize = 6_000;
const SHORT_BLOCK: u32 = 64;

/// Sets, rows of a set and channels of every BatchNorm, for odd batches.
fn shapes() -> Vec<(usize, usize, usize)> {
    // The train pass has one or two; the kernels allow more.
    let mut shapes = vec![(4, 48, 32), (8, 48, 16), (1, 12_365, 16), (2, 6_200, 16)];
    for sets in [1, 2] {
        for width in WIDTHS {
            for (side, factor) in [(32, 1), (16, 2), (8, 4), (4, 8)] {
                for batch in [1, 3] {
                    shapes.push((sets, batch * side * side, width * factor));
                }
            }
        }
    }
    shapes
}

/// For each set mean, 1/deviation, scale and shift of a random normalisation, in f32 as the kernels read them.
fn random_statistics(random: &mut Random, sets: usize, channels: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for _ in 0..sets {
        all.extend(random.normals(channels, 1.0));
        all.extend(random.uniforms(channels, 0.5, 2.0));
        all.extend(random.normals(channels, 1.0));
        all.extend(random.normals(channels, 0.5));
    }
    all
}

#[test]
fn fold_scales_filters_and_shifts_biases() {
    for width in WIDTHS {
        let layout = Layout::new(ResNet::resnet18(width, 10));
        let mut random = Random::new(1);
        let weights = random.normals(layout.convs[0].bn_weight, 0.1);
        let gamma = random.uniforms(layout.channels, -1.0, 2.0);
        let beta = random.normals(layout.channels, 0.5);
        let mean = random.normals(layout.channels, 2.0);
        let variance = random.uniforms(layout.channels, 1e-4, 3.0);
        on_every_driver(&format!("fold, width {width}"), |driver| {
            let table = fold_table(&layout);
            let operands = [
                input(driver, "layers", &table),
                input(driver, "weights", &weights),
                input(driver, "gamma", &gamma),
                input(driver, "beta", &beta),
                input(driver, "mean", &mean),
                input(driver, "variance", &variance),
            ];
            let folded = Output::new::<bf16>(driver, "folded", packed_len(&layout));
            let bias = Output::new::<f32>(driver, "bias", layout.channels);
            let [layers, weights_at, gamma_at, beta_at, mean_at, variance_at] =
                operands.each_ref().map(|b| b.address());
            let params = FoldParams {
                layers,
                weights: weights_at,
                gamma: gamma_at,
                beta: beta_at,
                mean: mean_at,
                variance: variance_at,
                folded: folded.address(),
                bias: bias.address(),
                layer_count: table.len() as u32,
                epsilon: BN_EPSILON,
            };
            batch_norm_fold(&**driver, &layout, &params).unwrap();

            let (folded, bias) = (folded.read::<bf16>(), bias.read::<f32>());
            let scale = |channel: usize| {
                f64::from(gamma[channel]) / (f64::from(variance[channel]) + f64::from(BN_EPSILON)).sqrt()
            };
            for (at, slot) in layout.convs.iter().enumerate() {
                let (shape, first) = (shape(&layout, at, 1), packed_offset(&layout, at));
                let filter_len = shape.weight_len() / shape.out_channels;
                let expected: Vec<f64> = (0..shape.weight_len())
                    .map(|i| {
                        let channel = slot.channel + i / filter_len;
                        let source = match (shape.in_channels, i % STEM_CHANNELS) {
                            (STEM_CHANNELS, 6..) => return 0.0,
                            (STEM_CHANNELS, lane) => i / STEM_CHANNELS * 3 + lane % 3,
                            _ => i,
                        };
                        f64::from(weights[slot.weight + source]) * scale(channel)
                    })
                    .collect();
                let actual = &folded[first..][..shape.weight_len()];
                assert_close(&format!("{} folded", slot.conv.name), actual, &expected, ROUNDED_TO_BF16);
            }
            let expected: Vec<f64> =
                (0..layout.channels).map(|c| f64::from(beta[c]) - f64::from(mean[c]) * scale(c)).collect();
            assert_close("bias", &bias, &expected, F32);
            [words(&folded), words(&bias)].concat()
        });
    }
}

#[test]
fn statistics_merge_tiles() {
    for (sets, rows, channels) in shapes() {
        for tile_rows in [128, 256] {
            let mut random = Random::new(2);
            // Means far from zero: sums of squares would lose every digit of the variance.
            let centre = random.uniforms(sets * channels, -50.0, 50.0);
            let of_set = |i: usize| i / (rows * channels) * channels + i % channels;
            let y: Vec<f32> =
                (0..sets * rows * channels).map(|i| centre[of_set(i)] + 0.1 * random.normal()).collect();
            let (gamma, beta) = (random.uniforms(channels, 0.5, 1.5), random.normals(channels, 0.3));
            let (old_mean, old_variance) =
                (random.normals(channels, 1.0), random.uniforms(channels, 0.5, 2.0));
            let moments = |set: usize, first: usize, last: usize, channel: usize| {
                let value = |row: usize| f64::from(y[(set * rows + row) * channels + channel]);
                let column = || (first..last).map(value);
                let mean = column().sum::<f64>() / (last - first) as f64;
                (mean, column().map(|v| (v - mean) * (v - mean)).sum::<f64>())
            };
            let tiles = rows.div_ceil(tile_rows);
            let mut partials = vec![0.0f32; sets * tiles * 2 * channels];
            for (part, values) in partials.chunks_exact_mut(2 * channels).enumerate() {
                let (set, tile) = (part / tiles, part % tiles);
                let (first, last) = (tile * tile_rows, rows.min((tile + 1) * tile_rows));
                for channel in 0..channels {
                    let (mean, squares) = moments(set, first, last, channel);
                    (values[channel], values[channels + channel]) = (mean as f32, squares as f32);
                }
            }
            let name = format!("statistics of {sets} x {rows} x {channels}, tiles of {tile_rows}");
            on_every_driver(&name, |driver| {
                let partials = input(driver, "partials", &partials);
                let (gamma_at, beta_at) = (input(driver, "gamma", &gamma), input(driver, "beta", &beta));
                let running_mean = Output::holding(driver, "running mean", &old_mean);
                let running_variance = Output::holding(driver, "running variance", &old_variance);
                let statistics = Output::new::<f32>(driver, "statistics", sets * 4 * channels);
                let params = StatisticsParams {
                    partials: partials.address(),
                    gamma: gamma_at.address(),
                    beta: beta_at.address(),
                    running_mean: running_mean.address(),
                    running_variance: running_variance.address(),
                    statistics: statistics.address(),
                    sets: sets as u32,
                    rows: rows as u32,
                    tile_rows: tile_rows as u32,
                    tiles: tiles as u32,
                    channels: channels as u32,
                    epsilon: BN_EPSILON,
                    momentum: BN_MOMENTUM,
                    padding: 0,
                };
                batch_norm_statistics(&**driver, &params).unwrap();

                let actual = statistics.read::<f32>();
                let (actual_mean, actual_variance) =
                    (running_mean.read::<f32>(), running_variance.read::<f32>());
                let momentum = f64::from(BN_MOMENTUM);
                let widened = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let (mut expected_mean, mut expected_variance) = (widened(&old_mean), widened(&old_variance));
                // A mean near 50 is known to about 4e-6; over a deviation of 0.1 the variance keeps four digits.
                let mean_bound = Bound { absolute: 1e-5, relative: 2e-7, whole: 2e-7 };
                let variance_bound = Bound { absolute: 0.0, relative: 5e-5, whole: 2e-5 };
                let shift_bound = Bound { absolute: 2e-3, relative: 5e-5, whole: 2e-5 };
                for set in 0..sets {
                    let mut expected = vec![vec![0.0; channels]; 4];
                    for c in 0..channels {
                        let (mean, squares) = moments(set, 0, rows, c);
                        let inverse = 1.0 / (squares / rows as f64 + f64::from(BN_EPSILON)).sqrt();
                        let scale = f64::from(gamma[c]) * inverse;
                        expected[0][c] = mean;
                        expected[1][c] = inverse;
                        expected[2][c] = scale;
                        expected[3][c] = f64::from(beta[c]) - mean * scale;
                        expected_mean[c] = (1.0 - momentum) * expected_mean[c] + momentum * mean;
                        expected_variance[c] =
                            (1.0 - momentum) * expected_variance[c] + momentum * squares / (rows - 1) as f64;
                    }
                    let part = |i: usize| &actual[(set * 4 + i) * channels..][..channels];
                    assert_close("mean", part(0), &expected[0], mean_bound);
                    assert_close("1/deviation", part(1), &expected[1], variance_bound);
                    assert_close("scale", part(2), &expected[2], variance_bound);
                    assert_close("shift", part(3), &expected[3], shift_bound);
                }
                assert_close("running mean", &actual_mean, &expected_mean, mean_bound);
                assert_close("running variance", &actual_variance, &expected_variance, variance_bound);
                [words(&actual), words(&actual_mean), words(&actual_variance)].concat()
            });
        }
    }
}

#[test]
fn apply_normalises_adds_and_masks() {
    for (sets, rows, channels) in shapes() {
        let mut random = Random::new(3);
        let len = sets * rows * channels;
        let (y, residual) = (random.bf16s(len, 2.0), random.bf16s(len, 2.0));
        let (own, shortcut) =
            (random_statistics(&mut random, sets, channels), random_statistics(&mut random, sets, channels));
        for variant in ["no residual", "activation", "normalised shortcut"] {
            on_every_driver(&format!("apply {sets} x {rows} x {channels}, {variant}"), |driver| {
                let (y_at, residual_at) = (input(driver, "y", &y), input(driver, "residual", &residual));
                let (own_at, shortcut_at) =
                    (input(driver, "own", &own), input(driver, "shortcut", &shortcut));
                let (out, mask) =
                    (Output::new::<bf16>(driver, "out", len), Output::new::<u8>(driver, "mask", len / 8));
                let (with_residual, with_norm) = (variant != "no residual", variant == "normalised shortcut");
                let params = ApplyParams {
                    y: y_at.address(),
                    statistics: own_at.address(),
                    residual: if with_residual { residual_at.address() } else { Address::NULL },
                    residual_statistics: if with_norm { shortcut_at.address() } else { Address::NULL },
                    out: out.address(),
                    mask: mask.address(),
                    vectors: (rows * channels / 8) as u32,
                    channels: channels as u32,
                };
                batch_norm_relu(&**driver, sets as u32, &params).unwrap();

                let (out, mask) = (out.read::<bf16>(), mask.read::<u8>());
                let affine = |statistics: &[f32], value: bf16, i: usize| {
                    let (set, c) = (i / (rows * channels), i % channels);
                    let at = |part: usize| f64::from(statistics[(set * 4 + part) * channels + c]);
                    f64::from(value) * at(2) + at(3)
                };
                let expected: Vec<f64> = (0..len)
                    .map(|i| {
                        let residual = match variant {
                            "no residual" => 0.0,
                            "activation" => f64::from(residual[i]),
                            _ => affine(&shortcut, residual[i], i),
                        };
                        (affine(&own, y[i], i) + residual).max(0.0)
                    })
                    .collect();
                assert_close("out", &out, &expected, Bound { absolute: 5e-6, ..ROUNDED_TO_BF16 });
                let wrong = (0..len).find(|i| bit(&mask, *i) != (out[*i] > bf16::ZERO));
                assert_eq!(wrong, None, "mask bit of this element, seed {SEED}");
                [words(&out), words(&mask)].concat()
            });
        }
    }
}

#[test]
fn backward_takes_sums_and_applies_them() {
    for (sets, rows, channels) in shapes() {
        let mut random = Random::new(4);
        let len = sets * rows * channels;
        let (g, y) = (random.bf16s(len, 1.0), random.bf16s(len, 2.0));
        let statistics = random_statistics(&mut random, sets, channels);
        let gamma = random.uniforms(channels, -1.0, 2.0);
        let before = random.normals(2 * channels, 5.0);
        for variant in ["overwrite", "accumulate", "input gradient alone"] {
            on_every_driver(&format!("backward {sets} x {rows} x {channels}, {variant}"), |driver| {
                let (g_at, y_at) = (Output::holding(driver, "g", &g), input(driver, "y", &y));
                let (statistics_at, gamma_at) =
                    (input(driver, "statistics", &statistics), input(driver, "gamma", &gamma));
                let gradients = Output::holding(driver, "gradients", &before);
                let rows_per_block = match rows {
                    MANY_ROWS.. => SHORT_BLOCK,
                    _ => backward_rows_per_block(channels as u32),
                };
                let blocks = (rows as u32).div_ceil(rows_per_block);
                let partials = Output::new::<f32>(driver, "partials", sets * blocks as usize * 2 * channels);
                let coefficients = Output::new::<f32>(driver, "coefficients", sets * 3 * channels);
                let sums = NormSumsParams {
                    g: g_at.address(),
                    y: y_at.address(),
                    statistics: statistics_at.address(),
                    partials: partials.address(),
                    rows: rows as u32,
                    rows_per_block,
                    channels: channels as u32,
                    padding: 0,
                };
                batch_norm_backward_sums(&**driver, sets as u32, &sums).unwrap();
                let wants_gradients = variant != "input gradient alone";
                let gradient = |part: usize| match wants_gradients {
                    true => gradients.address().offset::<f32>(part * channels),
                    false => Address::NULL,
                };
                let finish = NormFinishParams {
                    partials: partials.address(),
                    statistics: statistics_at.address(),
                    gamma: gamma_at.address(),
                    gamma_gradient: gradient(0),
                    beta_gradient: gradient(1),
                    coefficients: coefficients.address(),
                    sets: sets as u32,
                    blocks,
                    rows: rows as u32,
                    channels: channels as u32,
                    accumulate: (variant == "accumulate").into(),
                    padding: 0,
                };
                batch_norm_backward_finish(&**driver, &finish).unwrap();
                let apply = NormBackwardParams {
                    g: g_at.address(),
                    y: y_at.address(),
                    statistics: statistics_at.address(),
                    coefficients: coefficients.address(),
                    dy: g_at.address(), // in place, as the engine does
                    vectors: (rows * channels / 8) as u32,
                    channels: channels as u32,
                };
                batch_norm_backward_apply(&**driver, sets as u32, &apply).unwrap();

                let (actual, dy) = (gradients.read::<f32>(), g_at.read::<bf16>());
                partials.read::<f32>();
                coefficients.read::<f32>();
                let (g, m) = (|i: usize| f64::from(g[i]), rows as f64);
                // Of the set and the channel of an element.
                let column = |i: usize| i / (rows * channels) * channels + i % channels;
                let moment = |part: usize, i: usize| {
                    f64::from(statistics[(i / (rows * channels) * 4 + part) * channels + i % channels])
                };
                let hat = |i: usize| (f64::from(y[i]) - moment(0, i)) * moment(1, i);
                let (mut gx, mut sum) = (vec![0.0; sets * channels], vec![0.0; sets * channels]);
                for i in 0..len {
                    gx[column(i)] += g(i) * hat(i);
                    sum[column(i)] += g(i);
                }
                let expected: Vec<f64> = (0..len)
                    .map(|i| {
                        let scale = f64::from(gamma[i % channels]) * moment(1, i);
                        scale * (g(i) - sum[column(i)] / m - hat(i) * gx[column(i)] / m)
                    })
                    .collect();
                assert_close("dy", &dy, &expected, Bound { absolute: 1e-5, ..ROUNDED_TO_BF16 });
                let over_sets = |sums: &[f64]| -> Vec<f64> {
                    (0..channels).map(|c| sums.iter().skip(c).step_by(channels).sum()).collect()
                };
                let (dgamma, dbeta) = (over_sets(&gx), over_sets(&sum));
                let expected: Vec<f64> = match variant {
                    "overwrite" => [dgamma, dbeta].concat(),
                    "accumulate" => {
                        let added = dgamma.iter().chain(&dbeta).zip(&before);
                        added.map(|(new, old)| new + f64::from(*old)).collect()
                    }
                    _ => before.iter().map(|v| f64::from(*v)).collect(),
                };
                // Sums of up to 12,400 terms of size 1 to 4.
                assert_close(
                    "gradients",
                    &actual,
                    &expected,
                    Bound { absolute: 5e-4, relative: 1e-5, whole: 1e-5 },
                );
                [words(&actual), words(&dy)].concat()
            });
        }
    }
}
