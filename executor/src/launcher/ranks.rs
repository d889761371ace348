//! The processes of one launch: those of this machine, and those that agents start.

use super::agents::Agents;
use super::orders::{End, RankEnvironment};
use super::runner::Running;
use super::{GRACE, LaunchError, LaunchOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The ranks of one launch. Dropping them kills them.
pub(super) struct Ranks<'a> {
    options: &'a LaunchOptions,
    local: BTreeMap<usize, Running>,
    remote: Option<Remote<'a>>,
    ended: BTreeMap<usize, Ended>,
}

/// The ranks that are run by agents.
struct Remote<'a> {
    agents: &'a Agents,
    launch: u64,
    ranks: usize,
}

struct Ended {
    end: End,
    output: String,
    /// Whether [`Ranks::newly_ended`] has reported it.
    told: bool,
}

impl<'a> Ranks<'a> {
    pub fn new(options: &'a LaunchOptions) -> Self {
        Self { options, local: BTreeMap::new(), remote: None, ended: BTreeMap::new() }
    }

    /// Starts all ranks of the world in `environment`, whose own rank and local rank are ignored; agents
    /// derive the token from `salt`.
    pub fn start(
        &mut self,
        environment: &RankEnvironment,
        salt: &str,
        assignments: &[Value],
    ) -> Result<(), LaunchError> {
        let Some(agents) = self.options.agents.as_deref() else {
            return (0..environment.world).try_for_each(|rank| {
                self.start_here(
                    RankEnvironment { rank, local_rank: rank, ..environment.clone() },
                    assignments,
                )
            });
        };
        let launch = agents.start(environment, salt, assignments)?;
        self.remote =
            Some(Remote { agents, launch, ranks: environment.world - agents.external().first_agent() });
        if agents.external().first_agent() == 0 {
            return Ok(());
        }
        let local_rank = agents.external().local_rank;
        self.start_here(RankEnvironment { rank: 0, local_rank, ..environment.clone() }, assignments)
    }

    fn start_here(&mut self, environment: RankEnvironment, assignments: &[Value]) -> Result<(), LaunchError> {
        let rank = environment.rank;
        let runner = &self.options.runner;
        let running = runner.start(environment, assignments).map_err(|source| LaunchError::Spawn {
            rank,
            program: runner.name(),
            source,
        })?;
        self.local.insert(rank, running);
        Ok(())
    }

    /// The ranks that have ended since the last call, and how.
    pub fn newly_ended(&mut self) -> Vec<(usize, End)> {
        self.look();
        let untold = self.ended.iter_mut().filter(|(_, ended)| !ended.told);
        let tell = |(rank, ended): (&usize, &mut Ended)| {
            ended.told = true;
            (*rank, ended.end.clone())
        };
        untold.map(tell).collect()
    }

    fn look(&mut self) {
        let mut news = Vec::new();
        for (rank, process) in &mut self.local {
            if !self.ended.contains_key(rank)
                && let Some(end) = process.end()
            {
                news.push((*rank, end, process.output()));
            }
        }
        if let Some(Remote { agents, launch, .. }) = &self.remote {
            news.extend(agents.ended(*launch));
        }
        for (rank, end, output) in news {
            // An agent that is lost after its rank has ended adds no information.
            self.ended.entry(rank).or_insert(Ended { end, output, told: false });
        }
    }

    pub fn all_ended(&mut self) -> bool {
        self.look();
        self.ended.len() == self.local.len() + self.remote.as_ref().map_or(0, |remote| remote.ranks)
    }

    /// How a rank has ended, if it has.
    pub fn end_of(&mut self, rank: usize) -> Option<End> {
        self.look();
        self.ended.get(&rank).map(|ended| ended.end.clone())
    }

    /// Waits up to `grace` for the ranks to end by themselves, then kills them.
    pub fn end(&mut self, grace: Duration) {
        if self.all_end_within(grace) {
            return;
        }
        if let Some(Remote { agents, launch, .. }) = &self.remote {
            agents.kill(*launch);
        }
        // Waits for all remaining ranks concurrently.
        self.local.values_mut().for_each(Running::tell_to_end);
        self.local.values_mut().for_each(|process| drop(process.kill()));
        // An agent that does not answer has been stopped: its rank will notice that the rendezvous has
        // closed.
        self.all_end_within(GRACE);
    }

    fn all_end_within(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            if self.all_ended() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last output of a rank, to be appended to a message.
    pub fn output(&self, rank: usize) -> String {
        match self.ended.get(&rank) {
            Some(Ended { output, .. }) if !output.is_empty() => format!("; it wrote:\n{output}"),
            _ => String::new(),
        }
    }
}

impl Drop for Ranks<'_> {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}
