//! Watches the events of a launch's ranks, and finds the cause of an early end.

use super::orders::{Answer, End};
use super::ranks::Ranks;
use super::silence::Silence;
use super::{GRACE, LOOK_AGAIN, LaunchError, News};
use autodist_communication::ControlEvent;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The state of the ranks.
pub(super) struct Watch {
    world: usize,
    answers: BTreeMap<usize, Vec<Option<Value>>>,
    joined: BTreeSet<usize>,
    /// Ranks that have left.
    left: BTreeSet<usize>,
    /// Ranks whose connection or process has ended before they left, and the deadlines for further
    /// information; all deadlines run concurrently.
    vanished: BTreeMap<usize, Vanished>,
    silence: Silence,
    looked: Instant,
    pub cause: Option<Cause>,
}

struct Vanished {
    /// How its process ended, if known.
    end: Option<End>,
    until: Instant,
}

/// The reason why the job ends early.
pub(super) struct Cause {
    pub error: LaunchError,
    /// Whether it may be a consequence of another event, not known yet.
    pub consequence: bool,
}

impl Watch {
    /// Watches ranks that have just been started; each counts as lost after `timeout` without a heartbeat.
    pub fn new(world: usize, timeout: Duration) -> Self {
        Self {
            world,
            answers: BTreeMap::new(),
            joined: BTreeSet::new(),
            left: BTreeSet::new(),
            vanished: BTreeMap::new(),
            silence: Silence::new(world, timeout),
            looked: Instant::now(),
            cause: None,
        }
    }

    /// Whether all ranks have left.
    pub fn is_over(&self) -> bool {
        self.left.len() == self.world
    }

    pub fn take(
        &mut self,
        event: ControlEvent,
        ranks: &mut Ranks<'_>,
        heard: &mut impl FnMut(News),
    ) -> Result<(), LaunchError> {
        match event {
            ControlEvent::Joined(rank) => {
                self.vanished.remove(&rank);
                self.silence.heard(rank);
                self.joined.insert(rank);
                if self.joined.len() == self.world {
                    // Heartbeats begin now.
                    (0..self.world).for_each(|rank| self.silence.heard(rank));
                }
            }
            ControlEvent::Alive(rank) => self.silence.heard(rank),
            ControlEvent::Left(rank) => {
                self.vanished.remove(&rank);
                self.left.insert(rank);
            }
            ControlEvent::Lost(rank) => {
                // Its process ends at about the same time; its exit status gives a better message.
                match ranks.end_of(rank) {
                    Some(end) => self.ended(rank, Some(end)),
                    None => drop(self.vanished.insert(rank, Vanished::now(None))),
                }
            }
            ControlEvent::Message(rank, bytes) => {
                self.silence.heard(rank);
                match serde_json::from_slice(&bytes) {
                    Ok(Answer::Alive) => {}
                    Ok(Answer::Progress { assignment, value }) => {
                        heard(News::Progress { assignment, rank, value });
                    }
                    Ok(Answer::Done { assignment, value }) => self.answered(rank, assignment, value, heard),
                    Ok(Answer::Failed { message, consequence }) => {
                        self.cause_is(LaunchError::RankFailed { rank, message }, consequence);
                    }
                    Err(error) => return Err(LaunchError::Answer { rank, detail: error.to_string() }),
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, rank: usize, assignment: usize, value: Value, heard: &mut impl FnMut(News)) {
        let answers = self.answers.entry(assignment).or_insert_with(|| vec![None; self.world]);
        answers[rank] = Some(value);
        if answers.iter().all(Option::is_some) {
            let answers = self.answers.remove(&assignment).unwrap_or_default();
            heard(News::Done { assignment, answers: answers.into_iter().flatten().collect() });
        }
    }

    /// Checks for ranks that have ended or are silent, if the last check is some time ago.
    pub fn look(&mut self, ranks: &mut Ranks<'_>) {
        if self.looked.elapsed() < LOOK_AGAIN {
            return;
        }
        self.looked = Instant::now();
        self.look_for_dead(ranks);
        // Until all have joined, joined ranks wait for the others without heartbeats.
        let waits = self.joined.len() < self.world;
        let gone = |rank: usize| {
            self.left.contains(&rank)
                || self.vanished.contains_key(&rank)
                || (waits && self.joined.contains(&rank))
        };
        let silent = self.silence.look(gone);
        if let Some(first) = silent.first().copied()
            && self.cause.is_none()
        {
            self.silent(first, &silent[1..]);
        }
    }

    /// Checks for ranks that have ended.
    pub fn look_for_dead(&mut self, ranks: &mut Ranks<'_>) {
        for (rank, end) in ranks.newly_ended() {
            match end {
                // Its leave message may be in flight.
                End::Code(0) if !self.left.contains(&rank) => {
                    self.vanished.insert(rank, Vanished::now(Some(end)));
                }
                end => {
                    self.vanished.remove(&rank);
                    self.ended(rank, Some(end));
                }
            }
        }
        let now = Instant::now();
        self.give_up(|vanished| vanished.until <= now);
    }

    /// Stops waiting for information about vanished ranks.
    pub fn give_up_all(&mut self) {
        self.give_up(|_| true);
    }

    fn give_up(&mut self, which: impl Fn(&Vanished) -> bool) {
        let over: Vec<usize> =
            self.vanished.iter().filter(|(_, vanished)| which(vanished)).map(|(rank, _)| *rank).collect();
        for rank in over {
            let end = self.vanished.remove(&rank).and_then(|vanished| vanished.end);
            self.ended(rank, end);
        }
    }

    fn ended(&mut self, rank: usize, end: Option<End>) {
        // A rank that has reported its error ends with an exit code, which adds no information.
        let explained = matches!(&self.cause, Some(Cause { error: LaunchError::RankFailed { .. }, .. }));
        let absent: Vec<usize> = (0..self.world).filter(|rank| !self.joined.contains(rank)).collect();
        let (what, consequence) = match end {
            Some(End::Code(0)) if self.left.contains(&rank) => return,
            Some(End::Code(0)) => {
                ("ended with exit code 0 before the training was complete".to_owned(), explained)
            }
            Some(End::AgentLost) => return self.cause_is(LaunchError::AgentLost { rank }, false),
            Some(End::Signal(signal)) => (killed_by(signal), false),
            Some(End::Stuck) => ("continues although it was told to end".to_owned(), explained),
            // Until all have joined, a rank does nothing but wait for the others.
            Some(End::Code(_)) if self.joined.contains(&rank) && !absent.is_empty() => {
                return self.silent(absent[0], &absent[1..]);
            }
            Some(End::Code(code)) => (format!("ended with exit code {code}"), explained),
            Some(End::NotStarted(why)) => (format!("could not be started: {why}"), false),
            None => ("closed its connection".to_owned(), explained),
        };
        self.cause_is(LaunchError::RankEnded { rank, what, output: String::new() }, consequence);
    }

    /// Gives up a silent rank.
    fn silent(&mut self, rank: usize, others: &[usize]) {
        let limit = self.silence.limit().as_secs_f64();
        let joined = self.joined.contains(&rank);
        let mut what = if joined {
            format!("has sent no heartbeat for {limit} s (--timeout): it was stopped, or it hangs")
        } else {
            format!("has not joined the job within {limit} s (--timeout)")
        };
        if !others.is_empty() {
            let others: Vec<String> = others.iter().map(usize::to_string).collect();
            let ranks = if others.len() == 1 { "rank" } else { "ranks" };
            what += &format!("; the same applies to {ranks} {}", others.join(", "));
        }
        // The exit status of a rank that has not joined may still give the reason.
        self.cause_is(LaunchError::RankEnded { rank, what, output: String::new() }, !joined);
    }

    /// The ranks that have never joined and reported no error, if others have waited for them in vain.
    pub fn waited_for(&self) -> Option<String> {
        match &self.cause {
            Some(Cause { error: LaunchError::RankEnded { rank, .. }, consequence: true })
                if !self.joined.contains(rank) && !self.joined.is_empty() =>
            {
                let missing = (0..self.world).filter(|rank| !self.joined.contains(rank));
                Some(missing.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", "))
            }
            _ => None,
        }
    }

    /// Records the first cause, which replaces a possible consequence.
    fn cause_is(&mut self, error: LaunchError, consequence: bool) {
        if self.cause.as_ref().is_none_or(|known| known.consequence && !consequence) {
            self.cause = Some(Cause { error, consequence });
        }
    }
}

impl Vanished {
    fn now(end: Option<End>) -> Self {
        Self { end, until: Instant::now() + GRACE }
    }
}

/// The end of a rank by a signal that we have not sent.
pub(super) fn killed_by(signal: i32) -> String {
    let hint = match signal {
        libc::SIGKILL => " (SIGKILL): possibly by the kernel's out-of-memory killer (see dmesg)",
        _ => "",
    };
    format!("was killed by signal {signal}{hint}")
}

#[cfg(test)]
mod tests {
    use super::super::orders::RankEnvironment;
    use super::super::{LaunchOptions, Runner, launch};
    use super::*;
    use autodist_spec::DeviceKind;
    use std::sync::Arc;

    const WORLD: usize = 12;

    fn options(program: &[&str], timeout: Duration) -> LaunchOptions {
        LaunchOptions {
            runner: Runner::Program {
                command: program.iter().map(Into::into).collect(),
                python: std::path::PathBuf::new(),
            },
            rendezvous: "127.0.0.1:0".parse().unwrap(),
            timeout,
            realtime: false,
            devices: DeviceKind::Cpu,
            stop: Arc::default(),
            agents: None,
            network: None,
            engine: autodist_spec::Engine::Native,
            warn: |_| (),
        }
    }

    #[test]
    fn all_ranks_that_are_lost_are_waited_for_at_once() {
        let options = options(&["sleep", "1000"], Duration::from_secs(60));
        let environment = RankEnvironment {
            rank: 0,
            local_rank: 0,
            world: WORLD,
            rendezvous: options.rendezvous,
            token: String::new(),
            timeout_s: 60.0,
            realtime: false,
            devices: DeviceKind::Cpu,
            engine: autodist_spec::Engine::Native,
            python: None,
        };
        let mut ranks = Ranks::new(&options);
        ranks.start(&environment, "", &[]).unwrap();
        let mut watch = Watch::new(WORLD, options.timeout);
        let began = Instant::now();
        for event in (0..WORLD).map(ControlEvent::Joined).chain((0..WORLD).map(ControlEvent::Lost)) {
            watch.take(event, &mut ranks, &mut |_| ()).unwrap();
        }
        while watch.cause.is_none() {
            watch.look(&mut ranks);
            std::thread::sleep(LOOK_AGAIN);
        }
        // One after another, it would take twelve times as long.
        assert!(began.elapsed() < 4 * GRACE, "{:?}", began.elapsed());
        let error = watch.cause.unwrap().error.to_string();
        assert!(error.contains("rank 0 closed its connection"), "{error}");
    }

    #[test]
    fn a_rank_that_ends_well_without_a_goodbye_has_failed() {
        let error = launch(2, &[], &options(&["true"], Duration::from_secs(60)), |_| ()).unwrap_err();
        assert!(
            error.to_string().contains("ended with exit code 0 before the training was complete"),
            "{error}"
        );
    }

    #[test]
    fn ranks_that_never_come_are_given_up() {
        let options = options(&["sleep", "1000"], Duration::from_millis(300));
        let error = launch(3, &[], &options, |_| ()).unwrap_err().to_string();
        let expected =
            "rank 0 has not joined the job within 0.3 s (--timeout); the same applies to ranks 1, 2";
        assert!(error.contains(expected), "{error}");
    }

    /// More than the buffer of a pipe, to a process that never reads.
    #[test]
    fn a_rank_that_does_not_read_its_assignments_holds_nobody_up() {
        let options = options(&["sleep", "1000"], Duration::from_millis(300));
        let long = Value::String("x".repeat(1 << 20));
        let error = launch(1, &[long], &options, |_| ()).unwrap_err().to_string();
        assert!(error.contains("has not joined"), "{error}");
    }

    #[test]
    fn a_rank_that_waited_for_others_in_vain_is_not_to_blame() {
        let watched = |world, joined: &[usize]| Watch {
            joined: joined.iter().copied().collect(),
            ..Watch::new(world, Duration::from_secs(60))
        };
        let mut watch = watched(4, &[0, 2]);
        watch.ended(0, Some(End::Code(1)));
        assert_eq!(watch.waited_for().as_deref(), Some("1, 3"));
        // The rank itself reports why it has not joined.
        watch.ended(3, Some(End::Code(1)));
        assert!(matches!(watch.cause, Some(Cause { error: LaunchError::RankEnded { rank: 3, .. }, .. })));
        assert_eq!(watch.waited_for(), None);

        // A signal is a cause by itself, and so is an end after all have joined.
        for (joined, end) in [(&[0][..], End::Signal(9)), (&[0, 1], End::Code(1))] {
            let mut watch = watched(2, joined);
            watch.ended(0, Some(end));
            assert!(matches!(watch.cause, Some(Cause { consequence: false, .. })));
            assert_eq!(watch.waited_for(), None);
        }
    }
}
