//! The source that asks the node's agent, from the plugin's side: a blocking socket and one deadline for
//! everything.
//!
//! The plugin holds no token and no kubeconfig. An agent that is being replaced is waited for; one that does
//! not answer in time fails the ADD, and the kubelet tries again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::Deserialize;

use super::protocol::{self, Answer, MAX_LINE, Problem, ProblemKind, Question, Response};
use super::source::{AgentRequest, Error, PodDetails, PodSource};
use crate::ids::PodRef;
use crate::policy::annotations::Annotations;
use crate::policy::grammar::shorten;

/// How long to rest between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// How much earlier than the plugin the agent is to give up, so that its answer still arrives.
const MARGIN: Duration = Duration::from_millis(500);

/// The source.
#[derive(Clone, Debug)]
pub struct AskAgent {
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long to wait for an answer in all, connecting included.
    pub timeout: Duration,
}

impl PodSource for AskAgent {
    /// The runtime's annotations, where it handed them over, take the place of the agent's: they are what the
    /// kubelet started this very sandbox with.
    fn details(&self, pod: &PodRef, handed_over: Option<&Annotations>) -> Result<PodDetails, Error> {
        let mut details = Exchange { agent: self, pod, since: Instant::now() }.ask()?;
        if let Some(annotations) = handed_over {
            details.annotations.clone_from(annotations);
        }
        Ok(details)
    }

    fn answers(&self) -> Result<(), String> {
        let connected = UnixStream::connect(&self.socket).and_then(trusted);
        let said = |error| format!("the agent does not answer at {}: {error}", self.socket.display());
        connected.map(drop).map_err(said)
    }
}

/// The part of an answer that every version has.
#[derive(Deserialize)]
struct Spoken {
    version: u32,
}

struct Exchange<'a> {
    agent: &'a AskAgent,
    pod: &'a PodRef,
    since: Instant,
}

impl Exchange<'_> {
    fn ask(&self) -> Result<PodDetails, Error> {
        let mut stream = self.connect().map_err(|source| self.unreachable("connect", source))?;
        self.send(&mut stream).map_err(|source| self.unreachable("send the question", source))?;
        let line = self.receive(stream).map_err(|source| self.unreachable("get an answer", source))?;
        understand(*self.asked(), &line)
    }

    /// Retries while there is no listener: the agent may be about to start.
    fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.agent.socket).and_then(trusted) {
                Err(error) if nobody_listens(&error) && self.left() > RETRY => std::thread::sleep(RETRY),
                other => return other,
            }
        }
    }

    fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let wait_ms = u64::try_from(self.left().saturating_sub(MARGIN).as_millis()).unwrap_or(u64::MAX);
        let request = Question { version: protocol::VERSION, pod: self.pod.clone(), wait_ms };
        stream.set_write_timeout(Some(self.time_left()?))?;
        stream.write_all(&protocol::line(&request))
    }

    /// One line, with the deadline set again before each read: an agent that drips bytes cannot hold the
    /// plugin.
    fn receive(&self, stream: UnixStream) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut reader = BufReader::new(stream.take(MAX_LINE));
        loop {
            reader.get_ref().get_ref().set_read_timeout(Some(self.time_left()?))?;
            let chunk = match reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(chunk.len(), |at| at + 1);
            line.extend_from_slice(&chunk[..taken]);
            reader.consume(taken);
            if end.is_some() || taken == 0 {
                return Ok(line);
            }
        }
    }

    fn left(&self) -> Duration {
        self.agent.timeout.saturating_sub(self.since.elapsed())
    }

    /// As [`Self::left`], but an error when nothing is left: a socket takes a zero time limit for none.
    fn time_left(&self) -> io::Result<Duration> {
        Some(self.left()).filter(|left| !left.is_zero()).ok_or_else(timed_out)
    }

    fn unreachable(&self, step: &'static str, source: io::Error) -> Error {
        // A read or write that meets its time limit reports EAGAIN, which tells an operator nothing.
        let source = if source.kind() == io::ErrorKind::WouldBlock { timed_out() } else { source };
        Error::Unreachable { asked: self.asked(), step, source }
    }

    fn asked(&self) -> Box<AgentRequest> {
        let (pod, socket) = (self.pod.clone(), self.agent.socket.clone());
        Box::new(AgentRequest { pod, socket, waited: self.since.elapsed() })
    }
}

/// What a line of the agent says.
///
/// # Errors
/// It is no answer, or one that there is no pod.
pub fn understand(asked: AgentRequest, line: &[u8]) -> Result<PodDetails, Error> {
    let asked = Box::new(asked);
    match answer(line) {
        Ok(Answer::Pod(details)) if details.containers.is_empty() => {
            Err(Error::Garbage { asked, problem: "the pod has no containers".to_owned() })
        }
        Ok(Answer::Pod(details)) => Ok(details),
        Ok(Answer::Error(Problem { kind, message })) => Err(match kind {
            ProblemKind::NotFound => Error::NotFound { asked, message },
            ProblemKind::Failed => Error::Failed { asked, message },
            ProblemKind::BadRequest => {
                Error::Garbage { asked, problem: format!("it refused the question: {message}") }
            }
        }),
        Err(problem) => Err(Error::Garbage { asked, problem }),
    }
}

/// The answer in a line, or what is wrong with the line.
fn answer(line: &[u8]) -> Result<Answer, String> {
    if line.is_empty() {
        return Err("the agent closed the connection without a word".to_owned());
    }
    let unreadable = |error: serde_json::Error| {
        format!("{error} in {:?}", shorten(String::from_utf8_lossy(line).trim_end()))
    };
    let spoken: Spoken = serde_json::from_slice(line).map_err(unreadable)?;
    if spoken.version != protocol::VERSION {
        let (theirs, ours) = (spoken.version, protocol::VERSION);
        return Err(format!("it speaks version {theirs} of the protocol, the plugin {ours}"));
    }
    let response: Response = serde_json::from_slice(line).map_err(unreadable)?;
    Ok(response.answer)
}

/// What the agent says decides whether a pod is redirected: only root, or who runs the plugin, may say it.
fn trusted(stream: UnixStream) -> io::Result<UnixStream> {
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
        return Ok(stream);
    }
    let text = format!("uid {peer} answers there, and only root may");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the time is up")
}
