//! Launch scripts for a plan's machines.

use crate::Export;
use autodist_spec::{Cluster, InputError, text};
use std::fmt::Write;

/// The machines of a plan, which have equal sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machines {
    pub nodes: u32,
    /// Devices per machine.
    pub devices: u32,
    /// Whether devices are GPUs; otherwise each process has a core.
    pub gpus: bool,
}

impl Machines {
    /// # Errors
    /// If nodes differ in size: launchers start the same number of processes on each.
    pub fn of(cluster: &Cluster, gpus: bool) -> Result<Self, InputError> {
        let sizes = cluster.devices_per_node();
        let devices = sizes.first().copied().unwrap_or(1);
        if sizes.iter().any(|size| *size != devices) {
            return Err(InputError::new(
                "cluster.nodes",
                format!("{sizes:?} devices"),
                "must be the same on all nodes: launchers start the same number of processes on each",
            )
            .hint("plan for nodes with the same number of devices"));
        }
        Ok(Self { nodes: cluster.node_count(), devices, gpus })
    }

    pub fn devices(self) -> u32 {
        self.nodes * self.devices
    }

    /// `torchrun` with one process per device; with several nodes, each runs the script.
    pub fn torchrun(self) -> String {
        let mut text = format!("torchrun --nnodes {} --nproc-per-node {}", self.nodes, self.devices);
        if self.nodes > 1 {
            text += " --node-rank \"$NODE_RANK\" --master-addr \"$MASTER_ADDR\" --master-port \"${MASTER_PORT:-29500}\"";
        }
        text
    }
}

/// `word` quoted as a single word of a shell command line.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,/:=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A comment of a script on one line, for any text.
pub(crate) fn comment(words: &str) -> String {
    format!("# {}\n", text::shown(words, 400))
}

/// A shell script that starts with the settings that every node needs.
pub struct Script(String);

impl Script {
    /// `purpose` is a sentence; `setup` are lines that prepare the command.
    pub fn new(purpose: &str, machines: Machines, setup: &[&str]) -> Self {
        let mut text = format!("#!/usr/bin/env bash\n{}", comment(purpose));
        if machines.nodes > 1 {
            text += &format!(
                "# Run it on each of the {} nodes, with NODE_RANK (0 to {}) and MASTER_ADDR (the first node's address) set.\n",
                machines.nodes,
                machines.nodes - 1
            );
        }
        text += "set -euo pipefail\n";
        if machines.nodes > 1 {
            text += ": \"${NODE_RANK:?this node, from 0}\" \"${MASTER_ADDR:?address of the first node}\"\n";
        }
        for line in setup {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        Self(text)
    }

    /// Adds a check that ends the script if a required hyperparameter that was not given is missing in the
    /// environment.
    #[must_use]
    pub fn asking(mut self, job: &Export<'_>) -> Self {
        for ask in job.asked() {
            // Writing to a String cannot fail.
            let _ = writeln!(self.0, "{}", ask.line());
        }
        self
    }

    /// One more line before the command.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.0 += line;
        self.0.push('\n');
        self
    }

    /// A command over several lines; the script's arguments are passed on to it.
    #[must_use]
    pub fn run(self, command: &str, arguments: &[String]) -> String {
        self.run_before(command, arguments, &[])
    }

    /// The same with arguments that must follow those of the script.
    #[must_use]
    pub fn run_before(mut self, command: &str, arguments: &[String], last: &[String]) -> String {
        self.0 += &format!("exec {command}");
        let own = "\"$@\"".to_owned();
        for argument in arguments.iter().chain([&own]).chain(last) {
            self.0 += &format!(" \\\n    {argument}");
        }
        self.0.push('\n');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_of_files_are_one_word_of_a_shell() {
        assert_eq!(quoted("out/plan.json"), "out/plan.json");
        assert_eq!(quoted("my plan's.json"), "'my plan'\\''s.json'");
    }
}
