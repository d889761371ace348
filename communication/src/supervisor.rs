//! The launcher's end of the control channel: one thread that serves all ranks.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Socket, SocketConnection};
use crate::control::{ControlEvent, check_length};
use crate::error::{Peer, Result};
use crate::keep_alive::keep_alive;
use crate::poll;
use crate::switch::Switch;
use crate::wire::{Decoder, Hello, Kind, LONGEST_FRAME, LONGEST_HELLO, Purpose, Refusal, frame, frame_of};

const OPERATION: &str = "control";
/// Who connects says who it is within this time, or goes.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Watches the ranks of a job from the process that started them.
///
/// Its thread sleeps until a rank says something, and ends when every rank has left or been lost, or when this
/// is dropped; then the ranks see [`crate::Control::stop_requested`].
pub struct Supervisor {
    events: Receiver<ControlEvent>,
    commands: Arc<Commands>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told by others.
struct Commands {
    wake: UnixStream,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    /// Frames, and the ranks that they are for.
    messages: Vec<(usize, Vec<u8>)>,
    stop_all: bool,
    end: bool,
}

/// Tells all ranks to stop; can be handed to a signal handler's thread.
#[derive(Clone)]
pub struct StopHandle {
    commands: Arc<Commands>,
}

impl StopHandle {
    /// As [`Supervisor::stop_all`].
    pub fn stop_all(&self) {
        self.commands.issue(|pending| pending.stop_all = true);
    }
}

impl Supervisor {
    /// Events in the order in which they happen. The channel ends after the last rank has left or been lost.
    pub fn events(&self) -> &Receiver<ControlEvent> {
        &self.events
    }

    /// Sends a message to a rank, which gets it whole and in order by [`crate::Control::receive`], and not before
    /// all ranks have joined. Returns at once. A rank that is gone gets nothing: that it is lost is an event. At most
    /// 64 MiB.
    ///
    /// # Errors
    /// A message that is too long.
    pub fn send(&self, rank: usize, message: &[u8]) -> Result<()> {
        check_length(message, Peer::Rank(rank), OPERATION)?;
        let frame = frame(Kind::Message, message);
        self.commands.issue(|pending| pending.messages.push((rank, frame)));
        Ok(())
    }

    /// Asks every rank to stop, those that join later too. Returns at once.
    pub fn stop_all(&self) {
        self.commands.issue(|pending| pending.stop_all = true);
    }

    /// The same as a value of its own.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { commands: self.commands.clone() }
    }

    /// Serves `world` ranks: those in `known`, and those that come to `door` with the token.
    pub(crate) fn start(
        world: usize,
        door: Option<(TcpListener, String)>,
        known: Vec<(usize, SocketConnection)>,
        switch: Option<Arc<Switch>>,
    ) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let commands = Arc::new(Commands { wake, pending: Mutex::default() });
        let (sender, events) = mpsc::channel();
        let mut hub = Hub {
            world,
            door,
            woken,
            commands: commands.clone(),
            events: sender,
            visitors: Vec::new(),
            switch,
            listens: vec![None; world],
            undelivered: Vec::new(),
            gone: 0,
            stopped: false,
        };
        for (rank, connection) in known {
            hub.visitors.push(Visitor::new(connection, Stage::Joined(rank)));
            // The receiver is still here.
            let _ = hub.events.send(ControlEvent::Joined(rank));
        }
        let thread = std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || hub.serve())?;
        Ok(Self { events, commands, thread: Some(thread) })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.commands.issue(|pending| pending.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Commands {
    fn issue(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        // A full pipe means that the thread is about to wake anyway.
        let _ = Socket::write(&self.wake, &[1]);
    }
}

/// The state of the thread.
struct Hub {
    world: usize,
    door: Option<(TcpListener, String)>,
    woken: UnixStream,
    commands: Arc<Commands>,
    events: Sender<ControlEvent>,
    visitors: Vec<Visitor>,
    /// What the ranks reach each other through.
    switch: Option<Arc<Switch>>,
    /// Where each rank that has come through the door listens.
    listens: Vec<Option<SocketAddr>>,
    /// Messages for ranks that do not know yet where the others are.
    undelivered: Vec<(usize, Vec<u8>)>,
    /// How many ranks have left or been lost after the job was complete.
    gone: usize,
    stopped: bool,
}

/// One connection.
struct Visitor {
    connection: SocketConnection,
    stage: Stage,
    decoder: Decoder,
    unsent: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Has not said hello since it came.
    Unknown(Instant),
    Joined(usize),
    /// Gets what is still unsent, then goes.
    Leaving,
    Gone,
}

impl Visitor {
    fn new(connection: SocketConnection, stage: Stage) -> Self {
        Self { connection, stage, decoder: Decoder::default(), unsent: Vec::new() }
    }

    /// Writes what the socket takes now.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.connection.try_send(&self.unsent, OPERATION) {
                Ok(0) => return,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                // Reading will find out too, and there what the rank said last is still to be had.
                Err(_) => self.unsent.clear(),
            }
        }
        if self.stage == Stage::Leaving {
            self.stage = Stage::Gone;
        }
    }
}

impl Hub {
    fn serve(mut self) {
        loop {
            let mut descriptors = vec![poll::interest(self.woken.as_fd(), true, false)];
            for visitor in &self.visitors {
                let descriptor = visitor.connection.socket();
                descriptors.push(poll::interest(descriptor, true, !visitor.unsent.is_empty()));
            }
            if let Some((listener, _)) = &self.door {
                descriptors.push(poll::interest(listener.as_fd(), true, false));
            }
            let nameless =
                self.visitors.iter().any(|v| matches!(v.stage, Stage::Unknown(_) | Stage::Leaving));
            if poll::wait(&mut descriptors, nameless.then_some(HELLO_WITHIN)).is_err() {
                return;
            }
            let visitors = self.visitors.len();
            for index in 0..visitors {
                if descriptors[1 + index].revents != 0 {
                    self.visitors[index].flush();
                    self.read(index);
                }
            }
            if descriptors.get(1 + visitors).is_some_and(|door| door.revents != 0) {
                self.admit();
            }
            if descriptors[0].revents != 0 && self.obey() {
                return;
            }
            for visitor in &mut self.visitors {
                if matches!(visitor.stage, Stage::Unknown(since) if since.elapsed() >= HELLO_WITHIN) {
                    visitor.stage = Stage::Gone;
                }
            }
            self.visitors.retain(|visitor| visitor.stage != Stage::Gone);
            if self.gone == self.world {
                return;
            }
        }
    }

    /// Does what [`Supervisor`] was asked; returns whether to end.
    fn obey(&mut self) -> bool {
        while matches!(Socket::read(&self.woken, &mut [0; 64]), Ok(1..)) {}
        let (stop, end) = {
            let mut pending = self.commands.pending.lock().unwrap_or_else(PoisonError::into_inner);
            self.undelivered.append(&mut pending.messages);
            (pending.stop_all, pending.end)
        };
        self.deliver();
        if stop && !self.stopped {
            self.stopped = true;
            for visitor in &mut self.visitors {
                if let Stage::Joined(_) = visitor.stage {
                    visitor.unsent.extend(frame(Kind::Stop, &[]));
                    visitor.flush();
                }
            }
        }
        end
    }

    /// Whether every rank has joined.
    fn complete(&self) -> bool {
        self.door.is_none() || !self.listens.contains(&None)
    }

    /// Sends messages on their way, once the ranks can make sense of them.
    fn deliver(&mut self) {
        if !self.complete() {
            return;
        }
        for (rank, frame) in std::mem::take(&mut self.undelivered) {
            if let Some(visitor) = self.visitors.iter_mut().find(|v| v.stage == Stage::Joined(rank)) {
                visitor.unsent.extend(frame);
                visitor.flush();
            }
        }
    }

    /// Lets in who waits at the door.
    fn admit(&mut self) {
        let Some((listener, _)) = &self.door else { return };
        while let Ok((socket, address)) = listener.accept() {
            let connection = keep_alive(&socket).and_then(|()| {
                SocketConnection::tcp(socket, Peer::Unidentified(address), OPERATION, HELLO_WITHIN)
            });
            if let Ok(connection) = connection {
                self.visitors.push(Visitor::new(connection, Stage::Unknown(Instant::now())));
            }
        }
    }

    /// Reads all that a visitor has said so far.
    fn read(&mut self, index: usize) {
        let mut portion = [0; 16 << 10];
        loop {
            let visitor = &mut self.visitors[index];
            match visitor.connection.try_receive(&mut portion, OPERATION) {
                Ok(0) => return,
                Ok(received) => visitor.decoder.bytes.extend_from_slice(&portion[..received]),
                Err(_) => return self.lose(index),
            }
            loop {
                let visitor = &mut self.visitors[index];
                let longest = match visitor.stage {
                    Stage::Unknown(_) => LONGEST_HELLO,
                    Stage::Joined(_) => LONGEST_FRAME,
                    Stage::Leaving | Stage::Gone => return,
                };
                match visitor.decoder.next(longest) {
                    Ok(None) => break,
                    Ok(Some((kind, payload))) => self.hear(index, kind, payload),
                    Err(_) => return self.lose(index),
                }
            }
        }
    }

    fn hear(&mut self, index: usize, kind: Kind, payload: Vec<u8>) {
        match (self.visitors[index].stage, kind) {
            (Stage::Unknown(_), Kind::Hello) => match self.identify(&payload) {
                Ok((rank, listens)) => self.join(index, rank, listens),
                Err(refusal) => {
                    let visitor = &mut self.visitors[index];
                    visitor.unsent = frame_of(Kind::Refused, &refusal);
                    visitor.stage = Stage::Leaving;
                    visitor.flush();
                }
            },
            (Stage::Joined(rank), Kind::Message) => self.tell(ControlEvent::Message(rank, payload)),
            (Stage::Joined(rank), Kind::Leave) => {
                self.visitors[index].stage = Stage::Gone;
                self.gone += 1;
                self.tell(ControlEvent::Left(rank));
            }
            _ => self.lose(index),
        }
    }

    fn identify(&self, payload: &[u8]) -> std::result::Result<(usize, SocketAddr), Refusal> {
        let hello: Hello = serde_json::from_slice(payload)
            .map_err(|error| Refusal::Other(format!("its hello cannot be read: {error}")))?;
        let token = self.door.as_ref().map_or("", |(_, token)| token);
        hello.check(token, self.world)?;
        let Purpose::Join { listens } = hello.purpose else {
            return Err(Refusal::Other("this is the rendezvous, not a rank".to_owned()));
        };
        if self.listens[hello.rank].is_some() {
            return Err(Refusal::Other(format!("rank {} has joined already", hello.rank)));
        }
        Ok((hello.rank, listens))
    }

    fn join(&mut self, index: usize, rank: usize, listens: SocketAddr) {
        self.visitors[index].stage = Stage::Joined(rank);
        self.listens[rank] = Some(listens);
        self.tell(ControlEvent::Joined(rank));
        if self.stopped {
            self.visitors[index].unsent.extend(frame(Kind::Stop, &[]));
        }
        if let Some(table) = self.listens.iter().copied().collect::<Option<Vec<_>>>() {
            for visitor in &mut self.visitors {
                if let Stage::Joined(rank) = visitor.stage {
                    let own =
                        self.switch.as_ref().map_or_else(|| Ok(table.clone()), |s| s.table(rank, &table));
                    let answer = match own {
                        Ok(table) => frame_of(Kind::Table, &table),
                        Err(error) => {
                            frame_of(Kind::Refused, &Refusal::Other(format!("no emulated links: {error}")))
                        }
                    };
                    visitor.unsent.extend_from_slice(&answer);
                    visitor.flush();
                }
            }
            self.deliver();
        }
    }

    fn lose(&mut self, index: usize) {
        let stage = std::mem::replace(&mut self.visitors[index].stage, Stage::Gone);
        if let Stage::Joined(rank) = stage {
            if !self.complete() {
                // The job is not complete, so another process may take the rank's place.
                self.listens[rank] = None;
            } else {
                self.gone += 1;
            }
            self.tell(ControlEvent::Lost(rank));
        }
    }

    fn tell(&self, event: ControlEvent) {
        // Nobody is obliged to listen.
        let _ = self.events.send(event);
    }
}
