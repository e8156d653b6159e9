//! Recipes: every shipped one is whole and true to its file, and a wrong one is refused in words that help.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use secateur::accelerate::Acceleration;
use secateur::attack::{AttackConfig, BatchNorm, Start};
use secateur::data::{DataConfig, SetKind};
use secateur::measure::speedup::cost::Cost;
use secateur::names::Named;
use secateur::objective::Method;
use secateur::ops::Padding;
use secateur::prune::{AtomMode, Sampling, Scores, SelectionConfig, SelectionMethod, SelectionWeights};
use secateur::recipe::{BUILTIN, Recipe};
use secateur::train::Stage;
use secateur::train::config::{Position, Schedule, Update};

const SMALL: &str = "
epochs = 2
batch = 50
data.set = 'generated'
optimizer.learning_rate = 0.1
schedule.kind = 'constant'
";

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    Recipe::parse("test", text, &overrides).map_err(|error| error.to_string())
}

#[test]
fn every_shipped_recipe_parses_and_round_trips() {
    for builtin in BUILTIN {
        let recipe = Recipe::load(builtin.name, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(recipe.name, builtin.name);
        let text = recipe.to_toml();
        let again =
            Recipe::parse("another name", &text, &[]).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(recipe, again, "{text}");
        assert_eq!(text, again.to_toml());
        // The first lines say where the recipe comes from and in what it differs from there.
        let header: Vec<&str> = builtin.text.lines().take_while(|line| line.starts_with('#')).collect();
        let says =
            |start: &str| header.iter().any(|line| line.len() > start.len() && line.starts_with(start));
        assert!(says("# Source: ") || says("# No source: "), "{}: names no source", builtin.name);
        assert!(says("# Differs: "), "{}: names no difference", builtin.name);
        // What another recipe is said to tell is there.
        assert_eq!(builtin.text.lines().nth(header.len()), Some(&*format!("name = \"{}\"", builtin.name)));
        let words = header.join(" ").replace(|c: char| !c.is_alphanumeric() && c != '-', " ");
        for word in words.split_whitespace().filter(|word| word.starts_with("cifar10")) {
            assert!(BUILTIN.iter().any(|other| other.name == word), "{}: no recipe {word}", builtin.name);
        }
    }
}

/// The fixture is what the program printed: `for name in $(secateur recipes | cut -d" " -f1); do secateur recipes $name; done`.
#[test]
fn every_name_resolves_as_in_the_fixture() {
    let fixture = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/resolved-recipes.txt"));
    let mut expected: Vec<(&str, String)> = Vec::new();
    for line in fixture.lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            expected.push((name.trim_matches('"'), String::new()));
        }
        let (_, text) = expected.last_mut().expect("a recipe begins with its name");
        *text += line;
        text.push('\n');
    }
    expected.sort_unstable();
    let mut known: Vec<&str> = BUILTIN.iter().map(|builtin| builtin.name).collect();
    known.sort_unstable();
    assert_eq!(expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), known);
    for (name, text) in expected {
        let actual = Recipe::load(name, &[]).unwrap_or_else(|error| panic!("{error}")).to_toml();
        assert_eq!(actual.trim_end(), text.trim_end(), "{name}");
    }
}

#[test]
fn every_table_of_the_folder_is_built_in() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() <= 20, "{} files", files.len());
    let mut tables = toml::Table::new();
    for file in files {
        tables.extend(std::fs::read_to_string(file).unwrap().parse::<toml::Table>().unwrap());
    }
    assert!(tables.keys().map(String::as_str).eq(BUILTIN.iter().map(|builtin| builtin.name)));
    for builtin in BUILTIN {
        let mut alone: toml::Table = builtin.text.parse().unwrap();
        assert_eq!(alone.remove("name").unwrap().as_str(), Some(builtin.name));
        assert_eq!(tables[builtin.name].as_table(), Some(&alone), "{}", builtin.name);
    }
}

#[test]
fn recipes_hold_what_their_sources_say() {
    let load = |name: &str| Recipe::load(name, &[]).unwrap();
    let rice = load("cifar10-pgd-at-rice");
    assert_eq!((rice.epochs, rice.batch, rice.model.width), (200, 128, 64));
    let drops = |drops: [f64; 2]| Schedule::Step {
        drops: drops.to_vec(),
        factor: 0.1,
        position: Position::End,
        warmup_epochs: 0.0,
    };
    assert_eq!(rice.schedule, drops([100.0, 150.0]));
    assert_eq!(load("cifar10-pgd-at").schedule, drops([100.0, 105.0]));
    let average = load("cifar10-pgd-at-wa");
    assert_eq!((average.optimizer.average_decay, average.optimizer.average_warmup), (Some(0.9995), false));
    assert_eq!(average.objective.label_smoothing, 0.4);
    let one_cycle = Schedule::OneCycle {
        rise: 0.3,
        initial_divisor: 25.0,
        final_divisor: 1e4,
        update: Update::Epoch,
        momentum_range: Some([0.85, 0.95]),
    };
    assert_eq!(average.schedule, one_cycle);
    let extra = load("cifar10-trades-extra");
    assert_eq!((extra.epochs, extra.batch, &*extra.data.extra), (400, 512, &["1m.npz".to_string()][..]));
    assert_eq!(
        (extra.data.extra_share, extra.objective.beta, extra.objective.label_smoothing),
        (0.7, 5.0, 0.1)
    );
    let bag = load("cifar10-pgd-at");
    assert_eq!((bag.epochs, bag.attack.steps), (110, 10));
    assert_eq!(bag.attack.epsilon.as_f32(), 8.0 / 255.0);
    assert_eq!(load("cifar100-pgd-at").data.set, SetKind::Cifar100);
}

#[test]
fn methods_attack_as_their_sources_do() {
    let load = |name: &str| Recipe::load(name, &[]).unwrap();
    for set in ["cifar10", "cifar100"] {
        // Method, epochs, rate, weight decay, eps, step, steps, start.
        let rows = [
            ("standard", Method::Standard, 110, 0.1, 5e-4, "8/255", "2/255", 0, Start::None),
            ("pgd-at", Method::PgdAt, 110, 0.1, 5e-4, "8/255", "2/255", 10, Start::Uniform),
            ("trades", Method::Trades, 76, 0.1, 2e-4, "0.031", "0.007", 10, Start::Normal),
            ("mart", Method::Mart, 120, 0.01, 3.5e-3, "0.031", "0.007", 10, Start::Normal),
            ("fgsm-rs", Method::FgsmRs, 15, 0.2, 5e-4, "8/255", "10/255", 1, Start::Uniform),
            ("n-fgsm", Method::NFgsm, 30, 0.2, 5e-4, "8/255", "8/255", 1, Start::Uniform),
            ("free", Method::Free, 10, 0.04, 5e-4, "8/255", "8/255", 1, Start::None),
        ];
        for (name, method, epochs, rate, decay, epsilon, step, steps, start) in rows {
            let recipe = load(&format!("{set}-{name}"));
            let (attack, optimizer) = (&recipe.attack, &recipe.optimizer);
            assert_eq!(
                (recipe.objective.method, recipe.epochs, recipe.batch),
                (method, epochs, 128),
                "{name}"
            );
            assert_eq!((optimizer.learning_rate, optimizer.weight_decay), (rate, decay), "{name}");
            assert_eq!(
                (attack.epsilon.to_string(), attack.step_size.to_string()),
                (epsilon.into(), step.into())
            );
            assert_eq!((attack.steps, attack.start), (steps, start), "{name}");
            assert_eq!(attack.start_scale, if method == Method::NFgsm { 2.0 } else { 1.0 }, "{name}");
            assert_eq!(recipe.objective.replays, if method == Method::Free { 8 } else { 1 }, "{name}");
            assert_eq!(recipe.overfitting.check, matches!(steps, 1), "{name}");
            assert_eq!(recipe.data.set.name(), set);
            let reflects = matches!(method, Method::Standard | Method::PgdAt);
            assert_eq!(recipe.data.padding == Padding::Reflect, reflects, "{name}");
            let cyclic = Schedule::Cyclic { peak_at: 0.5, momentum_range: Some([0.8, 0.9]) };
            assert_eq!(recipe.schedule == cyclic, steps == 1, "{name}");
            assert_eq!(recipe.evaluation.every, if steps == 1 { 1 } else { 5 }, "{name}");

            // The values of the file are also those that the method has by itself.
            let bare = parse(SMALL, &[&format!("objective.method={method}")]).unwrap();
            assert_eq!(bare.objective, recipe.objective, "{name}");
            let of_both = |recipe: &Recipe| {
                let attack = recipe.attack.clone();
                (attack.epsilon, attack.step_size, attack.steps, attack.start, attack.start_scale)
            };
            assert_eq!(of_both(&bare), of_both(&recipe), "{name}");
        }
        for (name, method, ..) in rows {
            let (base, bullet) = (load(&format!("{set}-{name}")), load(&format!("{set}-{name}-bullet")));
            assert_eq!(bullet.accelerate.method, Acceleration::BulletTrain);
            let constants = &bullet.accelerate;
            assert_eq!((constants.robust_steps, constants.robust_step_size.to_string()), (2, "6/255".into()));
            assert_eq!((constants.accuracy_decay, constants.accuracy_factor), (0.9, 0.8));
            assert_eq!(bullet.attack.batch_norm, BatchNorm::Eval, "{name}");
            // The single-step methods attack in train mode by themselves, which takes the whole batch.
            let train_mode = matches!(method, Method::FgsmRs | Method::NFgsm);
            assert_eq!(base.attack.batch_norm == BatchNorm::Train, train_mode, "{name}");
            let batch_norm = base.attack.batch_norm;
            let renamed = Recipe {
                name: base.name.clone(),
                accelerate: base.accelerate.clone(),
                attack: AttackConfig { batch_norm, ..bullet.attack.clone() },
                ..bullet
            };
            assert_eq!(renamed, base, "the two differ by the acceleration and the attack's BatchNorm alone");
        }
    }
}

#[test]
fn phases_change_the_attack_over_training() {
    let phases = "attack.phases=[{from_epoch=1, steps=5}, {from_epoch=4, step_size='1/255'}]";
    let recipe = parse(SMALL, &["attack.steps=2", phases]).unwrap();
    let actual: Vec<(usize, usize, String)> = recipe
        .attack
        .phases
        .iter()
        .map(|phase| (phase.from_epoch, phase.steps, phase.step_size.to_string()))
        .collect();
    assert_eq!(actual, [(1, 5, "2/255".into()), (4, 2, "1/255".into())]);
    assert_eq!(parse(&recipe.to_toml(), &[]).unwrap(), recipe);
}

#[test]
fn what_a_method_cannot_do_is_refused() {
    let bullet = "accelerate.method=bullet-train";
    let cases: [(&[&str], &str); 12] = [
        (&["objective.method=fgsm-rs", "attack.steps=3"], "attack.steps = 3, expected 1 for fgsm-rs"),
        (&["objective.method=standard", "attack.steps=3"], "attack.steps = 3, expected 0 for standard"),
        (&["objective.replays=2"], "objective.replays = 2, expected 1: pgd-at trains once on each minibatch"),
        (
            &["objective.method=mart", "objective.label_smoothing=0.1"],
            "objective.label_smoothing = 0.1, expected 0: mart's margin and its weight 1 - p_y are defined by one true class",
        ),
        (
            &["objective.method=n-fgsm", "attack.batch_norm=train", "accelerate.method=bullet-train"],
            "attack.batch_norm = \"train\", expected \"eval\" with bullet-train, which attacks parts of a batch",
        ),
        (
            &["accelerate.super_batch=2"],
            "accelerate.super_batch = 2, expected 1 without bullet-train: the attack of a whole batch fills its micro-batches",
        ),
        (
            &["accelerate.warmup_accuracy=0.5"],
            "accelerate.warmup_accuracy = 0.5, expected 0 without bullet-train, which it delays",
        ),
        (
            &["objective.method=free", bullet, "accelerate.super_batch=2"],
            "accelerate.super_batch = 2, expected 1 for free, whose attack is its training steps",
        ),
        (
            &["objective.method=standard", bullet, "accelerate.warmup_accuracy=0.5"],
            "accelerate.warmup_accuracy = 0.5, expected 0 for standard, which attacks nothing",
        ),
        (
            &["objective.method=free", "attack.start=uniform"],
            "attack.start = \"uniform\", expected \"none\" for free, which carries its perturbation on",
        ),
        (
            &["attack.phases=[{from_epoch=3}, {from_epoch=3}]"],
            "attack.phases[1].from_epoch = 3, expected more than 3, the epoch of the phase before",
        ),
        (&["overfitting.stop=true"], "overfitting.check = false, expected true where overfitting.stop is"),
    ];
    for (overrides, expected) in cases {
        assert_eq!(parse(SMALL, overrides).unwrap_err(), format!("recipe test: {expected}"), "{overrides:?}");
    }
}

/// By the cost model of the recipes' comments the pruned ones are as fast as the paper's, and they differ from the method
/// that they prune by the selection alone.
#[test]
fn pruned_recipes_meet_the_papers_speed_ups() {
    let load = |name: &str| Recipe::load(name, &[]).unwrap();
    let only_the_selection = |name: &str, base: &str| {
        let (recipe, base) = (load(name), load(base));
        let unpruned =
            Recipe { name: base.name.clone(), selection: base.selection.clone(), ..recipe.clone() };
        assert_eq!(unpruned, base, "{name}");
        recipe
    };
    for (set, expected) in [("cifar10", 3.44), ("cifar100", 2.02)] {
        for (objective, passes) in [("trades", 27.0), ("mart", 26.0)] {
            for (short, method) in
                [("gradmatch", SelectionMethod::AdvGradMatch), ("glister", SelectionMethod::AdvGlister)]
            {
                for bullet in ["", "-bullet"] {
                    let name = format!("{set}-{objective}-{short}{bullet}");
                    let recipe = only_the_selection(&name, &format!("{set}-{objective}{bullet}"));
                    assert_eq!((recipe.selection.method, recipe.selection.every), (method, 20), "{name}");
                    let epoch_schedule = recipe.epoch_schedule();
                    // A selection attacks and passes each candidate; it does not train on it.
                    let of_selection = (passes - 4.0) / passes;
                    let cost: f64 = (0..epoch_schedule.epochs() as u32)
                        .map(|epoch| match epoch_schedule.stage(epoch) {
                            Stage::Whole => 1.0,
                            Stage::Subset { select: true } => recipe.selection.fraction + of_selection,
                            Stage::Subset { select: false } => recipe.selection.fraction,
                        })
                        .sum();
                    let speed_up = recipe.epochs as f64 / cost;
                    assert!(
                        (expected..1.05 * expected).contains(&speed_up),
                        "{name}: {speed_up}, expected {expected}"
                    );
                    // The model of the speed-up tables counts images instead, those that Adv-GLISTER holds out too, and
                    // what BulletTrain leaves of the attack.
                    if bullet.is_empty() {
                        let full = Cost::predicted(&load(&format!("{set}-{objective}")));
                        let predicted = full.passes() / Cost::predicted(&recipe).passes();
                        assert!((predicted / speed_up - 1.0).abs() < 3e-3, "{name}: {predicted}, {speed_up}");
                        let images = full.images / recipe.epochs as f64;
                        assert_eq!(full.passes() / full.images, passes, "{name}");
                        assert_eq!(images, 49_000.0, "{name}");
                    }
                }
            }
        }
    }
    let pruned = load("cifar10-trades-gradmatch");
    for control in ["loss-rank", "random-online", "short"] {
        let recipe = only_the_selection(&format!("cifar10-trades-{control}"), "cifar10-trades");
        assert_eq!(recipe.selection.method.name(), control);
        assert_eq!(recipe.selection.fraction, pruned.selection.fraction, "{control}");
    }
    assert_eq!(load("cifar10-trades-short").epoch_schedule().epochs(), 20);
    only_the_selection("cifar10-trades-info-batch", "cifar10-trades");
}

/// A recipe of CIFAR-10 and that of CIFAR-100 have the same values but for the set, the name, and the fraction of a pruned one.
#[test]
fn every_cifar10_recipe_has_a_counterpart() {
    let load = |name: &str| Recipe::load(name, &[]).unwrap();
    let mut pairs = 0;
    for builtin in BUILTIN {
        let Some(rest) = builtin.name.strip_prefix("cifar10-") else { continue };
        let (ten, hundred) = (load(builtin.name), load(&format!("cifar100-{rest}")));
        assert_eq!((ten.data.set, hundred.data.set), (SetKind::Cifar10, SetKind::Cifar100), "{rest}");
        if ten.selection.fraction < 1.0 {
            assert!(ten.selection.fraction < hundred.selection.fraction, "{rest}");
        }
        let renamed = Recipe {
            name: ten.name.clone(),
            data: DataConfig { set: SetKind::Cifar10, ..hundred.data.clone() },
            selection: SelectionConfig { fraction: ten.selection.fraction, ..hundred.selection.clone() },
            ..hundred
        };
        assert_eq!(renamed, ten, "{rest}");
        pairs += 1;
    }
    assert_eq!(BUILTIN.len(), 2 * pairs + 1, "quick, and pairs");
}

/// The recommended recipes anneal under any number of steps; the selections of R = 5 and 10 differ by R alone; all that their
/// first lines promise is what the cost model says.
#[test]
fn recommended_recipes_differ_from_the_literal_ones_as_they_say() {
    let load = |name: &str| Recipe::load(name, &[]).unwrap();
    let one_cycle = Schedule::OneCycle {
        rise: 0.3,
        initial_divisor: 25.0,
        final_divisor: 1e4,
        update: Update::Step,
        momentum_range: Some([0.85, 0.95]),
    };
    let promised = |name: &str, full: &Recipe, recipe: &Recipe| {
        let text = BUILTIN.iter().find(|builtin| builtin.name == name).unwrap().text;
        let comment: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let comment = comment.join(" ").replace("# ", "");
        let speed_up = Cost::predicted(full).passes() / Cost::predicted(recipe).passes();
        assert!(
            comment.contains(&format!("By the cost model {speed_up:.2}x")),
            "{name}: {speed_up}, {comment}"
        );
    };
    for set in ["cifar10", "cifar100"] {
        for literal in ["trades-gradmatch", "trades-glister", "trades-random-online"] {
            let name = format!("{set}-{literal}-annealed");
            let (annealed, literal) = (load(&name), load(&format!("{set}-{literal}")));
            promised(&name, &load(&format!("{set}-trades")), &annealed);
            assert_eq!((annealed.selection.full_share, &annealed.schedule), (0.125, &one_cycle));
            let back = Recipe {
                name: literal.name.clone(),
                schedule: literal.schedule.clone(),
                selection: SelectionConfig { full_share: 0.0, ..annealed.selection.clone() },
                ..annealed
            };
            assert_eq!(back, literal);
        }
        let (bullet, plain) = (
            load(&format!("{set}-trades-gradmatch-bullet-annealed")),
            load(&format!("{set}-trades-gradmatch-annealed")),
        );
        assert_eq!((bullet.accelerate.method, bullet.accelerate.super_batch), (Acceleration::BulletTrain, 4));
        assert_eq!(
            Recipe { name: plain.name.clone(), accelerate: plain.accelerate.clone(), ..bullet },
            plain
        );
        let name = format!("{set}-trades-gradmatch-100");
        let (longer, literal) = (load(&name), load(&format!("{set}-trades-gradmatch")));
        promised(&name, &Recipe { epochs: 100, ..load(&format!("{set}-trades")) }, &longer);
        assert_eq!(Recipe { name: literal.name.clone(), epochs: literal.epochs, ..longer }, literal);
        for short in ["gradmatch", "glister"] {
            let literal = load(&format!("{set}-trades-{short}"));
            for every in [5, 10] {
                let name = format!("{set}-trades-{short}-r{every}");
                let fresher = load(&name);
                promised(&name, &load(&format!("{set}-trades")), &fresher);
                assert_eq!(fresher.selection.every, every);
                let back = Recipe {
                    name: literal.name.clone(),
                    selection: SelectionConfig {
                        every: literal.selection.every,
                        ..fresher.selection.clone()
                    },
                    ..fresher
                };
                assert_eq!(back, literal);
            }
        }
    }
}

#[test]
fn every_selection_has_its_defaults_and_round_trips() {
    for (name, method) in SelectionMethod::ALL {
        let method_text = format!("selection.method={name}");
        let mut set = vec![method_text.as_str(), "data.validation=200"];
        if method.has_fraction() {
            let error = parse(SMALL, &set).unwrap_err();
            assert_eq!(
                error, "recipe test: selection.fraction is missing, expected a number in (0, 1]",
                "{name}"
            );
            set.push("selection.fraction=0.3");
        }
        let recipe = parse(SMALL, &set).unwrap();
        let selection = &recipe.selection;
        assert_eq!(selection.method, *method);
        assert_eq!(selection.every, method.default_every(Scores::Accumulated), "{name}");
        assert_eq!(selection.budget(1000), if method.has_fraction() { 300 } else { 1000 }, "{name}");
        assert_eq!(selection.warm_start, if *name == "short" { 1.0 } else { 0.0 }, "{name}");
        // The step of Adv-GLISTER is that of training.
        assert_eq!((selection.rounds, selection.step_size), (15, Some(10.0)));
        assert_eq!((selection.temperature, selection.class_quotas), (1.0, true));
        assert_eq!((selection.mode, selection.ridge, selection.tolerance), (AtomMode::PerClass, 0.05, 1e-4));
        let full_share = if *name == "info-batch" { 0.125 } else { 0.0 };
        assert_eq!((selection.prune_share, selection.full_share), (0.5, full_share));
        assert_eq!((selection.random_share, selection.target_draws), (0.0, 1));
        assert_eq!((selection.weights, selection.scores), (SelectionWeights::Live, Scores::Accumulated));
        assert_eq!(selection.sampling, Sampling::Permutation);
        assert_eq!(parse(&recipe.to_toml(), &[]).unwrap(), recipe);
        // The published configurations, by name.
        set.extend([
            "selection.temperature=0",
            "selection.class_quotas=false",
            "selection.greedy=stochastic",
            "selection.gradient=bias",
            "selection.step_along=sum",
            "selection.step_size=learning-rate",
            "selection.ridge=0.5",
            "selection.ridge_unit=absolute",
        ]);
        let recipe = parse(SMALL, &set).unwrap();
        assert_eq!(recipe.selection.step_size, None);
        assert_eq!(parse(&recipe.to_toml(), &[]).unwrap(), recipe);
    }
    assert_eq!(parse(SMALL, &[]).unwrap().selection.method, SelectionMethod::Full);
}

#[test]
fn what_a_selection_cannot_do_is_refused() {
    let some = "selection.fraction=0.3";
    let cases: &[(&[&str], &str)] = &[
        (&[some], "selection.fraction = 0.3, expected 1: full decides itself how many samples it keeps"),
        (
            &["selection.warm_start=0.5"],
            "selection.warm_start = 0.5, expected 0: full has no fraction that sets its length",
        ),
        (
            &["selection.method=info-batch", some],
            "selection.fraction = 0.3, expected 1: info-batch decides itself how many samples it keeps",
        ),
        (
            &["selection.method=short", some, "selection.warm_start=0.5"],
            "selection.warm_start = 0.5, expected 1: short trains on all samples throughout",
        ),
        (
            &["selection.method=short", some, "selection.every=2"],
            "selection.every = 2, expected 0: short selects nothing",
        ),
        (
            &["selection.method=random", some, "selection.every=2"],
            "selection.every = 2, expected 0: random draws once; \"random-online\" draws again",
        ),
        (
            &["selection.method=random-online", some, "selection.every=0"],
            "selection.every = 0, expected 1 at least: random-online draws again; \"random\" draws once",
        ),
        (
            &["selection.method=random", "selection.fraction=0"],
            "selection.fraction = 0, expected a number in (0, 1]",
        ),
        (
            &["selection.method=random", "selection.fraction=1.5"],
            "selection.fraction = 1.5, expected a number in (0, 1]",
        ),
        (
            &["selection.method=random", "selection.fraction=0.0002"],
            "selection.fraction = 0.0002, expected 0.00025 at least, for one sample of 2000",
        ),
        (
            &["selection.method=adv-grad-match", "selection.mode=per-batch", "selection.fraction=0.02"],
            "selection.fraction = 0.02, expected 0.025 at least, for one batch of 2000",
        ),
        (
            &["selection.method=adv-glister", some],
            "data.validation = 0, expected more: adv-glister chooses by the loss of 0 of them (selection.held_out_share), \
             and the best epoch by the others",
        ),
        (
            &["selection.method=adv-glister", some, "data.validation=4", "selection.held_out_share=1"],
            "data.validation = 4, expected more: adv-glister chooses by the loss of 4 of them (selection.held_out_share), \
             and the best epoch by the others",
        ),
        (
            &["selection.method=el2n", some, "selection.importance_weights=true", "selection.temperature=0"],
            "selection.temperature = 0, expected above 0: a choice without noise has no probabilities to weigh by",
        ),
        (
            &[
                "selection.method=adv-glister",
                some,
                "selection.importance_weights=true",
                "selection.greedy=stochastic",
                "data.validation=200",
            ],
            "selection.greedy = \"stochastic\", expected \"rounds\": the probabilities of a choice from random pools are not \
             known",
        ),
        (
            &["selection.method=random", some, "selection.holdout_draw=true", "attack.batch_norm=train"],
            "attack.batch_norm = \"train\", expected \"eval\": selection.holdout_draw attacks the candidates, which must not \
             move the statistics",
        ),
        (
            &["selection.method=grand", some, "attack.batch_norm=train"],
            "attack.batch_norm = \"train\", expected \"eval\": grand attacks the candidates, which must not move the statistics",
        ),
        (
            &["selection.method=loss-rank", some, "attack.batch_norm=train"],
            "attack.batch_norm = \"train\", expected \"eval\": loss-rank attacks the candidates, which must not move the statistics",
        ),
        (
            &["selection.method=short", some, "selection.full_share=0.1"],
            "selection.full_share = 0.1, expected 0: short trains on all samples throughout",
        ),
        (
            &["selection.method=random-online", some, "selection.random_share=0.1"],
            "selection.random_share = 0.1, expected 0: random-online makes no choice to mix with chance",
        ),
        (
            &["selection.method=el2n", "selection.fraction=0.001", "selection.random_share=0.9"],
            "selection.random_share = 0.9, expected so little that el2n chooses 1 of 2 at least",
        ),
        (
            &[
                "selection.method=adv-grad-match",
                "selection.mode=per-batch",
                "selection.fraction=0.03",
                "selection.random_share=0.5",
            ],
            "selection.random_share = 0.5, expected so little that adv-grad-match chooses 50 of 60 at least",
        ),
        (
            &["selection.method=el2n", some, "selection.weights=average"],
            "selection.weights = \"average\", expected \"live\" where optimizer.average_decay keeps no average",
        ),
        (
            &["selection.method=el2n", some, "objective.method=free"],
            "objective.method = \"free\", expected another: el2n attacks candidates, and the attack of free is that of a place",
        ),
    ];
    for (overrides, expected) in cases {
        assert_eq!(parse(SMALL, overrides).unwrap_err(), format!("recipe test: {expected}"), "{overrides:?}");
    }
    // Where training has left losses to rank by, nothing is attacked.
    let scored: [&[&str]; 4] = [
        &["selection.method=loss-rank", some, "selection.warm_start=0.5", "attack.batch_norm=train"],
        &["selection.method=info-batch", "objective.method=free"],
        &["selection.method=random", some, "objective.method=free"],
        &["selection.method=el2n", some, "selection.warm_start=0.5", "objective.method=free"],
    ];
    for overrides in scored {
        parse(SMALL, overrides).unwrap();
    }
}

#[test]
fn a_file_is_named_after_itself_and_everything_is_resolved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, SMALL).unwrap();
    let recipe = Recipe::load(path.to_str().unwrap(), &["seed=7".into()]).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.seed), ("mine", 7));
    let text = recipe.to_toml();
    for key in [
        "name",
        "seed",
        "epochs",
        "batch",
        "[data]",
        "set",
        "train_limit",
        "test_limit",
        "validation",
        "validation_split",
        "augment",
        "padding",
        "[model]",
        "width",
        "[objective]",
        "method",
        "label_smoothing",
        "[attack]",
        "epsilon",
        "step_size",
        "steps",
        "start",
        "start_deviation",
        "batch_norm",
        "[selection]",
        "fraction",
        "warm_start",
        "mode",
        "ridge",
        "ridge_unit",
        "temperature",
        "class_quotas",
        "importance_weights",
        "gradient",
        "step_along",
        "held_out_share",
        "holdout_draw",
        "tolerance",
        "greedy",
        "rounds",
        "prune_share",
        "full_share",
        "random_share",
        "weights",
        "sampling",
        "scores",
        "target_draws",
        "[accelerate]",
        "warmup_accuracy",
        "super_batch",
        "[optimizer]",
        "learning_rate",
        "momentum",
        "weight_decay",
        "average_decay",
        "average_warmup",
        "[schedule]",
        "kind",
        "warmup_epochs",
        "[evaluation]",
        "every",
        "samples",
        "protocols",
        "best_by",
        "[checkpoint]",
        "keep",
        "[metrics]",
        "tensorboard",
    ] {
        assert!(
            text.lines().any(|line| line == key || line.starts_with(&format!("{key} ="))),
            "{key} in\n{text}"
        );
    }
}

/// Files of one folder, by name and text.
fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn load(folder: &tempfile::TempDir, name: &str, overrides: &[&str]) -> Result<Recipe, String> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    Recipe::load(folder.path().join(name).to_str().unwrap(), &overrides).map_err(|error| error.to_string())
}

#[test]
fn a_recipe_extends_a_shipped_one_or_a_file_beside_it() {
    let folder = files(&[
        ("mine.toml", "extends = 'cifar10-trades'\nepochs = 50\n[attack]\nsteps = 7"),
        (
            "deep/longer.toml",
            "extends = '../mine.toml'\n[attack]\nepsilon = '4/255'\n[schedule]\nkind = 'cyclic'",
        ),
        ("named.toml", "extends = 'deep/longer.toml'\nname = 'another'"),
    ]);
    let shipped = Recipe::load("cifar10-trades", &[]).unwrap();
    let mine = load(&folder, "mine.toml", &[]).unwrap();
    let attack = AttackConfig { steps: 7, ..shipped.attack.clone() };
    assert_eq!(mine, Recipe { name: "mine".into(), epochs: 50, attack, ..shipped.clone() });

    let longer = load(&folder, "deep/longer.toml", &["attack.steps=3"]).unwrap();
    assert_eq!((longer.name.as_str(), longer.epochs, longer.attack.steps), ("longer", 50, 3));
    assert_eq!(longer.attack.epsilon.to_string(), "4/255");
    let Schedule::Cyclic { .. } = longer.schedule else { panic!("{:?}", longer.schedule) };
    assert_eq!(load(&folder, "named.toml", &[]).unwrap().name, "another");

    // What a run keeps is resolved.
    let text = mine.to_toml();
    assert!(!text.contains("extends"), "{text}");
    assert_eq!(Recipe::parse("x", &text, &[]).unwrap(), mine);
}

#[test]
fn what_cannot_be_extended_is_refused() {
    let mut all: Vec<(String, String)> = vec![
        ("a.toml".into(), "extends = 'b.toml'".into()),
        ("b.toml".into(), "extends = 'c.toml'".into()),
        ("c.toml".into(), "extends = './b.toml'".into()),
        ("own.toml".into(), "extends = 'own.toml'".into()),
        ("none.toml".into(), "extends = 'cifar10-trade'".into()),
        ("list.toml".into(), "extends = ['quick']".into()),
        ("base.toml".into(), format!("{SMALL}\n[attack]\nsteps = 3\nalfa = 1\n")),
        ("child.toml".into(), "extends = 'base.toml'".into()),
        ("bad.toml".into(), format!("{SMALL}\n[attack]\nsteps = -3\n")),
        ("under.toml".into(), "extends = 'bad.toml'".into()),
        ("above.toml".into(), "extends = 'bad.toml'\n[attack]\nsteps = -4".into()),
        ("broken.toml".into(), "extends = 'syntax.toml'".into()),
        ("syntax.toml".into(), "epochs = ".into()),
        ("chain-0.toml".into(), SMALL.into()),
    ];
    for at in 1..=8 {
        all.push((format!("chain-{at}.toml"), format!("extends = 'chain-{}.toml'", at - 1)));
    }
    let all: Vec<(&str, &str)> = all.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let folder = files(&all);
    let place = folder.path().display();
    let known =
        "known here: epsilon, step_size, steps, start, start_scale, start_deviation, batch_norm, phases";
    let cases: &[(&str, &[&str], String)] = &[
        ("a", &[], "recipe c: extends = \"./b.toml\", expected no circle: b extends c".into()),
        ("own", &[], "recipe own: extends = \"own.toml\", expected no circle: own".into()),
        (
            "none",
            &[],
            format!(
                "recipe none: extends = \"cifar10-trade\", expected a built-in recipe or a file; there is no \
                 {place}/cifar10-trade; did you mean cifar10-trades?"
            ),
        ),
        (
            "list",
            &[],
            "recipe list: extends = \"[\\\"quick\\\"]\", expected the name of a recipe or the path of a file"
                .into(),
        ),
        ("child", &[], format!("recipe base, which child extends: unknown key attack.alfa; {known}")),
        (
            "under",
            &[],
            "recipe bad, which under extends: attack.steps = -3, expected an integer from 0 to 1000".into(),
        ),
        (
            "under",
            &["attack.steps=-2"],
            "recipe under: attack.steps = -2, expected an integer from 0 to 1000".into(),
        ),
        ("above", &[], "recipe above: attack.steps = -4, expected an integer from 0 to 1000".into()),
        (
            "chain-8",
            &[],
            "recipe chain-1: extends = \"chain-0.toml\", expected at most 8 recipes in a chain".into(),
        ),
        ("chain-0", &["extends=quick"], "--set extends=quick: a recipe's file says what it extends".into()),
    ];
    for (name, overrides, expected) in cases {
        let error = load(&folder, &format!("{name}.toml"), overrides).unwrap_err();
        assert_eq!(error, *expected, "{name}, {overrides:?}");
    }
    let error = load(&folder, "broken.toml", &[]).unwrap_err();
    assert!(error.starts_with("recipe syntax: not TOML: "), "{error}");
    load(&folder, "chain-7.toml", &[]).unwrap();
    // A text in memory lies nowhere: it extends shipped recipes only.
    assert_eq!(parse("extends = 'quick'", &[]).unwrap().epochs, Recipe::load("quick", &[]).unwrap().epochs);
    let error = parse("extends = 'quik'", &[]).unwrap_err();
    assert_eq!(error, "recipe test: extends = \"quik\", expected a built-in recipe; did you mean quick?");
}

#[test]
fn overrides_come_before_resolving() {
    let set =
        ["attack.epsilon=4/255", "data.train_limit=300", "model.width=16", "optimizer.average_decay=0.99"];
    let recipe = parse(SMALL, &set).unwrap();
    assert_eq!(recipe.attack.epsilon.to_string(), "4/255");
    assert_eq!(recipe.data.train_limit, Some(300));
    assert_eq!(recipe.optimizer.average_decay, Some(0.99));
    let recipe = parse(&recipe.to_toml(), &["optimizer.average_decay=none", "schedule.kind=cyclic"]);
    // The file written for one schedule names a key that the other does not have.
    assert_eq!(
        recipe.unwrap_err(),
        "recipe test: unknown key schedule.warmup_epochs; known here: kind, peak_at, momentum_range"
    );
}

#[test]
fn errors_name_key_value_and_wish() {
    let cases: &[(&str, &str)] = &[
        ("epochs=0", "recipe test: epochs = 0, expected an integer from 1 to 100000"),
        ("epochs=-3", "recipe test: epochs = -3, expected an integer from 1 to 100000"),
        ("epochs=2.5", "recipe test: epochs = 2.5, expected an integer from 1 to 100000"),
        ("batch=many", "recipe test: batch = \"many\", expected an integer from 1 to 65536"),
        ("batch=4000", "recipe test: batch = 4000, expected at most the 2000 training images"),
        (
            "data.set=imagenet",
            "recipe test: data.set = \"imagenet\", expected \"cifar10\" or \"cifar100\" or \"generated\"",
        ),
        (
            "data.validation=2000",
            "recipe test: data.validation = 2000, expected fewer than the 2000 training images it is taken from",
        ),
        ("model.width=48", "recipe test: model.width = 48, expected 16 or 32 or 64"),
        (
            "attack.epsilon=8/0",
            "recipe test: attack.epsilon = \"8/0\", expected a fraction such as \"8/255\" or a number, in (0, 1]",
        ),
        (
            "attack.epsilon=8",
            "recipe test: attack.epsilon = 8, expected a fraction such as \"8/255\" or a number, in (0, 1]",
        ),
        (
            "attack.epsilon=1e-60",
            "recipe test: attack.epsilon = 1e-60, expected a fraction such as \"8/255\" or a number, in (0, 1]; so small a number is 0 in f32",
        ),
        (
            "attack.step_size=1e-60/2",
            "recipe test: attack.step_size = \"1e-60/2\", expected a fraction such as \"8/255\" or a number, in (0, 1]; so small a number is 0 in f32",
        ),
        (
            "optimizer.learning_rate=1e-60",
            "recipe test: optimizer.learning_rate = 1e-60, expected a number in (0, 100]; so small a number is 0 in f32",
        ),
        ("attack.epsilon=1e-30", ""),
        ("optimizer.momentum=1", "recipe test: optimizer.momentum = 1, expected a number in [0, 1)"),
        (
            "optimizer.learning_rate=nan",
            "recipe test: optimizer.learning_rate = nan, expected a number in (0, 100]",
        ),
        ("data.padding=mirror", "recipe test: data.padding = \"mirror\", expected \"zero\" or \"reflect\""),
        ("data.augment=yes", "recipe test: data.augment = \"yes\", expected true or false"),
        ("data.extra=1m.npz", "recipe test: data.extra = \"1m.npz\", expected a list of names, each once"),
        ("data.extra_share=1", "recipe test: data.extra_share = 1, expected a number in (0, 0.99]"),
        // Unused without extra images.
        ("data.extra_share=0.01", ""),
        (
            "evaluation.protocols=[]x",
            "recipe test: evaluation.protocols = \"[]x\", expected a list of names, each once",
        ),
        (
            "attack.alpha=0.1",
            "recipe test: unknown key attack.alpha; known here: epsilon, step_size, steps, start, start_scale, start_deviation, batch_norm, phases",
        ),
        ("attack.step-size=0.1", "recipe test: unknown key attack.step-size; did you mean attack.step_size?"),
        ("atack.steps=3", "recipe test: unknown key atack; did you mean attack?"),
        ("attack.start=normal", ""),
        ("attack.precision=device", ""),
        (
            "attack.precision=e4m3",
            "recipe test: attack.precision = \"e4m3\", expected \"device\", or better no such key: it has been retired",
        ),
        ("steps", "--set steps: expected key=value, such as attack.steps=7"),
    ];
    for (text, expected) in cases {
        match parse(SMALL, &[text]) {
            Ok(_) => assert_eq!(*expected, "", "--set {text} was accepted"),
            Err(error) => assert_eq!(error, *expected, "--set {text}"),
        }
    }
    let few = parse(SMALL, &["data.extra=['1m.npz']", "data.extra_share=0.019"]).unwrap_err();
    assert_eq!(
        few,
        "recipe test: data.extra_share = 0.019, expected enough for one of the 50 images of a batch, and one of the others"
    );
    let missing = parse("batch = 1", &[]).unwrap_err();
    assert_eq!(missing, "recipe test: epochs is missing, expected an integer from 1 to 100000");
    let error = parse("attack = 3\nepochs = 1\nbatch = 1\ndata.set='generated'", &[]).unwrap_err();
    assert_eq!(error, "recipe test: attack = 3, expected a section [attack]");
    let error = parse("epochs = ", &[]).unwrap_err();
    assert!(error.starts_with("recipe test: not TOML: ") && error.contains("line 1"), "{error}");
    let error = Recipe::load("quik", &[]).unwrap_err().to_string();
    assert!(error.starts_with("no recipe 'quik'") && error.ends_with("did you mean quick?"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// Any text is a recipe or an error, never a panic.
    #[test]
    fn random_text_is_refused(text in "[ -~\n]{0,200}") {
        let error = parse(&text, &[]).unwrap_err();
        prop_assert!(error.starts_with("recipe test: "), "{error}");
    }

    /// A shipped recipe with some bytes changed parses to a recipe that round-trips, or is refused.
    #[test]
    fn damaged_recipes_are_refused_or_whole(
        which in 0..BUILTIN.len(),
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = BUILTIN[which].text.as_bytes().to_vec();
        for (index, byte) in at {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let text = String::from_utf8_lossy(&bytes);
        match parse(&text, &[]) {
            Ok(recipe) => prop_assert_eq!(&parse(&recipe.to_toml(), &[]).unwrap(), &recipe),
            Err(error) => {
                let names_it = error.starts_with("recipe test: ") || error.contains(", which test extends: ");
                prop_assert!(names_it, "{}", error);
            }
        }
    }

    /// Overrides of any key with any value: an error that names the culprit, or a recipe that round-trips.
    #[test]
    fn random_overrides(key in "[a-z_.]{0,12}", value in "[ -~]{0,12}", section in 0..9usize) {
        let section = [
            "", "data.", "model.", "attack.", "selection.", "optimizer.", "schedule.", "evaluation.", "checkpoint.",
        ][section];
        match parse(SMALL, &[&format!("{section}{key}={value}")]) {
            Ok(recipe) => prop_assert_eq!(&parse(&recipe.to_toml(), &[]).unwrap(), &recipe),
            Err(error) => prop_assert!(
                error.starts_with("recipe test: ") || error.starts_with("--set "), "{}", error
            ),
        }
    }

    /// Values in range survive the way through the file, exactly.
    #[test]
    fn values_round_trip(
        learning_rate in 1e-6..10.0f64,
        momentum in 0.0..0.999f64,
        epsilon in 1u32..=255,
        seed in 0..=i64::MAX as u64,
        kind in 0..5usize,
    ) {
        let kind = ["constant", "step", "cosine", "one-cycle", "cyclic"][kind];
        let mut set = vec![
            format!("optimizer.learning_rate={learning_rate:?}"),
            format!("optimizer.momentum={momentum:?}"),
            format!("attack.epsilon={epsilon}/255"),
            format!("seed={seed}"),
            format!("schedule.kind={kind}"),
        ];
        if kind == "step" {
            set.push("schedule.drops=[1, 1.5]".into());
        }
        let recipe = Recipe::parse("test", SMALL, &set).unwrap();
        prop_assert_eq!(recipe.optimizer.learning_rate, learning_rate);
        prop_assert_eq!(recipe.seed, seed);
        prop_assert_eq!(&Recipe::parse("x", &recipe.to_toml(), &[]).unwrap(), &recipe);
    }
}

#[test]
fn a_name_is_no_path() {
    for name in ["../x", "/tmp/x", "a/b", "a\\b", "..", ".x", "/"] {
        let error = parse(SMALL, &[&format!("name={name}")]).unwrap_err();
        assert!(
            error.contains("name = ") && error.contains("expected the name of a folder"),
            "{name}: {error}"
        );
    }
    let long = "n".repeat(201);
    let error = parse(SMALL, &[&format!("name={long}")]).unwrap_err();
    assert!(error.contains("of up to 200 bytes, and not a longer one"), "{error}");
    for name in ["a b", "n".repeat(200).as_str(), "ε=8", "a.b", "it's"] {
        assert_eq!(parse(SMALL, &[&format!("name=\"{name}\"")]).unwrap().name, name);
    }
}
