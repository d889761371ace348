//! Gradient shards, gathered parameters and activations that are sent rounded, without error feedback.

use crate::ExecutionError;
use crate::compression::Over;
use crate::device::{SendRecv, Tag, TrainingDevice};
use crate::pace::{CodingPace, Emulated};
use autodist_codecs::{Arithmetic, Form, Part, PartMut, rounding};
use autodist_communication::{Communicator, Counters, Mailbox};
use autodist_spec::{Algorithm, Codec, Coded};
use bytemuck::pod_collect_to_vec;
use std::ops::Range;
use std::time::Duration;

/// One rounded collective on a part of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct RoundedCollective {
    codec: Codec,
    form: Form,
    coded: Coded,
    emulated: Option<Emulated>,
}

impl RoundedCollective {
    /// `None` for codecs that do not round; the strategy's rules exclude them.
    pub fn of(codec: Codec, coded: Coded, emulated: Option<Emulated>) -> Option<Self> {
        Form::of(codec).map(|form| Self { codec, form, coded, emulated })
    }

    /// Runs the collective in order with the work of `queue`.
    ///
    /// # Errors
    /// A peer that has disconnected or is silent.
    pub fn run<D: TrainingDevice>(
        self,
        queue: &D,
        buffer: &mut D::Buffer,
        range: Range<usize>,
        group: &mut dyn Communicator,
    ) -> Result<(), ExecutionError> {
        let (elements, size) = (range.len(), group.size());
        if size == 1 {
            return Ok(());
        }
        let mut over = Over::new(group, Algorithm::Ring, self.pace(elements, size));
        let (on, values) = (queue.coding(), PartMut::new(D::values(buffer), range));
        match self.coded {
            Coded::Parameters => rounding::all_gather(self.form, &on, values, &mut over)?,
            _ => rounding::reduce_scatter(self.form, &on, values, &mut over)?,
        }
        over.end();
        Ok(())
    }

    /// Starts the emulated time of encoding for one exchange or send/recv.
    fn pace(self, elements: usize, size: usize) -> Option<CodingPace> {
        let work = || autodist_codecs::work(self.codec, self.coded, &[], elements, size);
        self.emulated.map(|emulated| emulated.coding(work(), 1).begin())
    }
}

/// Send/recv through the host's memory: data are rounded before they are sent, and widened after they are
/// received. Their length is that of their bytes in whole words.
pub struct RoundedSendRecv {
    mailbox: Box<dyn Mailbox>,
    rounding: RoundedCollective,
}

impl RoundedSendRecv {
    pub fn new(mailbox: Box<dyn Mailbox>, rounding: RoundedCollective) -> Self {
        Self { mailbox, rounding }
    }
}

impl<D: TrainingDevice> SendRecv<D> for RoundedSendRecv {
    fn send(
        &mut self,
        queue: &D,
        peer: usize,
        tag: Tag,
        mut buffer: D::Buffer,
    ) -> Result<(), ExecutionError> {
        let elements = queue.len(&buffer);
        let pace = self.rounding.pace(elements, 2);
        let on = queue.coding();
        let bytes = on.encode(self.rounding.form, Part::new(D::values(&mut buffer), 0..elements));
        // Bytes as the bits of floats, which are never used in arithmetic; the last is padded with zeros.
        let words = on.fetch(vec![bytes]).iter().flat_map(|bytes| pod_collect_to_vec(bytes)).collect();
        drop(buffer);
        end(pace);
        Ok(self.mailbox.send(peer, tag.number(), words)?)
    }

    fn receive(
        &mut self,
        queue: &D,
        peer: usize,
        tag: Tag,
        elements: usize,
    ) -> Result<D::Buffer, ExecutionError> {
        let words = self.mailbox.receive(peer, tag.number())?;
        let pace = self.rounding.pace(elements, 2);
        let expected = rounding::message_bytes(self.rounding.form, elements) / 4;
        if words.len() != expected {
            return Err(ExecutionError::Message { peer, expected, given: words.len() });
        }
        let bytes = pod_collect_to_vec(&words);
        drop(words);
        let (on, mut buffer) = (queue.coding(), queue.zeros(elements));
        let values = PartMut::new(D::values(&mut buffer), 0..elements);
        on.add_encoded(self.rounding.form, &on.bring(bytes), values);
        end(pace);
        Ok(buffer)
    }

    fn counters(&self) -> Counters {
        self.mailbox.counters()
    }

    fn close(self: Box<Self>) -> Result<(), ExecutionError> {
        Ok(self.mailbox.close()?)
    }
}

/// Waits for the end of one side's half of the encoding time.
fn end(pace: Option<CodingPace>) {
    pace.into_iter().for_each(|mut pace| pace.end_part(Duration::ZERO));
}
