//! The server's doors: connections that a test can cut or refuse.

use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpStream;

/// The connections that are open, and whether new ones are taken.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    closed: AtomicBool,
    open: Mutex<Vec<std::net::TcpStream>>,
}

impl Doors {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    pub(crate) fn cut(&self) {
        for connection in self.open.lock().expect("connections").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Remembers a connection, or ends it where the door is closed.
    pub(crate) fn enter(&self, stream: TcpStream) -> Option<TcpStream> {
        let stream = stream.into_std().ok()?;
        let mut open = self.open.lock().expect("connections");
        if self.closed.load(Ordering::SeqCst) {
            return None;
        }
        // Those that ended are dropped here: a peer address cannot be asked of a closed socket.
        open.retain(|connection| connection.peer_addr().is_ok());
        open.push(stream.try_clone().ok()?);
        TcpStream::from_std(stream).ok()
    }
}
