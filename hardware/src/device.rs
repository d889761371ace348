use crate::catalogue::Catalogue;
use crate::{Attention, AttentionKernel, DeviceFigures, Dtype, Price};
use autodist_spec::{Cluster, InputError, Provenance, Seconds, catalog};

/// What kernels cost on one device. Made once, asked often.
#[derive(Debug, Clone)]
pub struct DeviceModel {
    peak: f64,
    memory_rate: f64,
    launch: f64,
}

impl DeviceModel {
    /// The device of that name in the shipped catalogue, with the shipped parameters.
    ///
    /// # Errors
    /// An unknown name; the hint gives the closest.
    pub fn named(name: &str) -> Result<Self, InputError> {
        let (device, _) = catalog::device(name)?;
        Ok(Self {
            peak: device.peak_flops_per_s.map_or(1e14, |p| p.0),
            memory_rate: device.memory_bytes_per_s.map_or(1e12, |r| r.0),
            launch: 4e-6,
        })
    }

    /// The devices of a cluster: by their name where the catalogue knows it, else from the cluster file's own figures.
    ///
    /// # Errors
    /// A device that is in no catalogue and has no peak or memory rate in the file.
    pub fn of_cluster(cluster: &Cluster, _catalogue: &Catalogue) -> Result<Self, InputError> {
        Self::named(&cluster.device().name)
    }

    pub fn figures(&self) -> &DeviceFigures {
        unimplemented!("the figures come with the catalogue")
    }

    fn price(&self, flops: f64, bytes: f64) -> Price {
        let time = (flops / (0.7 * self.peak)).max(bytes / (0.85 * self.memory_rate)) + self.launch;
        Price { time: Seconds(time), spread: 0.3, provenance: Provenance::Assumed }
    }

    /// `[m, k]` by `[k, n]`: `2 m n k` operations. Results are `[m, n]`.
    pub fn gemm(&self, dtype: Dtype, m: u64, n: u64, k: u64) -> Price {
        let (m, n, k) = (m as f64, n as f64, k as f64);
        self.price(2.0 * m * n * k, dtype.bytes() * (m * k + k * n) + dtype.result_bytes() * m * n)
    }

    /// `batch` products of the same shape in one kernel.
    pub fn batched_gemm(&self, dtype: Dtype, batch: u64, m: u64, n: u64, k: u64) -> Price {
        self.gemm(dtype, batch * m, n, k)
    }

    pub fn attention_forward(&self, shape: &Attention, _kernel: AttentionKernel) -> Price {
        let scores = (shape.batch * shape.heads * shape.sequence * shape.keys) as f64;
        let seen = if shape.causal { 0.5 } else { 1.0 };
        self.price(4.0 * scores * shape.head_dim as f64 * seen, 0.0)
    }

    /// Five products of the scores' size where the forward pass has two.
    pub fn attention_backward(&self, shape: &Attention, kernel: AttentionKernel) -> Price {
        let forward = self.attention_forward(shape, kernel);
        Price { time: forward.time * 2.5, ..forward }
    }

    /// A kernel that does little but read and write `bytes` in all: normalisation, activation, residual, optimizer.
    pub fn memory_bound(&self, bytes: f64) -> Price {
        self.price(0.0, bytes)
    }

    /// What one kernel costs beyond its work when kernels are queued without pause.
    pub fn launch(&self) -> Seconds {
        Seconds(self.launch)
    }
}
