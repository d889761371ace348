//! Network interfaces of the calling thread's network namespace.

use super::MTU;
use super::machine::checked;
use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Maximum packets in the queue of an interface.
const QUEUE: libc::c_int = 2000;

/// A request about the interface `name`.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    request
}

fn ask(socket: &UdpSocket, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request that is used here is an ifreq, which outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, std::ptr::from_mut(request)) })
}

fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

pub fn up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    ask(&socket()?, libc::SIOCSIFFLAGS, &mut request)
}

/// Creates an interface whose packets are read and written here; closing the descriptor removes it.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is an ifreq that outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(file.into())
}

/// An address in a network of 255, through this interface.
pub fn configure(name: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = socket()?;
    let with_address = |address: Ipv4Addr| {
        let mut request = request(name);
        let inet = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: both are 16 bytes, and an address of this family is read as such.
        request.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) };
        request
    };
    ask(&socket, libc::SIOCSIFADDR, &mut with_address(address))?;
    ask(&socket, libc::SIOCSIFNETMASK, &mut with_address(Ipv4Addr::new(255, 255, 255, 0)))?;
    let mut size = request(name);
    size.ifr_ifru.ifru_mtu = MTU as libc::c_int;
    ask(&socket, libc::SIOCSIFMTU, &mut size)?;
    let mut queue = request(name);
    queue.ifr_ifru.ifru_metric = QUEUE;
    ask(&socket, libc::SIOCSIFTXQLEN, &mut queue)?;
    up(name)
}
