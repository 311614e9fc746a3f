//! A DNS proxy as small as can be: every A question is answered with one address for all names, over UDP
//! and TCP. It counts, so that a test can tell whether a question reached it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::Pod;
use harness::dns::message;
pub(crate) use harness::dns::message::{ANSWER, answer};

/// The proxy: threads in a namespace, until dropped. Its sockets do not belong to a pod's cgroup, as little
/// as those of a sidecar would be captured.
pub(crate) struct DnsServer {
    questions: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens somewhere, for instance as the server of another pod.
    pub(crate) fn listen(pod: &Pod, addresses: &[&str]) -> DnsServer {
        let (questions, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for address in addresses {
            let address: SocketAddr = address.parse().expect("an address");
            let (udp, tcp) = pod.netns().run(|| {
                (UdpSocket::bind(address).expect("bind UDP"), TcpListener::bind(address).expect("bind TCP"))
            });
            udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            tcp.set_nonblocking(true).expect("non-blocking");
            let (count, end) = (Arc::clone(&questions), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || serve_udp(&udp, &count, &end)));
            let (count, end) = (Arc::clone(&questions), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || serve_tcp(&tcp, &count, &end)));
        }
        DnsServer { questions, stop, threads }
    }

    /// How many questions came since the last call.
    pub(crate) fn take_questions(&self) -> usize {
        self.questions.swap(0, Ordering::Relaxed)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, questions: &AtomicUsize, stop: &AtomicBool) {
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        questions.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(&answer(&buffer[..length]), from);
    }
}

fn serve_tcp(listener: &TcpListener, questions: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut question).is_ok() {
            questions.fetch_add(1, Ordering::Relaxed);
            let answer = answer(&question);
            let _ = stream.write_all(&(answer.len() as u16).to_be_bytes());
            let _ = stream.write_all(&answer);
        }
    }
}

/// A question for the address of `a.test` with an id.
pub(crate) fn question(id: u16) -> Vec<u8> {
    message::question(id, "a")
}

/// Whether these bytes are the answer to the question with this id.
pub(crate) fn answers(message: &[u8], id: u16) -> bool {
    message.starts_with(&id.to_be_bytes()) && message.ends_with(&ANSWER.octets())
}
