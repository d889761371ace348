//! A profile made from a simple function instead of measurements, for tests and examples: every cost is exact
//! and can be computed by hand. Its provenance is `Assumed`.

use autodist_spec::profile::{CollectiveCost, Hardware, Interference, LinkFit, MessageCost, OptimizerCost};
use autodist_spec::{
    Bytes, Cluster, Collective, Device, Environment, Job, ModelSpec, NodeGroup, Pass, Profile, Provenance,
    Recompute, SCHEMA_VERSION, Sample, Seconds, Segment, SegmentCost, Shard,
};

/// A machine with exact costs: a segment takes FLOPs / speed, a collective takes the time of a ring.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticMachine {
    pub devices: u32,
    pub memory_bytes: Bytes,
    pub flops_per_s: f64,
    /// Fixed time of every segment pass, in seconds.
    pub launch_s: f64,
    /// Time of the host to launch it.
    pub host_s: f64,
    /// Bandwidth of each link in each direction.
    pub bytes_per_s: f64,
    /// Seconds per hop.
    pub latency_s: f64,
    /// Optimizer elements per second.
    pub elements_per_s: f64,
    pub compute_slowdown: f64,
    pub communication_slowdown: f64,
    pub handover_s: f64,
    pub overhead_s: f64,
    /// Micro-batches that have cells.
    pub micro_batches: Vec<u32>,
}

impl SyntheticMachine {
    pub fn new(devices: u32) -> Self {
        Self {
            devices,
            memory_bytes: Bytes(8 << 30),
            flops_per_s: 1e11,
            launch_s: 1e-5,
            host_s: 0.0,
            bytes_per_s: 1e9,
            latency_s: 2e-5,
            elements_per_s: 1e9,
            compute_slowdown: 1.1,
            communication_slowdown: 1.2,
            handover_s: 1e-5,
            overhead_s: 1e-4,
            micro_batches: vec![1, 2, 4, 8, 16],
        }
    }

    pub fn cluster(&self) -> Cluster {
        let device = Device {
            name: "synthetic".to_owned(),
            memory_bytes: self.memory_bytes,
            peak_flops_per_s: None,
            memory_bytes_per_s: None,
            provenance: Provenance::Assumed,
            source: None,
        };
        Cluster {
            schema_version: SCHEMA_VERSION,
            name: format!("{} synthetic devices", self.devices),
            nodes: vec![NodeGroup {
                count: 1,
                devices: self.devices,
                device,
                host_slowness: None,
                host: None,
                usd_per_device_hour: None,
                nics: None,
                link: None,
                uplink: None,
                downlink: None,
            }],
            network: None,
        }
    }

    /// Costs of all tensor degrees that divide the model and the devices.
    pub fn profile(&self, model: &ModelSpec, job: &Job) -> Profile {
        let seq_len = job.seq_len;
        Profile {
            schema_version: SCHEMA_VERSION,
            model: model.clone(),
            seq_len,
            precision: job.precision,
            hardware: Hardware::default(),
            optimizer_kind: job.optimizer,
            cluster: self.cluster(),
            environment: Environment::default(),
            complete: true,
            segments: self.segments(model, seq_len),
            collectives: self.collectives(),
            messages: sizes().map(|bytes| self.message(bytes)).collect(),
            network: None,
            codecs: Vec::new(),
            exchanges: Vec::new(),
            within_steps: Vec::new(),
            fits: self.fits(),
            optimizer: [1_u64, 1 << 20].map(|elements| self.optimizer(elements)).to_vec(),
            interference: Interference {
                compute_slowdown: self.compute_slowdown,
                communication_slowdown: self.communication_slowdown,
                provenance: Provenance::Assumed,
            },
            stream_handover: exactly(self.handover_s),
            sharding: None,
            pipelining: Vec::new(),
            step_overhead: exactly(self.overhead_s),
            baseline_bytes: Bytes(1 << 20),
            staging_bytes: Bytes(1 << 16),
            synchronisation: Sample { provenance: Provenance::Assumed, ..Sample::of(&[0.0]) },
            zero_s_per_element: 1e-10,
            add_s_per_element: 3e-10,
            reference_s: Seconds::ZERO,
            repeatability: Some(0.01),
            doubts: Vec::new(),
            correction: None,
        }
    }

    fn segments(&self, model: &ModelSpec, seq_len: u32) -> Vec<SegmentCost> {
        let mut cells = Vec::new();
        let divides = |tensor: &u32| {
            [self.devices, model.heads, model.kv_heads, model.ffn].iter().all(|whole| whole % tensor == 0)
        };
        for tensor in (1..=self.devices).filter(divides) {
            for sequence_parallel in if tensor > 1 { vec![false, true] } else { vec![false] } {
                for micro_batch in &self.micro_batches {
                    let shape =
                        Shape { model, seq_len, tensor, sequence_parallel, micro_batch: *micro_batch };
                    cells.extend(self.layer_cells(&shape));
                }
            }
        }
        cells
    }

    fn layer_cells(&self, shape: &Shape) -> Vec<SegmentCost> {
        use Segment::*;
        let mut cells = Vec::new();
        for segment in [Embedding, FinalNorm, Logits, Normalizer, Loss] {
            cells.push(self.cell(shape, segment, Pass::Forward, Recompute::None));
            if matches!(segment, Embedding | FinalNorm | Loss) {
                cells.push(self.cell(shape, segment, Pass::Backward, Recompute::None));
            }
        }
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
            for segment in [AttentionNorm, Attention, MlpNorm, Mlp] {
                for pass in [Pass::Forward, Pass::Recompute, Pass::Backward] {
                    if pass != Pass::Recompute || recompute == Recompute::Full {
                        cells.push(self.cell(shape, segment, pass, recompute));
                    }
                }
            }
        }
        cells
    }

    fn cell(&self, shape: &Shape, segment: Segment, pass: Pass, recompute: Recompute) -> SegmentCost {
        let forward = shape.forward_flops(segment);
        let attention_again =
            if recompute == Recompute::Selective && segment == Segment::Attention { 0.3 } else { 0.0 };
        let flops = match pass {
            Pass::Forward | Pass::Recompute => forward,
            // The head's backward is one segment, with twice the work of all its forward segments.
            Pass::Backward if segment == Segment::Loss => 2.0 * shape.forward_flops(Segment::Logits),
            Pass::Backward => forward * (2.0 + attention_again),
        };
        let kept = shape.kept(segment, recompute) as i64;
        let again = shape.kept(segment, Recompute::None) as i64 - kept;
        let gathered = shape.gathered() as i64;
        let growth_bytes = match (pass, segment) {
            // These consume the rows of the preceding all-gather.
            (Pass::Forward, Segment::Logits) => kept - gathered,
            (Pass::Recompute, Segment::Mlp) => again - gathered,
            (Pass::Backward, Segment::Attention | Segment::Mlp) if recompute == Recompute::Full => {
                -kept - again - gathered
            }
            (Pass::Backward, Segment::Attention | Segment::Mlp) => -kept - gathered,
            (Pass::Backward, Segment::Loss) => -(shape.kept(Segment::Logits, recompute) as i64),
            (Pass::Backward, _) if recompute == Recompute::Full => -kept - again,
            (Pass::Backward, _) => -kept,
            (Pass::Forward, _) => kept,
            (Pass::Recompute, _) => again,
        };
        // The preceding all-gather keeps the rows in addition to the whole tensor; these segments free both.
        let consumes_rows = match pass {
            Pass::Forward | Pass::Recompute => {
                matches!(segment, Segment::Attention | Segment::Mlp | Segment::Logits)
            }
            Pass::Backward => {
                matches!(segment, Segment::AttentionNorm | Segment::MlpNorm | Segment::Embedding)
            }
        };
        let rows = if shape.sequence_parallel && consumes_rows { shape.flow() as i64 } else { 0 };
        let growth_bytes = growth_bytes - rows;
        SegmentCost {
            segment,
            pass,
            tensor: shape.tensor,
            sequence_parallel: shape.sequence_parallel,
            micro_batch: shape.micro_batch,
            recompute,
            time: exactly(self.launch_s + flops / self.flops_per_s),
            launch_s: Seconds(self.host_s),
            growth_bytes,
            peak_bytes: Bytes(growth_bytes.max(0) as u64 + shape.flow()),
        }
    }

    /// All groups of the device count's divisors, at every stride at which they fit.
    fn collectives(&self) -> Vec<CollectiveCost> {
        let mut cells = Vec::new();
        for group in (2..=self.devices).filter(|group| self.devices.is_multiple_of(*group)) {
            for stride in
                (1..=self.devices / group).filter(|stride| (self.devices / group).is_multiple_of(*stride))
            {
                for kind in [Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather] {
                    for bytes in sizes() {
                        let (alpha, beta) = self.ring(kind, group);
                        let time = exactly(alpha + beta * bytes as f64);
                        cells.push(CollectiveCost { kind, group, stride, bytes: Bytes(bytes), time });
                    }
                }
            }
        }
        cells
    }

    fn fits(&self) -> Vec<LinkFit> {
        let mut seen: Option<(Collective, u32, u32)> = None;
        let mut fits = Vec::new();
        for cell in self.collectives() {
            if seen.replace((cell.kind, cell.group, cell.stride))
                == Some((cell.kind, cell.group, cell.stride))
            {
                continue;
            }
            let (alpha, beta) = self.ring(cell.kind, cell.group);
            fits.push(LinkFit {
                what: cell.kind.key().to_owned(),
                group: cell.group,
                stride: cell.stride,
                alpha_s: Seconds(alpha),
                beta_s_per_byte: beta,
                residual: 0.0,
            });
        }
        fits
    }

    /// Latency and seconds per byte of a ring (Thakur et al. 2005, section 4.4); an all-reduce is a
    /// reduce-scatter and an all-gather.
    pub fn ring(&self, kind: Collective, group: u32) -> (f64, f64) {
        let rounds = if kind == Collective::AllReduce { 2.0 } else { 1.0 };
        let hops = f64::from(group - 1);
        (rounds * hops * self.latency_s, rounds * hops / f64::from(group) / self.bytes_per_s)
    }

    fn message(&self, bytes: u64) -> MessageCost {
        MessageCost {
            stride: 1,
            bytes: Bytes(bytes),
            time: exactly(self.latency_s + bytes as f64 / self.bytes_per_s),
        }
    }

    fn optimizer(&self, elements: u64) -> OptimizerCost {
        let seconds = elements as f64 / self.elements_per_s;
        OptimizerCost { elements, update: exactly(seconds), norm: exactly(0.25 * seconds) }
    }
}

/// Four bytes to four gibibytes.
fn sizes() -> impl Iterator<Item = u64> {
    (2..=32).step_by(3).map(|power| 1 << power)
}

fn exactly(seconds: f64) -> Sample {
    let seconds = Seconds(seconds);
    Sample { median_s: seconds, low_s: seconds, high_s: seconds, count: 1, provenance: Provenance::Assumed }
}

struct Shape<'a> {
    model: &'a ModelSpec,
    seq_len: u32,
    tensor: u32,
    sequence_parallel: bool,
    micro_batch: u32,
}

impl Shape<'_> {
    fn tokens(&self) -> u64 {
        u64::from(self.micro_batch) * u64::from(self.seq_len)
    }

    /// Bytes of an activation between layers.
    fn flow(&self) -> u64 {
        let part = if self.sequence_parallel { u64::from(self.tensor) } else { 1 };
        Bytes::of_f32(self.tokens() * u64::from(self.model.hidden) / part).0
    }

    /// Bytes of the other tensor ranks' rows, which sequence parallelism gathers and frees again.
    fn gathered(&self) -> u64 {
        if self.sequence_parallel { self.flow() * u64::from(self.tensor - 1) } else { 0 }
    }

    fn forward_flops(&self, segment: Segment) -> f64 {
        let whole = Shard::whole(self.tokens(), self.seq_len.into());
        let shard = Shard { tensor: self.tensor, ..whole };
        self.model.kernels(&self.model.block(1), segment, &shard).gemm_flops()
    }

    /// Bytes that a forward pass keeps for its backward, including its output minus its input; the backward
    /// frees them all.
    fn kept(&self, segment: Segment, recompute: Recompute) -> u64 {
        let block = |whole: u64| match recompute {
            Recompute::None => whole,
            Recompute::Selective if segment == Segment::Attention => whole / 2,
            Recompute::Selective => whole,
            Recompute::Full if segment == Segment::AttentionNorm => self.flow(),
            Recompute::Full => 0,
        };
        let tensor = u64::from(self.tensor);
        match segment {
            Segment::Embedding => self.flow() + self.gathered(),
            Segment::FinalNorm => self.flow(),
            Segment::AttentionNorm | Segment::MlpNorm => block(self.flow()),
            Segment::Attention => {
                let scores =
                    Bytes::of_f32(u64::from(self.model.heads) * self.tokens() * u64::from(self.seq_len)).0;
                block(3 * self.flow() + scores / tensor)
            }
            Segment::Mlp => block(2 * Bytes::of_f32(self.tokens() * u64::from(self.model.ffn)).0 / tensor),
            Segment::Logits => Bytes::of_f32(self.tokens() * u64::from(self.model.vocab)).0 / tensor,
            Segment::Normalizer => 0,
            Segment::Loss => 0,
        }
    }
}
