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
        open.retain(is_open);
        open.push(stream.try_clone().ok()?);
        TcpStream::from_std(stream).ok()
    }
}

/// Whether the other end has neither closed its connection nor gone. What is kept here is a second descriptor
/// of the server's socket, so the kernel keeps the socket until this one is closed, too.
fn is_open(connection: &std::net::TcpStream) -> bool {
    match connection.peek(&mut [0]) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

#[tokio::test]
async fn a_connection_whose_client_is_gone_is_not_kept() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("its address");
    let doors = Doors::default();
    let kept = || doors.open.lock().expect("connections").len();
    let mut served = Vec::new();
    for _ in 0..3 {
        let client = TcpStream::connect(address).await.expect("connect");
        let (stream, _) = listener.accept().await.expect("accept");
        served.push(doors.enter(stream).expect("the door is open"));
        assert_eq!(kept(), 1, "those before are gone");
        drop(client);
        // The end has arrived when the server reads it.
        let readable = served.last().expect("one").readable();
        readable.await.expect("the end of the connection");
    }
    let client = TcpStream::connect(address).await.expect("connect");
    let (stream, _) = listener.accept().await.expect("accept");
    served.push(doors.enter(stream).expect("the door is open"));
    let other = TcpStream::connect(address).await.expect("connect");
    let (stream, _) = listener.accept().await.expect("accept");
    served.push(doors.enter(stream).expect("the door is open"));
    assert_eq!(kept(), 2, "{client:?} and {other:?} are connected");
}
