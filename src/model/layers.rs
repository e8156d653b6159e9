//! The layer table of ResNet-18: every convolution with its shape, every parameter with its name.

/// Side of a CIFAR image in pixels.
pub const IMAGE_SIDE: usize = 32;
/// Elements of one image: 32 x 32 x 3.
pub const IMAGE_LEN: usize = IMAGE_SIDE * IMAGE_SIDE * 3;
/// Base widths that the kernels are built for: 64 is the product, 16 is for tests and CPU demonstrations.
pub const WIDTHS: [usize; 2] = [16, 64];
/// PyTorch's default: the denominator of BatchNorm is sqrt(variance + BN_EPSILON).
pub const BN_EPSILON: f32 = 1e-5;
/// PyTorch's default: running <- (1 - m) * running + m * batch statistic (the unbiased variance).
pub const BN_MOMENTUM: f32 = 0.1;

/// The network: a base width and a number of classes decide everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNet18 {
    pub width: usize,
    pub classes: usize,
}

/// One convolution (always without bias, always followed by BatchNorm).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// PyTorch name without `.weight`: `conv1`, `layer2.0.conv1`, `layer2.0.shortcut.0`.
    pub name: String,
    /// PyTorch name of the BatchNorm behind it: `bn1`, `layer2.0.bn1`, `layer2.0.shortcut.1`.
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
    /// Elements of the weight tensor.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.kernel * self.kernel * self.in_channels
    }
    /// Multiply-adds of a forward pass of one image.
    pub fn multiply_adds(&self) -> usize {
        self.out_side() * self.out_side() * self.weight_len()
    }
}

/// One basic block, as positions in [`ResNet18::convs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub conv1: usize,
    pub conv2: usize,
    /// The 1x1 convolution of the shortcut where the shape changes; `None` is the identity.
    pub shortcut: Option<usize>,
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

impl ResNet18 {
    /// Channels behind the average pool.
    pub fn features(&self) -> usize {
        8 * self.width
    }

    /// Elements of all tensors of some kinds.
    pub fn elements(&self, which: impl Fn(ParameterKind) -> bool) -> usize {
        self.parameters().iter().filter(|parameter| which(parameter.kind)).map(Parameter::len).sum()
    }

    /// All 20 convolutions in the order of the forward pass; a shortcut follows its block's `conv2`.
    pub fn convs(&self) -> Vec<Conv> {
        let conv = |name: String, bn: String, in_channels, out_channels, kernel, stride, in_side| Conv {
            name,
            bn,
            in_channels,
            out_channels,
            kernel,
            stride,
            in_side,
        };
        let mut convs = vec![conv("conv1".into(), "bn1".into(), 3, self.width, 3, 1, IMAGE_SIDE)];
        let (mut channels, mut side) = (self.width, IMAGE_SIDE);
        for stage in 1..=4usize {
            let out = self.width << (stage - 1);
            for block in 0..2 {
                let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                let at = format!("layer{stage}.{block}");
                let out_side = side / stride;
                convs.push(conv(format!("{at}.conv1"), format!("{at}.bn1"), channels, out, 3, stride, side));
                convs.push(conv(format!("{at}.conv2"), format!("{at}.bn2"), out, out, 3, 1, out_side));
                if stride != 1 || channels != out {
                    let (name, bn) = (format!("{at}.shortcut.0"), format!("{at}.shortcut.1"));
                    convs.push(conv(name, bn, channels, out, 1, stride, side));
                }
                (channels, side) = (out, out_side);
            }
        }
        convs
    }

    /// The eight basic blocks behind the stem (convolution 0).
    pub fn blocks(&self) -> Vec<Block> {
        let convs = self.convs();
        let mut blocks = Vec::with_capacity(8);
        let mut next = 1;
        while next < convs.len() {
            let shortcut = convs.get(next + 2).filter(|conv| conv.kernel == 1).map(|_| next + 2);
            blocks.push(Block { conv1: next, conv2: next + 1, shortcut });
            next += if shortcut.is_some() { 3 } else { 2 };
        }
        blocks
    }

    /// Every tensor of a weights file, in the order of the forward pass.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_resnet18() {
        let net = ResNet18 { width: 64, classes: 10 };
        let convs = net.convs();
        assert_eq!(convs.len(), 20);
        assert_eq!(net.blocks().len(), 8);
        assert_eq!(convs.last().unwrap().out_side(), 4);
        // 11,173,962 trainable parameters: the well-known count of the CIFAR ResNet-18.
        let trainable: usize =
            net.parameters().iter().filter(|p| p.kind.trainable()).map(Parameter::len).sum();
        assert_eq!(trainable, 11_173_962);
        // 555.4 M multiply-adds a forward pass, with the linear layer.
        let forward: usize = convs.iter().map(Conv::multiply_adds).sum::<usize>() + 5120;
        assert_eq!(forward / 100_000, 5554);
        assert_eq!(net.blocks()[2], Block { conv1: 5, conv2: 6, shortcut: Some(7) });
    }
}
