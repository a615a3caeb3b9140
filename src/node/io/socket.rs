//! How a lane's UDP socket is set up.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use thiserror::Error;

/// Sizes of a socket's kernel buffers, in bytes that payload and the kernel's bookkeeping share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBuffers {
    /// What may wait to be read. What all peers together may have in flight towards the socket must fit.
    pub receive: usize,
    /// What may wait to leave.
    pub send: usize,
}

/// Why a socket could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    /// The port is taken.
    #[error("{address} is in use by another process (find it with `ss -lunp 'sport = :{}'`)", address.port())]
    InUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// No interface of this host has the address.
    #[error(
        "{address} is not an address of this host (see `ip address`); use one that is, or {} for all",
        any(address)
    )]
    NotLocal {
        /// What was asked for.
        address: SocketAddr,
    },
    /// A port below 1,024 without the right.
    #[error("{address} needs the right to open ports below 1024 (CAP_NET_BIND_SERVICE); use a higher port")]
    Denied {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Another failure.
    #[error("{address}: {step}: {source}")]
    Other {
        /// What was asked for.
        address: SocketAddr,
        /// The step that failed.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

fn any(address: &SocketAddr) -> &'static str {
    if address.is_ipv4() { "0.0.0.0" } else { "[::]" }
}

/// Opens a non-blocking socket for [`Io::open`](super::Io::open): it never fragments, reports congestion
/// marks, joins what arrives (UDP_GRO) where the kernel can, and shares its port with nobody. An IPv6 socket
/// speaks IPv6 only.
///
/// Returns the buffers granted, which are less than wanted when `net.core.rmem_max` or `wmem_max` are low and
/// the process may not exceed them (CAP_NET_ADMIN).
///
/// # Errors
/// [`BindError`]; nothing stays open.
pub fn bind(address: SocketAddr, wanted: SocketBuffers) -> Result<(UdpSocket, SocketBuffers), BindError> {
    let failed = |step| move |source| BindError::Other { address, step, source };
    let socket = create(address).map_err(failed("creating a UDP socket"))?;
    let fd = socket.as_fd();
    configure(fd, address.ip()).map_err(failed("setting socket options"))?;
    // Before the bind, so that the first datagram already finds them.
    let receive = request_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, wanted.receive);
    let receive = receive.map_err(failed("sizing the receive buffer"))?;
    let send = request_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, wanted.send);
    let send = send.map_err(failed("sizing the send buffer"))?;
    bind_to(fd, address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address },
        _ => failed("binding")(source),
    })?;
    Ok((UdpSocket::from(socket), SocketBuffers { receive, send }))
}

fn create(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn configure(fd: BorrowedFd<'_>, ip: IpAddr) -> io::Result<()> {
    // PROBE: never fragment, and never believe the kernel's idea of the path's MTU; the transport has its
    // own.
    match ip {
        IpAddr::V4(_) => {
            set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        }
        IpAddr::V6(_) => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            // IPv6 fragments at the sender unless told not to, even then.
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
    }
    // Kernels before 5.0 do not join; everything works without, slower.
    match set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1) {
        Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => Err(error),
        _ => Ok(()),
    }
}

/// Asks for a buffer of `bytes` and returns what may be used.
fn request_buffer(fd: BorrowedFd<'_>, force: i32, plain: i32, bytes: usize) -> io::Result<usize> {
    // The kernel doubles the number to pay for its bookkeeping, and must not overflow.
    let asked = i32::try_from(bytes).unwrap_or(i32::MAX).min(i32::MAX / 2);
    // Beyond the system's maximum only with CAP_NET_ADMIN; without, the kernel silently grants the maximum.
    if set_option(fd, libc::SOL_SOCKET, force, asked).is_err() {
        set_option(fd, libc::SOL_SOCKET, plain, asked)?;
    }
    let doubled = get_option(fd, libc::SOL_SOCKET, plain)?;
    Ok(usize::try_from(doubled).unwrap_or(0) / 2)
}

fn bind_to(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let (name, len) = super::message::sockaddr(address);
    // SAFETY: `name` is a local array of at least `len` bytes, read during the call.
    let result = unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr().cast(), len as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let bytes = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is a local of the length given, read during the call.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), bytes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut bytes = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is a local of the length given, written during the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut bytes) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: SocketBuffers = SocketBuffers { receive: 128 << 10, send: 128 << 10 };

    fn option(socket: &UdpSocket, level: i32, name: i32) -> i32 {
        get_option(socket.as_fd(), level, name).unwrap()
    }

    #[test]
    fn a_modest_buffer_is_granted_as_asked() {
        let (_, granted) = bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        assert_eq!(granted, SMALL);
    }

    #[test]
    fn a_v4_socket_is_private_joins_and_never_fragments() {
        let (socket, _) = bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        assert_eq!(option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT), 0);
        assert_eq!(option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR), 0);
        assert_eq!(option(&socket, libc::SOL_UDP, libc::UDP_GRO), 1);
        assert_eq!(option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), libc::IP_PMTUDISC_PROBE);
    }

    #[test]
    fn v4_and_v6_can_have_the_same_port() {
        let (v6, _) = bind("[::]:0".parse().unwrap(), SMALL).unwrap();
        let port = v6.local_addr().unwrap().port();
        assert!(bind(format!("0.0.0.0:{port}").parse().unwrap(), SMALL).is_ok());
    }

    #[test]
    fn a_taken_port_is_named() {
        let (taken, _) = bind("127.0.0.1:0".parse().unwrap(), SMALL).unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address, SMALL).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }));
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn a_foreign_address_is_refused() {
        let error = bind("192.0.2.1:0".parse().unwrap(), SMALL).unwrap_err();
        assert!(matches!(error, BindError::NotLocal { .. }), "{error}");
    }
}
