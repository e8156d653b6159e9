//! Where every tensor of the network lives in the flat arenas on the device.
//!
//! Four arenas share these offsets: the f32 master copy (and, of the same shape, gradients, velocity and moving
//! average), the bf16 copies that the convolutions read (live and folded), and the per-channel biases of the folded
//! network. Flat arenas let one launch serve all parameters. Checked by a round trip through the file layout.
//!
//! Master: convolution weights (K, R, S, C), then BatchNorm weights, BatchNorm biases, the linear layer, and behind
//! these trainable ones the running means and variances. Every convolution starts on a 16-byte boundary in bf16.

use super::launch::conv::ConvShape;
use crate::model::{Conv, ParameterKind, ResNet, Weights, WeightsError};

/// Channels of the stem's packed input: hi and lo bf16 parts of three channels, and two of padding.
pub const STEM_CHANNELS: usize = 8;

/// Offsets of one convolution and its BatchNorm, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSlot {
    pub conv: Conv,
    /// In the master arena.
    pub weight: usize,
    pub bn_weight: usize,
    pub bn_bias: usize,
    pub running_mean: usize,
    pub running_var: usize,
    /// In the bf16 arenas, where the stem has [`STEM_CHANNELS`] input channels.
    pub packed: usize,
    /// Of the first channel, among all channels: the folded bias and the batch statistics.
    pub channel: usize,
}

/// The whole layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub network: ResNet,
    pub convs: Vec<ConvSlot>,
    pub linear_weight: usize,
    pub linear_bias: usize,
    /// Elements the optimizer changes: the front of the master arena.
    pub trainable: usize,
    /// Elements of the master arena, running statistics included.
    pub total: usize,
    /// Elements of a bf16 arena.
    pub packed: usize,
    /// Output channels of all convolutions together.
    pub channels: usize,
}

impl Layout {
    pub fn new(network: ResNet) -> Self {
        let convs = network.convs();
        let channels: usize = convs.iter().map(|conv| conv.out_channels).sum();
        let weights: usize = convs.iter().map(Conv::weight_len).sum();
        let (bn_weight, bn_bias) = (weights, weights + channels);
        let linear_weight = bn_bias + channels;
        let linear_bias = linear_weight + network.classes * network.features();
        let trainable = linear_bias + network.classes;

        let (mut weight, mut packed, mut channel) = (0, 0, 0);
        let slot = |conv: Conv| {
            let slot = ConvSlot {
                weight,
                packed,
                channel,
                bn_weight: bn_weight + channel,
                bn_bias: bn_bias + channel,
                running_mean: trainable + channel,
                running_var: trainable + channels + channel,
                conv,
            };
            weight += slot.conv.weight_len();
            packed += slot.packed_len();
            channel += slot.conv.out_channels;
            slot
        };
        let convs = convs.into_iter().map(slot).collect();
        let total = trainable + 2 * channels;
        Self { network, convs, linear_weight, linear_bias, trainable, total, packed, channels }
    }

    /// Every tensor of `which` with its place: name, shape as in files, offset, and how its elements are ordered.
    fn entries(&self, which: impl Fn(ParameterKind) -> bool) -> Vec<Entry> {
        let mut offsets = Vec::new();
        for slot in &self.convs {
            let conv = (slot.conv.kernel * slot.conv.kernel, slot.conv.in_channels);
            offsets.push((slot.weight, Some(conv)));
            let channels = [slot.bn_weight, slot.bn_bias, slot.running_mean, slot.running_var];
            offsets.extend(channels.map(|offset| (offset, None)));
        }
        offsets.extend([(self.linear_weight, None), (self.linear_bias, None)]);
        let parameters = self.network.parameters();
        debug_assert_eq!(parameters.len(), offsets.len());
        let entries = parameters.into_iter().zip(offsets).filter(|(parameter, _)| which(parameter.kind));
        entries
            .map(|(parameter, (offset, conv))| Entry {
                name: parameter.name,
                shape: parameter.shape,
                offset,
                conv,
            })
            .collect()
    }

    /// Writes the file's tensors into an arena of `total` elements, or of `trainable` where it holds no statistics.
    pub fn pack(&self, weights: &Weights, arena: &mut [f32]) -> Result<(), WeightsError> {
        let all = arena.len() == self.total;
        for entry in self.entries(|kind| all || kind.trainable()) {
            let values = weights.get(&entry.name, &entry.shape)?;
            match entry.conv {
                Some((taps, channels)) => {
                    for (target, source) in to_channels_last(values.len(), taps, channels) {
                        arena[entry.offset + target] = values[source];
                    }
                }
                None => arena[entry.offset..entry.offset + values.len()].copy_from_slice(values),
            }
        }
        Ok(())
    }

    /// The inverse of [`Layout::pack`].
    pub fn unpack(&self, arena: &[f32]) -> Weights {
        let all = arena.len() == self.total;
        let mut weights = Weights::default();
        for entry in self.entries(|kind| all || kind.trainable()) {
            let len = entry.shape.iter().product();
            let stored = &arena[entry.offset..entry.offset + len];
            let mut values = stored.to_vec();
            if let Some((taps, channels)) = entry.conv {
                for (source, target) in to_channels_last(len, taps, channels) {
                    values[target] = stored[source];
                }
            }
            weights.insert(entry.name, &entry.shape, values);
        }
        weights
    }
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    offset: usize,
    /// Taps and input channels of a convolution weight.
    conv: Option<(usize, usize)>,
}

impl ConvSlot {
    /// What the kernels are told of it, for a batch of images.
    pub fn shape(&self, batch: usize) -> ConvShape {
        ConvShape::new(&self.conv, batch)
    }
    /// Elements in a bf16 arena.
    pub fn packed_len(&self) -> usize {
        self.conv.out_channels * self.conv.kernel * self.conv.kernel * self.packed_channels()
    }
    /// Input channels as the kernels see them.
    pub fn packed_channels(&self) -> usize {
        if self.conv.in_channels == 3 { STEM_CHANNELS } else { self.conv.in_channels }
    }
}

/// Pairs (position in K, R, S, C; position in K, C, R, S) of a convolution weight.
fn to_channels_last(len: usize, taps: usize, channels: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).map(move |at| {
        let (filter, rest) = (at / (taps * channels), at % (taps * channels));
        (at, (filter * channels + rest % channels) * taps + rest / channels)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_are_dense_and_aligned() {
        for width in crate::model::layers::WIDTHS {
            let layout = Layout::new(ResNet::resnet18(width, 10));
            let parameters = layout.network.parameters();
            let trainable = parameters.iter().filter(|p| p.kind.trainable()).map(|p| p.len()).sum::<usize>();
            assert_eq!(layout.trainable, trainable);
            assert_eq!(layout.total, parameters.iter().map(|p| p.len()).sum::<usize>());
            assert!(layout.convs.iter().all(|slot| slot.packed % 8 == 0));
        }
    }

    #[test]
    fn files_survive_the_round_trip() {
        let layout = Layout::new(ResNet::resnet18(16, 10));
        let arena: Vec<f32> = (0..layout.total).map(|at| at as f32).collect();
        let weights = layout.unpack(&arena);
        let mut back = vec![f32::NAN; layout.total];
        layout.pack(&weights, &mut back).unwrap();
        assert_eq!(arena, back);
        // W[k][c][r][s] of the stem sits at ((k * 3 + r) * 3 + s) * 3 + c.
        let stem = weights.get("conv1.weight", &[16, 3, 3, 3]).unwrap();
        assert_eq!(stem[((2 * 3 + 1) * 3 + 2) * 3], ((2 * 3 + 2) * 3) as f32 * 3.0 + 1.0);
    }
}
