//! Tables of published or logged runs: one run per line, columns by name, missing values are unknown.

use crate::cells;
use crate::described::{Machines, run};
use crate::fields::Fields;
use crate::older;
use crate::run::TrainingRun;
use autodist_hardware::Catalogue;
use autodist_spec::{InputError, Precision};
use std::collections::BTreeSet;

/// One line: the run if it is understood, or the reason why not, and the measurements.
#[derive(Debug, Clone)]
pub struct TableRow {
    pub id: String,
    /// Rows of one source share clusters and software; whole groups are held out to measure errors.
    pub group: String,
    /// The publication: releases of one benchmark differ in software, not in layouts.
    pub source: String,
    pub device: String,
    pub precision: String,
    pub dense: bool,
    /// `A` to `C`; `R` for figures from memory, which are excluded from fits.
    pub quality: String,
    pub run: Result<TrainingRun, String>,
    pub measured_s: Option<f64>,
    pub measured_memory_gb: Option<f64>,
}

impl TableRow {
    /// Whether a fit may use the row: dense, in 16 or 8 bits, read at its source, with a time.
    pub fn is_for_fitting(&self) -> bool {
        let fitted = [Precision::Bf16, Precision::Fp16, Precision::Fp8];
        let known = self.run.as_ref().is_ok_and(|run| fitted.contains(&run.dtype));
        self.dense && known && self.quality != "R" && self.measured_s.is_some()
    }
}

/// Columns that are read.
const COLUMNS: [&str; 46] = [
    "active_params_B",
    "attention",
    "compiled",
    "cp",
    "d_iteration_s",
    "dp",
    "ep",
    "expert_ffn",
    "experts",
    "experts_active",
    "ffn",
    "global_batch",
    "gpu",
    "gpus_per_node",
    "gpus_total",
    "group",
    "head_dim",
    "heads",
    "hidden",
    "id",
    "inter_link",
    "iteration_s",
    "kv_heads",
    "layers",
    "loss",
    "micro_batch",
    "model_family",
    "notes",
    "overlap",
    "peak_mem_gb",
    "pp",
    "precision",
    "quality",
    "recompute",
    "seq_len",
    "sequence_parallel",
    "shard",
    "source",
    "tokens_per_s_per_gpu",
    "tp",
    "trainer",
    "trainer_year",
    "url_or_repo_path",
    "vocab",
    "vpp",
    "zero_stage",
];

/// Columns of a table that are not read.
///
/// # Errors
/// The text is not CSV.
pub fn unread_columns(text: &[u8], file: &str) -> Result<Vec<String>, InputError> {
    let header = cells::header(text, file)?;
    let unread = header.iter().filter(|name| !COLUMNS.contains(name));
    Ok(unread.map(str::to_owned).collect())
}

/// Whether facts of the software stand in a table's prose, as in tables of older releases.
fn is_older(header: &csv::StringRecord) -> bool {
    let has = |names: &[&str]| header.iter().any(|name| names.contains(&name));
    has(&older::PROSE) && !has(&older::SOFTWARE_COLUMNS)
}

/// Columns that a table should have for what its prose says; empty if it has them, or no such prose.
///
/// # Errors
/// The text is not CSV.
pub fn missing_columns(
    text: &[u8],
    file: &str,
    catalogue: &Catalogue,
) -> Result<BTreeSet<&'static str>, InputError> {
    let (header, lines) = cells::read(text, file)?;
    let said = |line: &csv::StringRecord| older::columns(&Fields::new(header.iter().zip(line)), catalogue);
    let lines = lines.iter().filter(|_| is_older(&header));
    Ok(lines.flat_map(said).map(|(column, _)| column).collect())
}

/// Reads a table with a header line, with the devices of `catalogue`. Unknown columns are ignored.
///
/// # Errors
/// The text is not CSV, or the table has no `id` column.
pub fn read(text: &[u8], file: &str, catalogue: &Catalogue) -> Result<Vec<TableRow>, InputError> {
    let (header, lines) = cells::read(text, file)?;
    if !header.iter().any(|name| name == "id") {
        let error = InputError::new("id", "", "the column is missing").in_file(file);
        return Err(error.hint("the first line names the columns; docs/files.md lists them"));
    }
    let mut known = BTreeSet::new();
    let id = header.iter().position(|name| name == "id").unwrap_or_default();
    for line in &lines {
        let name = line.get(id).unwrap_or_default();
        if !known.insert(name) {
            let number = line.position().map_or(0, csv::Position::line);
            let error = InputError::new(
                format!("id, line {number}"),
                name,
                "occurs twice: every run would count twice",
            );
            return Err(error
                .hint("give every run another id, or remove one of the two lines")
                .in_file(file));
        }
    }
    let mut machines = Machines::of(catalogue);
    let older = is_older(&header);
    let row = |record: &csv::StringRecord| {
        let fields = Fields::new(header.iter().zip(record));
        let said = if older { older::columns(&fields, catalogue) } else { Vec::new() };
        let said = said.iter().map(|(column, value)| (*column, value.as_str()));
        row(&Fields::new(header.iter().zip(record).chain(said)), &mut machines)
    };
    Ok(lines.iter().map(row).collect())
}

fn row(fields: &Fields, machines: &mut Machines) -> TableRow {
    let text = |name: &str| fields.text(name).unwrap_or_default().to_owned();
    let known = fields.count("experts").ok().flatten();
    let sparse = known.is_some()
        || fields.text("ep").is_some_and(|ep| ep != "1")
        || fields.text("active_params_B").is_some();
    // An invalid measurement is an error, so that the run is not taken as unmeasured.
    let (seconds, memory) = (measured(fields), memory(fields));
    let took_place = matches!(seconds, Ok(Some(_))) || matches!(memory, Ok(Some(_)));
    let run = run(fields, machines, sparse, took_place);
    let (run, measured_s, measured_memory_gb) = match (run, seconds, memory) {
        (run, Ok(seconds), Ok(memory)) => (run, seconds, memory),
        (Err(reason), ..) | (_, Err(reason), _) | (.., Err(reason)) => (Err(reason), None, None),
    };
    TableRow {
        id: text("id"),
        group: text("group"),
        source: text("source"),
        device: text("gpu"),
        precision: text("precision"),
        dense: !sparse,
        quality: text("quality"),
        run,
        measured_s,
        measured_memory_gb,
    }
}

/// Seconds per step, from any of the measured columns; an error names an invalid number.
fn measured(fields: &Fields) -> Result<Option<f64>, String> {
    let seconds = |name| fields.within(name, 1e-6..=1e9, "seconds");
    let said = seconds("iteration_s")?.or(seconds("d_iteration_s")?);
    let rate = fields.within("tokens_per_s_per_gpu", 1e-6..=1e12, "tokens per second")?;
    let (None, Some(rate)) = (said, rate) else { return Ok(said) };
    // Without a batch or devices there is no run either, and the run's error reports that.
    let [Ok(Some(batch)), Ok(Some(seq_len)), Ok(Some(devices))] =
        ["global_batch", "seq_len", "gpus_total"].map(|name| fields.count(name))
    else {
        return Ok(None);
    };
    Ok(Some(f64::from(batch) * f64::from(seq_len) / (rate * f64::from(devices))))
}

fn memory(fields: &Fields) -> Result<Option<f64>, String> {
    fields.within("peak_mem_gb", 1e-6..=1e6, "GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::{AttentionKind, Trainer};

    #[test]
    fn software_is_dated_by_its_source() {
        let row = |source: &str, device: &str, more: &str| {
            let table = format!(
                "id,source,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,precision,tp,pp,dp,micro_batch,global_batch,recompute\n\
                 a,{source},24,2048,16,8192,51200,2048,{device},8,8,bf16,2,1,4,4,64,{more}\n"
            );
            let mut rows = read(table.as_bytes(), "runs.csv", &Catalogue::shipped()).unwrap();
            rows.remove(0).run.unwrap()
        };
        let of = |run: &TrainingRun| (run.trainer, run.attention);
        let (classic, core) = (Trainer::Megatron, Trainer::MegatronCore);
        let a100 = "A100-80GB-SXM";
        assert_eq!(of(&row("Megatron-LM 2021", a100, "full")), (classic, AttentionKind::Unfused));
        // Before 2022, no trainer recomputed only the attention scores.
        assert_eq!(of(&row("Megatron-LM", a100, "selective")), (core, AttentionKind::Flash));
        assert_eq!(of(&row("Megatron-LM arXiv 2205.05198", a100, "full")), (core, AttentionKind::Unfused));
        assert_eq!(of(&row("Megatron-LM 2024", a100, "full")), (core, AttentionKind::Unfused));
        assert_eq!(of(&row("Megatron-LM 2024 FlashAttention", a100, "full")), (core, AttentionKind::Flash));
        assert_eq!(of(&row("Megatron-LM 2024", "H100-80GB-SXM", "full")), (core, AttentionKind::Flash));
        assert_eq!(of(&row("NVIDIA NeMo 24.07", "H100-80GB-SXM", "")), (Trainer::Nemo, AttentionKind::Flash));
        assert!(
            row("torchtitan", a100, "full").eager && !row("torchtitan + torch.compile", a100, "full").eager
        );
    }

    #[test]
    fn prose_is_read_only_where_no_column_states_the_software() {
        let run = |columns: &str, values: &str| {
            let table = format!(
                "id,notes,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,precision,tp,pp,micro_batch,global_batch,recompute,{columns}\n\
                 a,\"torchtitan 2024, flash, no overlap, torch.compile, fused cross entropy, shard group 4\",24,2048,16,8192,51200,2048,\
                 H100-80GB-SXM,8,bf16,2,1,1,64,full,{values}\n"
            );
            assert_eq!(
                missing_columns(table.as_bytes(), "runs.csv", &Catalogue::shipped()).unwrap().is_empty(),
                !columns.is_empty()
            );
            let row = read(table.as_bytes(), "runs.csv", &Catalogue::shipped()).unwrap().remove(0);
            let run = row.run.unwrap();
            let layout = run.layout;
            (run.trainer, run.attention, run.overlap, run.eager, run.fused_loss, layout.shard)
        };
        let stated = (Trainer::Fsdp2, AttentionKind::SecondFlash, false, false, true, 4);
        assert_eq!(run("", ""), stated);
        let columns = "trainer,trainer_year,attention,overlap,compiled,loss,shard";
        assert_eq!(run(columns, "torchtitan,2024,flash,no,yes,fused,4"), stated);
        // The prose does not count where there is a column.
        let empty = (Trainer::MegatronCore, AttentionKind::Flash, true, false, false, 4);
        assert_eq!(run("trainer_year", ""), empty);
    }

    #[test]
    fn what_is_missing_is_said_or_refused() {
        let table = "id,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,precision,tp,pp,dp,micro_batch,global_batch\n\
                     a,24,2048,16,8192,51200,2048,A100-80GB-SXM,8,8,bf16,1,1,8,4,64\n\
                     b,24,2048,16,8192,51200,2048,A100-80GB-SXM,8,8,bf16,,,,4,64\n\
                     c,24,2048,16,8192,51200,2048,Cerebras,8,8,bf16,1,1,8,4,64\n";
        let rows = read(table.as_bytes(), "runs.csv", &Catalogue::shipped()).unwrap();
        let run = rows[0].run.as_ref().unwrap();
        assert!(run.assumptions.iter().any(|a| a.contains("recomputation")), "{:?}", run.assumptions);
        assert!(rows[1].run.as_ref().unwrap_err().contains("layout"));
        assert!(rows[2].run.as_ref().unwrap_err().contains("Cerebras"));
        assert!(
            read(b"x,y\n1,2\n", "runs.csv", &Catalogue::shipped()).unwrap_err().to_string().contains("id")
        );
    }
}
