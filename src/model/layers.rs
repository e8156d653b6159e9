//! Residual networks as tables: every convolution with its shape, every layer with what it reads, every parameter with its name.

use std::fmt;
use std::ops::Range;

/// Side of a CIFAR image in pixels.
pub const IMAGE_SIDE: usize = 32;
/// Elements of one image: 32 x 32 x 3.
pub const IMAGE_LEN: usize = IMAGE_SIDE * IMAGE_SIDE * 3;
/// Base widths that the kernels are built for: 64 is the product, 16 is for tests and CPU demonstrations.
pub const WIDTHS: [usize; 3] = [16, 32, 64];
/// PyTorch's default: the denominator of BatchNorm is sqrt(variance + BN_EPSILON).
pub const BN_EPSILON: f32 = 1e-5;
/// PyTorch's default: running <- (1 - m) * running + m * batch statistic (the unbiased variance).
pub const BN_MOMENTUM: f32 = 0.1;

const STAGES: usize = 4;
/// Basic blocks of each stage, of the networks that have a name.
const NAMED: [(&str, [usize; STAGES]); 2] = [("ResNet-18", [2, 2, 2, 2]), ("ResNet-34", [3, 4, 6, 3])];

/// A residual network of basic blocks for images of 32 x 32 pixels: these numbers decide everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNet {
    /// Basic blocks of each stage, at least one.
    pub blocks: [usize; STAGES],
    /// Channels of the first stage; each of the others has twice as many as the one before.
    pub width: usize,
    pub classes: usize,
}

/// One convolution (always without bias, always followed by BatchNorm).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// PyTorch name without `.weight`: `conv1`, `layer2.0.conv1`, `layer2.0.shortcut.0`.
    pub name: String,
    /// PyTorch name of the BatchNorm after it: `bn1`, `layer2.0.bn1`, `layer2.0.shortcut.1`.
    pub bn: String,
    pub in_channels: usize,
    pub out_channels: usize,
    /// 3 (padding 1) or 1 (padding 0).
    pub kernel: usize,
    pub stride: usize,
    /// Side of the input in pixels.
    pub in_side: usize,
}

impl Conv {
    /// Side of the output in pixels.
    pub fn out_side(&self) -> usize {
        self.in_side / self.stride
    }
    pub fn padding(&self) -> usize {
        self.kernel / 2
    }
    /// Elements of an image's input.
    pub fn input_len(&self) -> usize {
        self.in_side * self.in_side * self.in_channels
    }
    /// Elements of an image's output.
    pub fn output_len(&self) -> usize {
        self.out_side() * self.out_side() * self.out_channels
    }
    /// Elements of the weight tensor.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.kernel * self.kernel * self.in_channels
    }
    /// Multiply-adds of a forward pass of one image.
    pub fn multiply_adds(&self) -> usize {
        self.out_side() * self.out_side() * self.weight_len()
    }
}

/// What leads to one activation: `relu(norm(conv(input)) + residual)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Index of the layer and of its activation.
    pub index: usize,
    /// Index of its convolution in [`ResNet::convs`].
    pub conv: usize,
    /// The activation that it reads; `None` for the images.
    pub input: Option<usize>,
    pub residual: Residual,
    /// The layer whose residual begins at this one's input. On the way back the gradient of that residual, which is there first, is
    /// added to this layer's.
    pub skip: Option<usize>,
    /// Which of [`Layer::BUFFERS`] buffers holds the activation, or its gradient, where it is kept only as long as the layers
    /// next to it need it.
    pub buffer: usize,
}

impl Layer {
    /// Two that outputs of blocks take in turn, and one for what lies inside a block.
    pub const BUFFERS: usize = 3;
}

/// What is added before a ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    None,
    /// An earlier activation.
    Identity(usize),
    /// A 1x1 convolution of the earlier activation `input`, with a BatchNorm of its own, where the shape changes.
    Projection {
        conv: usize,
        input: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    ConvWeight,
    BnWeight,
    BnBias,
    BnRunningMean,
    BnRunningVar,
    LinearWeight,
    LinearBias,
}

impl ParameterKind {
    /// Whether the optimizer changes it (running statistics are buffers, not parameters).
    pub fn trainable(self) -> bool {
        !matches!(self, Self::BnRunningMean | Self::BnRunningVar)
    }
}

/// One named tensor of a weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    /// PyTorch's shape: K, C, R, S for a convolution.
    pub shape: Vec<usize>,
    pub kind: ParameterKind,
}

impl Parameter {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ResNet {
    pub const fn resnet18(width: usize, classes: usize) -> Self {
        Self { blocks: NAMED[0].1, width, classes }
    }
    pub const fn resnet34(width: usize, classes: usize) -> Self {
        Self { blocks: NAMED[1].1, width, classes }
    }

    /// Elements of all tensors of some kinds.
    pub fn elements(&self, which: impl Fn(ParameterKind) -> bool) -> usize {
        self.parameters().iter().filter(|parameter| which(parameter.kind)).map(Parameter::len).sum()
    }

    /// The networks that have a name, the deepest last.
    pub(super) fn named(width: usize, classes: usize) -> [Self; NAMED.len()] {
        NAMED.map(|(_, blocks)| Self { blocks, width, classes })
    }

    /// `ResNet-18`, `ResNet-34`, or what the blocks are.
    pub fn architecture(&self) -> String {
        let named = NAMED.iter().find(|(_, blocks)| *blocks == self.blocks);
        named.map_or_else(|| format!("ResNet of {:?} blocks", self.blocks), |(name, _)| (*name).into())
    }

    /// Channels after the average pool.
    pub fn features(&self) -> usize {
        self.width << (STAGES - 1)
    }

    /// Every convolution in the order of a weights file; a shortcut follows its block's `conv2`.
    pub fn convs(&self) -> Vec<Conv> {
        self.table().0
    }

    /// Every layer in the order of the forward pass; the head follows the last.
    pub fn layers(&self) -> Vec<Layer> {
        self.table().1
    }

    /// Layers of the first stage: those of the largest activations.
    pub fn first_stage(&self) -> Range<usize> {
        0..1 + 2 * self.blocks[0]
    }

    fn table(&self) -> (Vec<Conv>, Vec<Layer>) {
        let conv =
            |name: &str, bn: &str, [in_channels, out_channels]: [usize; 2], kernel, stride, in_side| Conv {
                name: name.into(),
                bn: bn.into(),
                in_channels,
                out_channels,
                kernel,
                stride,
                in_side,
            };
        let (mut channels, mut side) = (self.width, IMAGE_SIDE);
        let mut convs = vec![conv("conv1", "bn1", [3, channels], 3, 1, side)];
        let stem = Layer { index: 0, conv: 0, input: None, residual: Residual::None, skip: None, buffer: 0 };
        let mut layers = vec![stem];
        for stage in 0..STAGES {
            let out = self.width << stage;
            for block in 0..self.blocks[stage] {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let named = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
                let (first, input) = (convs.len(), layers.len() - 1);
                convs.push(conv(&named("conv1"), &named("bn1"), [channels, out], 3, stride, side));
                convs.push(conv(&named("conv2"), &named("bn2"), [out, out], 3, 1, side / stride));
                let mut residual = Residual::Identity(input);
                if stride != 1 || channels != out {
                    residual = Residual::Projection { conv: convs.len(), input };
                    let (name, bn) = (named("shortcut.0"), named("shortcut.1"));
                    convs.push(conv(&name, &bn, [channels, out], 1, stride, side));
                }
                let [inner, output] = [input + 1, input + 2];
                layers.push(Layer {
                    index: inner,
                    conv: first,
                    input: Some(input),
                    residual: Residual::None,
                    skip: Some(output),
                    buffer: 2,
                });
                layers.push(Layer {
                    index: output,
                    conv: first + 1,
                    input: Some(inner),
                    residual,
                    skip: None,
                    buffer: 1 - layers[input].buffer,
                });
                (channels, side) = (out, side / stride);
            }
        }
        (convs, layers)
    }

    /// Every tensor of a weights file, in its order.
    pub fn parameters(&self) -> Vec<Parameter> {
        use ParameterKind::*;
        let mut parameters = Vec::new();
        for conv in self.convs() {
            parameters.push(Parameter {
                name: format!("{}.weight", conv.name),
                shape: vec![conv.out_channels, conv.in_channels, conv.kernel, conv.kernel],
                kind: ConvWeight,
            });
            let buffers = [
                ("weight", BnWeight),
                ("bias", BnBias),
                ("running_mean", BnRunningMean),
                ("running_var", BnRunningVar),
            ];
            for (suffix, kind) in buffers {
                let name = format!("{}.{suffix}", conv.bn);
                parameters.push(Parameter { name, shape: vec![conv.out_channels], kind });
            }
        }
        parameters.push(Parameter {
            name: "linear.weight".into(),
            shape: vec![self.classes, self.features()],
            kind: LinearWeight,
        });
        parameters.push(Parameter {
            name: "linear.bias".into(),
            shape: vec![self.classes],
            kind: LinearBias,
        });
        parameters
    }
}

impl fmt::Display for ResNet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, width {}, {} classes", self.architecture(), self.width, self.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trainable(network: ResNet) -> usize {
        network.parameters().iter().filter(|p| p.kind.trainable()).map(Parameter::len).sum()
    }

    #[test]
    fn the_table_is_resnet18() {
        let network = ResNet::resnet18(64, 10);
        let convs = network.convs();
        assert_eq!((convs.len(), network.layers().len()), (20, 17));
        assert_eq!(convs.last().unwrap().out_side(), 4);
        // 11,173,962 trainable parameters: the well-known count of the CIFAR ResNet-18.
        assert_eq!(trainable(network), 11_173_962);
        // 555.4 M multiply-adds a forward pass, with the linear layer.
        let forward: usize = convs.iter().map(Conv::multiply_adds).sum::<usize>() + 5120;
        assert_eq!(forward / 100_000, 5554);
        // The first block of the second stage.
        let [inner, output] = [5, 6].map(|at| network.layers()[at]);
        assert_eq!((inner.conv, inner.input, inner.residual), (5, Some(4), Residual::None));
        assert_eq!((output.conv, output.input), (6, Some(5)));
        assert_eq!((output.residual, inner.skip), (Residual::Projection { conv: 7, input: 4 }, Some(6)));
        assert_eq!(network.to_string(), "ResNet-18, width 64, 10 classes");
    }

    #[test]
    fn depth_is_data() {
        let network = ResNet::resnet34(64, 10);
        let (convs, layers) = (network.convs(), network.layers());
        assert_eq!((convs.len(), layers.len(), network.first_stage()), (36, 33, 0..7));
        // 21,282,122: the count of the CIFAR ResNet-34.
        assert_eq!(trainable(network), 21_282_122);
        assert!(convs.iter().any(|conv| conv.name == "layer3.5.conv2" && conv.bn == "layer3.5.bn2"));
        let odd = ResNet { blocks: [1, 3, 1, 2], ..network };
        assert_eq!(odd.to_string(), "ResNet of [1, 3, 1, 2] blocks, width 64, 10 classes");
        for network in [network, odd, ResNet::resnet18(16, 100)] {
            let (convs, layers) = (network.convs(), network.layers());
            for (index, layer) in layers.iter().enumerate() {
                let (conv, input) = (&convs[layer.conv], layer.input.map(|input| layers[input]));
                assert_eq!(layer.index, index);
                let shape = |layer: Layer| (convs[layer.conv].out_channels, convs[layer.conv].out_side());
                assert_eq!(input.map_or((3, IMAGE_SIDE), shape), (conv.in_channels, conv.in_side));
                // What is alive at the same time lies in different buffers.
                let skipped = match layer.residual {
                    Residual::None => None,
                    Residual::Identity(from) => Some((from, shape(layers[from]))),
                    Residual::Projection { conv, input } => {
                        Some((input, (convs[conv].out_channels, convs[conv].out_side())))
                    }
                };
                let near: Vec<usize> = [layer.input, skipped.map(|(from, _)| from)]
                    .into_iter()
                    .flatten()
                    .map(|at| layers[at].buffer)
                    .chain([layer.buffer])
                    .collect();
                assert!((1..near.len()).all(|at| !near[..at].contains(&near[at])), "{layer:?}: {near:?}");
                if let Some((from, added)) = skipped {
                    assert_eq!(added, shape(*layer));
                    assert_eq!(layers.iter().filter(|l| l.skip == Some(index)).count(), 1);
                    assert!(layers.iter().any(|l| l.skip == Some(index) && l.input == Some(from)));
                }
            }
            assert_eq!(layers.last().map(|last| convs[last.conv].out_channels), Some(network.features()));
        }
    }
}
