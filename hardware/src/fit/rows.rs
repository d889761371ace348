//! Tables of measured kernels.

use crate::catalogue::Catalogue;
use crate::nccl::NcclDatatype;
use autodist_spec::catalog::DeviceFigures;
use autodist_spec::error::{in_range, positive};
use autodist_spec::{Collective, InputError, Precision};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// A measured GEMM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmRow {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub seconds: f64,
}

/// A measured forward pass of causal flash attention in bf16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRow {
    pub batch: u64,
    pub sequence: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub seconds: f64,
}

/// A measured collective inside a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollectiveRow {
    pub kind: Collective,
    pub element: NcclDatatype,
    pub devices: u32,
    pub bytes: u64,
    pub seconds: f64,
}

/// Measurements by device.
#[derive(Debug, Clone, Default)]
pub struct Measurements {
    pub(crate) devices: Vec<DeviceFigures>,
    pub(crate) gemm: BTreeMap<(usize, Precision), Vec<GemmRow>>,
    pub(crate) attention: BTreeMap<(usize, u64), Vec<AttentionRow>>,
    pub(crate) collective: BTreeMap<(usize, Collective, NcclDatatype), Vec<CollectiveRow>>,
}

#[derive(Deserialize)]
struct GemmLine {
    gpu: String,
    dtype: String,
    m: u64,
    n: u64,
    k: u64,
    median_ms: f64,
}

#[derive(Deserialize)]
struct AttentionLine {
    gpu: String,
    batch: u64,
    seq_len: u64,
    heads: u64,
    kv_heads_as_given: u64,
    head_dim: u64,
    median_ms: f64,
}

#[derive(Deserialize)]
struct CollectiveLine {
    gpu: String,
    op: String,
    dtype: String,
    gpus: u32,
    bytes: u64,
    time_us: f64,
}

fn lines<T: DeserializeOwned>(text: &str, table: &str) -> Result<Vec<T>, InputError> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let read: Result<Vec<T>, csv::Error> = reader.deserialize().collect();
    read.map_err(|error| {
        InputError::new("", "", error.to_string())
            .in_file(table)
            .hint("the columns are those of the documentation of the fit")
    })
}

/// Sizes are at least 1 and times positive.
fn sound(table: &str, sizes: &[(&str, u64)], time: (&str, f64)) -> Result<(), InputError> {
    for (field, size) in sizes {
        in_range(field, *size, 1, 1 << 40).map_err(|error| error.in_file(table))?;
    }
    positive(time.0, time.1).map_err(|error| error.in_file(table))
}

fn unknown(table: &str, field: &str, value: &str, known: &str) -> InputError {
    InputError::new(field, value, "is unknown").in_file(table).hint(format!("expected one of {known}"))
}

impl Measurements {
    /// Reads the three tables; an empty text is an empty table.
    ///
    /// # Errors
    /// Other columns, unknown devices, types or operations.
    pub fn read(catalogue: &Catalogue, gemm: &str, attention: &str, nccl: &str) -> Result<Self, InputError> {
        let mut all = Self::default();
        for line in lines::<GemmLine>(gemm, "matrix products")? {
            let sizes = [("m", line.m), ("n", line.n), ("k", line.k)];
            sound("matrix products", &sizes, ("median_ms", line.median_ms))?;
            let dtype = match line.dtype.as_str() {
                "bfloat16" | "bf16" => Precision::Bf16,
                "fp8" => Precision::Fp8,
                other => return Err(unknown("matrix products", "dtype", other, "bfloat16, fp8")),
            };
            let device = all.device(catalogue, "matrix products", &line.gpu)?;
            let row = GemmRow { m: line.m, n: line.n, k: line.k, seconds: line.median_ms * 1e-3 };
            all.gemm.entry((device, dtype)).or_default().push(row);
        }
        for line in lines::<AttentionLine>(attention, "attention")? {
            let sizes = [
                ("batch", line.batch),
                ("seq_len", line.seq_len),
                ("heads", line.heads),
                ("kv_heads_as_given", line.kv_heads_as_given),
                ("head_dim", line.head_dim),
            ];
            sound("attention", &sizes, ("median_ms", line.median_ms))?;
            let device = all.device(catalogue, "attention", &line.gpu)?;
            let row = AttentionRow {
                batch: line.batch,
                sequence: line.seq_len,
                heads: line.heads,
                kv_heads: line.kv_heads_as_given,
                head_dim: line.head_dim,
                seconds: line.median_ms * 1e-3,
            };
            all.attention.entry((device, line.head_dim)).or_default().push(row);
        }
        all.drop_impossible();
        for line in lines::<CollectiveLine>(nccl, "collectives")? {
            let sizes = [("gpus", u64::from(line.gpus)), ("bytes", line.bytes)];
            sound("collectives", &sizes, ("time_us", line.time_us))?;
            let kind = match line.op.as_str() {
                "all_reduce" => Collective::AllReduce,
                "reduce_scatter" => Collective::ReduceScatter,
                "all_gather" => Collective::AllGather,
                "alltoall" => Collective::AllToAll,
                other => {
                    let known = "all_reduce, reduce_scatter, all_gather, alltoall";
                    return Err(unknown("collectives", "op", other, known));
                }
            };
            let element = match (line.dtype.as_str(), kind) {
                ("half", _) => NcclDatatype::Float,
                ("int8", Collective::AllReduce | Collective::ReduceScatter) => NcclDatatype::Byte,
                // Collectives that only move bytes do not depend on the element type.
                ("int8", _) => NcclDatatype::Float,
                (other, _) => return Err(unknown("collectives", "dtype", other, "half, int8")),
            };
            let device = all.device(catalogue, "collectives", &line.gpu)?;
            let seconds = line.time_us * 1e-6;
            let row = CollectiveRow { kind, element, devices: line.gpus, bytes: line.bytes, seconds };
            all.collective.entry((device, kind, element)).or_default().push(row);
        }
        Ok(all)
    }

    /// Writes the three tables, with the columns that [`Self::read`] needs.
    pub fn write(&self) -> [String; 3] {
        let name = |device: usize| self.devices[device].measured_as.clone().unwrap_or_default();
        let mut gemm = String::from("gpu,dtype,m,n,k,median_ms\n");
        for (&(device, dtype), rows) in &self.gemm {
            for GemmRow { m, n, k, seconds } in rows {
                gemm += &format!("{},{dtype},{m},{n},{k},{:.6}\n", name(device), seconds * 1e3);
            }
        }
        let mut attention = String::from("gpu,batch,seq_len,heads,kv_heads_as_given,head_dim,median_ms\n");
        for (&(device, _), rows) in &self.attention {
            for AttentionRow { batch, sequence, heads, kv_heads, head_dim, seconds } in rows {
                let milliseconds = seconds * 1e3;
                attention += &format!(
                    "{},{batch},{sequence},{heads},{kv_heads},{head_dim},{milliseconds:.6}\n",
                    name(device)
                );
            }
        }
        let mut collective = String::from("gpu,op,dtype,gpus,bytes,time_us\n");
        for (&(device, kind, element), rows) in &self.collective {
            let kind = if kind == Collective::AllToAll { "alltoall" } else { kind.key() };
            let element = if element == NcclDatatype::Float { "half" } else { "int8" };
            for CollectiveRow { devices, bytes, seconds, .. } in rows {
                let microseconds = seconds * 1e6;
                collective +=
                    &format!("{},{kind},{element},{devices},{bytes},{microseconds:.3}\n", name(device));
            }
        }
        [gemm, attention, collective]
    }

    /// If some rows of attention with a given number of heads exceed the device's peak, they measured
    /// something else (for example a window): all rows with that number of heads are removed.
    fn drop_impossible(&mut self) {
        for (&(device, _), rows) in &mut self.attention {
            let peak = self.devices[device].peak_flops_per_s.0;
            let beats =
                |row: &AttentionRow| super::attention::shape(row).forward_flops() / row.seconds > peak;
            let impossible: BTreeSet<(u64, u64)> =
                rows.iter().filter(|row| beats(row)).map(|row| (row.heads, row.kv_heads)).collect();
            rows.retain(|row| !impossible.contains(&(row.heads, row.kv_heads)));
        }
    }

    fn device(&mut self, catalogue: &Catalogue, table: &str, gpu: &str) -> Result<usize, InputError> {
        if let Some(at) = self.devices.iter().position(|d| d.measured_as.as_deref() == Some(gpu)) {
            return Ok(at);
        }
        let found = catalogue.devices().iter().find(|d| d.measured_as.as_deref() == Some(gpu));
        let figures = found.ok_or_else(|| {
            InputError::new("gpu", gpu, "is not a device of the catalogue")
                .in_file(table)
                .hint("add it to the devices' file with `measured_as`")
        })?;
        self.devices.push(figures.clone());
        Ok(self.devices.len() - 1)
    }

    /// These measurements without those that `keep` rejects.
    pub(crate) fn filtered(
        &self,
        gemm: impl Fn(usize, &GemmRow) -> bool,
        attention: impl Fn(usize, &AttentionRow) -> bool,
        collective: impl Fn(usize, &CollectiveRow) -> bool,
    ) -> Self {
        let mut kept = Self { devices: self.devices.clone(), ..Self::default() };
        for (&(device, dtype), rows) in &self.gemm {
            let rows = rows.iter().filter(|row| gemm(device, row)).copied().collect();
            kept.gemm.insert((device, dtype), rows);
        }
        for (&(device, dim), rows) in &self.attention {
            let rows = rows.iter().filter(|row| attention(device, row)).copied().collect();
            kept.attention.insert((device, dim), rows);
        }
        for (&key, rows) in &self.collective {
            let rows = rows.iter().filter(|row| collective(key.0, row)).copied().collect();
            kept.collective.insert(key, rows);
        }
        kept
    }
}
