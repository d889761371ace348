//! The devices of this machine, as a rank opens them.

use crate::ExecutionError;
use crate::cuda::{self, GpuTransport};
use autodist_communication::Endpoint;
use autodist_compute::{Cpu, DeviceError};
use autodist_cuda::Cuda;
use autodist_spec::{DeviceKind, Precision};

/// What a rank computes on, opened when it is first asked for.
pub struct RankDevices {
    kind: DeviceKind,
    /// On this machine.
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

    /// This rank's GPU. The first time all ranks call it, and agree on how their GPUs reach each other.
    ///
    /// # Errors
    /// A library or a GPU that is not there; a peer that is gone.
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

    /// How ranks' GPUs reach each other; empty where there are none.
    pub fn route(&self) -> String {
        self.cuda.as_ref().map(|(_, route)| route.describe()).unwrap_or_default()
    }
}

/// # Errors
/// CPUs compute in fp32 only.
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
