//! What only a Hopper has: wgmma through descriptors, TMA in all its forms, stmatrix, named barriers and clusters, each against
//! plain loops, on the emulator with warps and asynchronous copies in every order that it has, and on a Hopper where there is
//! one. The kernels are in `kernels/extra/tests/hopper.cu`; injected faults are in `hopper_faults.rs`.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use secateur::cuda::driver::host::HostDriver;
use secateur::cuda::driver::{Address, Im2colMap, MapSpec, Swizzle, TensorMap, TiledMap};

use crate::common::hopper::{hoppers, matrix_map, product, run};
use crate::common::{Bound, Output, Random, SEED, assert_close, input};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProductParams {
    a: TensorMap,
    b: TensorMap,
    c: Address,
    k: u32,
    unused: [u32; 13],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HaloParams {
    pixels: TensorMap,
    weights: TensorMap,
    c: Address,
    row: u32,
    column: u32,
    unused: [u32; 12],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BoxParams {
    from: TensorMap,
    to: TensorMap,
    raw: Address,
    from_at: [i32; 5],
    to_at: [i32; 5],
    bytes: u32,
    offset: [u32; 2],
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WordsParams {
    from: Address,
    to: Address,
    index: u32,
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClusterParams {
    from: TensorMap,
    to: Address,
    tiles: u32,
    unused: [u32; 13],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SwapParams {
    from: Address,
    to: Address,
    rounds: u32,
    unused: u32,
}

/// For f32 sums over `k` products, in whatever order and width a tensor core adds them.
fn sums(k: usize) -> Bound {
    Bound { absolute: 1e-6 * k as f64, relative: 1e-5, whole: 5e-6 }
}

#[test]
fn products_through_descriptors_equal_plain_loops() {
    for (kernel, n, a_mn_major, b_mn_major) in [
        ("test_wgmma_64_kk", 64, false, false),
        ("test_wgmma_64_mm", 64, true, true),
        ("test_wgmma_128_kk", 128, false, false),
        ("test_wgmma_128_km", 128, false, true),
        ("test_wgmma_128_mk", 128, true, false),
        ("test_wgmma_192_kk", 192, false, false),
        ("test_wgmma_192_km", 192, false, true),
        ("test_wgmma_256_kk", 256, false, false),
        ("test_wgmma_256_mm", 256, true, true),
    ] {
        for k in [64, 128, 320] {
            let mut random = Random::new(1);
            let (a, b) = (random.bf16s(64 * k, 1.0), random.bf16s(n * k, 1.0));
            let at = |mn_major: bool, size: usize, i: usize, k_at: usize| match mn_major {
                true => k_at * size + i,
                false => i * k + k_at,
            };
            let expected =
                product([64, n, k], |i, k| a[at(a_mn_major, 64, i, k)], |k, j| b[at(b_mn_major, n, j, k)]);
            let mut first: Option<Vec<f32>> = None;
            for (order, driver) in hoppers() {
                let (a, b) = (input(&driver, "a", &a), input(&driver, "b", &b));
                let c = Output::new::<f32>(&driver, "c", 64 * n);
                let map = |address, mn_major: bool, size: usize| {
                    let spec = match mn_major {
                        true => matrix_map(address, k, size, 64),
                        false => matrix_map(address, size, k, size),
                    };
                    driver.tensor_map(&spec.into()).unwrap()
                };
                let params = ProductParams {
                    a: map(a.address(), a_mn_major, 64),
                    b: map(b.address(), b_mn_major, n),
                    c: c.address(),
                    k: k as u32,
                    ..Zeroable::zeroed()
                };
                run(&driver, kernel, 1, &params).unwrap();
                let actual: Vec<f32> = c.read();
                assert_close(&format!("{kernel}, k {k}, {order}"), &actual, &expected, sums(k));
                let first = first.get_or_insert_with(|| actual.clone());
                assert!(
                    *first == actual || order == "GPU",
                    "{kernel}, k {k}, {order}: not the same bits as in the first order"
                );
            }
        }
    }
}

#[test]
fn a_shifted_start_reads_the_pixels_under_a_tap() {
    let mut random = Random::new(2);
    let (pixels, weights) = (random.bf16s(10 * 10 * 64, 1.0), random.bf16s(64 * 64, 1.0));
    for (order, driver) in hoppers() {
        let (x, w) = (input(&driver, "pixels", &pixels), input(&driver, "weights", &weights));
        let image = TiledMap {
            address: x.address(),
            element_bytes: 2,
            dims: vec![64, 10, 10],
            strides: vec![128, 1280],
            box_dims: vec![64, 10, 10],
            element_strides: vec![1; 3],
            swizzle: Swizzle::Bytes128,
        };
        for (row, column) in [(0, 0), (0, 1), (1, 2), (2, 2)] {
            let c = Output::new::<f32>(&driver, "c", 64 * 64);
            let params = HaloParams {
                pixels: driver.tensor_map(&image.clone().into()).unwrap(),
                weights: driver.tensor_map(&matrix_map(w.address(), 64, 64, 64).into()).unwrap(),
                c: c.address(),
                row: row as u32,
                column: column as u32,
                ..Zeroable::zeroed()
            };
            run(&driver, "test_wgmma_halo", 1, &params).unwrap();
            let pixel = |i: usize, k| pixels[((row + i / 8) * 10 + column + i % 8) * 64 + k];
            let expected = product([64, 64, 64], pixel, |k, n| weights[n * 64 + k]);
            assert_close(&format!("tap ({row}, {column}), {order}"), &c.read::<f32>(), &expected, sums(64));
        }
    }
}

/// Counts of a box, and for each of its elements the byte offset in the tensor; `None` where it lies outside.
fn elements_of(map: &TiledMap, at: &[i32]) -> Vec<Option<usize>> {
    let counts: Vec<usize> =
        map.box_dims.iter().zip(&map.element_strides).map(|(n, step)| n.div_ceil(*step) as usize).collect();
    (0..counts.iter().product())
        .map(|mut element| {
            let mut offset = 0;
            for (i, count) in counts.iter().enumerate() {
                let place = i64::from(at[i]) + (element % count) as i64 * i64::from(map.element_strides[i]);
                element /= count;
                if !(0..map.dims[i] as i64).contains(&place) {
                    return None;
                }
                let stride = if i == 0 { u64::from(map.element_bytes) } else { map.strides[i - 1] };
                offset += place as usize * stride as usize;
            }
            Some(offset)
        })
        .collect()
}

/// Where byte `i` of a box at the start of shared memory lies.
fn swizzled(swizzle: Swizzle, i: usize) -> usize {
    let mask = match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes32 => 1,
        Swizzle::Bytes64 => 3,
        Swizzle::Bytes128 => 7,
    };
    i ^ ((i >> 7 & mask) << 4)
}

#[test]
fn boxes_travel_to_shared_memory_and_back() {
    struct Case {
        kernel: &'static str,
        element_bytes: u32,
        dims: &'static [u64],
        strides: &'static [u64],
        box_dims: &'static [u32],
        element_strides: &'static [u32],
        swizzle: Swizzle,
        at: &'static [i32],
        to_at: &'static [i32],
    }
    let cases = [
        Case {
            kernel: "test_tma_2d",
            element_bytes: 2,
            dims: &[72, 40],
            strides: &[160],
            box_dims: &[64, 16],
            element_strides: &[1, 1],
            swizzle: Swizzle::Bytes128,
            at: &[16, 30],
            to_at: &[-8, 2],
        },
        Case {
            kernel: "test_tma_2d",
            element_bytes: 4,
            dims: &[10, 9],
            strides: &[48],
            box_dims: &[4, 4],
            element_strides: &[1, 1],
            swizzle: Swizzle::None,
            at: &[-2, -1],
            to_at: &[7, 7],
        },
        Case {
            kernel: "test_tma_3d",
            element_bytes: 2,
            dims: &[64, 10, 10],
            strides: &[128, 1280],
            box_dims: &[32, 6, 4],
            element_strides: &[1, 1, 1],
            swizzle: Swizzle::Bytes64,
            at: &[16, 7, -1],
            to_at: &[32, -3, 8],
        },
        Case {
            kernel: "test_tma_4d",
            element_bytes: 2,
            dims: &[16, 6, 5, 3],
            strides: &[32, 192, 960],
            box_dims: &[16, 4, 4, 2],
            element_strides: &[1, 2, 2, 1],
            swizzle: Swizzle::Bytes32,
            at: &[0, 1, -1, 2],
            to_at: &[0, 3, 2, 0],
        },
        Case {
            kernel: "test_tma_5d",
            element_bytes: 1,
            dims: &[32, 4, 3, 3, 2],
            strides: &[32, 128, 384, 1152],
            box_dims: &[16, 2, 2, 3, 2],
            element_strides: &[1; 5],
            swizzle: Swizzle::None,
            at: &[16, 1, 2, 0, 1],
            to_at: &[-8, 0, 0, 1, 0],
        },
    ];
    for case in cases {
        let rank = case.dims.len();
        let size = (case.strides[rank - 2] * case.dims[rank - 1]) as usize;
        let mut random = Random::new(3);
        let tensor: Vec<u8> = (0..size).map(|_| random.word() as u8).collect();
        for (order, driver) in hoppers() {
            let label = format!("{} of {:?}, swizzle {:?}, {order}", case.kernel, case.dims, case.swizzle);
            let (from, to) = (input(&driver, "from", &tensor), Output::new::<u8>(&driver, "to", size));
            let load = TiledMap {
                address: from.address(),
                element_bytes: case.element_bytes,
                dims: case.dims.into(),
                strides: case.strides.into(),
                box_dims: case.box_dims.into(),
                element_strides: case.element_strides.into(),
                swizzle: case.swizzle,
            };
            let counts = case.box_dims.iter().zip(case.element_strides).map(|(n, step)| n.div_ceil(*step));
            let store = TiledMap {
                address: to.address(),
                box_dims: counts.collect(),
                element_strides: vec![1; rank],
                ..load.clone()
            };
            let pad = |at: &[i32]| std::array::from_fn(|i| at.get(i).copied().unwrap_or(0));
            let element = case.element_bytes as usize;
            let loaded = elements_of(&load, case.at);
            let bytes = loaded.len() * element;
            let raw = Output::new::<u8>(&driver, "raw", bytes);
            let params = BoxParams {
                from: driver.tensor_map(&load.into()).unwrap(),
                to: driver.tensor_map(&store.clone().into()).unwrap(),
                raw: raw.address(),
                from_at: pad(case.at),
                to_at: pad(case.to_at),
                bytes: bytes as u32,
                ..Zeroable::zeroed()
            };
            run(&driver, case.kernel, 1, &params).unwrap();
            let dense: Vec<u8> = (0..bytes)
                .map(|i| loaded[i / element].map_or(0, |offset| tensor[offset + i % element]))
                .collect();
            assert!(loaded.contains(&None), "{label}: no element outside");
            let raw: Vec<u8> = raw.read();
            for (i, expected) in dense.iter().enumerate() {
                assert_eq!(
                    raw[swizzled(case.swizzle, i)],
                    *expected,
                    "{label}: byte {i} of the box, seed {SEED}"
                );
            }
            let mut expected = vec![0xFF; size];
            for (i, offset) in elements_of(&store, case.to_at).into_iter().enumerate() {
                if let Some(offset) = offset {
                    expected[offset..offset + element]
                        .copy_from_slice(&dense[i * element..(i + 1) * element]);
                }
            }
            assert_eq!(to.read::<u8>(), expected, "{label}: stored, seed {SEED}");
        }
    }
}

#[test]
fn im2col_loads_the_pixels_under_every_tap() {
    // Width and height, images, stride, channels of the tensor, first output pixel, pixels of a load.
    for (size, images, stride, channels, first, pixels) in [
        (8, 3, 1, 64, 0, 128),
        (8, 3, 1, 128, 100, 128),
        (8, 3, 2, 64, 10, 64),
        (4, 5, 1, 64, 9, 64),
        (8, 2, 2, 64, 0, 16),
    ] {
        let out = size / stride;
        let mut random = Random::new(4);
        let x = random.bf16s(images * size * size * channels, 1.0);
        let channel = channels - 64;
        for (order, driver) in hoppers() {
            let buffer = input(&driver, "x", &x);
            let pixel_bytes = 2 * channels as u64;
            let map = Im2colMap {
                address: buffer.address(),
                element_bytes: 2,
                dims: [channels as u64, size as u64, size as u64, images as u64],
                strides: [pixel_bytes, pixel_bytes * size as u64, pixel_bytes * (size * size) as u64],
                lower: [-1, -1],
                upper: [-1, -1],
                channels: 64,
                pixels: pixels as u32,
                element_strides: [1, stride as u32, stride as u32, 1],
                swizzle: Swizzle::Bytes128,
            };
            let map = driver.tensor_map(&MapSpec::Im2col(map)).unwrap();
            for (r, s) in [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)] {
                let raw = Output::new::<bf16>(&driver, "raw", pixels * 64);
                let (p, q) = (first / out % out, first % out);
                let corner = |i: usize| (i * stride) as i32 - 1;
                let params = BoxParams {
                    from: map,
                    raw: raw.address(),
                    from_at: [channel as i32, corner(q), corner(p), (first / out / out) as i32, 0],
                    bytes: (pixels * 128) as u32,
                    offset: [s as u32, r as u32],
                    ..Zeroable::zeroed()
                };
                run(&driver, "test_tma_im2col", 1, &params).unwrap();
                let raw: Vec<bf16> = raw.read();
                for i in 0..pixels * 64 {
                    let output = first + i / 64;
                    let n = output / out / out;
                    let h = (output / out % out * stride + r) as i32 - 1;
                    let w = (output % out * stride + s) as i32 - 1;
                    let inside = |v: i32| (0..size as i32).contains(&v);
                    let expected = match n < images && inside(h) && inside(w) {
                        true => {
                            x[((n * size + h as usize) * size + w as usize) * channels + channel + i % 64]
                        }
                        false => bf16::ZERO,
                    };
                    let actual = raw[swizzled(Swizzle::Bytes128, 2 * i) / 2];
                    assert_eq!(
                        actual,
                        expected,
                        "{size}x{size}, stride {stride}, tap ({r}, {s}), pixel {}, channel {}, {order}, seed {SEED}",
                        i / 64,
                        i % 64
                    );
                }
            }
        }
    }
}

#[test]
fn bulk_loads_matrices_and_named_barriers_move_every_word() {
    let words: Vec<u32> = (0..1024).map(|i| i * 0x9E37_79B9).collect();
    for (order, driver) in hoppers() {
        let from = input(&driver, "from", &words);
        let params =
            |to: &Output, index| WordsParams { from: from.address(), to: to.address(), index, unused: 0 };

        let to = Output::new::<u32>(&driver, "to", 512);
        run(&driver, "test_bulk_load", 1, &params(&to, 8)).unwrap();
        assert_eq!(to.read::<u32>(), words[8..520], "{order}: bulk load");

        let to = Output::new::<u32>(&driver, "to", 512);
        run(&driver, "test_stmatrix", 1, &params(&to, 0)).unwrap();
        let actual: Vec<u16> = to.read();
        for group in 0..4 {
            for i in 0..256 {
                let (matrix, row, column) = (i / 64, i / 8 % 8, i % 8);
                let (row, column) = if group < 2 { (row, column) } else { (column, row) };
                let word = words[32 * (4 * (group % 2) + matrix) + 4 * row + column / 2];
                let expected = (word >> (column % 2 * 16)) as u16;
                assert_eq!(actual[256 * group + i], expected, "{order}: stmatrix group {group}, element {i}");
            }
        }

        let to = Output::new::<u32>(&driver, "to", 128);
        run(&driver, "test_named_barrier", 1, &params(&to, 0)).unwrap();
        let expected: Vec<u32> = (0..128).map(|i| words[(1 - i / 64) * 64 + 63 - i % 64]).collect();
        assert_eq!(to.read::<u32>(), expected, "{order}: named barriers");
    }
}

#[test]
fn halves_are_rectified_counted_and_spread() {
    println!("seed {SEED}");
    let special =
        [0.0, 1.0, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-45, 1.0 + 2f32.powi(-9), f32::MAX];
    let mut words: Vec<u32> = special.iter().flat_map(|v| [v.to_bits(), (-v).to_bits()]).collect();
    let mut random = Random::new(31);
    words.resize_with(256, || random.word());
    // Rounded to nearest even; a NaN loses its sign.
    let rounded = |bits: u32| match f32::from_bits(bits) {
        value if value.is_nan() => 0x7FFF,
        value => bf16::from_f32(value).to_bits(),
    };
    let both = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    let expected: Vec<u32> = words
        .chunks(2)
        .flat_map(|pair| {
            let halves = [rounded(pair[0]), rounded(pair[1])];
            let [relu, ones] =
                [|half| if half & 0x8000 == 0 { half } else { 0 }, |half| u16::from(half as i16 > 0)]
                    .map(|of: fn(u16) -> u16| both(of(halves[0]), of(halves[1])));
            let signs = |low: u32, high: u32| {
                let spread = |byte: u32| if pair[0] >> (8 * byte + 7) & 1 == 1 { u16::MAX } else { 0 };
                both(spread(low), spread(high))
            };
            [relu, ones, signs(0, 2), signs(1, 3)]
        })
        .collect();
    for (order, driver) in hoppers() {
        let from = input(&driver, "from", &words);
        let to = Output::new::<u32>(&driver, "to", 512);
        let params = WordsParams { from: from.address(), to: to.address(), index: 0, unused: 0 };
        run(&driver, "test_halves", 1, &params).unwrap();
        assert_eq!(to.read::<u32>(), expected, "{order}");
    }
}

#[test]
fn a_cluster_shares_what_each_of_its_blocks_loads() {
    let tiles = 5;
    let words: Vec<u32> = (0..512 * tiles as u32).map(|i| i * 0x9E37_79B9).collect();
    for (order, driver) in hoppers() {
        let from = input(&driver, "from", &words);
        let to = Output::new::<u32>(&driver, "to", 4 * 512 * tiles);
        let map = TiledMap {
            address: from.address(),
            element_bytes: 4,
            dims: vec![32, 16 * tiles as u64],
            strides: vec![128],
            box_dims: vec![32, 8],
            element_strides: vec![1, 1],
            swizzle: Swizzle::None,
        };
        let params = ClusterParams {
            from: driver.tensor_map(&map.into()).unwrap(),
            to: to.address(),
            tiles: tiles as u32,
            ..Zeroable::zeroed()
        };
        run(&driver, "test_cluster", 4, &params).unwrap();
        assert_eq!(to.read::<u32>(), words.repeat(4), "{order}");
        let message = run(&driver, "test_cluster", 3, &params).unwrap_err();
        assert!(message.contains("a multiple of the 2 blocks of a cluster"), "{message}");
    }
}

#[test]
fn two_blocks_of_a_cluster_store_in_each_other() {
    // Two clusters of two blocks, with one round alone and with places that are used again.
    for rounds in [1, 2, 5] {
        let of_a_block = 64 * 6 * rounds;
        let words: Vec<u32> = (0..4 * of_a_block as u32).map(|i| i * 0x9E37_79B9).collect();
        let swapped: Vec<u32> = [1, 0, 3, 2]
            .into_iter()
            .flat_map(|block| &words[block * of_a_block..][..of_a_block])
            .copied()
            .collect();
        for (order, driver) in hoppers() {
            let from = input(&driver, "from", &words);
            let to = Output::new::<u32>(&driver, "to", words.len());
            let params =
                SwapParams { from: from.address(), to: to.address(), rounds: rounds as u32, unused: 0 };
            run(&driver, "test_store_remote", 4, &params).unwrap();
            assert_eq!(to.read::<u32>(), swapped, "{rounds} rounds, {order}");
        }
    }
}

#[test]
fn maps_that_a_gpu_would_refuse_are_errors() {
    let driver = HostDriver::hopper();
    let buffer = input(&driver, "activations", &[0u8; 64 * 64 * 2]);
    let good = matrix_map(buffer.address(), 64, 64, 64);
    driver.tensor_map(&good.clone().into()).unwrap();
    let refused = |change: &dyn Fn(&mut TiledMap), parts: &[&str]| {
        let mut map = good.clone();
        change(&mut map);
        let message = driver.tensor_map(&map.into()).unwrap_err().to_string();
        println!("{message}");
        for part in parts {
            assert!(message.contains(part), "'{part}' is missing in: {message}");
        }
    };
    refused(&|map| map.address = buffer.address() + 8, &["multiple of 16"]);
    refused(&|map| map.address = Address::NULL, &["address 0x0"]);
    refused(&|map| map.dims[1] = 65, &["'activations'", "out of bounds"]);
    refused(&|map| map.dims[0] = 0, &["dimension 0", "expected 1"]);
    refused(&|map| map.strides[0] = 120, &["stride of 120", "multiple of 16"]);
    refused(&|map| map.strides.clear(), &["0 strides", "expected 1"]);
    refused(&|map| map.element_bytes = 3, &["elements of 3 bytes"]);
    refused(&|map| map.box_dims[1] = 257, &["257", "1 to 256"]);
    refused(&|map| map.box_dims[0] = 128, &["rows of 256 bytes", "at most the 128"]);
    refused(&|map| map.box_dims[0] = 4, &["rows of 8 bytes", "multiple of 16"]);
    refused(&|map| map.element_strides[1] = 9, &["element stride 9"]);
    refused(&|map| map.dims = vec![64], &["1 dimensions, expected 2 to 5"]);
    let mut pixels = Im2colMap {
        address: buffer.address(),
        element_bytes: 2,
        dims: [64, 4, 4, 4],
        strides: [128, 512, 2048],
        lower: [-1, -1],
        upper: [-1, -1],
        channels: 64,
        pixels: 64,
        element_strides: [1; 4],
        swizzle: Swizzle::Bytes128,
    };
    driver.tensor_map(&pixels.clone().into()).unwrap();
    pixels.pixels = 1025;
    let message = driver.tensor_map(&pixels.clone().into()).unwrap_err().to_string();
    assert!(message.contains("1025 pixels"), "{message}");
    (pixels.pixels, pixels.upper) = (64, [-1, -5]);
    let message = driver.tensor_map(&pixels.into()).unwrap_err().to_string();
    assert!(message.contains("at least one pixel"), "{message}");
}

#[test]
fn only_an_emulator_that_was_asked_to_stands_for_a_hopper() {
    assert!(!HostDriver::open().has_wgmma());
    assert!(HostDriver::hopper().has_wgmma());
}
