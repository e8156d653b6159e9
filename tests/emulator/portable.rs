//! The platform on which kernels run on the host: each portable function against plain loops, and each fault that the emulator
//! promises to catch, injected. The kernels are in `kernels/extra/tests/faults.cu`.

use std::rc::Rc;

use bytemuck::{Pod, Zeroable};
use half::bf16;
use secateur::cuda::driver::host::{HostDriver, WarpOrder};
use secateur::cuda::driver::{Address, Buffer, Cost, Driver, Kernel, launch};
use secateur::philox::{Key, Purpose, philox4x32_10, symmetric};

const SEED: u64 = 20_260_101;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScaleParams {
    x: Address,
    y: Address,
    factor: f32,
    count: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TileParams {
    a: Address,
    b: Address,
    c: Address,
    k: u32,
    repeat: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TwoParams {
    from: Address,
    to: Address,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WarpParams {
    x: Address,
    y: Address,
    words: Address,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Bf16Params {
    x: Address,
    rounded: Address,
    packed: Address,
    widened: Address,
    count: u32,
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PhiloxParams {
    words: Address,
    symmetric: Address,
    seed: [u32; 2],
    epoch: u32,
    purpose_and_step: u32,
    radius: f32,
    block: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FaultParams {
    x: Address,
    y: Address,
    injected: u32,
    unused: u32,
}

/// `len` numbers on [-1, 1).
fn numbers(sample: u32, len: usize) -> Vec<f32> {
    let key = Key { seed: SEED, purpose: Purpose::Generation, epoch: 0, step: 0 };
    (0..len.div_ceil(4) as u32)
        .flat_map(|block| key.block(sample, block))
        .map(|word| symmetric(word, 1.0))
        .take(len)
        .collect()
}

fn run<P: Pod>(driver: &Rc<dyn Driver>, kernel: &str, blocks: u32, params: &P) -> Result<(), String> {
    let kernel = Kernel::named(kernel).map_err(|e| e.to_string())?;
    launch(&**driver, &kernel, [blocks, 1, 1], params, Cost::default()).map_err(|e| e.to_string())
}

/// The error of a launch that must fail, which must hold all of `parts`.
fn must_fail(result: Result<(), String>, parts: &[&str]) {
    let message = result.expect_err("the fault was not caught");
    println!("{message}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is missing in: {message}");
    }
}

#[test]
fn a_kernel_scales_every_element_and_nothing_else() {
    let driver = HostDriver::open();
    for count in [1, 255, 256, 257, 5000] {
        let x = numbers(0, count);
        let input = Buffer::from_slice(&driver, "x", &x).unwrap();
        let output = Buffer::new(&driver, "y", 4 * count + 64).unwrap();
        let params =
            ScaleParams { x: input.address(), y: output.address(), factor: 3.0, count: count as u32 };
        run(&driver, "test_scale", (count as u32).div_ceil(256), &params).unwrap();
        let y: Vec<f32> = output.to_vec().unwrap();
        for i in 0..count {
            assert_eq!(y[i], 3.0 * x[i], "seed {SEED}, element {i} of {count}");
        }
        assert!(y[count..].iter().all(|v| v.is_nan()), "wrote after {count}");
    }
}

/// Compares `c` (rows x columns) with `start + a b` in f64.
fn check_product(label: &str, [rows, columns, k]: [usize; 3], a: &[bf16], b: &[bf16], c: &[f32], start: f64) {
    let (mut worst, mut squares, mut norm) = (0.0f64, 0.0, 0.0);
    for row in 0..rows {
        for column in 0..columns {
            let exact: f64 = start
                + (0..k).map(|i| a[row * k + i].to_f64() * b[i * columns + column].to_f64()).sum::<f64>();
            let error = (f64::from(c[row * columns + column]) - exact).abs();
            assert!(error <= 1e-6 * k as f64, "{label}, seed {SEED}, ({row}, {column}): error {error:.2e}");
            worst = worst.max(error);
            squares += error * error;
            norm += exact * exact;
        }
    }
    let relative = (squares / norm).sqrt();
    println!("{label}, seed {SEED}: largest error {worst:.2e}, relative {relative:.2e}");
    assert!(relative < 1e-6, "{label}, seed {SEED}: relative error {relative:.2e}");
}

#[test]
fn a_pipelined_warp_tile_equals_plain_loops() {
    let driver = HostDriver::open();
    for k in [16, 32, 80, 576] {
        let a: Vec<bf16> = numbers(1, 64 * k).into_iter().map(bf16::from_f32).collect();
        let b: Vec<bf16> = numbers(2, k * 32).into_iter().map(bf16::from_f32).collect();
        let (a_buffer, b_buffer) =
            (Buffer::from_slice(&driver, "a", &a).unwrap(), Buffer::from_slice(&driver, "b", &b).unwrap());
        let c = Buffer::new(&driver, "c", 4 * 64 * 32).unwrap();
        let params = TileParams {
            a: a_buffer.address(),
            b: b_buffer.address(),
            c: c.address(),
            k: k as u32,
            repeat: 1,
        };
        run(&driver, "test_mma_64x32", 1, &params).unwrap();
        check_product(&format!("k {k}"), [64, 32, k], &a, &b, &c.to_vec().unwrap(), 0.0);
    }
}

#[test]
fn every_shape_of_warp_tile_equals_plain_loops() {
    let driver = HostDriver::open();
    for (kernel, rows, columns) in [
        ("test_mma_1x1", 16, 8),
        ("test_mma_2x3", 32, 24),
        ("test_mma_3x2", 48, 16),
        ("test_mma_7x8", 112, 64),
    ] {
        let a: Vec<bf16> = numbers(3, rows * 16).into_iter().map(bf16::from_f32).collect();
        let b: Vec<bf16> = numbers(4, 16 * columns).into_iter().map(bf16::from_f32).collect();
        let (a_buffer, b_buffer) =
            (Buffer::from_slice(&driver, "a", &a).unwrap(), Buffer::from_slice(&driver, "b", &b).unwrap());
        let c = Buffer::new(&driver, "c", 4 * rows * columns).unwrap();
        let params =
            TileParams { a: a_buffer.address(), b: b_buffer.address(), c: c.address(), k: 16, repeat: 1 };
        run(&driver, kernel, 1, &params).unwrap();
        check_product(kernel, [rows, columns, 16], &a, &b, &c.to_vec().unwrap(), 1.0);
    }
}

#[test]
fn ldmatrix_gives_each_lane_its_elements() {
    let driver = HostDriver::open();
    let element = |matrix: usize, row: usize, column: usize| (matrix * 64 + row * 8 + column) as u16;
    let words: Vec<u16> = (0..256).collect();
    let matrices = Buffer::from_slice(&driver, "matrices", &words).unwrap();
    let registers = Buffer::new(&driver, "registers", 4 * 256).unwrap();
    run(&driver, "test_ldmatrix", 1, &TwoParams { from: matrices.address(), to: registers.address() })
        .unwrap();
    let registers: Vec<[u16; 2]> = registers.to_vec().unwrap();
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for matrix in 0..4 {
            let plain = [element(matrix, g, 2 * t), element(matrix, g, 2 * t + 1)];
            assert_eq!(registers[4 * lane + matrix], plain, "lane {lane}, matrix {matrix}");
            let transposed = [element(matrix, 2 * t, g), element(matrix, 2 * t + 1, g)];
            assert_eq!(
                registers[128 + 4 * lane + matrix],
                transposed,
                "lane {lane}, matrix {matrix}, transposed"
            );
        }
    }
}

#[test]
fn collectives_equal_plain_loops_in_both_warp_orders() {
    for order in [WarpOrder::Forward, WarpOrder::Reversed] {
        let driver = HostDriver::with_warp_order(order);
        let x = numbers(5, 128);
        let input = Buffer::from_slice(&driver, "x", &x).unwrap();
        let output = Buffer::new(&driver, "y", 4 * 1408).unwrap();
        let words = Buffer::new(&driver, "words", 4 * 388).unwrap();
        driver.fill(words.address(), 0, 4 * 388).unwrap();
        let blocks = 3;
        let params = WarpParams { x: input.address(), y: output.address(), words: words.address() };
        run(&driver, "test_collectives", blocks, &params).unwrap();
        let (y, words): (Vec<f32>, Vec<u32>) = (output.to_vec().unwrap(), words.to_vec().unwrap());
        let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
        for i in 0..128 {
            let (lane, warp) = (i % 32, &x[i / 32 * 32..i / 32 * 32 + 32]);
            let warp_sum: f64 = warp.iter().map(|v| f64::from(*v)).sum();
            let got = &y[11 * i..11 * i + 11];
            let at = format!("seed {SEED}, {order:?}, thread {i}");
            assert_eq!(got[0], warp[3], "{at}: shfl");
            assert_eq!(got[1], warp[(i * 7 + 1) % 32], "{at}: shfl, lane modulo 32");
            assert_eq!(got[2], warp[lane ^ 5], "{at}: shfl_xor");
            assert_eq!(got[3], warp[if lane + 4 < 32 { lane + 4 } else { lane }], "{at}: shfl_down");
            assert_eq!(got[4], warp[if lane >= 9 { lane - 9 } else { lane }], "{at}: shfl_up");
            assert!((f64::from(got[5]) - warp_sum).abs() < 1e-5, "{at}: warp_sum");
            assert_eq!(
                got[5].to_bits(),
                y[11 * (i / 32 * 32) + 5].to_bits(),
                "{at}: warp_sum differs in a lane"
            );
            assert_eq!(got[6], warp.iter().copied().fold(f32::MIN, f32::max), "{at}: warp_max");
            assert!((f64::from(got[7]) - sum).abs() < 1e-5, "{at}: block_sum");
            assert_eq!(got[7].to_bits(), y[7].to_bits(), "{at}: block_sum differs in a thread");
            assert_eq!(got[8], x.iter().copied().fold(f32::MIN, f32::max), "{at}: block_max");
            assert_eq!(got[9], warp[31], "{at}: shfl of 8 bytes");
            let rounding = warp_sum - f64::from(got[5]);
            assert!(
                (f64::from(got[10]) - rounding).abs() < 1e-12,
                "{at}: warp_sum in f64, beyond that in f32"
            );
            let votes = (0..32).fold(0, |votes, lane| votes | u32::from(warp[lane] > 0.0) << lane);
            assert_eq!(words[3 * i], votes, "{at}: ballot");
            assert_eq!(
                words[3 * i + 1],
                (i as u32).wrapping_mul(0x9E37_79B9).count_ones(),
                "{at}: count_bits"
            );
            assert_eq!(words[3 * i + 2], (i as u32).trailing_zeros(), "{at}: lowest_bit");
        }
        assert_eq!(words[384..], [128 * blocks, 128 * blocks - 1, 127 * 64, 127], "{order:?}: atomics");
    }
}

#[test]
fn bf16_rounds_as_the_half_crate_does() {
    let driver = HostDriver::open();
    let mut x = numbers(6, 4096);
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45]);
    // Halfway cases, which round to even, and their neighbours.
    x.extend((0..512).map(|i| f32::from_bits(0x3F80_8000 + i * 0x8000)));
    x.extend((0..512).map(|i| f32::from_bits(0x3F80_8001 + i * 0x8000)));
    let count = x.len();
    let input = Buffer::from_slice(&driver, "x", &x).unwrap();
    let [rounded, packed, widened] = [2, 4, 4].map(|size| Buffer::new(&driver, "out", size * count).unwrap());
    let params = Bf16Params {
        x: input.address(),
        rounded: rounded.address(),
        packed: packed.address(),
        widened: widened.address(),
        count: count as u32,
        unused: 0,
    };
    run(&driver, "test_bf16", (count as u32).div_ceil(128), &params).unwrap();
    let rounded: Vec<bf16> = rounded.to_vec().unwrap();
    let packed: Vec<[u16; 2]> = packed.to_vec().unwrap();
    let widened: Vec<f32> = widened.to_vec().unwrap();
    for i in 0..count {
        let expected = bf16::from_f32(x[i]);
        assert_eq!(rounded[i].to_bits(), expected.to_bits(), "seed {SEED}, {:e}", x[i]);
        assert_eq!(widened[i].to_bits(), expected.to_f32().to_bits(), "seed {SEED}, {:e}", x[i]);
        if i % 2 == 0 && i + 1 < count {
            assert_eq!(
                packed[i / 2],
                [expected.to_bits(), bf16::from_f32(x[i + 1]).to_bits()],
                "pair at {i}"
            );
        }
    }
}

#[test]
fn philox_equals_its_rust_twin_and_the_known_answer() {
    let driver = HostDriver::open();
    let key = Key { seed: 0x0123_4567_89ab_cdef, purpose: Purpose::AttackStart, epoch: 41, step: 7 };
    let words = Buffer::new(&driver, "words", 4 * 128).unwrap();
    let values = Buffer::new(&driver, "symmetric", 4 * 128).unwrap();
    let radius = 8.0 / 255.0;
    let mut params = PhiloxParams {
        words: words.address(),
        symmetric: values.address(),
        seed: [key.seed as u32, (key.seed >> 32) as u32],
        epoch: key.epoch,
        purpose_and_step: key.purpose_and_step(),
        radius,
        block: 17,
    };
    run(&driver, "test_philox", 1, &params).unwrap();
    let (got, uniform): (Vec<u32>, Vec<f32>) = (words.to_vec().unwrap(), values.to_vec().unwrap());
    for sample in 0..32 {
        let expected = key.block(sample, 17);
        for (i, word) in expected.into_iter().enumerate() {
            let place = 4 * sample as usize + i;
            assert_eq!(got[place], word, "sample {sample}, word {i}");
            assert_eq!(
                uniform[place].to_bits(),
                symmetric(word, radius).to_bits(),
                "sample {sample}, word {i}"
            );
        }
    }
    // The published answer for counter 0 and key 0 is that of sample 0.
    params = PhiloxParams { seed: [0; 2], epoch: 0, purpose_and_step: 0, block: 0, ..params };
    run(&driver, "test_philox", 1, &params).unwrap();
    let got: Vec<u32> = words.to_vec().unwrap();
    assert_eq!(got[..4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(got[..4], philox4x32_10([0; 4], [0; 2]));
}

#[test]
fn bad_accesses_name_kernel_buffer_and_place() {
    let driver = HostDriver::open();
    let full = |name| Buffer::from_slice(&driver, name, &vec![1.0f32; 1000]).unwrap();
    let short = |name| Buffer::from_slice(&driver, name, &vec![1.0f32; 900]).unwrap();
    let scale = |x: Address, y: Address| {
        run(&driver, "test_scale", 4, &ScaleParams { x, y, factor: 2.0, count: 1000 })
    };
    let (x, y) = (full("images"), full("gradient"));
    scale(x.address(), y.address()).unwrap();

    let short_x = short("images");
    must_fail(
        scale(short_x.address(), y.address()),
        &[
            "test_scale",
            "block (3, 0, 0), thread 132",
            "'images' (3600 bytes)",
            "offset 3600",
            "out of bounds",
        ],
    );
    let short_y = short("gradient");
    must_fail(
        scale(x.address(), short_y.address()),
        &["test_scale", "'gradient'", "offset 3600", "out of bounds"],
    );
    // Below the start: the offset is negative and the buffer still the right one.
    must_fail(scale(Address(x.address().0 - 4), y.address()), &["'images'", "offset -4", "out of bounds"]);
    must_fail(scale(x.address() + 2, y.address()), &["'images'", "offset 2", "misaligned"]);
    must_fail(scale(Address::NULL, y.address()), &["test_scale", "null device pointer"]);
    must_fail(scale(Address(0x1234), y.address()), &["test_scale", "null device pointer"]);
    must_fail(scale(Address(0xFFFF_FFFF_0000_0000), y.address()), &["not a device address"]);

    let freed = full("activations");
    let address = freed.address();
    drop(freed);
    must_fail(scale(address, y.address()), &["test_scale", "'activations'", "use after free"]);
    // A new allocation does not bring the old address back to life.
    let _again = full("others");
    must_fail(scale(address, y.address()), &["'activations'", "use after free"]);
}

#[test]
fn copies_outside_a_buffer_are_errors() {
    let driver = HostDriver::open();
    let buffer = Buffer::new(&driver, "losses", 64).unwrap();
    let mut bytes = [0; 65];
    let message = driver.read(buffer.address(), &mut bytes).unwrap_err().to_string();
    assert!(message.contains("'losses'") && message.contains("out of bounds"), "{message}");
    driver.write(buffer.address(), &[7; 64]).unwrap();
    driver.copy(buffer.address(), buffer.address() + 32, 32).unwrap();
    assert!(driver.copy(buffer.address(), buffer.address() + 33, 32).is_err());
    assert!(driver.fill(buffer.address() + 60, 0, 5).is_err());
    driver.fill(buffer.address() + 60, 0, 4).unwrap();
    let content: Vec<u8> = buffer.to_vec().unwrap();
    assert_eq!(content[..60], [7; 60]);
    assert_eq!(content[60..], [0; 4]);
    // An empty buffer can be made, read and freed.
    let empty = Buffer::new(&driver, "empty", 0).unwrap();
    assert!(empty.to_vec::<f32>().unwrap().is_empty());
}

/// Runs a `fault_*` kernel right (0) or with a fault; the output where it ends well.
fn inject(driver: &Rc<dyn Driver>, kernel: &str, injected: u32) -> Result<Vec<f32>, String> {
    let x = Buffer::from_slice(driver, "input", &numbers(8, 256)).unwrap();
    let y = Buffer::new(driver, "output", 4 * 128).unwrap();
    run(driver, kernel, 1, &FaultParams { x: x.address(), y: y.address(), injected, unused: 0 })?;
    Ok(y.to_vec().unwrap())
}

#[test]
fn a_misaligned_vector_access_is_an_error() {
    let driver = HostDriver::open();
    assert_eq!(inject(&driver, "fault_misaligned_vector", 0).unwrap(), numbers(8, 128));
    assert_eq!(inject(&driver, "fault_misaligned_vector", 4).unwrap(), numbers(8, 132)[4..]);
    let failed = inject(&driver, "fault_misaligned_vector", 1).map(drop);
    must_fail(failed, &["fault_misaligned_vector", "'input'", "16 bytes at byte offset 4", "misaligned"]);
}

#[test]
fn a_missing_copy_wait_leaves_nan() {
    let driver = HostDriver::open();
    assert_eq!(inject(&driver, "fault_missing_copy_wait", 0).unwrap(), numbers(8, 128));
    assert!(inject(&driver, "fault_missing_copy_wait", 1).unwrap().iter().all(|v| v.is_nan()));
}

#[test]
fn device_memory_before_the_wait_for_prerequisites_is_an_error() {
    let driver = HostDriver::open();
    assert_eq!(inject(&driver, "fault_early_access", 0).unwrap(), numbers(8, 128));
    for (injected, thread) in [(1, "thread 0"), (2, "thread 0"), (3, "thread 0"), (4, "thread 16")] {
        let failed = inject(&driver, "fault_early_access", injected).map(drop);
        must_fail(failed, &["fault_early_access", thread, "before wait_for_prerequisites()"]);
    }
}

#[test]
fn a_missing_barrier_shows() {
    for order in [WarpOrder::Forward, WarpOrder::Reversed] {
        let driver = HostDriver::with_warp_order(order);
        let reversed: Vec<f32> = numbers(8, 128).into_iter().rev().collect();
        assert_eq!(inject(&driver, "fault_missing_barrier", 0).unwrap(), reversed, "{order:?}");
        let unset = inject(&driver, "fault_missing_barrier", 1).unwrap();
        assert!(unset.iter().filter(|v| v.is_nan()).count() >= 32, "{order:?}");
    }
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_an_error() {
    let driver = HostDriver::open();
    assert_eq!(inject(&driver, "fault_divergent_barrier", 0).unwrap(), numbers(8, 128));
    let left = inject(&driver, "fault_divergent_barrier", 1).map(drop);
    must_fail(
        left,
        &[
            "fault_divergent_barrier",
            "deadlock",
            "64 threads (the first is 0) at syncthreads",
            "64 threads (the first is 64) at its end",
        ],
    );
    let left = inject(&driver, "fault_divergent_barrier", 2).map(drop);
    must_fail(left, &["deadlock", "at syncthreads", "at its end"]);
    // The emulator is whole after a failed block.
    assert_eq!(inject(&driver, "fault_divergent_barrier", 0).unwrap(), numbers(8, 128));
}

#[test]
fn lanes_at_different_collectives_are_an_error() {
    let driver = HostDriver::open();
    inject(&driver, "fault_divergent_collective", 0).unwrap();
    let failed = inject(&driver, "fault_divergent_collective", 1).map(drop);
    must_fail(failed, &["fault_divergent_collective", "lane 16 is at ballot while lane 0 waits at shfl"]);
    let failed = inject(&driver, "fault_divergent_collective", 2).map(drop);
    must_fail(failed, &["lane 16 is at shfl while lane 0 waits at shfl of another type or size"]);
}

#[test]
fn writing_past_shared_memory_is_an_error() {
    let driver = HostDriver::open();
    assert_eq!(inject(&driver, "fault_shared_overrun", 0).unwrap(), numbers(8, 128));
    let failed = inject(&driver, "fault_shared_overrun", 1).map(drop);
    must_fail(failed, &["fault_shared_overrun", "outside its shared memory of 512 bytes"]);
    let failed = inject(&driver, "fault_copy_outside_shared", 1).map(drop);
    must_fail(failed, &["fault_copy_outside_shared", "cp.async to outside"]);
    let failed = inject(&driver, "fault_misaligned_matrix", 1).map(drop);
    must_fail(failed, &["fault_misaligned_matrix", "not aligned to 16 bytes"]);
}

#[test]
fn a_struct_of_the_wrong_size_is_an_error() {
    let driver = HostDriver::open();
    let params = TwoParams { from: Address::NULL, to: Address::NULL };
    must_fail(run(&driver, "test_scale", 1, &params), &["test_scale", "16 bytes", "24"]);
    must_fail(run(&driver, "no_such_kernel", 1, &params), &["no_such_kernel"]);
}
