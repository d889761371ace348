//! The file of fitted parameters: `catalog/kernels.toml`.

use crate::PredictedTime;
use crate::attention::AttentionBase;
use crate::gemm::GemmBase;
use crate::nccl::CollectiveParameters;
use crate::tables::{Axis, Corrections, PAIRS};
use autodist_spec::{InputError, Precision, Provenance, Seconds};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Quantisation step of the tables' logarithms in the file.
pub(crate) const QUANTUM: f64 = 0.005;

/// Parameters fitted to measured kernels of some devices. Within the points of its tables the model
/// interpolates; beyond them it keeps the correction at the end and extrapolates by the physical model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelParameters {
    /// Source of the measurements.
    pub source: String,
    #[serde(default)]
    pub(crate) gemm: Vec<GemmParameters>,
    #[serde(default)]
    pub(crate) attention: Vec<AttentionParameters>,
    #[serde(default)]
    pub(crate) collective: Vec<CollectiveParameters>,
}

/// GEMMs of one type on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GemmParameters {
    pub device: String,
    pub dtype: Precision,
    /// Spread of held-out measurements: two thirds of them are within it.
    pub spread: f64,
    /// Spread of sizes between the points of the tables.
    pub spread_between: f64,
    /// The shortest measured kernel, in seconds.
    pub shortest_s: f64,
    /// Fraction of the memory bandwidth that memory-bound GEMMs reach.
    pub stream: f64,
    pub launch_s: f64,
    pub wave_s: f64,
    pub memory: f64,
    pub quantisation: f64,
    pub tiles: [f64; 4],
    #[serde(flatten)]
    pub tables: Tables,
}

/// Flash attention with one head size on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionParameters {
    pub device: String,
    pub head_dim: u64,
    pub spread: f64,
    pub launch_s: f64,
    pub tile_s: f64,
    pub rate: f64,
    pub queries: f64,
    pub keys: f64,
    #[serde(flatten)]
    pub tables: Tables,
}

/// [`Corrections`] as text: integer multiples of [`QUANTUM`], row by row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TablesText", into = "TablesText")]
pub(crate) struct Tables(pub Corrections);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TablesText {
    /// The points of the first, second and third size: `m`, `n`, `k` of GEMMs; sequence, batch × heads and
    /// batch × key heads of attention.
    points: [Vec<f64>; 3],
    coarse: [Vec<f64>; 3],
    xy: String,
    xz: String,
    yz: String,
    xyz: String,
}

pub(crate) fn write_values(values: &[f64]) -> String {
    let whole = values.iter().map(|value| format!("{}", (value / QUANTUM).round() as i64));
    whole.collect::<Vec<_>>().join(" ")
}

pub(crate) fn read_values(text: &str, count: usize) -> Result<Vec<f64>, String> {
    let values: Result<Vec<f64>, _> =
        text.split_whitespace().map(|word| word.parse::<i32>().map(|v| f64::from(v) * QUANTUM)).collect();
    let values = values.map_err(|error| format!("a table holds whole numbers: {error}"))?;
    if values.len() != count {
        return Err(format!("a table holds {} numbers where its points make {count}", values.len()));
    }
    Ok(values)
}

pub(crate) fn axis(points: Vec<f64>) -> Result<Axis, String> {
    let ascending = points.windows(2).all(|pair| 0.0 < pair[0] && pair[0] < pair[1]);
    if points.len() < 2 || !ascending {
        return Err(format!("points are at least two, positive and ascending, not {points:?}"));
    }
    Ok(Axis::new(points))
}

impl TryFrom<TablesText> for Tables {
    type Error = String;

    fn try_from(text: TablesText) -> Result<Self, String> {
        let axes = |points: [Vec<f64>; 3]| -> Result<[Axis; 3], String> {
            let [x, y, z] = points;
            Ok([axis(x)?, axis(y)?, axis(z)?])
        };
        let mut tables = Corrections::zero(axes(text.points)?, axes(text.coarse)?);
        for (values, text) in tables.pairs.iter_mut().zip([text.xy, text.xz, text.yz]) {
            *values = read_values(&text, values.len())?;
        }
        tables.block = read_values(&text.xyz, tables.block.len())?;
        Ok(Self(tables))
    }
}

impl From<Tables> for TablesText {
    fn from(tables: Tables) -> Self {
        let Corrections { fine, pairs, coarse, block, .. } = tables.0;
        debug_assert_eq!(PAIRS, [(0, 1), (0, 2), (1, 2)]);
        let [xy, xz, yz] = pairs.map(|values| write_values(&values));
        let points = |axes: [Axis; 3]| axes.map(|axis| axis.points().to_vec());
        Self { points: points(fine), coarse: points(coarse), xy, xz, yz, xyz: write_values(&block) }
    }
}

impl GemmParameters {
    pub fn base(&self) -> GemmBase {
        GemmBase {
            launch: self.launch_s,
            wave: self.wave_s,
            memory: self.memory,
            quantisation: self.quantisation,
            tiles: self.tiles,
        }
    }
}

impl AttentionParameters {
    pub fn base(&self) -> AttentionBase {
        AttentionBase {
            launch: self.launch_s,
            tile: self.tile_s,
            rate: self.rate,
            queries: self.queries,
            keys: self.keys,
        }
    }
}

static SHIPPED: LazyLock<KernelParameters> = LazyLock::new(|| {
    KernelParameters::read(include_str!("../../catalog/kernels.toml"))
        .expect("the embedded parameters are read by the tests")
});

impl KernelParameters {
    /// The shipped parameters.
    pub fn shipped() -> &'static Self {
        &SHIPPED
    }

    /// # Errors
    /// The text has another form; the error names the line.
    pub fn read(text: &str) -> Result<Self, InputError> {
        toml::from_str(text).map_err(|error| {
            InputError::new("", "", error.to_string().trim().to_owned())
                .hint("a file of kernels' parameters is made by the fit, from tables of measurements")
        })
    }

    /// These parameters without those of one device.
    #[must_use]
    pub fn without(&self, device: &str) -> Self {
        let mut others = self.clone();
        others.gemm.retain(|entry| entry.device != device);
        others.attention.retain(|entry| entry.device != device);
        others.collective.retain(|entry| entry.device != device);
        others
    }

    /// The text form that [`Self::read`] reads.
    pub fn write(&self) -> String {
        toml::to_string(self).expect("numbers and text")
    }
}

/// Rounds to four significant digits, the precision of the file.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

impl PredictedTime {
    pub(crate) fn new(seconds: f64, spread: f64, provenance: Provenance) -> Self {
        Self { time: Seconds(seconds), spread, provenance }
    }
}
