//! The devices of this machine, opened on demand by a rank.

use crate::ExecutionError;
use crate::cuda::{self, GpuTransport};
use autodist_communication::Endpoint;
use autodist_compute::{Cpu, DeviceError};
use autodist_cuda::Cuda;
use autodist_spec::{DeviceKind, Precision};

/// The devices of a rank, each opened at its first use.
pub struct RankDevices {
    kind: DeviceKind,
    /// The rank's number on this machine.
    local_rank: usize,
    cuda: Option<(Cuda, GpuTransport)>,
}

impl RankDevices {
    pub fn new(kind: DeviceKind, local_rank: usize) -> Self {
        Self { kind, local_rank, cuda: None }
    }

    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// This rank's GPU. All ranks must make the first call together, to agree on the transport between their
    /// GPUs.
    ///
    /// # Errors
    /// A missing library or GPU; a peer that has disconnected.
    pub fn cuda(&mut self, endpoint: &mut Endpoint, precision: Precision) -> Result<Cuda, ExecutionError> {
        let (cuda, _) = match &mut self.cuda {
            Some(opened) => opened,
            closed => {
                let cuda = cuda::open_shared(self.local_rank, precision)?;
                let route = GpuTransport::agree(&cuda, endpoint)?;
                cuda.use_nccl(matches!(route, GpuTransport::Nccl(_)));
                closed.insert((cuda, route))
            }
        };
        Ok(cuda.in_precision(precision))
    }

    /// The transport between the ranks' GPUs; empty without GPUs.
    pub fn route(&self) -> String {
        self.cuda.as_ref().map(|(_, route)| route.describe()).unwrap_or_default()
    }
}

/// # Errors
/// A precision other than fp32, the only one of CPUs.
pub fn cpu(precision: Precision) -> Result<Cpu<f32>, ExecutionError> {
    match precision {
        Precision::Fp32 => Ok(Cpu::new()),
        other => Err(DeviceError {
            device: "cpu".to_owned(),
            operation: "opening it",
            cause: format!("CPUs support only fp32, not {}", other.name()),
        }
        .into()),
    }
}
