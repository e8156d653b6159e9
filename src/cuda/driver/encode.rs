//! Tensor maps as a GPU takes them, through cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col.

use cudarc::driver::sys::{
    CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as Pattern,
};
use cudarc::driver::{DriverError, sys};

use super::{MapSpec, Swizzle};

/// CUDA 12 wants a map aligned to 64 bytes where it is encoded, the headers of CUDA 13 say 128.
#[repr(C, align(128))]
struct Encoded(sys::CUtensorMap);

/// The map as the driver encodes it: no interleaving, zeros outside, L2 lines of 256 bytes. The error names the call.
pub(super) fn encode(spec: &MapSpec) -> Result<[u64; 16], (&'static str, DriverError)> {
    let data_type = |bytes: u32| match bytes {
        1 => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let pattern = |swizzle: Swizzle| match swizzle {
        Swizzle::None => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let interleave = Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
    let promotion = Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    let fill = Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    let mut map = Encoded(sys::CUtensorMap { opaque: [0; 16] });
    let (result, call) = match spec {
        MapSpec::Tiled(tiled) => {
            // SAFETY: the lengths of all lists were checked by `MapSpec::check`; the call reads them and writes `map`.
            let result = unsafe {
                sys::cuTensorMapEncodeTiled(
                    &mut map.0,
                    data_type(tiled.element_bytes),
                    tiled.dims.len() as u32,
                    tiled.address.0 as *mut _,
                    tiled.dims.as_ptr(),
                    tiled.strides.as_ptr(),
                    tiled.box_dims.as_ptr(),
                    tiled.element_strides.as_ptr(),
                    interleave,
                    pattern(tiled.swizzle),
                    promotion,
                    fill,
                )
            };
            (result, "cuTensorMapEncodeTiled")
        }
        MapSpec::Im2col(im2col) => {
            // SAFETY: as above; rank 4 takes two corners.
            let result = unsafe {
                sys::cuTensorMapEncodeIm2col(
                    &mut map.0,
                    data_type(im2col.element_bytes),
                    4,
                    im2col.address.0 as *mut _,
                    im2col.dims.as_ptr(),
                    im2col.strides.as_ptr(),
                    im2col.lower.as_ptr(),
                    im2col.upper.as_ptr(),
                    im2col.channels,
                    im2col.pixels,
                    im2col.element_strides.as_ptr(),
                    interleave,
                    pattern(im2col.swizzle),
                    promotion,
                    fill,
                )
            };
            (result, "cuTensorMapEncodeIm2col")
        }
    };
    result.result().map_err(|error| (call, error))?;
    Ok(map.0.opaque)
}
