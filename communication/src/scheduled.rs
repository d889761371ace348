//! Runs one member's part of a [`Schedule`] over connections.
//!
//! It uses one thread, which sleeps while no connection is ready. Dependencies between messages apply to
//! single elements: a send that depends on a receive sends the elements that have arrived so far, so a
//! message is forwarded while it arrives. Every element is still touched in the schedule's order, so the
//! results have the same bits.

use std::collections::BTreeMap;
use std::ops::Range;

use autodist_collectives::{Receive, Schedule, Send};
use bytemuck::{cast_slice, cast_slice_mut};

use crate::communicator::{Counters, Links};
use crate::connection::Idle;
use crate::error::Result;
use crate::ring::PORTION;

const WIDTH: usize = size_of::<f32>();

/// One member's part of one collective.
pub(crate) struct Part {
    sends: Vec<Send>,
    receives: Vec<Receive>,
    /// Indices of sends and receives by peer, in the order of their connection.
    to: BTreeMap<usize, Vec<usize>>,
    from: BTreeMap<usize, Vec<usize>>,
}

impl Part {
    pub(crate) fn of(mut schedule: Schedule, member: usize) -> Self {
        let sends = std::mem::take(&mut schedule.sends[member]);
        let receives = std::mem::take(&mut schedule.receives[member]);
        let (mut to, mut from) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (index, send) in sends.iter().enumerate() {
            to.entry(send.to).or_default().push(index);
        }
        for (index, receive) in receives.iter().enumerate() {
            from.entry(receive.from).or_default().push(index);
        }
        Self { sends, receives, to, from }
    }

    /// Runs the part on `values`; arguments are those of [`crate::ring::Pass::run`]. Returns false on a
    /// deadlock, which no schedule of [`Schedule::build`] has.
    pub(crate) fn run(
        &self,
        links: &Links,
        values: &mut [f32],
        combine: fn(&mut [f32], &[f32]),
        scratch: &mut Vec<f32>,
        counters: &mut Counters,
        operation: &'static str,
    ) -> Result<bool> {
        let mut outgoing = Vec::new();
        for (place, queue) in &self.to {
            let Some(link) = links.to(*place) else { return Ok(false) };
            outgoing.push((link, queue.as_slice()));
        }
        let mut incoming = Vec::new();
        for (place, queue) in &self.from {
            let Some(link) = links.from(*place) else { return Ok(false) };
            // The bytes of a partly received element that is to be combined.
            incoming.push((link, queue.as_slice(), [0; WIDTH], 0));
        }
        let mut progress =
            Progress { sent: vec![0; self.sends.len()], received: vec![0; self.receives.len()] };
        let mut idle = Idle::default();
        // Connections with data to send or receive that were not ready.
        let (mut sending, mut receiving) = (Vec::new(), Vec::new());
        loop {
            let mut moved = 0;
            sending.clear();
            receiving.clear();
            for (link, queue) in &mut outgoing {
                let Some(&index) = queue.first() else { continue };
                let bytes = self.sendable(index, &progress);
                if bytes.is_empty() {
                    continue;
                }
                let sent = link.try_send(&cast_slice(values)[bytes], operation)?;
                progress.sent[index] += sent;
                counters.sent += sent as u64;
                moved += sent;
                if sent == 0 {
                    sending.push(*link);
                } else if progress.sent[index] == self.sends[index].elements.len() * WIDTH {
                    *queue = &queue[1..];
                }
            }
            for (link, queue, partial, kept) in &mut incoming {
                let Some(&index) = queue.first() else { continue };
                let place = self.receivable(index, &progress);
                if place.is_empty() {
                    continue;
                }
                let received = if self.receives[index].combine {
                    if scratch.is_empty() {
                        scratch.resize(PORTION / WIDTH, 0.0);
                    }
                    let bytes: &mut [u8] = cast_slice_mut(scratch);
                    bytes[..*kept].copy_from_slice(&partial[..*kept]);
                    let received = link.try_receive(&mut bytes[*kept..place.len()], operation)?;
                    let (whole, rest) = ((*kept + received) / WIDTH, (*kept + received) % WIDTH);
                    partial[..rest].copy_from_slice(&bytes[whole * WIDTH..whole * WIDTH + rest]);
                    *kept = rest;
                    let start = place.start / WIDTH;
                    combine(&mut values[start..start + whole], &scratch[..whole]);
                    progress.received[index] += whole * WIDTH;
                    received
                } else {
                    let received = link.try_receive(&mut cast_slice_mut(values)[place], operation)?;
                    progress.received[index] += received;
                    received
                };
                counters.received += received as u64;
                moved += received;
                if received == 0 {
                    receiving.push(*link);
                } else if progress.received[index] == self.receives[index].elements.len() * WIDTH {
                    *queue = &queue[1..];
                }
            }
            if outgoing.iter().all(|(_, queue)| queue.is_empty())
                && incoming.iter().all(|(_, queue, ..)| queue.is_empty())
            {
                return Ok(true);
            }
            if moved > 0 {
                idle = Idle::default();
            } else if sending.is_empty() && receiving.is_empty() {
                return Ok(false);
            } else {
                idle.wait_any(&sending, &receiving, operation)?;
            }
        }
    }

    /// The bytes of `values` that this send may send next.
    fn sendable(&self, index: usize, progress: &Progress) -> Range<usize> {
        let send = &self.sends[index];
        let mut end = send.elements.end;
        for &before in &send.after {
            end = until(&send.elements, end, &self.receives[before].elements, progress.received[before]);
        }
        portion(&send.elements, end, progress.sent[index])
    }

    /// The bytes of `values` that this receive may write or combine next.
    fn receivable(&self, index: usize, progress: &Progress) -> Range<usize> {
        let receive = &self.receives[index];
        let mut end = receive.elements.end;
        for &before in &receive.after {
            end = until(&receive.elements, end, &self.receives[before].elements, progress.received[before]);
        }
        for &before in &receive.after_sends {
            end = until(&receive.elements, end, &self.sends[before].elements, progress.sent[before]);
        }
        portion(&receive.elements, end, progress.received[index])
    }
}

/// Bytes of each message that have left, or have arrived and been combined.
struct Progress {
    sent: Vec<usize>,
    received: Vec<usize>,
}

/// The end, at most `end`, up to which `elements` may be touched after `done` bytes of an earlier message.
fn until(elements: &Range<usize>, end: usize, earlier: &Range<usize>, done: usize) -> usize {
    let open = earlier.start + done / WIDTH..earlier.end;
    if open.is_empty() {
        return end;
    }
    if earlier.end <= elements.start || elements.end <= earlier.start {
        // The ranges do not overlap, so the whole earlier message must be complete.
        return elements.start;
    }
    end.min(open.start.max(elements.start))
}

/// The next bytes of a message whose elements may be touched up to `end`.
fn portion(elements: &Range<usize>, end: usize, done: usize) -> Range<usize> {
    let start = elements.start * WIDTH + done;
    start..(end * WIDTH).min(start + PORTION).max(start)
}

#[cfg(test)]
mod tests {
    use autodist_collectives::suits;
    use autodist_spec::Algorithm;
    use autodist_spec::Collective;

    use super::*;
    use crate::connection::testing::trickle;

    #[test]
    fn elements_may_arrive_in_parts() {
        const LENGTH: usize = 100;
        let algorithms = [
            Algorithm::Ring,
            Algorithm::DoubleBinaryTree,
            Algorithm::HalvingDoubling,
            Algorithm::Hierarchical { inner: 2 },
        ];
        for (size, most) in [3, 4, 6].into_iter().flat_map(|size| [1, 3, 7, 1000].map(|most| (size, most))) {
            for algorithm in algorithms {
                if suits(algorithm, Collective::AllReduce, size).is_err() {
                    continue;
                }
                let mut links: Vec<_> = (0..size).map(|_| Links::default()).collect();
                for one in 0..size {
                    for other in one + 1..size {
                        let (here, there) = trickle(one, other, most);
                        links[one].insert(other, here);
                        links[other].insert(one, there);
                    }
                }
                let schedule = Schedule::build(algorithm, Collective::AllReduce, LENGTH, size).unwrap();
                let members = links.into_iter().enumerate().map(|(rank, links)| {
                    let part = Part::of(schedule.clone(), rank);
                    std::thread::spawn(move || {
                        let mut values: Vec<f32> =
                            (0..LENGTH).map(|place| (place * size + rank) as f32).collect();
                        let mut counters = Counters::default();
                        let add = |own: &mut [f32], arrived: &[f32]| {
                            own.iter_mut().zip(arrived).for_each(|(own, arrived)| *own += arrived);
                        };
                        let whole = part
                            .run(&links, &mut values, add, &mut Vec::new(), &mut counters, "all-reduce")
                            .unwrap();
                        assert!(whole);
                        values
                    })
                });
                let expected: Vec<_> =
                    (0..LENGTH).map(|place| (size * size * place + size * (size - 1) / 2) as f32).collect();
                for member in members.collect::<Vec<_>>() {
                    assert_eq!(
                        member.join().unwrap(),
                        expected,
                        "{} of {size}, {most} at a time",
                        algorithm.name()
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_begun_is_followed_and_what_is_apart_is_waited_for() {
        // Only whole elements count.
        assert_eq!(until(&(0..10), 10, &(0..10), 4 * 3 + 2), 3);
        assert_eq!(until(&(5..10), 10, &(0..10), 4 * 3), 5);
        assert_eq!(until(&(0..10), 10, &(5..10), 0), 5);
        assert_eq!(until(&(0..5), 5, &(0..10), 4 * 5), 5);
        assert_eq!(until(&(0..5), 5, &(5..10), 4), 0);
        assert_eq!(until(&(0..5), 5, &(5..10), 20), 5);
        assert_eq!(portion(&(2..4), 3, 1), 9..12);
        assert_eq!(portion(&(2..4), 2, 0), 8..8);
    }
}
