//! Detects that a peer's machine has failed, on connections that are silent for hours: a machine without
//! power or network does not close its connections.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Silence after which the system sends keep-alive probes.
const ASK_AFTER: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMES: u32 = 4;
/// The time that sent bytes may stay unacknowledged.
const LOST_AFTER: Duration = ASK_AFTER.saturating_add(ASK_EVERY.saturating_mul(ASK_TIMES));

/// Enables TCP keep-alive: without an answer from the peer's machine, the connection breaks after half a
/// minute.
pub(crate) fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let probes = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY).with_retries(ASK_TIMES);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(LOST_AFTER))
}
