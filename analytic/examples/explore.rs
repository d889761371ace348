#![allow(clippy::unwrap_used, clippy::print_stdout)]
use autodist_analytic::{
    PRIORS, Parameters, Work,
    fit::{self, Fold},
    table,
};
use std::collections::BTreeMap;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let rows = table::read(&std::fs::read(path).unwrap(), "runs").unwrap();
    let t = std::time::Instant::now();
    let all = fit::samples(&rows);
    println!("{} samples, work {:?}", all.len(), t.elapsed());
    let t = std::time::Instant::now();
    let p = fit::fit(&all.iter().collect::<Vec<_>>(), &Parameters::prior());
    println!("fit {:?}", t.elapsed());
    for (prior, v) in PRIORS.iter().zip(p.to_array()) {
        print!("{}={:.4} ({}) ", prior.name, v, prior.middle);
    }
    println!();
    let ins: Vec<Option<f64>> =
        rows.iter().map(|r| r.run.as_ref().ok().map(|run| fit::seconds(run, &Work::of(run), &p))).collect();
    report("in sample", &rows, &ins);
    if let Some(g) = std::env::args().nth(3) {
        let only = std::env::args().nth(4).is_some();
        let p = fit::fit(
            &all.iter().filter(|s| (s.group == g) == only).collect::<Vec<_>>(),
            &Parameters::prior(),
        );
        println!("without {g}:");
        for (prior, v) in PRIORS.iter().zip(p.to_array()) {
            if (v / prior.middle - 1.0).abs() > 0.01 {
                print!("{}={:.4} ({}) ", prior.name, v, prior.middle);
            }
        }
        println!();
        for r in rows.iter().filter(|r| r.group == g) {
            if let Ok(run) = &r.run {
                let b = autodist_analytic::time(run, &Work::of(run), &p);
                print!(
                    "{} {:.3} {:.3} {:+.3} | ",
                    r.id,
                    r.measured_s.unwrap(),
                    b.total(),
                    b.total() / r.measured_s.unwrap() - 1.0
                );
                for (n, v) in b.parts() {
                    print!("{n} {:.1}% ", 100.0 * v / b.total());
                }
                println!();
            }
        }
    }
    let t = std::time::Instant::now();
    let out = fit::cross_validated(&rows, &Parameters::prior(), |g| {
        if g == "vtrain-single" { Fold::Jobs(2) } else { Fold::Group }
    });
    println!("cv {:?}", t.elapsed());
    report("left out", &rows, &out);
    let mut mem: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for r in &rows {
        if let (Ok(run), Some(gb)) = (&r.run, r.measured_memory_gb) {
            let m = autodist_analytic::Memory::of(run);
            let got = m.as_reported(run.trainer) / 1073741824.0;
            let e = got / gb - 1.0;
            mem.entry(r.group.clone()).or_default().push(e);
            mem.entry("~all".into()).or_default().push(e);
            if e < -0.05 || e.abs() > 0.1 {
                println!(
                    "MEM {} tp{} pp{} dp{} mb{} {:?} measured {gb} predicted {got:.2} {e:+.3} w{:.1} g{:.1} o{:.1} a{:.1} l{:.1} b{:.1} f{:.1}",
                    r.id,
                    run.layout.tensor,
                    run.layout.pipeline,
                    run.layout.data,
                    run.micro_batch,
                    run.recompute,
                    m.weights / 1e9,
                    m.gradients / 1e9,
                    m.optimizer / 1e9,
                    m.activations / 1e9,
                    m.logits / 1e9,
                    m.buffers / 1e9,
                    m.fragmentation / 1e9
                );
            }
        }
    }
    for (g, mut e) in mem {
        let n = e.len();
        let lo = q(&mut e, 0.0);
        let hi = q(&mut e, 1.0);
        let mut a: Vec<f64> = e.iter().map(|x| x.abs()).collect();
        println!("MEM {g} n {n} min {lo:+.3} max {hi:+.3} med|e| {:.3}", q(&mut a, 0.5));
    }
    let sets = autodist_analytic::sets::read(
        &std::fs::read("/work/shared/published/choice_sets.csv").unwrap(),
        "sets",
    )
    .unwrap();
    for (name, pred) in [("in", &ins), ("out", &out)] {
        let m: BTreeMap<&str, _> = rows
            .iter()
            .zip(pred.iter())
            .filter_map(|(r, p)| {
                Some((
                    r.id.as_str(),
                    autodist_analytic::sets::Timing {
                        group: &r.group,
                        measured: r.measured_s?,
                        predicted: (*p)?,
                    },
                ))
            })
            .collect();
        let c = autodist_analytic::sets::judge(&sets, &m);
        let n = c.len() as f64;
        println!(
            "sets {name}: n {n} regret mean {:.4} max {:.3} tau {:.3}",
            c.iter().map(|c| c.regret).sum::<f64>() / n,
            c.iter().map(|c| c.regret).fold(0.0, f64::max),
            c.iter().filter_map(|c| c.kendall_tau).sum::<f64>() / n
        );
        if name == "out" {
            for c in c {
                if c.regret > 0.03 || c.kendall_tau.unwrap_or(1.0) < 0.8 {
                    println!(
                        "  {} {} n {} regret {:.3} tau {:.2} best {} chosen {}",
                        c.set_id,
                        c.group,
                        c.layouts,
                        c.regret,
                        c.kendall_tau.unwrap_or(f64::NAN),
                        c.best_id,
                        c.chosen_id
                    );
                }
            }
        }
    }
    let errs = autodist_analytic::errors(&rows, &out);
    let bar = autodist_analytic::error_bar(&errs);
    println!(
        "bar {bar:.3} covered {:.3}",
        errs.iter().filter(|e| e.1.abs() <= bar).count() as f64 / errs.len() as f64
    );
    if let Some(path) = std::env::args().nth(2) {
        let mut s = String::from("id,group,measured,insample,leftout\n");
        for (i, r) in rows.iter().enumerate() {
            s += &format!(
                "{},{},{},{},{}\n",
                r.id,
                r.group,
                r.measured_s.unwrap_or(f64::NAN),
                ins[i].unwrap_or(f64::NAN),
                out[i].unwrap_or(f64::NAN)
            );
        }
        std::fs::write(path, s).unwrap();
    }
    let _ = Parameters::prior();
    for r in &rows {
        if let Err(e) = &r.run {
            println!("{} {}", r.id, e);
        }
    }
}
fn q(v: &mut [f64], p: f64) -> f64 {
    v.sort_by(f64::total_cmp);
    if v.is_empty() {
        return f64::NAN;
    }
    v[((v.len() - 1) as f64 * p).round() as usize]
}
fn report(name: &str, rows: &[table::Row], pred: &[Option<f64>]) {
    println!("== {name}");
    let mut g: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for (r, p) in rows.iter().zip(pred) {
        if !r.is_for_fitting() {
            if let (Some(p), Some(m)) = (p, r.measured_s) {
                g.entry((r.group.clone() + "-unfit", r.device.clone())).or_default().push(p / m - 1.0);
            }
            continue;
        }
        let e = p.unwrap() / r.measured_s.unwrap() - 1.0;
        g.entry((r.group.clone(), r.device.clone())).or_default().push(e);
        if (r.device.contains("A100") || r.device.contains("H100")) && r.group != "vtrain-single" {
            g.entry(("~A100/H100".into(), String::new())).or_default().push(e);
        }
    }
    for ((a, b), mut e) in g {
        let bias = q(&mut e, 0.5);
        let mut x: Vec<f64> = e.iter().map(|v| v.abs()).collect();
        println!(
            "{a:18} {b:28} n {:4} bias {:+.3} med {:.3} mean {:.3} p90 {:.3}",
            x.len(),
            bias,
            q(&mut x, 0.5),
            x.iter().sum::<f64>() / x.len() as f64,
            q(&mut x, 0.9)
        );
    }
}
