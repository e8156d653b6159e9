//! Sums over the GPUs of a group, through NCCL. Nothing here is linked: libnccl is loaded when a GPU joins a group, and its absence is
//! an ordinary error.
//!
//! Work goes to the driver's own stream, in order with the kernels: a sum begins when the backward pass before it has ended. One
//! thread drives one communicator, so no call needs ncclGroupStart.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use cudarc::nccl::sys::{
    cudaStream_t, is_culib_present, ncclAllReduce, ncclComm_t, ncclCommAbort, ncclCommDestroy,
    ncclCommGetAsyncError, ncclCommInitRank, ncclDataType_t, ncclGetErrorString, ncclGetUniqueId,
    ncclRedOp_t, ncclResult_t, ncclUniqueId,
};

use super::Address;
use crate::collective::Collective;
use crate::engine::{Error, Result};

/// What becomes of the values of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    /// The sum over the number of ranks.
    Mean,
}

/// Memory of this device reduced with that of the other ranks' devices.
pub trait DeviceGroup {
    /// Replaces `len` f32 by those of all ranks reduced; asynchronous, as a launch is.
    fn all_reduce(&self, address: Address, len: usize, reduction: Reduction) -> Result<()>;
    /// Gives up whatever is under way, where a rank has ended and no sum will.
    fn abort(&self);
}

/// What the ranks of a communicator connect by.
type UniqueId = [u8; 128];

/// The calls of NCCL that a group makes, so that a test can stand in for the library. Their names are NCCL's, in NCCL's documentation.
pub(super) trait Nccl {
    type Communicator: Copy;

    fn get_unique_id(&self) -> Result<UniqueId>;
    fn comm_init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> Result<Self::Communicator>;
    /// In place, of f32.
    fn all_reduce(
        &self,
        address: Address,
        len: usize,
        reduction: Reduction,
        communicator: Self::Communicator,
    ) -> Result<()>;
    fn comm_get_async_error(&self, communicator: Self::Communicator) -> Result<()>;
    /// For work that has ended.
    fn comm_destroy(&self, communicator: Self::Communicator) -> Result<()>;
    /// For work that never will.
    fn comm_abort(&self, communicator: Self::Communicator) -> Result<()>;
    /// Waits for the stream of [`Nccl::all_reduce`].
    fn synchronize(&self) -> Result<()>;
}

/// A communicator of a group's GPUs.
pub(super) struct NcclGroup<N: Nccl> {
    nccl: N,
    communicator: Cell<Option<N::Communicator>>,
}

impl<N: Nccl> NcclGroup<N> {
    /// A communicator with the GPUs of the other ranks; `group` carries the identifier.
    pub fn new(nccl: N, group: &dyn Collective) -> Result<Self> {
        let own = if group.rank() == 0 { nccl.get_unique_id()?.to_vec() } else { Vec::new() };
        let id = group.broadcast("the NCCL identifier", own)?;
        let id: UniqueId = id[..].try_into().map_err(|_| {
            Error::Invalid(format!(
                "NCCL identifier of {} bytes, expected {}",
                id.len(),
                size_of::<UniqueId>()
            ))
        })?;
        let communicator = nccl.comm_init_rank(group.ranks(), &id, group.rank())?;
        Ok(Self { nccl, communicator: Cell::new(Some(communicator)) })
    }
}

impl<N: Nccl> DeviceGroup for NcclGroup<N> {
    fn all_reduce(&self, address: Address, len: usize, reduction: Reduction) -> Result<()> {
        let communicator = self
            .communicator
            .get()
            .ok_or_else(|| Error::Invalid("NCCL: the communicator was given up when a rank ended".into()))?;
        self.nccl.comm_get_async_error(communicator)?;
        self.nccl.all_reduce(address, len, reduction, communicator)
    }

    fn abort(&self) {
        if let Some(communicator) = self.communicator.take() {
            // The error that led here is the one to report.
            let _ = self.nccl.comm_abort(communicator);
        }
    }
}

impl<N: Nccl> Drop for NcclGroup<N> {
    fn drop(&mut self) {
        let Some(communicator) = self.communicator.take() else { return };
        // Other ranks may still need what this one's last sum sends.
        let _ = match self.nccl.synchronize() {
            Ok(()) => self.nccl.comm_destroy(communicator),
            Err(_) => self.nccl.comm_abort(communicator),
        };
    }
}

/// The library itself, on a stream of the GPU whose context is current.
pub(super) struct Library {
    stream: cudaStream_t,
    synchronize: Box<dyn Fn() -> Result<()>>,
}

impl Library {
    /// # Errors
    /// [`Error::Unavailable`] where the library is not there.
    pub fn load(
        stream: cudarc::driver::sys::CUstream,
        synchronize: impl Fn() -> Result<()> + 'static,
    ) -> Result<Self> {
        // SAFETY: looks for the library by the names that the system knows it by.
        if !unsafe { is_culib_present() } {
            return Err(Error::Unavailable(
                "several GPUs need NCCL, and libnccl.so was not found: install it (libnccl2, or pip install \
                 nvidia-nccl-cu12 with its folder in LD_LIBRARY_PATH), or train on one GPU"
                    .into(),
            ));
        }
        Ok(Self { stream: stream.cast(), synchronize: Box::new(synchronize) })
    }
}

/// A failed call of NCCL as an error.
fn checked(call: &'static str, result: ncclResult_t) -> Result<()> {
    if result == ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: the library is loaded; the text is static and ends with a zero.
    let text = unsafe { CStr::from_ptr(ncclGetErrorString(result)) };
    let message = format!("{} ({result:?}); NCCL_DEBUG=WARN tells more", text.to_string_lossy());
    Err(Error::Driver { call, message })
}

impl Nccl for Library {
    type Communicator = ncclComm_t;

    fn get_unique_id(&self) -> Result<UniqueId> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: the identifier is memory of its type.
        checked("ncclGetUniqueId", unsafe { ncclGetUniqueId(&mut id) })?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    fn comm_init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> Result<ncclComm_t> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut communicator = ptr::null_mut();
        // SAFETY: the GPU's context is current; the communicator is memory of its type.
        let result = unsafe { ncclCommInitRank(&mut communicator, ranks as i32, id, rank as i32) };
        checked("ncclCommInitRank", result)?;
        Ok(communicator)
    }

    fn all_reduce(
        &self,
        address: Address,
        len: usize,
        reduction: Reduction,
        communicator: ncclComm_t,
    ) -> Result<()> {
        let memory = address.0 as *mut c_void;
        let operation = match reduction {
            Reduction::Sum => ncclRedOp_t::ncclSum,
            Reduction::Mean => ncclRedOp_t::ncclAvg,
        };
        let float = ncclDataType_t::ncclFloat32;
        // SAFETY: the range is memory of the GPU that joined, freed only when all work of this stream is done; the communicator is
        // alive.
        let result =
            unsafe { ncclAllReduce(memory, memory, len, float, operation, communicator, self.stream) };
        checked("ncclAllReduce", result)
    }

    fn comm_get_async_error(&self, communicator: ncclComm_t) -> Result<()> {
        let mut error = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive; the error is memory of its type.
        checked("ncclCommGetAsyncError", unsafe { ncclCommGetAsyncError(communicator, &mut error) })?;
        checked("an earlier call of NCCL", error)
    }

    fn comm_destroy(&self, communicator: ncclComm_t) -> Result<()> {
        // SAFETY: the communicator is alive, and nobody uses it after this.
        checked("ncclCommDestroy", unsafe { ncclCommDestroy(communicator) })
    }

    fn comm_abort(&self, communicator: ncclComm_t) -> Result<()> {
        // SAFETY: the communicator is alive, and nobody uses it after this.
        checked("ncclCommAbort", unsafe { ncclCommAbort(communicator) })
    }

    fn synchronize(&self) -> Result<()> {
        (self.synchronize)()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;
    use crate::collective::Threads;

    /// What one rank asked of NCCL.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Call {
        UniqueId,
        Init { ranks: usize, rank: usize },
        AsyncError,
        AllReduce { address: u64, len: usize, reduction: Reduction },
        Synchronize,
        Destroy,
        Abort,
    }

    /// Keeps the calls, and refuses what NCCL's documentation does not allow.
    struct Recorder<'a> {
        calls: &'a Mutex<Vec<Call>>,
        fails: bool,
    }

    const ID: UniqueId = [7; 128];
    /// Stands for a communicator.
    const HANDLE: u32 = 42;

    impl Recorder<'_> {
        fn keep(&self, call: Call, communicator: Option<u32>) -> Result<()> {
            let mut calls = self.calls.lock().unwrap();
            let begun = calls.iter().any(|call| matches!(call, Call::Init { .. }));
            let over = calls.iter().any(|call| matches!(call, Call::Destroy | Call::Abort));
            assert!(!over, "{call:?} after the communicator has gone");
            if let Some(handle) = communicator {
                assert!(begun && handle == HANDLE, "{call:?} on no communicator");
            } else {
                assert!(!begun, "{call:?} twice");
            }
            calls.push(call);
            Ok(())
        }
    }

    impl Nccl for Recorder<'_> {
        type Communicator = u32;

        fn get_unique_id(&self) -> Result<UniqueId> {
            self.keep(Call::UniqueId, None)?;
            Ok(ID)
        }
        fn comm_init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> Result<u32> {
            assert_eq!(*id, ID, "the identifier of rank 0");
            assert!(rank < ranks);
            self.keep(Call::Init { ranks, rank }, None)?;
            Ok(HANDLE)
        }
        fn all_reduce(
            &self,
            address: Address,
            len: usize,
            reduction: Reduction,
            communicator: u32,
        ) -> Result<()> {
            assert!(len > 0 && address != Address::NULL);
            self.keep(Call::AllReduce { address: address.0, len, reduction }, Some(communicator))
        }
        fn comm_get_async_error(&self, communicator: u32) -> Result<()> {
            self.keep(Call::AsyncError, Some(communicator))?;
            match self.fails {
                true => {
                    Err(Error::Driver { call: "an earlier call of NCCL", message: "remote error".into() })
                }
                false => Ok(()),
            }
        }
        fn comm_destroy(&self, communicator: u32) -> Result<()> {
            let waited = self.calls.lock().unwrap().last() == Some(&Call::Synchronize);
            assert!(waited, "work may be under way");
            self.keep(Call::Destroy, Some(communicator))
        }
        fn comm_abort(&self, communicator: u32) -> Result<()> {
            self.keep(Call::Abort, Some(communicator))
        }
        fn synchronize(&self) -> Result<()> {
            self.keep(Call::Synchronize, Some(HANDLE))?;
            if self.fails { Err(Error::Invalid("the stream has failed".into())) } else { Ok(()) }
        }
    }

    fn calls_of(ranks: usize, fails: bool, work: impl Fn(&NcclGroup<Recorder>) + Sync) -> Vec<Vec<Call>> {
        let kept: Vec<Mutex<Vec<Call>>> = (0..ranks).map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            for (group, calls) in Threads::group(ranks).into_iter().zip(&kept) {
                let work = &work;
                scope.spawn(move || work(&NcclGroup::new(Recorder { calls, fails }, &group).unwrap()));
            }
        });
        kept.into_iter().map(|calls| calls.into_inner().unwrap()).collect()
    }

    #[test]
    fn every_rank_makes_the_same_calls_in_the_same_order() {
        let (gradients, statistics) = (Address(0x1000), Address(0x9000));
        let kept = calls_of(3, false, |group| {
            group.all_reduce(gradients, 5000, Reduction::Sum).unwrap();
            group.all_reduce(statistics, 96, Reduction::Mean).unwrap();
        });
        for (rank, calls) in kept.iter().enumerate() {
            let mut expected = vec![
                Call::Init { ranks: 3, rank },
                Call::AsyncError,
                Call::AllReduce { address: 0x1000, len: 5000, reduction: Reduction::Sum },
                Call::AsyncError,
                Call::AllReduce { address: 0x9000, len: 96, reduction: Reduction::Mean },
                Call::Synchronize,
                Call::Destroy,
            ];
            if rank == 0 {
                expected.insert(0, Call::UniqueId);
            }
            assert_eq!(*calls, expected, "rank {rank}");
        }
    }

    #[test]
    fn a_group_that_has_failed_is_aborted_and_not_waited_for() {
        let given_up = calls_of(2, false, |group| {
            group.abort();
            let error = group.all_reduce(Address(1), 1, Reduction::Sum).unwrap_err();
            assert!(error.to_string().contains("given up"), "{error}");
        });
        let failed = calls_of(2, true, |group| {
            let error = group.all_reduce(Address(1), 1, Reduction::Sum).unwrap_err();
            assert!(error.to_string().contains("remote error"), "{error}");
        });
        for calls in given_up.iter().chain(&failed) {
            assert_eq!(calls.last(), Some(&Call::Abort), "{calls:?}");
            assert!(!calls.iter().any(|call| matches!(call, Call::AllReduce { .. })), "{calls:?}");
        }
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_do() {
        // SAFETY: as in `load`.
        if unsafe { is_culib_present() } {
            return;
        }
        let error = Library::load(ptr::null_mut(), || Ok(())).err().unwrap();
        assert!(matches!(&error, Error::Unavailable(text) if text.contains("libnccl")), "{error}");
    }
}
