//! Derives the dependencies of each member's sends and receives from an ordered list of messages.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::schedule::{Receive, Schedule, Send};

/// Collects messages in an order that is correct if each is delivered before the next is sent. Concurrent
/// execution gives the same result, because a message waits for earlier ones that touch the same elements.
/// Since a sequential order exists, there is no deadlock.
pub(crate) struct Builder {
    schedule: Schedule,
    members: Vec<Touched>,
}

impl Builder {
    pub(crate) fn new(length: usize, size: usize) -> Self {
        let schedule = Schedule { sends: vec![Vec::new(); size], receives: vec![Vec::new(); size] };
        Self { schedule, members: (0..size).map(|_| Touched::new(length)).collect() }
    }

    /// Sends elements from one member to another, which adds them to its own or overwrites its own. An empty
    /// range adds no message.
    pub(crate) fn message(&mut self, from: usize, to: usize, elements: Range<usize>, combine: bool) {
        if elements.is_empty() {
            return;
        }
        let (sends, receives) = (&mut self.schedule.sends[from], &mut self.schedule.receives[to]);
        let after = self.members[from].read(&elements, sends.len());
        sends.push(Send { to, elements: elements.clone(), after });
        let (after, after_sends) = self.members[to].write(&elements, receives.len());
        receives.push(Receive { from, elements, combine, after, after_sends });
    }

    pub(crate) fn finish(self) -> Schedule {
        self.schedule
    }
}

/// The operations that touched each of a member's elements last. They depend on earlier ones, which need no
/// record.
struct Touched {
    /// Segments by their first element; together they cover all elements.
    segments: BTreeMap<usize, Segment>,
}

#[derive(Clone)]
struct Segment {
    end: usize,
    /// The last receive that wrote here.
    writer: Option<usize>,
    /// The sends that have read the segment since.
    readers: Vec<usize>,
}

impl Touched {
    fn new(length: usize) -> Self {
        Self { segments: BTreeMap::from([(0, Segment { end: length, writer: None, readers: Vec::new() })]) }
    }

    /// The receives that a send of `elements` waits for.
    fn read(&mut self, elements: &Range<usize>, send: usize) -> Vec<usize> {
        self.split(elements.start);
        self.split(elements.end);
        let mut writers = BTreeSet::new();
        for (_, segment) in self.segments.range_mut(elements.clone()) {
            writers.extend(segment.writer);
            segment.readers.push(send);
        }
        writers.into_iter().collect()
    }

    /// The receives and the sends that a receive into `elements` waits for.
    fn write(&mut self, elements: &Range<usize>, receive: usize) -> (Vec<usize>, Vec<usize>) {
        self.split(elements.start);
        self.split(elements.end);
        let (mut writers, mut readers) = (BTreeSet::new(), BTreeSet::new());
        let touched: Vec<usize> = self.segments.range(elements.clone()).map(|(start, _)| *start).collect();
        for segment in touched.iter().filter_map(|start| self.segments.remove(start)) {
            writers.extend(segment.writer);
            readers.extend(segment.readers);
        }
        let segment = Segment { end: elements.end, writer: Some(receive), readers: Vec::new() };
        self.segments.insert(elements.start, segment);
        (writers.into_iter().collect(), readers.into_iter().collect())
    }

    /// Splits segments so that one begins at `at`, unless `at` is the end.
    fn split(&mut self, at: usize) {
        if let Some((&start, segment)) = self.segments.range_mut(..=at).next_back()
            && start < at
            && at < segment.end
        {
            let rest = segment.clone();
            segment.end = at;
            self.segments.insert(at, rest);
        }
    }
}
