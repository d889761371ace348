//! All streams of this process, under one lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_int;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::MpiError;
use super::calls::{Buffer, Calls, Outcome, Pending};
use crate::poll::nap;

/// Maximum number of messages in flight per stream and direction; the receiver buffers as many.
const WINDOW: usize = 4;
/// Maximum number of buffers kept for reuse.
const SPARE: usize = 64;
/// Tag of the message that opens a stream.
const GREETING: c_int = 1;
/// Maximum number of streams: each uses two tags, and the standard guarantees tags up to 32767 (MPI 4.0,
/// 9.1.2).
const NUMBERS: c_int = 16_383;
/// Time limit for other processes to finalise.
const FINALISE_WITHIN: Duration = Duration::from_secs(10);

/// A stream's peer, and its number among the streams with that peer.
pub(super) type Key = (usize, c_int);

/// Why a stream cannot make progress.
pub(super) enum Trouble {
    Closed,
    Mpi(String),
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self::Mpi(detail)
    }
}

/// The purpose of a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Purpose {
    /// Identifies the launch.
    pub session: String,
    pub lane: String,
    /// The index among the lane's connections between the two ranks.
    pub channel: usize,
}

/// The opening message of a stream, from the lower rank to the higher.
#[derive(Serialize, Deserialize)]
struct Greeting {
    number: c_int,
    purpose: Purpose,
}

pub(super) struct Hub {
    pub rank: usize,
    pub size: usize,
    pub library: String,
    state: Mutex<State>,
    /// Wakes the progress thread.
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    rank: usize,
    /// `None` once finalised.
    calls: Option<Calls>,
    streams: BTreeMap<Key, Stream>,
    /// Per peer: numbers that are free again, and the next unused one.
    free: BTreeMap<usize, (BTreeSet<c_int>, c_int)>,
    /// Greetings being sent.
    greetings: Vec<Pending>,
    /// Greetings being received.
    arriving: Vec<(usize, Pending)>,
    /// Received greetings whose number is still in use by its last stream.
    early: Vec<(usize, Greeting)>,
    /// Streams opened by peers and not yet taken here.
    heard: BTreeMap<(usize, Purpose), c_int>,
    sessions: usize,
    ended: BTreeSet<String>,
    interrupted: bool,
    over: bool,
    spare: Vec<Buffer>,
}

/// One stream, in both directions.
struct Stream {
    /// Whether this process still uses it.
    open: bool,
    outgoing: VecDeque<Pending>,
    sent: u64,
    own_end: Option<Pending>,
    arriving: VecDeque<Pending>,
    arrived: VecDeque<Buffer>,
    received: u64,
    their_end: End,
}

enum End {
    Unheard,
    Arriving(Pending),
    /// The peer closed the stream after this many messages.
    After(u64),
}

impl Stream {
    fn new() -> Self {
        Self {
            open: true,
            outgoing: VecDeque::new(),
            sent: 0,
            own_end: None,
            arriving: VecDeque::new(),
            arrived: VecDeque::new(),
            received: 0,
            their_end: End::Unheard,
        }
    }

    /// Advances the stream as far as possible; returns whether there was progress.
    fn advance(&mut self, (peer, number): Key, calls: &Calls, spare: &mut Vec<Buffer>) -> Outcome<bool> {
        let mut moved = false;
        while let Some(first) = self.outgoing.front_mut()
            && calls.test(first)?
        {
            spare.extend(self.outgoing.pop_front().map(Pending::into_buffer));
            moved = true;
        }
        if let Some(end) = &mut self.own_end {
            calls.test(end)?;
        }
        while let Some(first) = self.arriving.front_mut()
            && calls.test(first)?
        {
            let buffer = self.arriving.pop_front().map(Pending::into_buffer);
            if self.open {
                self.arrived.extend(buffer)
            } else {
                spare.extend(buffer)
            }
            moved = true;
        }
        if let End::Arriving(end) = &mut self.their_end
            && calls.test(end)?
            && let End::Arriving(end) = std::mem::replace(&mut self.their_end, End::Unheard)
        {
            let buffer = end.into_buffer();
            let count = buffer.bytes().first_chunk().map_or(0, |count| u64::from_le_bytes(*count));
            self.their_end = End::After(count);
            spare.push(buffer);
            moved = true;
        }
        while self.may_take() {
            let Some((_, message)) = calls.take(Some(peer), 2 * number, spare)? else {
                if matches!(self.their_end, End::Unheard)
                    && let Some((_, end)) = calls.take(Some(peer), 2 * number + 1, spare)?
                {
                    self.their_end = End::Arriving(end);
                    moved = true;
                }
                break;
            };
            self.received += 1;
            self.arriving.push_back(message);
            moved = true;
        }
        Ok(moved)
    }

    /// Whether there may be a message for this stream, and there is room for it.
    fn may_take(&self) -> bool {
        let room = !self.open || self.arriving.len() + self.arrived.len() < WINDOW;
        match self.their_end {
            End::Unheard => room,
            // After the end, the number may belong to another stream: first wait for the count of messages of
            // this one.
            End::Arriving(_) => false,
            End::After(count) => room && self.received < count,
        }
    }

    /// Whether the peer has closed the stream and all its messages have been consumed.
    fn exhausted(&self) -> bool {
        matches!(self.their_end, End::After(count) if count <= self.received)
            && self.arriving.is_empty()
            && self.arrived.is_empty()
    }

    /// Closes this process's end.
    fn close(&mut self, (peer, number): Key, calls: &Calls, spare: &mut Vec<Buffer>) -> Outcome<()> {
        if !self.open {
            return Ok(());
        }
        self.open = false;
        spare.extend(self.arrived.drain(..));
        let mut buffer = spare.pop().unwrap_or_else(Buffer::new);
        buffer.fill(&self.sent.to_le_bytes());
        self.own_end = Some(calls.send(buffer, peer, 2 * number + 1)?);
        Ok(())
    }

    /// Whether the stream is closed at both ends, with no message in flight.
    fn is_over(&self) -> bool {
        let told = self.own_end.as_ref().is_some_and(Pending::is_complete);
        told && self.outgoing.is_empty() && self.exhausted()
    }
}

impl State {
    fn calls(&self) -> Outcome<&Calls> {
        self.calls.as_ref().ok_or_else(|| "MPI has been finalised".to_owned())
    }

    /// Advances all streams as far as possible; returns whether there was progress.
    fn advance(&mut self) -> Outcome<bool> {
        let mut moved = self.hear()?;
        let Some(calls) = &self.calls else { return Ok(moved) };
        for (key, stream) in &mut self.streams {
            moved |= stream.advance(*key, calls, &mut self.spare)?;
        }
        let over = self.streams.iter().filter(|(_, stream)| stream.is_over()).map(|(key, _)| *key);
        for (peer, number) in over.collect::<Vec<_>>() {
            self.streams.remove(&(peer, number));
            if self.rank < peer {
                self.free.entry(peer).or_default().0.insert(number);
            }
        }
        self.spare.truncate(SPARE);
        Ok(moved)
    }

    /// Receives greetings.
    fn hear(&mut self) -> Outcome<bool> {
        let Some(calls) = &self.calls else { return Ok(false) };
        let mut moved = false;
        let mut sent = Vec::new();
        for mut greeting in self.greetings.drain(..) {
            if !calls.test(&mut greeting)? {
                sent.push(greeting);
            }
        }
        self.greetings = sent;
        while let Some(greeting) = calls.take(None, GREETING, &mut self.spare)? {
            self.arriving.push(greeting);
        }
        // Greetings are few and small, so it is enough to check the first.
        while let Some((_, first)) = self.arriving.first_mut()
            && calls.test(first)?
        {
            let (peer, greeting) = self.arriving.remove(0);
            let buffer = greeting.into_buffer();
            let greeting = serde_json::from_slice(buffer.bytes())
                .map_err(|error| format!("a greeting of rank {peer} that cannot be read: {error}"))?;
            self.spare.push(buffer);
            self.early.push((peer, greeting));
            moved = true;
        }
        let early = std::mem::take(&mut self.early);
        for (peer, greeting) in early {
            let key = (peer, greeting.number);
            if let Some(last) = self.streams.get_mut(&key) {
                last.advance(key, calls, &mut self.spare)?;
                if !last.is_over() {
                    self.early.push((peer, greeting));
                    continue;
                }
            }
            let mut stream = Stream::new();
            if self.over || self.ended.contains(&greeting.purpose.session) {
                // No caller will take it.
                stream.close(key, calls, &mut self.spare)?;
            } else {
                self.heard.insert((peer, greeting.purpose), greeting.number);
            }
            self.streams.insert(key, stream);
        }
        Ok(moved)
    }

    fn stream(&mut self, key: Key) -> Result<&mut Stream, Trouble> {
        self.streams.get_mut(&key).filter(|stream| stream.open).ok_or(Trouble::Closed)
    }

    fn close(&mut self, key: Key) -> Outcome<()> {
        let Some(calls) = &self.calls else { return Ok(()) };
        match self.streams.get_mut(&key) {
            Some(stream) => stream.close(key, calls, &mut self.spare),
            None => Ok(()),
        }
    }

    /// Whether there is no pending work.
    fn is_idle(&self) -> bool {
        self.streams.is_empty()
            && self.greetings.is_empty()
            && self.arriving.is_empty()
            && self.early.is_empty()
    }
}

impl Hub {
    pub fn new(calls: Calls) -> Self {
        let state = State {
            rank: calls.rank(),
            streams: BTreeMap::new(),
            free: BTreeMap::new(),
            greetings: Vec::new(),
            arriving: Vec::new(),
            early: Vec::new(),
            heard: BTreeMap::new(),
            sessions: 0,
            ended: BTreeSet::new(),
            interrupted: false,
            over: false,
            spare: Vec::new(),
            calls: None,
        };
        Self {
            rank: calls.rank(),
            size: calls.size(),
            library: super::calls::library(),
            state: Mutex::new(State { calls: Some(calls), ..state }),
            changed: Condvar::new(),
            thread: Mutex::default(),
        }
    }

    /// Begins a session, in which streams may be opened. The first call starts the progress thread, which
    /// inherits the core and the priority of the calling thread.
    pub fn begin(self: &Arc<Self>) -> std::io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let hub = self.clone();
            *thread =
                Some(std::thread::Builder::new().name("mpi".to_owned()).spawn(move || hub.keep_going())?);
        }
        let mut state = self.state();
        state.sessions += 1;
        state.interrupted = false;
        self.changed.notify_all();
        Ok(())
    }

    /// Ends a session: closes the streams that peers opened in it and that were not taken here.
    pub fn end(&self, session: &str) {
        let mut state = self.state();
        state.sessions -= 1;
        state.ended.insert(session.to_owned());
        let heard = std::mem::take(&mut state.heard);
        let (theirs, others) = heard.into_iter().partition(|((_, purpose), _)| purpose.session == session);
        state.heard = others;
        let theirs: BTreeMap<(usize, Purpose), c_int> = theirs;
        for ((peer, _), number) in theirs {
            // If MPI fails here, its next use returns the error.
            let _ = state.close((peer, number));
        }
    }

    /// Opens a stream to a higher rank, at once.
    pub fn open(&self, peer: usize, purpose: Purpose) -> Result<Key, Trouble> {
        let mut state = self.state();
        let (free, next) = state.free.entry(peer).or_default();
        let number = match free.pop_first() {
            Some(number) => number,
            None if *next < NUMBERS => {
                // Number 0 would have the tag of greetings.
                *next += 1;
                *next
            }
            None => return Err(Trouble::Mpi(format!("{NUMBERS} connections to one rank are in use"))),
        };
        let text = serde_json::to_vec(&Greeting { number, purpose }).map_err(|error| error.to_string())?;
        let mut buffer = state.spare.pop().unwrap_or_else(Buffer::new);
        if buffer.fill(&text) < text.len() {
            return Err(Trouble::Mpi("the lane's name is too long".to_owned()));
        }
        let greeting = state.calls()?.send(buffer, peer, GREETING)?;
        state.greetings.push(greeting);
        state.streams.insert((peer, number), Stream::new());
        Ok((peer, number))
    }

    /// The stream that a lower rank has opened for this purpose, or `None` so far.
    pub fn opened(&self, peer: usize, purpose: &Purpose) -> Result<Option<Key>, Trouble> {
        let mut state = self.state();
        if state.interrupted {
            return Err(Trouble::Closed);
        }
        state.advance()?;
        let number = state.heard.remove(&(peer, purpose.clone()));
        Ok(number.map(|number| (peer, number)))
    }

    /// A buffer for the next message, if the stream can send one now.
    pub fn room(&self, key: Key) -> Result<Option<Buffer>, Trouble> {
        let mut state = self.state();
        let State { streams, calls, spare, .. } = &mut *state;
        let (Some(calls), Some(stream)) = (calls, streams.get_mut(&key).filter(|stream| stream.open)) else {
            return Err(Trouble::Closed);
        };
        if stream.outgoing.len() >= WINDOW {
            stream.advance(key, calls, spare)?;
        }
        if !matches!(stream.their_end, End::Unheard) {
            return Err(Trouble::Closed);
        }
        if stream.outgoing.len() >= WINDOW {
            return Ok(None);
        }
        Ok(Some(spare.pop().unwrap_or_else(Buffer::new)))
    }

    /// Sends a message; there must be room for it.
    pub fn send(&self, key: Key, buffer: Buffer) -> Result<(), Trouble> {
        let mut state = self.state();
        let (peer, number) = key;
        state.stream(key)?;
        let message = state.calls()?.send(buffer, peer, 2 * number)?;
        let stream = state.stream(key)?;
        stream.outgoing.push_back(message);
        stream.sent += 1;
        Ok(())
    }

    /// The next message, if one has arrived.
    pub fn receive(&self, key: Key) -> Result<Option<Buffer>, Trouble> {
        let mut state = self.state();
        let State { streams, calls, spare, .. } = &mut *state;
        let (Some(calls), Some(stream)) = (calls, streams.get_mut(&key).filter(|stream| stream.open)) else {
            return Err(Trouble::Closed);
        };
        stream.advance(key, calls, spare)?;
        match stream.arrived.pop_front() {
            Some(message) => Ok(Some(message)),
            None if stream.exhausted() => Err(Trouble::Closed),
            None => Ok(None),
        }
    }

    /// Keeps a buffer for reuse.
    pub fn keep(&self, buffer: Buffer) {
        self.state().spare.push(buffer);
    }

    /// Closes a stream: the peer still receives the data sent before.
    pub fn close(&self, key: Key) {
        // If MPI fails here, its next use returns the error.
        let _ = self.state().close(key);
    }

    /// Closes all streams, and makes waits for new ones fail until the next session.
    pub fn interrupt(&self) {
        let mut state = self.state();
        state.interrupted = true;
        for key in state.streams.keys().copied().collect::<Vec<_>>() {
            let _ = state.close(key);
        }
    }

    /// Finalises MPI once all processes do.
    pub fn finalise(&self) -> Result<(), MpiError> {
        let deadline = Instant::now() + FINALISE_WITHIN;
        self.state().over = true;
        self.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let heard = std::mem::take(&mut self.state().heard);
        heard.into_iter().for_each(|((peer, _), number)| self.close((peer, number)));
        // A process enters the barrier when it has nothing more to send; after the barrier, no message is in
        // flight.
        let mut barrier: Option<Pending> = None;
        let began = Instant::now();
        loop {
            let mut state = self.state();
            state.advance().map_err(MpiError::Library)?;
            let calls = state.calls().map_err(MpiError::Library)?;
            let all_done = match &mut barrier {
                Some(barrier) => calls.test(barrier).map_err(MpiError::Library)?,
                None => {
                    if state.is_idle() {
                        barrier = Some(calls.barrier().map_err(MpiError::Library)?);
                    }
                    false
                }
            };
            if all_done && state.is_idle() {
                break;
            }
            drop(state);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MpiError::Unfinished { waited_s: FINALISE_WITHIN.as_secs_f64() });
            }
            nap(began.elapsed(), left);
        }
        let calls = self.state().calls.take();
        calls.into_iter().for_each(Calls::finalise);
        Ok(())
    }

    /// The progress thread: advances all streams while no thread waits for one of them, so that messages are
    /// sent and received while the ranks compute.
    fn keep_going(&self) {
        let mut quiet = Instant::now();
        loop {
            let mut state = self.state();
            while !state.over && state.sessions == 0 && state.is_idle() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                quiet = Instant::now();
            }
            if state.over {
                return;
            }
            // If MPI fails here, its next use returns the error.
            let moved = state.advance().unwrap_or(false);
            drop(state);
            if moved {
                quiet = Instant::now();
            }
            nap(quiet.elapsed(), Duration::MAX);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
