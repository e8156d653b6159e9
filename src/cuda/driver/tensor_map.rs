//! Tensor maps: what TMA needs to know of a tensor to copy boxes of it ([`TiledMap`]) or pixels under a filter tap
//! ([`Im2colMap`]). [`Driver::tensor_map`](super::Driver::tensor_map) makes one, which a parameter struct then holds.
//!
//! Both drivers refuse what either cannot do, with the same words: [`MapSpec::check`].

use bytemuck::{Pod, Zeroable};

use super::Address;
use crate::engine::{Error, Result};

/// 128 bytes that a kernel's `TensorMap` receives: a CUtensorMap on a GPU, the emulator's own encoding on the host. A parameter
/// struct with one is aligned to 64 bytes, so its size is a multiple of 64, with explicit padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap {
    words: [u64; 16],
}

impl TensorMap {
    pub(super) fn from_words(words: [u64; 16]) -> Self {
        Self { words }
    }
}

/// How the 16-byte chunks of a box lie in shared memory: address bits 4.. are xored with as many bits from 7 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    #[default]
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Swizzle {
    /// Bytes within which chunks move; 0 for none.
    pub fn span(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Bytes32 => 32,
            Self::Bytes64 => 64,
            Self::Bytes128 => 128,
        }
    }
}

/// Boxes of a tensor of 2 to 5 dimensions, innermost first. What lies outside is read as zero and not written.
#[derive(Clone, Debug)]
pub struct TiledMap {
    /// The first element, 16-byte aligned.
    pub address: Address,
    /// 1, 2 (bf16) or 4 (f32).
    pub element_bytes: u32,
    pub dims: Vec<u64>,
    /// Bytes between neighbours in dimensions 1 and up, multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of the tensor that a box spans, at most 256 in each dimension.
    pub box_dims: Vec<u32>,
    /// Every which element of the box is taken, 1 to 8; 1 in dimension 0.
    pub element_strides: Vec<u32>,
    pub swizzle: Swizzle,
}

/// Pixels of an image tensor of dimensions c, w, h, n, in the order in which a filter moves over them.
#[derive(Clone, Debug)]
pub struct Im2colMap {
    /// The first element, 16-byte aligned.
    pub address: Address,
    /// 1, 2 (bf16) or 4 (f32).
    pub element_bytes: u32,
    /// c, w, h, n
    pub dims: [u64; 4],
    /// Bytes between neighbours in w, h and n, multiples of 16.
    pub strides: [u64; 3],
    /// First pixel that the filter's first tap meets, in w and h: minus the padding.
    pub lower: [i32; 2],
    /// Last such pixel, counted from the last of the image: padding + 1 - filter size.
    pub upper: [i32; 2],
    /// Channels of a pixel that a load takes, at most 256.
    pub channels: u32,
    /// Pixels of a load, at most 1024.
    pub pixels: u32,
    /// The filter's stride in w and h (c and n: 1), 1 to 8.
    pub element_strides: [u32; 4],
    pub swizzle: Swizzle,
}

/// A tensor map to be made.
#[derive(Clone, Debug)]
pub enum MapSpec {
    Tiled(TiledMap),
    Im2col(Im2colMap),
}

impl From<TiledMap> for MapSpec {
    fn from(map: TiledMap) -> Self {
        Self::Tiled(map)
    }
}
impl From<Im2colMap> for MapSpec {
    fn from(map: Im2colMap) -> Self {
        Self::Im2col(map)
    }
}

/// The parts that both kinds have.
struct Common<'a> {
    address: Address,
    element_bytes: u32,
    dims: &'a [u64],
    strides: &'a [u64],
    element_strides: &'a [u32],
    swizzle: Swizzle,
    /// Elements of one row of the box.
    row: u32,
}

fn wrong<T>(message: String) -> Result<T> {
    Err(Error::Invalid(format!("tensor map: {message}")))
}

impl MapSpec {
    fn common(&self) -> Common<'_> {
        match self {
            Self::Tiled(map) => Common {
                address: map.address,
                element_bytes: map.element_bytes,
                dims: &map.dims,
                strides: &map.strides,
                element_strides: &map.element_strides,
                swizzle: map.swizzle,
                row: map.box_dims.first().copied().unwrap_or(0),
            },
            Self::Im2col(map) => Common {
                address: map.address,
                element_bytes: map.element_bytes,
                dims: &map.dims,
                strides: &map.strides,
                element_strides: &map.element_strides,
                swizzle: map.swizzle,
                row: map.channels,
            },
        }
    }

    pub fn address(&self) -> Address {
        self.common().address
    }

    /// Bytes from the first element of the tensor to after its last.
    pub fn extent(&self) -> u64 {
        let common = self.common();
        let last: u64 =
            common.dims.iter().skip(1).zip(common.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        last + common.dims[0] * u64::from(common.element_bytes)
    }

    /// What a GPU or the emulator would not take, named with the actual and the expected value.
    pub fn check(&self) -> Result<()> {
        let common = self.common();
        let rank = common.dims.len();
        if !(2..=5).contains(&rank) {
            return wrong(format!("{rank} dimensions, expected 2 to 5"));
        }
        if common.strides.len() != rank - 1 || common.element_strides.len() != rank {
            return wrong(format!(
                "{} strides and {} element strides for {rank} dimensions, expected {} and {rank}",
                common.strides.len(),
                common.element_strides.len(),
                rank - 1
            ));
        }
        if ![1, 2, 4].contains(&common.element_bytes) {
            return wrong(format!("elements of {} bytes, expected 1, 2 or 4", common.element_bytes));
        }
        if common.address == Address::NULL || !common.address.0.is_multiple_of(16) {
            return wrong(format!("address {:#x}, expected a multiple of 16", common.address.0));
        }
        if let Some(dim) = common.dims.iter().find(|dim| !(1..=u64::from(u32::MAX)).contains(*dim)) {
            return wrong(format!("dimension {dim} in {:?}, expected 1 to {}", common.dims, u32::MAX));
        }
        if let Some(stride) =
            common.strides.iter().find(|stride| !stride.is_multiple_of(16) || **stride >= 1 << 40)
        {
            return wrong(format!("stride of {stride} bytes, expected a multiple of 16 below 2^40"));
        }
        if let Some(step) = common.element_strides.iter().find(|step| !(1..=8).contains(*step)) {
            return wrong(format!("element stride {step}, expected 1 to 8"));
        }
        if common.element_strides[0] != 1 {
            return wrong(format!("element stride {} in dimension 0, expected 1", common.element_strides[0]));
        }
        let row = u64::from(common.row) * u64::from(common.element_bytes);
        if row == 0 || !row.is_multiple_of(16) {
            return wrong(format!("rows of {row} bytes in a box, expected a multiple of 16"));
        }
        let span = common.swizzle.span();
        if span != 0 && row > span {
            return wrong(format!(
                "rows of {row} bytes in a box, expected at most the {span} of the swizzle"
            ));
        }
        match self {
            Self::Tiled(map) => check_box(map),
            Self::Im2col(map) => check_pixels(map),
        }
    }

    /// The map as `HostTensorMap` of `kernels/host/tensor_map.h` has it; the spec must have passed [`MapSpec::check`].
    pub(super) fn host_words(&self) -> TensorMap {
        let common = self.common();
        let mut map = HostMap { address: common.address.0, ..HostMap::zeroed() };
        map.rank = common.dims.len() as u8;
        map.element_bytes = common.element_bytes as u8;
        map.swizzle = common.swizzle as u8;
        for (to, dim) in map.dim.iter_mut().zip(common.dims) {
            *to = *dim as u32;
        }
        map.stride[..common.strides.len()].copy_from_slice(common.strides);
        for (to, step) in map.step.iter_mut().zip(common.element_strides) {
            *to = *step as u8;
        }
        match self {
            Self::Tiled(tiled) => {
                map.kind = 0x5EC4_7E01;
                for (to, elements) in map.box_dims.iter_mut().zip(&tiled.box_dims) {
                    *to = *elements as u16;
                }
            }
            Self::Im2col(im2col) => {
                map.kind = 0x5EC4_7E02;
                map.lower = im2col.lower.map(|corner| corner as i16);
                map.upper = im2col.upper.map(|corner| corner as i16);
                map.channels = im2col.channels as u16;
                map.pixels = im2col.pixels as u16;
            }
        }
        TensorMap::from_words(bytemuck::cast(map))
    }
}

fn check_box(map: &TiledMap) -> Result<()> {
    if map.box_dims.len() != map.dims.len() {
        return wrong(format!(
            "a box of {} dimensions in a tensor of {}",
            map.box_dims.len(),
            map.dims.len()
        ));
    }
    match map.box_dims.iter().find(|elements| !(1..=256).contains(*elements)) {
        Some(elements) => wrong(format!("{elements} in the box {:?}, expected 1 to 256", map.box_dims)),
        None => Ok(()),
    }
}

fn check_pixels(map: &Im2colMap) -> Result<()> {
    if map.channels > 256 {
        return wrong(format!("{} channels a pixel, expected at most 256", map.channels));
    }
    if !(1..=1024).contains(&map.pixels) {
        return wrong(format!("{} pixels a load, expected 1 to 1024", map.pixels));
    }
    for i in 0..2 {
        let (lower, upper) = (map.lower[i], map.upper[i]);
        if !(-128..128).contains(&lower) || !(-128..128).contains(&upper) {
            return wrong(format!(
                "pixel box corners {lower} and {upper} in {}, expected -128 to 127",
                ["w", "h"][i]
            ));
        }
        if map.dims[i + 1] as i64 - 1 + i64::from(upper) < i64::from(lower) {
            return wrong(format!(
                "pixel box from {lower} to {} + {upper} in {}, expected at least one pixel",
                map.dims[i + 1] - 1,
                ["w", "h"][i]
            ));
        }
    }
    Ok(())
}

/// `HostTensorMap` of `kernels/host/tensor_map.h`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HostMap {
    kind: u32,
    rank: u8,
    element_bytes: u8,
    swizzle: u8,
    unused: u8,
    address: u64,
    stride: [u64; 4],
    dim: [u32; 5],
    box_dims: [u16; 5],
    step: [u8; 6],
    lower: [i16; 2],
    upper: [i16; 2],
    channels: u16,
    pixels: u16,
    reserved: [u8; 32],
}
