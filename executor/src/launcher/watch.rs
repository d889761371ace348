//! What is heard of the ranks of a launch, and which of it is the cause of an early end.

use super::orders::{Answer, End};
use super::ranks::Ranks;
use super::{GRACE, LaunchError};
use autodist_communication::ControlEvent;
use serde_json::Value;
use std::collections::BTreeMap;

/// What has been heard of the ranks.
pub(super) struct Watch {
    pub world: usize,
    pub answers: BTreeMap<usize, Vec<Option<Value>>>,
    pub left: usize,
    pub cause: Option<Cause>,
}

/// Why the job ends early.
pub(super) struct Cause {
    pub error: LaunchError,
    /// Whether something else, not heard of yet, may have led to it.
    pub consequence: bool,
}

impl Watch {
    pub fn take(
        &mut self,
        event: ControlEvent,
        ranks: &mut Ranks<'_>,
        done: &mut impl FnMut(usize, Vec<Value>),
    ) -> Result<(), LaunchError> {
        match event {
            ControlEvent::Joined(_) => {}
            ControlEvent::Left(_) => self.left += 1,
            ControlEvent::Lost(rank) => {
                // Its process ends at about the same time; how it ended is the better message.
                let end = ranks.wait(rank, GRACE);
                self.ended(rank, end);
            }
            ControlEvent::Message(rank, bytes) => match serde_json::from_slice(&bytes) {
                Ok(Answer::Done { assignment, value }) => self.answered(rank, assignment, value, done),
                Ok(Answer::Failed { message, consequence }) => {
                    self.cause_is(LaunchError::RankFailed { rank, message }, consequence);
                }
                Err(error) => return Err(LaunchError::Answer { rank, detail: error.to_string() }),
            },
        }
        Ok(())
    }

    fn answered(
        &mut self,
        rank: usize,
        assignment: usize,
        value: Value,
        done: &mut impl FnMut(usize, Vec<Value>),
    ) {
        let answers = self.answers.entry(assignment).or_insert_with(|| vec![None; self.world]);
        answers[rank] = Some(value);
        if answers.iter().all(Option::is_some) {
            let answers = self.answers.remove(&assignment).unwrap_or_default();
            done(assignment, answers.into_iter().flatten().collect());
        }
    }

    pub fn look_for_dead(&mut self, ranks: &mut Ranks<'_>) {
        for (rank, end) in ranks.newly_ended() {
            self.ended(rank, Some(end));
        }
    }

    fn ended(&mut self, rank: usize, end: Option<End>) {
        // A rank that has said why it fails ends with an exit code: that says no more.
        let explained = matches!(&self.cause, Some(Cause { error: LaunchError::RankFailed { .. }, .. }));
        let (what, consequence) = match end {
            Some(End::Code(0)) => return,
            Some(End::AgentLost) => return self.cause_is(LaunchError::AgentLost { rank }, false),
            Some(End::Signal(signal)) => (format!("was killed by signal {signal}"), false),
            Some(End::Stuck) => ("goes on though it was told to end".to_owned(), explained),
            Some(End::Code(code)) => (format!("ended with exit code {code}"), explained),
            Some(End::NotStarted(why)) => (format!("could not be started: {why}"), false),
            None => ("closed its connection".to_owned(), explained),
        };
        self.cause_is(LaunchError::RankEnded { rank, what, output: String::new() }, consequence);
    }

    /// Keeps the first cause; a consequence of something else gives way to it.
    fn cause_is(&mut self, error: LaunchError, consequence: bool) {
        if self.cause.as_ref().is_none_or(|known| known.consequence && !consequence) {
            self.cause = Some(Cause { error, consequence });
        }
    }
}
