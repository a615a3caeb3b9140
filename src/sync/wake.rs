//! How a replica's thread wakes a parked driver: one flag, and one eventfd that is written only when the flag
//! is set.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// One per executor, shared between its driver and every thread that hands it work.
///
/// The driver's side, always in this order:
/// 1. [`prepare_park`](Self::prepare_park) sets *parked*;
/// 2. it rechecks every mailbox; if one holds something it skips the wait;
/// 3. it waits until the eventfd becomes readable (or something else happens);
/// 4. [`unpark`](Self::unpark) clears *parked*.
///
/// The other side: put the work where the driver will look, then [`wake`](Self::wake).
///
/// No wake-up is lost. Each side writes one word and then reads the other's, with a sequentially consistent
/// fence between (Dekker's argument), so in every execution either the driver's recheck sees the work, or the
/// waker sees *parked* and writes the eventfd. What is written there stays until it is read, so the wait ends
/// even if it begins later. Of several wakers only the one that takes *parked* down makes the system call:
/// all of them put their work in place before they looked at the flag, and the driver looks at every mailbox
/// after the wait. A waker that was interrupted between taking the flag and writing the eventfd makes one
/// needless wake later, never a missing one: the next round sets *parked* anew.
#[derive(Debug)]
pub struct WakeWord {
    parked: AtomicBool,
    /// Blocking, because a ring's `read` of a non-blocking eventfd returns EAGAIN instead of waiting.
    eventfd: OwnedFd,
}

impl WakeWord {
    /// A word whose driver is not parked.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors or memory.
    pub fn new() -> io::Result<WakeWord> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made for us and has no other owner.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(WakeWord { parked: AtomicBool::new(false), eventfd })
    }

    /// Wakes the driver if it is parked or about to be. The work must be in place before. A system call only
    /// for the first of all calls since the driver parked.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // The load keeps the line shared while the driver runs; only a parked driver costs an exclusive
        // access.
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    /// Driver: announces that it is about to wait. Mailboxes must be checked between this and the wait.
    pub fn prepare_park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Driver: it runs again, wakers may spare the system call.
    pub fn unpark(&self) {
        // Relaxed: a waker that still reads the old value makes one needless wake.
        self.parked.store(false, Ordering::Relaxed);
    }

    fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        loop {
            // SAFETY: eight bytes of the stack, read during the call only.
            let wrote = unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            // The one failure that can pass by itself is a signal; the counter cannot overflow, because
            // whoever waits reads it.
            if wrote >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }
}

impl AsFd for WakeWord {
    /// The eventfd: readable after a wake; reading eight bytes clears it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    fn is_readable(word: &WakeWord) -> bool {
        let mut poll = libc::pollfd { fd: word.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of the stack, used during the call only.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn waking_a_running_driver_makes_no_system_call() {
        let word = WakeWord::new().unwrap();
        word.wake();
        assert!(!is_readable(&word));
    }

    #[test]
    fn waking_a_parked_driver_writes_once() {
        let word = WakeWord::new().unwrap();
        word.prepare_park();
        word.wake();
        word.wake();
        assert!(is_readable(&word));
        let mut count = [0; 8];
        File::from(word.as_fd().try_clone_to_owned().unwrap()).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn a_driver_that_unparked_is_left_alone() {
        let word = WakeWord::new().unwrap();
        word.prepare_park();
        word.unpark();
        word.wake();
        assert!(!is_readable(&word));
    }
}
