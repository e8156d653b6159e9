//! Each fault of an asynchronous kernel that the emulator promises to catch, injected: as an error that names it, or as a wrong
//! result in the order that brings it out. The kernels are in `kernels/extra/tests/hopper_faults.cu`.

use std::rc::Rc;

use bytemuck::{Pod, Zeroable};
use secateur::cuda::driver::host::{AsyncOrder, WarpOrder};
use secateur::cuda::driver::{Address, Driver, Swizzle, TensorMap, TiledMap};

use crate::common::hopper::{emulator, emulators, matrix_map, product, run};
use crate::common::{Bound, Output, Random, assert_close, input};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PipelineParams {
    a: TensorMap,
    b: TensorMap,
    c: Address,
    k: u32,
    injected: u32,
    unused: [u32; 12],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct StoredParams {
    a: Address,
    b: Address,
    c: Address,
    injected: u32,
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct StagingParams {
    to: TensorMap,
    from: Address,
    boxes: u32,
    injected: u32,
    unused: [u32; 12],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BarrierParams {
    to: Address,
    injected: u32,
    unused: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TurnsParams {
    from: Address,
    to: Address,
    tiles: u32,
    injected: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SwapParams {
    from: Address,
    to: Address,
    rounds: u32,
    injected: u32,
}

/// `Injected` of the kernel file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Injected {
    Nothing,
    MissingFullWait,
    EarlyRelease,
    MissingWgmmaFence,
    TooManyBytesExpected,
    TooFewBytesExpected,
    MismatchedDescriptors,
    MissingCommit,
    MissingWgmmaWait,
    UninitialisedBarrier,
    OperandOutsideShared,
    TooManyArrivals,
    DivergentProducts,
    LoadLeftBehind,
    MisalignedBox,
    UnswizzledDescriptor,
    LoadBeforePrerequisites,
}

const BOUND: Bound = Bound { absolute: 1e-3, relative: 1e-5, whole: 1e-6 };
const LATE: AsyncOrder = AsyncOrder::Late;
const EARLY: AsyncOrder = AsyncOrder::Early;

/// The error of a launch that must fail, which must hold all of `parts`.
fn must_fail<T>(result: Result<T, String>, parts: &[&str]) {
    let Err(message) = result else { panic!("the fault was not caught: no '{}'", parts.join("', no '")) };
    println!("{message}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is missing in: {message}");
    }
}

/// The product of the pipeline with a fault in it, and the right one.
fn pipeline(driver: &Rc<dyn Driver>, injected: Injected) -> Result<(Vec<f32>, Vec<f64>), String> {
    let k = 384;
    let mut random = Random::new(1);
    let (a, b) = (random.bf16s(64 * k, 1.0), random.bf16s(64 * k, 1.0));
    let expected = product([64, 64, k], |i, k_at| a[i * k + k_at], |k_at, j| b[j * k + k_at]);
    let (a, b) = (input(driver, "a", &a), input(driver, "b", &b));
    let c = Output::new::<f32>(driver, "c", 64 * 64);
    let params = PipelineParams {
        a: driver.tensor_map(&matrix_map(a.address(), 64, k, 64).into()).unwrap(),
        b: driver.tensor_map(&matrix_map(b.address(), 64, k, 64).into()).unwrap(),
        c: c.address(),
        k: k as u32,
        injected: injected as u32,
        ..Zeroable::zeroed()
    };
    run(driver, "fault_pipeline", 1, &params)?;
    Ok((c.read(), expected))
}

#[test]
fn the_pipeline_without_a_fault_is_right_in_every_order() {
    for (order, driver) in emulators() {
        let (actual, expected) = pipeline(&driver, Injected::Nothing).unwrap();
        assert_close(&order, &actual, &expected, BOUND);
    }
}

#[test]
fn a_missing_wait_for_a_load_is_an_error_or_leaves_nan() {
    for order in [WarpOrder::Forward, WarpOrder::Reversed] {
        match pipeline(&emulator(order, LATE), Injected::MissingFullWait) {
            Ok((actual, _)) => assert!(actual.iter().all(|v| v.is_nan()), "{order:?}"),
            // The producer finds its barrier released while the bytes of the phase before have not come.
            Err(message) => {
                let parts = ["more than the 1 arrivals", "which a load still under way is to write"];
                assert!(parts.iter().any(|part| message.contains(part)), "{message}");
            }
        }
    }
}

#[test]
fn a_buffer_released_before_its_products_are_done_is_overwritten() {
    for order in [WarpOrder::Forward, WarpOrder::Reversed] {
        must_fail(
            pipeline(&emulator(order, EARLY), Injected::EarlyRelease),
            &["operand A (start 0) changed between the wgmma and its wgmma_wait", "released too early"],
        );
    }
}

#[test]
fn faults_of_the_pipeline_are_errors_in_every_order() {
    for (injected, parts) in [
        (Injected::MissingWgmmaFence, &["no wgmma_fence since the last wgmma_wait"][..]),
        (
            Injected::TooManyBytesExpected,
            &["deadlock", "at mbarrier_wait, byte 32768", "parity 0", "16 bytes missing"],
        ),
        (
            Injected::TooFewBytesExpected,
            &["deadlock", "at mbarrier_wait, byte 32768", "16 bytes more than expected"],
        ),
        (Injected::MismatchedDescriptors, &["thread", "of the warpgroup", "all threads must issue the same"]),
        (Injected::MissingCommit, &["still under way at the end of the kernel", "no wgmma_commit"]),
        (Injected::MissingWgmmaWait, &["still under way at the end of the kernel", "no wgmma_wait"]),
        (Injected::UninitialisedBarrier, &["used before mbarrier_init"]),
        (
            Injected::OperandOutsideShared,
            &["operand B", "stride 24576", "reaches byte", "bytes of shared memory"],
        ),
        (Injected::DivergentProducts, &["all threads must issue the same"]),
        (Injected::MisalignedBox, &["byte 64 of shared memory", "aligned to 128 bytes"]),
        (Injected::UnswizzledDescriptor, &["the descriptor of A", "not of the 128-byte swizzle"]),
        (Injected::LoadBeforePrerequisites, &["thread 128", "before wait_for_prerequisites()"]),
    ] {
        for (order, driver) in emulators() {
            println!("{injected:?}, {order}");
            must_fail(pipeline(&driver, injected), parts);
        }
    }
    for order in [WarpOrder::Forward, WarpOrder::Reversed] {
        must_fail(
            pipeline(&emulator(order, LATE), Injected::TooManyArrivals),
            &["more than the 1 arrivals of a phase"],
        );
        must_fail(
            pipeline(&emulator(order, LATE), Injected::LoadLeftBehind),
            &["still under way at the end of the kernel", "nobody waited for it"],
        );
    }
    // The emulator is whole after failed blocks.
    let (actual, expected) = pipeline(&emulator(WarpOrder::Forward, LATE), Injected::Nothing).unwrap();
    assert_close("after failures", &actual, &expected, BOUND);
}

#[test]
fn operands_from_ordinary_stores_need_the_fence() {
    let mut random = Random::new(2);
    let (a, b) = (random.bf16s(64 * 64, 1.0), random.bf16s(64 * 64, 1.0));
    let expected = product([64, 64, 64], |i, k| a[i * 64 + k], |k, j| b[j * 64 + k]);
    for (order, driver) in emulators() {
        let (a, b) = (input(&driver, "a", &a), input(&driver, "b", &b));
        let multiply = |injected| {
            let c = Output::new::<f32>(&driver, "c", 64 * 64);
            let params = StoredParams { a: a.address(), b: b.address(), c: c.address(), injected, unused: 0 };
            run(&driver, "fault_stored_operands", 1, &params).map(|()| c.read::<f32>())
        };
        assert_close(&order, &multiply(0).unwrap(), &expected, BOUND);
        let unfenced = "written by ordinary stores without fence_async_proxy";
        must_fail(multiply(1), &["wgmma reads byte 0 of shared memory", unfenced]);
        must_fail(multiply(2), &["wgmma reads byte", unfenced]);
        must_fail(multiply(3), &["wgmma reads byte 8192 of shared memory", unfenced]);
        if order.contains("Early") {
            must_fail(multiply(4), &["no barrier stands between those who write it and the wgmma"]);
        }
    }
}

/// Rows of 32 words, in boxes of four rows.
fn rows_of_words(address: Address, boxes: u32) -> TiledMap {
    TiledMap {
        address,
        element_bytes: 4,
        dims: vec![32, 4 * u64::from(boxes)],
        strides: vec![128],
        box_dims: vec![32, 4],
        element_strides: vec![1, 1],
        swizzle: Swizzle::None,
    }
}

#[test]
fn stores_need_their_waits_commits_and_fences() {
    let boxes = 6;
    let words: Vec<u32> = (0..128 * boxes).map(|i| i * 0x9E37_79B9).collect();
    for (order, driver) in emulators() {
        let from = input(&driver, "from", &words);
        let store = |injected| {
            let to = Output::new::<u32>(&driver, "to", words.len());
            let map = rows_of_words(to.address(), boxes);
            let map = driver.tensor_map(&map.into()).unwrap();
            let params =
                StagingParams { to: map, from: from.address(), boxes, injected, ..Zeroable::zeroed() };
            run(&driver, "fault_staging", 1, &params).map(|()| to.read::<u32>())
        };
        assert_eq!(store(0).unwrap(), words, "{order}");
        // What the end of the kernel waits for is right as well.
        assert_eq!(store(5).unwrap(), words, "{order}");
        must_fail(store(2), &["no tma_store_commit before the end"]);
        must_fail(store(3), &["tma_store reads byte 0", "without fence_async_proxy"]);
        if order.contains("Late") {
            assert_ne!(store(1).unwrap(), words, "{order}: the reused buffer was not seen");
        }
    }
    // A store at once, while other warps have not written yet.
    let driver = emulator(WarpOrder::Forward, EARLY);
    let from = input(&driver, "from", &words);
    let to = Output::new::<u32>(&driver, "to", words.len());
    let map = rows_of_words(to.address(), boxes);
    let map = driver.tensor_map(&map.into()).unwrap();
    let params = StagingParams { to: map, from: from.address(), boxes, injected: 4, ..Zeroable::zeroed() };
    run(&driver, "fault_staging", 1, &params).unwrap();
    assert_ne!(to.read::<u32>(), words, "the missing barrier was not seen");
}

#[test]
fn barriers_that_never_fill_are_errors_that_say_who_waits_where() {
    for (_, driver) in emulators() {
        let to = Output::new::<u32>(&driver, "to", 64);
        let meet = |injected| {
            run(&driver, "fault_barriers", 1, &BarrierParams { to: to.address(), injected, unused: 0 })
        };
        meet(0).unwrap();
        assert_eq!(to.read::<u32>(), (0..64).collect::<Vec<_>>());
        must_fail(
            meet(1),
            &[
                "block (0, 0, 0), thread",
                ": barrier done: waited for more than 1 s; \
                 deadlock: 64 threads (the first is 0) at mbarrier_wait, byte 0 of shared memory, parity 0: 1 of 65 arrivals missing",
            ],
        );
        must_fail(meet(2), &["named_barrier_sync"]);
        must_fail(
            meet(3),
            &["32 threads (the first is 0) at named_barrier_sync", "32 threads (the first is 32) at its end"],
        );
    }
}

#[test]
fn whoever_passes_over_a_phase_takes_an_old_one_for_it() {
    let words: Vec<u32> = (0..32 * 8).map(|i| i * 0x9E37_79B9).collect();
    for (order, driver) in emulators() {
        let from = input(&driver, "from", &words);
        let turns = |injected| {
            let to = Output::new::<u32>(&driver, "to", words.len());
            let params = TurnsParams { from: from.address(), to: to.address(), tiles: 8, injected };
            run(&driver, "fault_turns", 1, &params).map(|()| to.read::<u32>() == words)
        };
        assert!(turns(0).unwrap(), "{order}");
        if order.contains("Late") {
            assert!(!turns(1).is_ok_and(|right| right), "{order}: the phase passed over was not seen");
        }
    }
}

#[test]
fn stores_to_another_block_need_its_barrier_its_wait_and_its_presence() {
    for (order, driver) in emulators() {
        println!("{order}");
        let swap = |injected, rounds: usize| {
            let of_a_block = 64 * 4 * rounds;
            let words: Vec<u32> = (0..2 * of_a_block as u32).map(|i| i * 0x9E37_79B9).collect();
            let swapped = [&words[of_a_block..], &words[..of_a_block]].concat();
            let from = input(&driver, "from", &words);
            let to = Output::new::<u32>(&driver, "to", words.len());
            let params =
                SwapParams { from: from.address(), to: to.address(), rounds: rounds as u32, injected };
            run(&driver, "fault_store_remote", 2, &params).map(|()| to.read::<u32>() == swapped)
        };
        assert!(swap(0, 3).unwrap(), "{order}");
        must_fail(swap(1, 3), &["store_remote", "block", "may not be initialised yet", "no cluster_sync"]);
        must_fail(
            swap(3, 3),
            &["mbarrier_wait, byte 1024", "another block stored", "only mbarrier_wait_cluster"],
        );
        must_fail(swap(6, 3), &["store_remote: byte", "of shared memory, expected a multiple of 16"]);
        must_fail(swap(7, 3), &["store_remote: block 2 of a cluster of 2"]);
        // A block that does not wait has gone when the words come.
        must_fail(swap(2, 1), &["store_remote: block", "left the kernel"]);
        if order.contains("Late") {
            must_fail(swap(5, 3), &["block 1 of the cluster", "left the kernel"]);
        } else {
            // The words of the next round overwrite those that were not read.
            let seen = !swap(4, 3).is_ok_and(|right| right);
            assert!(seen, "{order}: the place written too early was not seen");
        }
    }
}

#[test]
fn a_kernel_without_its_tensor_map_says_so() {
    let driver = emulator(WarpOrder::Forward, LATE);
    let c = Output::new::<f32>(&driver, "c", 64 * 64);
    let params = PipelineParams { c: c.address(), k: 64, ..Zeroable::zeroed() };
    must_fail(run(&driver, "fault_pipeline", 1, &params), &["tma_load: no tensor map", "Driver::tensor_map"]);
}
