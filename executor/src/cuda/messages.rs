//! Send/recv between pipeline ranks by NCCL.
//!
//! NCCL has no tags, and a send blocks its stream until the receiver is ready. So every direction and kind of
//! send/recv between two ranks has its own group, and sends have their own thread and device queue,
//! concurrent with compute. Data of one kind between two ranks are received in the order in which they are
//! sent (`program/tests/it/messages.rs`).

use super::join;
use crate::ExecutionError;
use crate::device::{SendRecv, Tag};
use autodist_communication::queue::{Receiver, Sender, queue};
use autodist_communication::{Counters, Endpoint};
use autodist_compute::Backend;
use autodist_cuda::{Cuda, NcclGroup};
use std::collections::BTreeMap;
use std::thread::JoinHandle;

type Buffer = <Cuda as Backend>::Buffer;
type Event = <Cuda as Backend>::Event;

const KINDS: [u8; 2] = [0, 1];

/// Peer and kind.
type Channel = (usize, u8);

pub struct NcclSendRecv {
    outgoing: BTreeMap<Channel, Outgoing>,
    incoming: BTreeMap<Channel, NcclGroup>,
}

/// A sending thread.
struct Outgoing {
    work: Option<Sender<(Buffer, Event)>>,
    done: Receiver<Result<(), ExecutionError>>,
    thread: Option<JoinHandle<()>>,
    sent: u64,
}

impl NcclSendRecv {
    pub fn open(
        cuda: &Cuda,
        endpoint: &mut Endpoint,
        name: &str,
        peers: &[usize],
    ) -> Result<Self, ExecutionError> {
        let rank = endpoint.rank();
        let (mut outgoing, mut incoming) = (BTreeMap::new(), BTreeMap::new());
        // All ranks make their groups in the order of the pairs, so that they cannot deadlock.
        let mut pairs: Vec<[usize; 2]> = peers.iter().map(|&p| [rank.min(p), rank.max(p)]).collect();
        pairs.sort_unstable();
        for [low, high] in pairs {
            let peer = if low == rank { high } else { low };
            for (from, to) in [(low, high), (high, low)] {
                for kind in KINDS {
                    let mut host = endpoint.group(&format!("{name}.{from}.{to}.{kind}"), &[from, to])?;
                    let group = join(cuda, &mut *host)?;
                    if from == rank {
                        outgoing.insert((peer, kind), Outgoing::start(cuda, group)?);
                    } else {
                        incoming.insert((peer, kind), group);
                    }
                }
            }
        }
        Ok(Self { outgoing, incoming })
    }
}

impl Outgoing {
    fn start(cuda: &Cuda, mut group: NcclGroup) -> Result<Self, ExecutionError> {
        let stream = cuda.queue()?;
        let (work, orders) = queue::<(Buffer, Event)>();
        let (report, done) = queue();
        let body = move || {
            while let Some((buffer, ready)) = orders.receive() {
                stream.wait_for(&ready);
                let len = stream.len(&buffer);
                // The receiver's rank in the group is 1. The buffer must not be freed before it has been
                // sent.
                let queued = group.send(&stream, &buffer, 0..len, 1).map_err(ExecutionError::from);
                let result = queued.and_then(|()| Ok(stream.synchronise()?));
                drop(buffer);
                let failed = result.is_err();
                if report.send(result).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("messages".to_owned())
            .spawn(body)
            .map_err(|source| ExecutionError::System { what: "starting a thread for messages", source })?;
        Ok(Self { work: Some(work), done, thread: Some(thread), sent: 0 })
    }

    /// The error with which the thread ended.
    fn failure(&self, peer: usize) -> ExecutionError {
        loop {
            match self.done.receive() {
                Some(Err(error)) => return error,
                Some(Ok(())) => {}
                None => return ExecutionError::MessagesEnded { peer },
            }
        }
    }

    fn close(mut self, peer: usize) -> Result<(), ExecutionError> {
        self.work = None;
        let mut outcome = Ok(());
        while let Some(result) = self.done.receive() {
            outcome = outcome.and(result);
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(ExecutionError::MessagesEnded { peer }),
            _ => outcome,
        }
    }
}

impl SendRecv<Cuda> for NcclSendRecv {
    fn send(&mut self, queue: &Cuda, peer: usize, tag: Tag, buffer: Buffer) -> Result<(), ExecutionError> {
        let outgoing =
            self.outgoing.get_mut(&(peer, tag.kind)).ok_or(ExecutionError::MessagesEnded { peer })?;
        outgoing.sent += buffer.bytes() as u64;
        let ready = queue.record();
        match outgoing.work.as_ref().map(|work| work.send((buffer, ready))) {
            Some(Ok(())) => Ok(()),
            _ => Err(outgoing.failure(peer)),
        }
    }

    fn receive(
        &mut self,
        queue: &Cuda,
        peer: usize,
        tag: Tag,
        elements: usize,
    ) -> Result<Buffer, ExecutionError> {
        let group = self.incoming.get_mut(&(peer, tag.kind)).ok_or(ExecutionError::MessagesEnded { peer })?;
        let mut buffer = queue.uninitialised(elements);
        // The sender's rank in the group is 0.
        group.receive(queue, &mut buffer, 0..elements, 0)?;
        Ok(buffer)
    }

    fn counters(&self) -> Counters {
        let sent = self.outgoing.values().map(|outgoing| outgoing.sent).sum();
        let received = self.incoming.values().map(|group| group.traffic().received).sum();
        Counters { sent, received }
    }

    fn close(self: Box<Self>) -> Result<(), ExecutionError> {
        let Self { outgoing, .. } = *self;
        outgoing.into_iter().try_for_each(|((peer, _), outgoing)| outgoing.close(peer))
    }
}
