//! Where every tensor of a network lies in a flat arena, the same on every device.
//!
//! An arena holds convolution weights, then BatchNorm weights, BatchNorm biases and the linear layer, and after these trainable
//! ones the running means and variances; arenas of gradients and velocity end before the statistics. So one loop, or one launch,
//! serves all parameters.

use super::{Conv, Layer, ParameterKind, ResNet, Weights, WeightsError};

/// A convolution and the offsets of its tensors and of its BatchNorm's, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSlot {
    pub conv: Conv,
    pub weight: usize,
    pub bn_weight: usize,
    pub bn_bias: usize,
    pub running_mean: usize,
    pub running_var: usize,
    /// Of the first channel, among the output channels of all convolutions.
    pub channel: usize,
}

/// A network laid out: its layers, their shapes and offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub network: ResNet,
    pub convs: Vec<ConvSlot>,
    pub layers: Vec<Layer>,
    pub linear_weight: usize,
    pub linear_bias: usize,
    /// Elements that the optimizer changes: the front of an arena.
    pub trainable: usize,
    /// Elements of an arena, running statistics included.
    pub total: usize,
    /// Output channels of all convolutions together.
    pub channels: usize,
}

/// Order of the elements of a convolution weight: output channel K, input channel C, line R and column S of the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOrder {
    /// That of files.
    Kcrs,
    Krsc,
}

impl Layout {
    pub fn new(network: ResNet) -> Self {
        let convs = network.convs();
        let channels: usize = convs.iter().map(|conv| conv.out_channels).sum();
        let bn_weight: usize = convs.iter().map(Conv::weight_len).sum();
        let bn_bias = bn_weight + channels;
        let linear_weight = bn_bias + channels;
        let linear_bias = linear_weight + network.classes * network.features();
        let trainable = linear_bias + network.classes;

        let (mut weight, mut channel) = (0, 0);
        let slot = |conv: Conv| {
            let slot = ConvSlot {
                weight,
                channel,
                bn_weight: bn_weight + channel,
                bn_bias: bn_bias + channel,
                running_mean: trainable + channel,
                running_var: trainable + channels + channel,
                conv,
            };
            weight += slot.conv.weight_len();
            channel += slot.conv.out_channels;
            slot
        };
        let convs = convs.into_iter().map(slot).collect();
        let (layers, total) = (network.layers(), trainable + 2 * channels);
        Self { network, convs, layers, linear_weight, linear_bias, trainable, total, channels }
    }

    /// Elements of an image's activation of a layer.
    pub fn activation_len(&self, layer: usize) -> usize {
        self.convs[self.layers[layer].conv].conv.output_len()
    }

    /// Elements of the largest activation of an image.
    pub fn largest_activation(&self) -> usize {
        self.convs.iter().map(|slot| slot.conv.output_len()).max().unwrap_or(0)
    }

    /// Every tensor of `which`.
    fn tensors(&self, which: impl Fn(ParameterKind) -> bool) -> impl Iterator<Item = Placed> {
        let mut offsets = Vec::new();
        for slot in &self.convs {
            let filter = (slot.conv.kernel * slot.conv.kernel, slot.conv.in_channels);
            offsets.push((slot.weight, Some(filter)));
            let channels = [slot.bn_weight, slot.bn_bias, slot.running_mean, slot.running_var];
            offsets.extend(channels.map(|offset| (offset, None)));
        }
        offsets.extend([(self.linear_weight, None), (self.linear_bias, None)]);
        let placed = self.network.parameters().into_iter().zip(offsets);
        placed.filter(move |(parameter, _)| which(parameter.kind)).map(|(parameter, (offset, filter))| {
            Placed { name: parameter.name, shape: parameter.shape, offset, filter }
        })
    }

    /// Writes a file's tensors into an arena of `total` elements, or of `trainable` where it holds no statistics.
    pub fn pack(&self, order: FilterOrder, weights: &Weights, arena: &mut [f32]) -> Result<(), WeightsError> {
        let all = arena.len() == self.total;
        for tensor in self.tensors(|kind| all || kind.trainable()) {
            let values = weights.get(&tensor.name, &tensor.shape)?;
            let stored = &mut arena[tensor.offset..][..values.len()];
            match tensor.filter {
                Some(filter) if order == FilterOrder::Krsc => {
                    for (target, source) in channels_last(values.len(), filter) {
                        stored[target] = values[source];
                    }
                }
                _ => stored.copy_from_slice(values),
            }
        }
        Ok(())
    }

    /// The inverse of [`Layout::pack`].
    pub fn unpack(&self, order: FilterOrder, arena: &[f32]) -> Weights {
        let all = arena.len() == self.total;
        let mut weights = Weights::default();
        for tensor in self.tensors(|kind| all || kind.trainable()) {
            let len = tensor.shape.iter().product();
            let stored = &arena[tensor.offset..][..len];
            let mut values = stored.to_vec();
            if let Some(filter) = tensor.filter.filter(|_| order == FilterOrder::Krsc) {
                for (source, target) in channels_last(len, filter) {
                    values[target] = stored[source];
                }
            }
            weights.insert(tensor.name, &tensor.shape, values);
        }
        weights
    }
}

/// A tensor of a file and its offset in an arena.
struct Placed {
    name: String,
    shape: Vec<usize>,
    offset: usize,
    /// Taps and input channels of a convolution weight.
    filter: Option<(usize, usize)>,
}

/// Pairs (index in K, R, S, C; index in K, C, R, S) of a convolution weight.
fn channels_last(len: usize, (taps, channels): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..len).map(move |at| {
        let (filter, rest) = (at / (taps * channels), at % (taps * channels));
        (at, (filter * channels + rest % channels) * taps + rest / channels)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_are_dense() {
        for network in [ResNet::resnet18(16, 10), ResNet::resnet34(64, 100)] {
            let layout = Layout::new(network);
            let parameters = network.parameters();
            let trainable = parameters.iter().filter(|p| p.kind.trainable()).map(|p| p.len()).sum::<usize>();
            assert_eq!(layout.trainable, trainable);
            assert_eq!(layout.total, parameters.iter().map(|p| p.len()).sum::<usize>());
            let mut tensors: Vec<Placed> = layout.tensors(|_| true).collect();
            tensors.sort_by_key(|tensor| tensor.offset);
            let end = tensors.iter().fold(0, |end, tensor| {
                assert_eq!(tensor.offset, end, "{}", tensor.name);
                end + tensor.shape.iter().product::<usize>()
            });
            assert_eq!(end, layout.total);
        }
    }

    #[test]
    fn files_survive_the_round_trip() {
        let layout = Layout::new(ResNet::resnet18(16, 10));
        let arena: Vec<f32> = (0..layout.total).map(|at| at as f32).collect();
        for order in [FilterOrder::Kcrs, FilterOrder::Krsc] {
            let weights = layout.unpack(order, &arena);
            let mut back = vec![f32::NAN; layout.total];
            layout.pack(order, &weights, &mut back).unwrap();
            assert_eq!(arena, back);
            // Filter 2 of the stem, colour 1, line 2, column 0.
            let stem = weights.get("conv1.weight", &[16, 3, 3, 3]).unwrap();
            let stored = match order {
                FilterOrder::Kcrs => ((2 * 3 + 1) * 3 + 2) * 3,
                FilterOrder::Krsc => ((2 * 3 + 2) * 3) * 3 + 1,
            };
            assert_eq!(stem[((2 * 3 + 1) * 3 + 2) * 3], stored as f32);
        }
    }
}
