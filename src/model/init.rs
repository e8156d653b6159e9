//! Initial weights, distributed as PyTorch's defaults (not its bits: ours come from Philox).

use super::{Parameter, ParameterKind, ResNet, Weights};
use crate::philox::{Key, Purpose, symmetric};

/// The weights of a fresh network.
///
/// `torch.nn.Conv2d` and `Linear` call `kaiming_uniform_(a=sqrt(5))` on the weight, which is
/// U(-b, b) with b = sqrt(6 / ((1 + 5) fan_in)) = 1 / sqrt(fan_in); the linear bias has the same bound.
/// BatchNorm starts as the identity: weight 1, bias 0, running mean 0, running variance 1.
pub fn initialise(network: ResNet, seed: u64) -> Weights {
    let key = Key { seed, purpose: Purpose::Initialisation, epoch: 0, step: 0 };
    let mut weights = Weights::default();
    for (position, parameter) in network.parameters().iter().enumerate() {
        let values = match uniform_bound(network, parameter) {
            Some(bound) => uniform(key, position as u32, bound, parameter.len()),
            None => vec![constant(parameter.kind); parameter.len()],
        };
        weights.insert(&parameter.name, &parameter.shape, values);
    }
    weights
}

/// 1 / sqrt(fan_in) for the parameters drawn at random.
fn uniform_bound(network: ResNet, parameter: &Parameter) -> Option<f32> {
    let fan_in: usize = match parameter.kind {
        ParameterKind::ConvWeight | ParameterKind::LinearWeight => parameter.shape[1..].iter().product(),
        ParameterKind::LinearBias => network.features(),
        _ => return None,
    };
    Some(1.0 / (fan_in as f32).sqrt())
}

fn constant(kind: ParameterKind) -> f32 {
    match kind {
        ParameterKind::BnWeight | ParameterKind::BnRunningVar => 1.0,
        _ => 0.0,
    }
}

/// Element `e` uses word `e % 4` of block `e / 4` of this parameter.
fn uniform(key: Key, parameter: u32, bound: f32, len: usize) -> Vec<f32> {
    let words = (0u32..).flat_map(|block| key.block(parameter, block));
    words.take(len).map(|word| symmetric(word, bound)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_bounds_are_those_of_pytorch() {
        let network = ResNet::resnet18(16, 10);
        let seed = 11;
        let weights = initialise(network, seed);
        weights.check(&network).unwrap();
        for parameter in network.parameters() {
            let values = weights.get(&parameter.name, &parameter.shape).unwrap();
            let Some(bound) = uniform_bound(network, &parameter) else {
                assert!(values.iter().all(|&value| value == constant(parameter.kind)), "{}", parameter.name);
                continue;
            };
            assert!(values.iter().all(|value| value.abs() <= bound), "{}: seed {seed}", parameter.name);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            // Five standard deviations of the estimators: sd(mean) = b/sqrt(3n), sd(v^2) = b^2 * 2/(3 sqrt 5).
            let bound = f64::from(bound);
            assert!(mean.abs() < 5.0 * bound / (3.0 * n).sqrt(), "{}: mean {mean}", parameter.name);
            let expected = bound * bound / 3.0;
            let tolerance = 5.0 * bound * bound * 2.0 / (3.0 * 5f64.sqrt()) / n.sqrt();
            assert!((variance - expected).abs() < tolerance, "{}: variance {variance}", parameter.name);
        }
    }

    #[test]
    fn the_seed_and_the_parameter_decide_the_values() {
        let network = ResNet::resnet18(16, 100);
        assert_eq!(initialise(network, 3), initialise(network, 3));
        assert_ne!(initialise(network, 3), initialise(network, 4));
        let weights = initialise(network, 3);
        // Same shape, same bound, different parameters.
        let (a, b) = ("layer1.0.conv1.weight", "layer1.0.conv2.weight");
        assert_ne!(weights.tensors[a].values, weights.tensors[b].values);
    }
}
