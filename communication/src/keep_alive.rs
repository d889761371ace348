//! Detects that a peer's machine has failed, on connections that are silent for hours: a machine without
//! power or network does not close its connections.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Seconds of silence after which the system sends keep-alive probes.
const ASK_AFTER: libc::c_int = 10;
const ASK_EVERY: libc::c_int = 5;
const ASK_TIMES: libc::c_int = 4;
/// Milliseconds that sent bytes may stay unacknowledged.
const LOST_AFTER: libc::c_int = 1000 * (ASK_AFTER + ASK_EVERY * ASK_TIMES);

/// Enables TCP keep-alive: without an answer from the peer's machine, the connection breaks after half a
/// minute.
pub(crate) fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, ASK_AFTER),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, ASK_EVERY),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, ASK_TIMES),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, LOST_AFTER),
    ] {
        // SAFETY: the value outlives the call, and the length is its own.
        let outcome = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
