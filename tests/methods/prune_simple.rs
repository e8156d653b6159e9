//! The selections that need no gradient algebra: exact sizes and quotas, ranks as a plain sort has them, and every end
//! defined.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use secateur::data::order::quotas;
use secateur::engine::{DeviceChoice, WeightSet};
use secateur::philox::Key;
use secateur::prune::{
    All, Candidates, PartlyRandom, PruneError, Random, RandomOnline, Ranking, Score, Selection, Subset, TopK,
};
use secateur::recipe::Recipe;

use crate::common::grad_pass::{DRAWS, Subject};

thread_local! {
    static SUBJECT: RefCell<Subject> = RefCell::new(Subject::new(DeviceChoice::Cpu, &[]));
}

fn plain(score: Score) -> Ranking {
    Ranking { score, top_k: TopK::PLAIN }
}

fn select(
    selection: &dyn Selection,
    samples: &[u32],
    budget: usize,
    losses: Option<&[f32]>,
) -> Result<Subset, PruneError> {
    SUBJECT.with_borrow_mut(|subject| subject.select(selection, samples, &[], budget, losses))
}

/// The same with labels of its own choice.
fn select_labelled(selection: &dyn Selection, samples: &[u32], labels: &[u32], budget: usize) -> Subset {
    select_in(0, selection, samples, labels, budget, None)
}

/// The same for an epoch, with last losses if given.
fn select_in(
    epoch: u32,
    selection: &dyn Selection,
    samples: &[u32],
    labels: &[u32],
    budget: usize,
    losses: Option<&[f32]>,
) -> Subset {
    SUBJECT.with_borrow_mut(|subject| {
        let losses = losses.map(|losses| subject.engine.upload("last losses", losses).unwrap());
        subject.grad_pass(|engine, pass| {
            let key = Key { epoch, ..DRAWS };
            let losses = losses.as_ref();
            let candidates =
                Candidates { samples, labels, classes: 10, held_out: &[], budget, losses, scores: None, key };
            selection.select(engine, &candidates, pass).unwrap()
        })
    })
}

/// Ascending samples of the subject's 90 images.
fn some_samples() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(0..90u32, 1..60).prop_map(|set| set.into_iter().collect())
}

fn assert_is_subset(subset: &Subset, samples: &[u32], size: usize) {
    assert_eq!(subset.len(), size);
    assert!(subset.samples.is_sorted_by(|a, b| a < b), "{subset:?}");
    assert!(subset.samples.iter().all(|sample| samples.contains(sample)), "{subset:?}");
    assert_eq!(subset.weights, vec![1.0; size]);
    assert!(subset.residuals.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100, failure_persistence: None, rng_seed: RngSeed::Fixed(20_261_121), ..ProptestConfig::default()
    })]

    #[test]
    fn random_has_the_size_and_the_quotas(
        samples in some_samples(),
        share in 0.0..1.3f64,
        labels in prop::collection::vec(0..10u32, 60),
        missing in 0..10u32,
    ) {
        let budget = (share * samples.len() as f64) as usize;
        let size = budget.min(samples.len());
        // One class has no candidates.
        let labels: Vec<u32> =
            labels[..samples.len()].iter().map(|&label| if label == missing { (label + 1) % 10 } else { label }).collect();
        for class_balanced in [false, true] {
            let random = Random { class_balanced };
            let subset = select_labelled(&random, &samples, &labels, budget);
            assert_is_subset(&subset, &samples, size);
            prop_assert_eq!(&subset, &select_labelled(&random, &samples, &labels, budget));
            if class_balanced {
                let count = |of: &[u32]| {
                    let mut counts = vec![0; 10];
                    for sample in of {
                        counts[labels[samples.binary_search(sample).unwrap()] as usize] += 1;
                    }
                    counts
                };
                let (all, actual) = (count(&samples), count(&subset.samples));
                prop_assert_eq!(actual[missing as usize], 0);
                prop_assert_eq!(&actual, &quotas(&all, size));
                for (actual, all) in actual.iter().zip(&all) {
                    let fair = (all * size) as f64 / samples.len() as f64;
                    prop_assert!((*actual as f64 - fair).abs() < 1.0 && actual <= all, "{} of {}", actual, all);
                }
            }
        }
        let all = select_labelled(&All, &samples, &labels, budget);
        assert_is_subset(&all, &samples, samples.len());
    }

    #[test]
    fn the_largest_losses_come_first_and_the_unknown_before_them(
        samples in some_samples(),
        share in 0.0..1.3f64,
        levels in prop::collection::vec(0..7u32, 60),
    ) {
        let budget = (share * samples.len() as f64) as usize;
        // Many equal losses; level 6 was never trained on.
        let loss = |level: u32| if level == 6 { f32::INFINITY } else { level as f32 / 4.0 };
        let losses: Vec<f32> = levels[..samples.len()].iter().map(|&level| loss(level)).collect();
        let ranking = plain(Score::LastLoss);
        let subset = select(&ranking, &samples, budget, Some(&losses)).unwrap();
        let mut places: Vec<usize> = (0..samples.len()).collect();
        // A stable sort: equal losses keep the order of the samples.
        places.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
        let mut expected: Vec<u32> = places.iter().take(budget).map(|&place| samples[place]).collect();
        expected.sort_unstable();
        assert_is_subset(&subset, &samples, budget.min(samples.len()));
        prop_assert_eq!(subset.samples, expected);
    }

    /// Quotas without noise: of each class its share, and of those the largest losses. With noise: the same shares.
    #[test]
    fn quotas_take_the_best_of_each_class(
        samples in some_samples(),
        share in 0.0..1.3f64,
        levels in prop::collection::vec(0..7u32, 60),
        labels in prop::collection::vec(0..10u32, 60),
    ) {
        let budget = (share * samples.len() as f64) as usize;
        let losses: Vec<f32> = levels[..samples.len()].iter().map(|&level| level as f32).collect();
        let labels = &labels[..samples.len()];
        let counts = |of: &[u32]| {
            let mut counts = vec![0; 10];
            for sample in of {
                counts[labels[samples.binary_search(sample).unwrap()] as usize] += 1;
            }
            counts
        };
        let shares = quotas(&counts(&samples), budget.min(samples.len()));
        let mut expected = Vec::new();
        for (class, &share) in shares.iter().enumerate() {
            let mut places: Vec<usize> = (0..samples.len()).filter(|&at| labels[at] as usize == class).collect();
            places.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
            expected.extend(places[..share].iter().map(|&place| samples[place]));
        }
        expected.sort_unstable();
        let draw = |temperature, epoch| {
            let top_k = TopK { temperature, class_quotas: true, importance_weights: false };
            let ranking = Ranking { score: Score::LastLoss, top_k };
            let subset = select_in(epoch, &ranking, &samples, labels, budget, Some(&losses));
            assert_is_subset(&subset, &samples, budget.min(samples.len()));
            subset.samples
        };
        prop_assert_eq!(draw(0.0, 0), expected);
        prop_assert_eq!(counts(&draw(1.0, 3)), shares);
        prop_assert_eq!(draw(1.0, 3), draw(1.0, 3));
    }
}

/// Noise of the size of the scores' spread: what ranks first is kept more often, not always, and not the same each time.
#[test]
fn noise_favours_the_largest_and_changes_from_epoch_to_epoch() {
    let samples: Vec<u32> = (0..80).collect();
    let labels: Vec<u32> = (0..80).map(|place| place % 10).collect();
    let losses: Vec<f32> = (0..80).map(|place| place as f32).collect();
    let top_k = TopK { temperature: 1.0, class_quotas: true, importance_weights: false };
    let ranking = Ranking { score: Score::LastLoss, top_k };
    let draws: Vec<Vec<u32>> = (0..200)
        .map(|epoch| select_in(epoch, &ranking, &samples, &labels, 20, Some(&losses)).samples)
        .collect();
    assert!(draws.windows(2).all(|pair| pair[0] != pair[1]));
    let kept = |range: std::ops::Range<u32>| {
        draws.iter().flatten().filter(|sample| range.contains(sample)).count() as f64 / 200.0
    };
    // Of 20 without a preference 10 would be of the upper half; of the plain ranking all.
    let (lower, upper) = (kept(0..40), kept(40..80));
    assert!((lower + upper - 20.0).abs() < 1e-9);
    assert!((13.0..18.0).contains(&upper), "{upper} of the upper half");
}

/// The subsets of random-online, selection by selection.
fn random_online(samples: &[u32], budget: usize, first: u32, every: u32, selections: u32) -> Vec<Subset> {
    SUBJECT.with_borrow_mut(|subject| {
        let labels = subject.labels(samples);
        subject.grad_pass(|engine, pass| {
            let mut at = |selection: u32| {
                let candidates = Candidates {
                    samples,
                    labels: &labels,
                    classes: 10,
                    held_out: &[],
                    budget,
                    losses: None,
                    scores: None,
                    key: Key { epoch: first + selection * every, ..DRAWS },
                };
                RandomOnline { first, every }.select(engine, &candidates, pass).unwrap()
            };
            (0..selections).map(&mut at).collect()
        })
    })
}

/// RS2 without replacement: after any number of selections every sample came as often as any other, or once more.
#[test]
fn a_walk_takes_every_sample_once_a_round() {
    for (count, budget) in [(90, 30), (90, 18), (90, 27), (80, 37), (7, 7), (5, 1)] {
        let samples: Vec<u32> = (0..count).map(|at| at % 90).collect();
        for (first, every) in [(0, 1), (3, 5)] {
            let subsets =
                random_online(&samples, budget, first, every, 2 * count.div_ceil(budget as u32) + 3);
            let mut times = vec![0usize; samples.len()];
            for (selection, subset) in subsets.iter().enumerate() {
                assert_is_subset(subset, &samples, budget);
                subset.samples.iter().for_each(|&sample| times[sample as usize] += 1);
                let round = (selection + 1) * budget / samples.len();
                let (low, high) = (times.iter().min().unwrap(), times.iter().max().unwrap());
                assert!(
                    *low == round && *high <= round + 1,
                    "{budget} of {count}, selection {selection}: {times:?}"
                );
            }
            assert!(budget == samples.len() || subsets[0] != subsets[1]);
        }
    }
    // Not the first of the samples, and the same whenever it is asked.
    let samples: Vec<u32> = (0..90).collect();
    assert_ne!(random_online(&samples, 30, 0, 1, 1)[0].samples, samples[..30]);
    assert_eq!(random_online(&samples, 30, 0, 1, 3), random_online(&samples, 30, 0, 1, 3));
}

#[test]
fn a_random_share_is_drawn_from_what_the_choice_leaves() {
    let samples: Vec<u32> = (0..80).map(|at| at + 10).collect();
    let losses: Vec<f32> = (0..80).map(|at| ((at * 37) % 80) as f32).collect();
    let share = |share: f64, budget: usize| {
        let text = format!(
            "epochs = 1\nbatch = 10\ndata.set = 'generated'\noptimizer.learning_rate = 0.1\nschedule.kind = 'constant'\n\
             [selection]\nmethod = 'loss-rank'\nfraction = 0.5\nrandom_share = {share}"
        );
        let config = Recipe::parse("test", &text, &[]).unwrap().selection;
        let choice = Box::new(Ranking { score: Score::LastLoss, top_k: TopK::PLAIN });
        select(&PartlyRandom { config, choice }, &samples, budget, Some(&losses)).unwrap()
    };
    let ranked = |budget| {
        select(&Ranking { score: Score::LastLoss, top_k: TopK::PLAIN }, &samples, budget, Some(&losses))
            .unwrap()
    };
    // 30 % of 25 are 7.5, to the nearest 8.
    let mixed = share(0.3, 25);
    assert_is_subset(&mixed, &samples, 25);
    let best = ranked(17);
    assert!(best.samples.iter().all(|sample| mixed.samples.contains(sample)));
    assert_ne!(mixed, ranked(25));
    let drawn: Vec<u32> = mixed.samples.iter().copied().filter(|s| !best.samples.contains(s)).collect();
    assert_eq!(drawn.len(), 8);
    assert_eq!(share(0.3, 25), mixed);
    // Over many budgets chance has no favourites: the mean rank of what it drew is near the middle of what was left.
    let ranks: Vec<f64> = (10..60)
        .flat_map(|budget| {
            let (mixed, best) = (share(0.5, budget), ranked(budget - (budget as f64 / 2.0).round() as usize));
            let left = (80 - best.len()) as f64;
            let loss = |sample: &u32| f64::from(losses[*sample as usize - 10]);
            let drawn = mixed.samples.into_iter().filter(move |s| best.samples.binary_search(s).is_err());
            drawn.map(move |sample| loss(&sample) / left).collect::<Vec<_>>()
        })
        .collect();
    let mean = ranks.iter().sum::<f64>() / ranks.len() as f64;
    // A uniform draw has 0.5; the draws of one key overlap, so a wide bound.
    assert!((mean - 0.5).abs() < 0.1, "{mean} over {}", ranks.len());
}

#[test]
fn mean_scores_rank_where_there_are_any() {
    let samples: Vec<u32> = (0..20).collect();
    let means: Vec<f32> = (0..20).map(|at| ((at * 7) % 20) as f32).collect();
    SUBJECT.with_borrow_mut(|subject| {
        let labels = subject.labels(&samples);
        subject.grad_pass(|engine, pass| {
            for score in [Score::El2n, Score::GraNd, Score::InputGradient] {
                let candidates = Candidates {
                    samples: &samples,
                    labels: &labels,
                    classes: 10,
                    held_out: &[],
                    budget: 5,
                    losses: None,
                    scores: Some(&means),
                    key: DRAWS,
                };
                let subset = Ranking { score, top_k: TopK::PLAIN }.select(engine, &candidates, pass).unwrap();
                let expected: Vec<u32> = (0..20).filter(|&at| means[at as usize] >= 15.0).collect();
                assert_eq!(subset.samples, expected, "{score:?}");
            }
        });
    });
}

#[test]
fn none_and_all_are_defined_for_every_ranking() {
    let samples: Vec<u32> = (0..20).collect();
    for score in [Score::LastLoss, Score::El2n, Score::GraNd, Score::InputGradient] {
        let ranking = plain(score);
        assert!(select(&ranking, &samples, 0, None).unwrap().is_empty(), "{score:?}");
        for budget in [20, 21, 1000] {
            assert_eq!(select(&ranking, &samples, budget, None).unwrap().samples, samples, "{score:?}");
        }
    }
}

#[test]
fn a_loss_that_is_no_number_is_named() {
    let samples: Vec<u32> = (30..50).collect();
    let mut losses = vec![1.0; 20];
    losses[7] = f32::NAN;
    let error = select(&plain(Score::LastLoss), &samples, 5, Some(&losses)).unwrap_err();
    assert!(matches!(error, PruneError::Invalid(_)), "{error}");
    assert!(error.to_string().contains("training image 37: its score is NaN"), "{error}");
    let top_k = TopK { temperature: 1.0, ..TopK::PLAIN };
    let error = select(&Ranking { score: Score::LastLoss, top_k }, &samples, 5, Some(&losses)).unwrap_err();
    assert!(error.to_string().contains("training image 37: its score is NaN"), "{error}");
}

#[test]
fn weights_that_are_no_numbers_are_an_error_and_no_subset() {
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let mut weights = subject.engine.weights(WeightSet::Live).unwrap();
    weights.tensors.get_mut("linear.bias").unwrap().values[3] = f32::NAN;
    subject.engine.load_weights(&weights).unwrap();
    let samples: Vec<u32> = (0..10).collect();
    for score in [Score::LastLoss, Score::El2n, Score::GraNd, Score::InputGradient] {
        let error = subject.select(&plain(score), &samples, &[], 3, None).unwrap_err();
        assert!(error.to_string().contains("training image 0: its score is NaN"), "{score:?}: {error}");
    }
}

/// Each score from its formula, in f64, from the parts that a last-layer gradient pass gives.
#[test]
fn scores_are_those_of_their_papers() {
    let samples: Vec<u32> = (0..45).map(|place| 2 * place).collect();
    let mut subject = Subject::new(DeviceChoice::Cpu, &[]);
    let labels = subject.labels(&samples);
    let (el2n, grand, losses, norms) = subject.grad_pass(|engine, pass| {
        let view = pass.last_layer(engine, &samples).unwrap();
        let logits = engine.read(view.adversarial_logits()).unwrap();
        let features = engine.read(&view.terms().1.features).unwrap();
        let width = features.len() / samples.len();
        let mut scores = (Vec::new(), Vec::new());
        for (row, &label) in labels.iter().enumerate() {
            let powers: Vec<f64> = logits[row * 10..][..10].iter().map(|&z| f64::from(z).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let hot = |class: usize| f64::from(u8::from(class == label as usize));
            let error: f64 =
                (0..10).map(|class| (powers[class] / sum - hot(class)).powi(2)).sum::<f64>().sqrt();
            let square: f64 = features[row * width..][..width].iter().map(|&h| f64::from(h).powi(2)).sum();
            scores.0.push(error);
            scores.1.push(error * (1.0 + square).sqrt());
        }
        let norms = pass.input_gradient_norms(engine, &samples).unwrap();
        let norms: Vec<f64> = engine.read(&norms).unwrap().iter().map(|&norm| -f64::from(norm)).collect();
        let losses: Vec<f64> = engine.read(&view.losses).unwrap().iter().map(|&loss| loss.into()).collect();
        (scores.0, scores.1, losses, norms)
    });
    let rows = [
        (Score::El2n, el2n),
        (Score::GraNd, grand),
        (Score::LastLoss, losses),
        (Score::InputGradient, norms),
    ];
    for (score, scores) in rows {
        let subset = subject.select(&plain(score), &samples, &[], 15, None).unwrap();
        let taken = |place: &usize| subset.samples.binary_search(&samples[*place]).is_ok();
        let (inside, outside): (Vec<usize>, Vec<usize>) = (0..samples.len()).partition(taken);
        assert_eq!(inside.len(), 15, "{score:?}");
        let least = inside.iter().map(|&place| scores[place]).fold(f64::INFINITY, f64::min);
        let most = outside.iter().map(|&place| scores[place]).fold(f64::NEG_INFINITY, f64::max);
        // Scores of f32: two that are this near may change places.
        assert!(least > most - 1e-5 * most.abs(), "{score:?}: {least} kept, {most} left out");
    }
}
