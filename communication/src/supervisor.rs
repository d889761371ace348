//! The launcher's end of the control channel: one thread that serves all ranks.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::connection::{Connection, Socket, SocketConnection};
use crate::control::{ControlEvent, check_length};
use crate::door::{Arrival, Door};
use crate::error::{Peer, Result};
use crate::poll;
use crate::switch::Switch;
use crate::wire::{Decoder, Hello, Kind, LONGEST_FRAME, LONGEST_TALE, Purpose, Refusal, frame, frame_of};

const OPERATION: &str = "control";

/// Callback for rejected connections, with one sentence for each; called on any thread.
pub type Warn = fn(&str);

/// Watches the ranks of a job from the process that started them.
///
/// Its thread sleeps until a message arrives, and ends when every rank has left or is lost, or when this is
/// dropped; then the ranks see [`crate::Control::stop_requested`].
pub struct Supervisor {
    events: Receiver<ControlEvent>,
    commands: Arc<Commands>,
    thread: Option<JoinHandle<()>>,
}

/// Commands from other threads.
struct Commands {
    wake: UnixStream,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    /// Frames and the ranks to send them to.
    messages: Vec<(usize, Vec<u8>)>,
    stop_all: bool,
    end: bool,
}

/// A handle to stop all ranks, which can be moved to the thread of a signal handler.
#[derive(Clone)]
pub struct StopHandle {
    commands: Arc<Commands>,
}

impl StopHandle {
    /// Like [`Supervisor::stop_all`].
    pub fn stop_all(&self) {
        self.commands.issue(|pending| pending.stop_all = true);
    }
}

impl Supervisor {
    /// Events in the order in which they happen. The channel is closed after the last rank has left or is
    /// lost.
    pub fn events(&self) -> &Receiver<ControlEvent> {
        &self.events
    }

    /// Sends a message of at most 64 MiB to a rank, which receives it whole and in order by
    /// [`crate::Control::receive`], after all ranks have joined. Returns at once. Messages to a lost rank are
    /// dropped; its loss is an event.
    ///
    /// # Errors
    /// A message that is too long.
    pub fn send(&self, rank: usize, message: &[u8]) -> Result<()> {
        check_length(message, Peer::Rank(rank), OPERATION)?;
        let frame = frame(Kind::Message, message);
        self.commands.issue(|pending| pending.messages.push((rank, frame)));
        Ok(())
    }

    /// Requests every rank to stop, including those that join later. Returns at once.
    pub fn stop_all(&self) {
        self.commands.issue(|pending| pending.stop_all = true);
    }

    /// A handle that stops the job.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { commands: self.commands.clone() }
    }

    /// Serves `world` ranks: those in `known`, and those that join at `door` with the token; the door is
    /// closed once all have joined. Rejected connections, there and at the ranks' listeners, are passed to
    /// `warn`.
    pub(crate) fn start(
        world: usize,
        door: Option<Door>,
        known: Vec<(usize, SocketConnection)>,
        switch: Option<Arc<Switch>>,
        warn: Warn,
    ) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let commands = Arc::new(Commands { wake, pending: Mutex::default() });
        let (sender, events) = mpsc::channel();
        let mut hub = Hub {
            world,
            warn,
            complete: door.is_none(),
            door,
            woken,
            commands: commands.clone(),
            events: sender,
            visitors: Vec::new(),
            switch,
            here: vec![None; world],
            undelivered: Vec::new(),
            gone: 0,
            stopped: false,
        };
        for (rank, connection) in known {
            hub.visitors.push(Visitor::new(connection, rank));
            // The receiver still exists.
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
        // If the pipe is full, the thread is about to wake anyway.
        let _ = Socket::write(&self.wake, &[1]);
    }
}

/// The state of the thread.
struct Hub {
    world: usize,
    warn: Warn,
    /// Open until every rank has joined.
    door: Option<Door>,
    /// Whether every rank has joined.
    complete: bool,
    woken: UnixStream,
    commands: Arc<Commands>,
    events: Sender<ControlEvent>,
    visitors: Vec<Visitor>,
    /// The switch between the ranks, if any.
    switch: Option<Arc<Switch>>,
    /// The ranks that have joined at the door, and the address at which each listens, if any.
    here: Vec<Option<Option<SocketAddr>>>,
    /// Messages for ranks that have not received the address table yet.
    undelivered: Vec<(usize, Vec<u8>)>,
    /// How many ranks have left or been lost after the job was complete.
    gone: usize,
    stopped: bool,
}

/// The connection of a rank.
struct Visitor {
    connection: SocketConnection,
    rank: usize,
    gone: bool,
    decoder: Decoder,
    unsent: Vec<u8>,
}

impl Visitor {
    fn new(connection: SocketConnection, rank: usize) -> Self {
        Self { connection, rank, gone: false, decoder: Decoder::default(), unsent: Vec::new() }
    }

    /// Writes as much as the socket accepts now.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.connection.try_send(&self.unsent, OPERATION) {
                Ok(0) => return,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                // Reading reports the error too, after the rank's last messages.
                Err(_) => self.unsent.clear(),
            }
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
            let visitors = self.visitors.len();
            if let Some(door) = &self.door {
                door.watch(&mut descriptors);
            }
            let due = self.door.as_ref().and_then(Door::due);
            let Ok(ready) = poll::wait(&mut descriptors, due) else { return };
            for index in 0..visitors {
                if ready[1 + index] {
                    self.visitors[index].flush();
                    self.read(index);
                }
            }
            self.admit(&ready[1 + visitors..]);
            if ready[0] && self.obey() {
                return;
            }
            self.visitors.retain(|visitor| !visitor.gone);
            if self.gone == self.world {
                return;
            }
        }
    }

    /// Runs the commands of [`Supervisor`]; returns whether to end.
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
                visitor.unsent.extend(frame(Kind::Stop, &[]));
                visitor.flush();
            }
        }
        end
    }

    /// Sends queued messages, once the ranks can process them.
    fn deliver(&mut self) {
        if !self.complete {
            return;
        }
        for (rank, frame) in std::mem::take(&mut self.undelivered) {
            if let Some(visitor) = self.visitors.iter_mut().find(|v| v.rank == rank && !v.gone) {
                visitor.unsent.extend(frame);
                visitor.flush();
            }
        }
    }

    /// Admits connections that have proved the token; `ready` tells which of the door's
    /// descriptors are ready.
    fn admit(&mut self, ready: &[bool]) {
        let Some(door) = &mut self.door else { return };
        let arrivals = door.tend(ready);
        door.strangers().iter().for_each(|stranger| (self.warn)(stranger));
        for arrival in arrivals {
            match self.place(&arrival.hello) {
                Ok(listens) => self.join(arrival, listens),
                Err(refusal) => arrival.refuse(&refusal),
            }
        }
    }

    /// Reads and handles all messages of a rank received so far.
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
                if visitor.gone {
                    return;
                }
                match visitor.decoder.next(LONGEST_FRAME) {
                    Ok(None) => {
                        if !visitor.decoder.bytes.is_empty() {
                            // A long message on a slow link counts as a heartbeat.
                            let rank = visitor.rank;
                            self.tell(ControlEvent::Alive(rank));
                        }
                        break;
                    }
                    Ok(Some((kind, payload))) => self.hear(index, kind, payload),
                    Err(_) => return self.lose(index),
                }
            }
        }
    }

    fn hear(&mut self, index: usize, kind: Kind, payload: Vec<u8>) {
        let rank = self.visitors[index].rank;
        match kind {
            Kind::Message => self.tell(ControlEvent::Message(rank, payload)),
            Kind::Alive => self.tell(ControlEvent::Alive(rank)),
            Kind::Stranger => {
                let tale = String::from_utf8_lossy(&payload[..payload.len().min(LONGEST_TALE)]);
                (self.warn)(&format!("rank {rank}: {tale}"));
            }
            Kind::Leave => {
                self.visitors[index].gone = true;
                self.gone += 1;
                self.tell(ControlEvent::Left(rank));
            }
            _ => self.lose(index),
        }
    }

    /// Checks whether the job has a free place for the sender of this hello.
    fn place(&self, hello: &Hello) -> std::result::Result<Option<SocketAddr>, Refusal> {
        hello.check(self.world)?;
        let Purpose::Join { listens } = hello.purpose else {
            return Err(Refusal("this is the rendezvous, not a rank".to_owned()));
        };
        if self.here[hello.rank].is_some() {
            return Err(Refusal(format!("rank {} has joined already", hello.rank)));
        }
        Ok(listens)
    }

    fn join(&mut self, arrival: Arrival, listens: Option<SocketAddr>) {
        let rank = arrival.hello.rank;
        let connection = arrival.welcome().identified(Peer::Rank(rank), OPERATION);
        let mut visitor = Visitor::new(connection, rank);
        if self.stopped {
            visitor.unsent.extend(frame(Kind::Stop, &[]));
            visitor.flush();
        }
        self.visitors.push(visitor);
        self.here[rank] = Some(listens);
        self.tell(ControlEvent::Joined(rank));
        let Some(all) = self.here.iter().copied().collect::<Option<Vec<_>>>() else { return };
        self.complete = true;
        // No more ranks are expected, so the port is closed.
        self.door = None;
        let table = all.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default();
        for visitor in self.visitors.iter_mut().filter(|visitor| !visitor.gone) {
            let own = match &self.switch {
                Some(switch) => switch.table(visitor.rank, &table),
                None => Ok(table.clone()),
            };
            let answer = match own {
                Ok(table) => frame_of(Kind::Table, &table),
                Err(error) => frame_of(Kind::Refused, &Refusal(format!("no emulated links: {error}"))),
            };
            visitor.unsent.extend_from_slice(&answer);
            visitor.flush();
        }
        self.deliver();
    }

    fn lose(&mut self, index: usize) {
        let visitor = &mut self.visitors[index];
        if std::mem::replace(&mut visitor.gone, true) {
            return;
        }
        let rank = visitor.rank;
        if self.complete {
            self.gone += 1;
        } else {
            // Another process may join as this rank.
            self.here[rank] = None;
        }
        self.tell(ControlEvent::Lost(rank));
    }

    fn tell(&self, event: ControlEvent) {
        // The receiver may have been dropped.
        let _ = self.events.send(event);
    }
}
