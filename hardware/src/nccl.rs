//! Collectives inside one node, as NCCL runs them.
use crate::parameters::{axis, read_values, write_values};
use crate::tables::{Axis, bilinear};
use autodist_spec::Collective;
use serde::{Deserialize, Serialize};

/// Element type of a reduction. Switches that reduce (NVLS) support floats, not bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NcclDatatype {
    Float,
    Byte,
}

/// The profile format has no all-to-all, but the catalogue does.
mod by_key {
    use autodist_spec::Collective;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(kind: &Collective, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.key())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Collective, D::Error> {
        let key = String::deserialize(deserializer)?;
        key.parse().map_err(|_| {
            let known: Vec<_> = Collective::ALL.iter().map(|kind| kind.key()).collect();
            let known = known.join(", ");
            D::Error::custom(format!("expected a collective, found `{key}`: use one of {known}"))
        })
    }
}

/// One collective on devices of one kind in one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CollectiveParameters {
    pub device: String,
    #[serde(with = "by_key")]
    pub kind: Collective,
    pub element: NcclDatatype,
    pub spread: f64,
    #[serde(flatten)]
    pub curve: Curve,
    #[serde(flatten)]
    pub table: Table,
}

/// `start + step * steps + 2 sqrt(fill * v / rate) + v / rate`, where a ring has `steps` steps and each
/// device sends `v` bytes: the square root is the minimum, over the size of the pieces, of the time to fill
/// the pipeline and the overhead per piece.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub start_s: f64,
    pub step_s: f64,
    pub fill_s: f64,
    pub bytes_per_s: f64,
}

/// Corrections by devices and bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TableText", into = "TableText")]
pub(crate) struct Table {
    pub devices: Axis,
    pub bytes: Axis,
    pub values: Vec<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TableText {
    devices: Vec<f64>,
    bytes: Vec<f64>,
    values: String,
}

impl TryFrom<TableText> for Table {
    type Error = String;

    fn try_from(text: TableText) -> Result<Self, String> {
        let values = read_values(&text.values, text.devices.len() * text.bytes.len())?;
        Ok(Self { devices: axis(text.devices)?, bytes: axis(text.bytes)?, values })
    }
}

impl From<Table> for TableText {
    fn from(table: Table) -> Self {
        let (devices, bytes) = (table.devices.points().to_vec(), table.bytes.points().to_vec());
        Self { devices, bytes, values: write_values(&table.values) }
    }
}

/// Steps of a ring over `ranks`, and the bytes that each rank sends, as a fraction of the whole tensor.
pub(crate) fn ring(kind: Collective, ranks: f64) -> (f64, f64) {
    let part = (ranks - 1.0) / ranks;
    match kind {
        Collective::AllReduce => (2.0 * (ranks - 1.0), 2.0 * part),
        Collective::ReduceScatter | Collective::AllGather | Collective::AllToAll => (ranks - 1.0, part),
        Collective::Broadcast => (ranks - 1.0, 1.0),
        Collective::SendRecv => (1.0, 1.0),
    }
}

impl Curve {
    pub fn seconds(&self, kind: Collective, ranks: f64, bytes: f64) -> f64 {
        let (steps, part) = ring(kind, ranks);
        let flow = part * bytes / self.bytes_per_s;
        self.start_s + self.step_s * steps + 2.0 * (self.fill_s * flow).sqrt() + flow
    }
}

impl Table {
    pub fn at(&self, ranks: f64, bytes: f64) -> f64 {
        let (devices, bytes) = (self.devices.place(ranks.ln()), self.bytes.place(bytes.ln()));
        bilinear(&self.values, self.bytes.len(), devices, bytes)
    }

    pub fn covers(&self, ranks: f64, bytes: f64) -> bool {
        self.devices.covers(ranks) && self.bytes.covers(bytes)
    }
}
