//! What is heard of the ranks of a launch, and which of it is the cause of an early end.

use super::orders::{Answer, End};
use super::ranks::Ranks;
use super::silence::Silence;
use super::{GRACE, LOOK_AGAIN, LaunchError, News};
use autodist_communication::ControlEvent;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What has been heard of the ranks.
pub(super) struct Watch {
    world: usize,
    answers: BTreeMap<usize, Vec<Option<Value>>>,
    joined: BTreeSet<usize>,
    /// Who has said goodbye.
    left: BTreeSet<usize>,
    /// Whose connection or process has ended without a goodbye, and until when more may be heard of it: all of them
    /// wait side by side.
    vanished: BTreeMap<usize, Vanished>,
    silence: Silence,
    looked: Instant,
    pub cause: Option<Cause>,
}

struct Vanished {
    /// How its process ended, as far as that is known.
    end: Option<End>,
    until: Instant,
}

/// Why the job ends early.
pub(super) struct Cause {
    pub error: LaunchError,
    /// Whether something else, not heard of yet, may have led to it.
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

    /// Whether all ranks have said goodbye.
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
                    // Their signs begin now.
                    (0..self.world).for_each(|rank| self.silence.heard(rank));
                }
            }
            ControlEvent::Alive(rank) => self.silence.heard(rank),
            ControlEvent::Left(rank) => {
                self.vanished.remove(&rank);
                self.left.insert(rank);
            }
            ControlEvent::Lost(rank) => {
                // Its process ends at about the same time; how it ended is the better message.
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

    /// Looks for ranks that have ended or say nothing, if the last look is some time ago.
    pub fn look(&mut self, ranks: &mut Ranks<'_>) {
        if self.looked.elapsed() < LOOK_AGAIN {
            return;
        }
        self.looked = Instant::now();
        self.look_for_dead(ranks);
        // Until all are here, who has joined waits for the others and gives no sign.
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

    /// Looks for ranks that have ended.
    pub fn look_for_dead(&mut self, ranks: &mut Ranks<'_>) {
        for (rank, end) in ranks.newly_ended() {
            match end {
                // Its goodbye may be on its way.
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

    /// Waits no longer for news of those that have vanished.
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
        // A rank that has said why it fails ends with an exit code: that says no more.
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

    /// Gives up a rank that says nothing, as do others.
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
        // One that has not joined may still say why, by how it ends.
        self.cause_is(LaunchError::RankEnded { rank, what, output: String::new() }, !joined);
    }

    /// The ranks that have never joined, if others have waited for them in vain and they have not said why.
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

    /// Keeps the first cause; a consequence of something else gives way to it.
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

/// The end of a rank by a signal that was not ours.
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
            runner: Runner::Program(program.iter().map(Into::into).collect()),
            rendezvous: "127.0.0.1:0".parse().unwrap(),
            timeout,
            realtime: false,
            devices: DeviceKind::Cpu,
            stop: Arc::default(),
            agents: None,
            network: None,
            torch: None,
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
        // One after another it would be twelve times as long.
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

    /// More than a pipe holds, to a process that never reads.
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
        // It says itself why it has not come.
        watch.ended(3, Some(End::Code(1)));
        assert!(matches!(watch.cause, Some(Cause { error: LaunchError::RankEnded { rank: 3, .. }, .. })));
        assert_eq!(watch.waited_for(), None);

        // A signal is a cause of its own, and so is an end once all are there.
        for (joined, end) in [(&[0][..], End::Signal(9)), (&[0, 1], End::Code(1))] {
            let mut watch = watched(2, joined);
            watch.ended(0, Some(end));
            assert!(matches!(watch.cause, Some(Cause { consequence: false, .. })));
            assert_eq!(watch.waited_for(), None);
        }
    }
}
