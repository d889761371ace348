//! Measured layouts of one job: how much slower the predicted best is, and how well the predicted order
//! matches.

use crate::cells;
use crate::statistics::quantile;
use crate::table::TableRow;
use autodist_spec::InputError;
use serde::Serialize;
use std::collections::BTreeMap;

/// Layouts of the same model, devices and batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceSet {
    pub id: String,
    /// Ids of the rows.
    pub members: Vec<String>,
}

/// Smallest set that is compared; the remainder of a mixed set is often smaller.
const LEAST: usize = 3;

/// The predicted order of one set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    pub set_id: String,
    pub group: String,
    pub layouts: usize,
    pub best_id: String,
    pub chosen_id: String,
    /// Measured time of the predicted best / measured best - 1.
    pub regret: f64,
    /// Kendall's tau-b of predicted and measured times; absent if all are equal.
    pub kendall_tau: Option<f64>,
    /// Median size of the relative errors after subtracting the set's median error.
    pub scatter: f64,
}

/// Reads sets: columns `set_id` and `ids_best_first`, ids separated by spaces; other columns are ignored.
///
/// # Errors
/// The text is not CSV, or lacks these columns.
pub fn read(text: &[u8], file: &str) -> Result<Vec<ChoiceSet>, InputError> {
    let (header, lines) = cells::read(text, file)?;
    let column = |name: &str| {
        header.iter().position(|column| column == name).ok_or_else(|| {
            let error = InputError::new(name, "", "the column is missing").in_file(file);
            error.hint("each line is one set: `set_id`, and `ids_best_first` with the ids of its rows")
        })
    };
    let (id, members) = (column("set_id")?, column("ids_best_first")?);
    let set = |record: &csv::StringRecord| ChoiceSet {
        id: record[id].to_owned(),
        members: record[members].split_whitespace().map(str::to_owned).collect(),
    };
    Ok(lines.iter().map(set).collect())
}

/// Data of one row: its group, its job, measured and predicted seconds.
#[derive(Debug, Clone)]
pub struct Timing<'a> {
    pub group: &'a str,
    /// Layouts are compared only within one job: see [`crate::TrainingRun::job`].
    pub job: String,
    pub measured: f64,
    pub predicted: f64,
}

/// All jobs of a table for which one source measured three layouts or more, named after their first row.
pub fn of_rows(rows: &[TableRow]) -> Vec<ChoiceSet> {
    let mut jobs: BTreeMap<(&str, &str, String), Vec<&TableRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.measured_s.is_some()) {
        if let Ok(run) = &row.run {
            jobs.entry((&row.group, &row.source, run.job())).or_default().push(row);
        }
    }
    let sets = jobs.into_values().filter(|members| members.len() >= LEAST);
    let named = sets.map(|members| ChoiceSet {
        id: format!("job of {}", members[0].id),
        members: members.iter().map(|row| row.id.clone()).collect(),
    });
    named.collect()
}

/// Evaluates the sets with at least two measured and predicted rows. A set of several jobs is split, because
/// the difference between two models is not a choice of layout.
pub fn judge(sets: &[ChoiceSet], rows: &BTreeMap<&str, Timing>) -> Vec<Choice> {
    sets.iter().flat_map(|set| judge_one(set, rows)).collect()
}

fn judge_one(set: &ChoiceSet, rows: &BTreeMap<&str, Timing>) -> Vec<Choice> {
    let mut jobs: BTreeMap<&str, Vec<(&str, &Timing)>> = BTreeMap::new();
    for id in &set.members {
        if let Some((id, row)) = rows.get_key_value(id.as_str()) {
            jobs.entry(&row.job).or_default().push((id, row));
        }
    }
    let parts = jobs.len();
    let least = if parts > 1 { LEAST } else { 2 };
    let judged = jobs.into_values().enumerate().filter(|(_, found)| found.len() >= least);
    let choices = judged.filter_map(|(part, found)| {
        let of = if parts > 1 { format!(", job {} of {parts}", part + 1) } else { String::new() };
        choice(format!("{}{of}", set.id), &found)
    });
    choices.collect()
}

fn choice(set_id: String, found: &[(&str, &Timing)]) -> Option<Choice> {
    let least = |key: fn(&Timing) -> f64| found.iter().min_by(|a, b| key(a.1).total_cmp(&key(b.1))).copied();
    let (best, chosen) = (least(|row| row.measured)?, least(|row| row.predicted)?);
    Some(Choice {
        set_id,
        group: best.1.group.to_owned(),
        layouts: found.len(),
        best_id: best.0.to_owned(),
        chosen_id: chosen.0.to_owned(),
        regret: chosen.1.measured / best.1.measured - 1.0,
        scatter: scatter(found),
        kendall_tau: tau_b(&found.iter().map(|(_, row)| (row.measured, row.predicted)).collect::<Vec<_>>()),
    })
}

fn scatter(found: &[(&str, &Timing)]) -> f64 {
    let mut errors: Vec<f64> = found.iter().map(|(_, row)| (row.predicted / row.measured).ln()).collect();
    let middle = quantile(&mut errors, 0.5);
    errors.iter_mut().for_each(|error| *error = (*error - middle).abs());
    quantile(&mut errors, 0.5)
}

/// Kendall 1945: (concordant - discordant pairs) / the geometric mean of the pairs untied in each.
fn tau_b(pairs: &[(f64, f64)]) -> Option<f64> {
    let (mut score, mut first, mut second) = (0.0, 0.0, 0.0);
    for (index, a) in pairs.iter().enumerate() {
        for b in &pairs[index + 1..] {
            let sign = |difference: f64| if difference == 0.0 { 0.0 } else { difference.signum() };
            let (x, y) = (sign(a.0 - b.0), sign(a.1 - b.1));
            score += x * y;
            first += x * x;
            second += y * y;
        }
    }
    (first > 0.0 && second > 0.0).then(|| score / f64::sqrt(first * second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tau_counts_pairs_and_ties() {
        assert_eq!(tau_b(&[(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]), Some(1.0));
        assert_eq!(tau_b(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]), Some(-1.0));
        // Two of three pairs in order, one tied in one of the two: 2 / sqrt(3 * 2).
        let tied = tau_b(&[(1.0, 1.0), (2.0, 2.0), (3.0, 2.0)]).unwrap();
        assert!((tied - 2.0 / 6f64.sqrt()).abs() < 1e-12, "{tied}");
        assert_eq!(tau_b(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }

    #[test]
    fn the_regret_is_what_the_wrong_choice_costs() {
        let sets = read(b"set_id,ids_best_first,more\ns,a b c,x\n", "sets.csv").unwrap();
        let timing = |measured, predicted| Timing { group: "g", job: "j".to_owned(), measured, predicted };
        let mut rows =
            BTreeMap::from([("a", timing(1.0, 1.2)), ("b", timing(1.1, 1.1)), ("d", timing(1.0, 1.0))]);
        let judged = judge(&sets, &rows);
        assert_eq!((judged[0].layouts, judged[0].chosen_id.as_str()), (2, "b"));
        assert!((judged[0].regret - 0.1).abs() < 1e-12);
        // One is predicted 20 % too slow, the other exactly: both are half of that from their middle.
        assert!((judged[0].scatter - 0.5 * 1.2f64.ln()).abs() < 1e-12);
        // Another job is not an alternative, and two layouts of a mixed set are not compared either.
        rows.insert("c", Timing { job: "other".to_owned(), ..timing(0.1, 0.1) });
        assert!(judge(&sets, &rows).is_empty());
        let more = read(b"set_id,ids_best_first\ns,a b c d\n", "sets.csv").unwrap();
        let judged = judge(&more, &rows);
        assert_eq!((judged.len(), judged[0].layouts, judged[0].best_id.as_str()), (1, 3, "a"));
    }
}
