//! The MPI calls in use. None blocks, except for initialisation and finalisation. The caller must hold the
//! hub's lock.

use std::ffi::{c_char, c_int};
use std::mem::{ManuallyDrop, MaybeUninit};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::AsRaw;

use super::MpiError;

/// The maximum length of a message, bytes.
pub(super) const MESSAGE: usize = 96 << 10;

/// A result with MPI's error message.
pub(super) type Outcome<T> = Result<T, String>;

/// A buffer for one message.
pub(super) struct Buffer {
    room: Box<[u8]>,
    length: usize,
}

impl Buffer {
    pub fn new() -> Self {
        Self { room: vec![0; MESSAGE].into(), length: 0 }
    }

    /// Copies as much of `bytes` as fits a message, and returns the number of bytes.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        self.length = bytes.len().min(MESSAGE);
        self.room[..self.length].copy_from_slice(&bytes[..self.length]);
        self.length
    }

    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }
}

/// A message in flight.
pub(super) struct Pending {
    request: ffi::MPI_Request,
    /// The memory that MPI reads or writes until the request is complete.
    buffer: ManuallyDrop<Buffer>,
    complete: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.complete {
            // SAFETY: MPI no longer uses it, and it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.buffer) }
        }
        // Otherwise MPI may still access it, so it is leaked.
    }
}

impl Pending {
    /// Whether [`Calls::test`] has found it complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The buffer, once the request is complete.
    pub fn into_buffer(mut self) -> Buffer {
        let buffer = std::mem::replace(&mut *self.buffer, Buffer { room: Box::default(), length: 0 });
        // The buffer has been taken, so MPI no longer uses it.
        self.complete = true;
        buffer
    }
}

// SAFETY: a request and a communicator are handles of MPI (a pointer or a number); with THREAD_SERIALIZED any
// thread may use them, one at a time, which the hub's lock ensures.
unsafe impl Send for Pending {}
// SAFETY: as above.
unsafe impl Send for Calls {}

/// MPI, between initialisation and finalisation.
pub(super) struct Calls {
    /// A communicator of our own, separate from other users of MPI in this process. Dropped before the
    /// universe.
    communicator: SimpleCommunicator,
    universe: Universe,
}

impl Calls {
    pub fn initialise() -> Result<Self, MpiError> {
        let (universe, provided) =
            mpi::initialize_with_threading(Threading::Serialized).ok_or(MpiError::Twice)?;
        if provided < Threading::Serialized {
            return Err(MpiError::Threads { library: library() });
        }
        let communicator = universe.world().duplicate();
        // SAFETY: the communicator is live.
        let outcome =
            unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
        check(outcome).map_err(MpiError::Library)?;
        Ok(Self { communicator, universe })
    }

    pub fn rank(&self) -> usize {
        self.communicator.rank() as usize
    }

    pub fn size(&self) -> usize {
        self.communicator.size() as usize
    }

    /// Starts a synchronous send, which completes once the receiver has begun to receive.
    pub fn send(&self, buffer: Buffer, to: usize, tag: c_int) -> Outcome<Pending> {
        let mut request = MaybeUninit::uninit();
        let buffer = ManuallyDrop::new(buffer);
        // SAFETY: the bytes are on the heap, and `Pending` keeps them there until the request is complete.
        let outcome = unsafe {
            ffi::MPI_Issend(
                buffer.room.as_ptr().cast(),
                buffer.length as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                self.communicator.as_raw(),
                request.as_mut_ptr(),
            )
        };
        check(outcome)?;
        // SAFETY: the call succeeded, so it has written the request.
        Ok(Pending { request: unsafe { request.assume_init() }, buffer, complete: false })
    }

    /// Starts to receive the next message with this tag, from one process or from any, if there is one.
    pub fn take(
        &self,
        from: Option<usize>,
        tag: c_int,
        spare: &mut Vec<Buffer>,
    ) -> Outcome<Option<(usize, Pending)>> {
        let (mut found, mut length) = (0, 0);
        let mut message = MaybeUninit::uninit();
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: the static is a constant of the library.
        let anybody = unsafe { ffi::RSMPI_ANY_SOURCE };
        // SAFETY: all places outlive the call.
        check(unsafe {
            ffi::MPI_Improbe(
                from.map_or(anybody, |from| from as c_int),
                tag,
                self.communicator.as_raw(),
                &raw mut found,
                message.as_mut_ptr(),
                status.as_mut_ptr(),
            )
        })?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: a message was found, so its status has been written.
        let source = unsafe {
            check(ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &raw mut length))?;
            (*status.as_ptr()).MPI_SOURCE as usize
        };
        let mut buffer = spare.pop().unwrap_or_else(Buffer::new);
        buffer.length = usize::try_from(length).unwrap_or(0).min(MESSAGE);
        let mut buffer = ManuallyDrop::new(buffer);
        let mut request = MaybeUninit::uninit();
        // SAFETY: the message was found; the buffer is on the heap and holds the requested number of bytes,
        // and `Pending` keeps it there until the request is complete.
        let outcome = unsafe {
            ffi::MPI_Imrecv(
                buffer.room.as_mut_ptr().cast(),
                buffer.length as c_int,
                ffi::RSMPI_UINT8_T,
                message.as_mut_ptr(),
                request.as_mut_ptr(),
            )
        };
        check(outcome)?;
        // SAFETY: the call succeeded, so it has written the request.
        let pending = Pending { request: unsafe { request.assume_init() }, buffer, complete: false };
        Ok(Some((source, pending)))
    }

    /// Starts a barrier over all processes.
    pub fn barrier(&self) -> Outcome<Pending> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the place outlives the call.
        check(unsafe { ffi::MPI_Ibarrier(self.communicator.as_raw(), request.as_mut_ptr()) })?;
        let buffer = ManuallyDrop::new(Buffer { room: Box::default(), length: 0 });
        // SAFETY: the call succeeded, so it has written the request.
        Ok(Pending { request: unsafe { request.assume_init() }, buffer, complete: false })
    }

    /// Whether the request is complete.
    pub fn test(&self, pending: &mut Pending) -> Outcome<bool> {
        if !pending.complete {
            let mut complete = 0;
            // SAFETY: the request is live until it is complete, and is not touched after that.
            check(unsafe {
                ffi::MPI_Test(&raw mut pending.request, &raw mut complete, ffi::RSMPI_STATUS_IGNORE)
            })?;
            pending.complete = complete != 0;
        }
        Ok(pending.complete)
    }

    /// Finalises MPI; waits for all processes.
    pub fn finalise(self) {
        let Self { communicator, universe } = self;
        drop(communicator);
        drop(universe);
    }
}

/// Name and version of the library, for example `Open MPI v4.1.4`, from a text of several lines.
pub(super) fn library() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let name = first.split(',').next().unwrap_or_default();
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check(code: c_int) -> Outcome<()> {
    // MPI_SUCCESS is 0 in every version of the standard's interface.
    if code == 0 {
        return Ok(());
    }
    let mut text = [0_u8; 1024];
    let mut length = 0;
    // SAFETY: the text is longer than MPI_MAX_ERROR_STRING is anywhere (512 in MPICH, 256 in Open MPI).
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    Err(if known == 0 {
        String::from_utf8_lossy(&text[..length]).into_owned()
    } else {
        format!("error {code}")
    })
}
