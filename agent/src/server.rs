//! The agent's side of the socket: answers the plugin's questions from a [`PodStore`].

use std::fs::DirBuilder;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use redirect_user::enrol::protocol::{self, Answer, MAX_LINE, Problem, ProblemKind, Question, Response};
use redirect_user::enrol::source::PodDetails;
use redirect_user::ids::PodRef;
use redirect_user::path_error::PathError;

/// How long a client may take to send its line, and to take the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
/// The longest that a question may wait for its pod.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Something that knows this node's pods: manifests in a folder, or a watch on the API server.
pub trait PodStore: Send + Sync + 'static {
    /// The pod, waiting up to `wait` for it to appear.
    fn find(
        &self,
        pod: &PodRef,
        wait: Duration,
    ) -> impl Future<Output = Result<Option<PodDetails>, StoreError>> + Send;
}

/// Why a store cannot look.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the text of a variant says what its fields are")]
pub enum StoreError {
    /// A file or folder of manifests cannot be read.
    #[error("cannot read the manifests at {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },
    /// A manifest is not a Pod or a list of Pods.
    #[error("{} is neither a Pod nor a list of Pods in JSON: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    /// The API server does not answer, or not with pods.
    #[error("cannot ask the API server for the pod: {problem}")]
    Api { problem: String },
}

/// Why the socket is not available.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody answers there already.
    #[error("another agent already listens at {}; stop it first, or choose another --socket", socket.display())]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// A step of making it failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// The listening socket; its file goes away with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    socket: PathBuf,
}

impl Server {
    /// Listens at `socket`, for root only. A socket that a dead agent left is replaced in one step, so that a
    /// plugin never finds one that it must not use yet.
    pub fn bind(socket: &Path) -> Result<Server, BindError> {
        if let Some(parent) = socket.parent() {
            std::fs::create_dir_all(parent).map_err(PathError::at("create the folder", parent))?;
        }
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(BindError::InUse { socket: socket.to_owned() });
        }
        // In a folder of its own, so that it is closed to others from the first moment on.
        let mut folder = socket.as_os_str().to_owned();
        folder.push(format!(".{}", std::process::id()));
        let folder = PathBuf::from(folder);
        let new = folder.join("socket");
        DirBuilder::new().mode(0o700).create(&folder).map_err(PathError::at("create the folder", &folder))?;
        let listening =
            UnixListener::bind(&new).map_err(PathError::at("listen at", &new)).and_then(|listener| {
                std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))
                    .map_err(PathError::at("restrict access to", &new))?;
                std::fs::rename(&new, socket).map_err(PathError::at("put the socket in place at", socket))?;
                Ok(listener)
            });
        let _ = std::fs::remove_dir_all(&folder);
        let listener = listening?;
        Ok(Server { listener, socket: socket.to_owned() })
    }

    /// Answers until `stop` resolves; questions under way then end unanswered, and their plugins ask again.
    pub async fn serve(self, store: impl PodStore, stop: impl Future<Output = ()>) {
        let store = Arc::new(store);
        let mut clients = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(_) = clients.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(answer(stream, Arc::clone(&store)));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: give the open questions time to end.
                        tracing::warn!(%error, socket = %self.socket.display(), "cannot accept a question");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// One exchange. What a client does wrong ends its own connection only.
async fn answer(mut stream: UnixStream, store: Arc<impl PodStore>) {
    let answer = match timeout(CLIENT_PATIENCE, question(&mut stream)).await {
        Ok(Ok(request)) => look_up(&request, &*store).await,
        Ok(Err(problem)) => problem,
        Err(_) => problem(ProblemKind::BadRequest, format!("no question after {CLIENT_PATIENCE:?}")),
    };
    let line = protocol::line(&Response { version: protocol::VERSION, answer });
    match timeout(CLIENT_PATIENCE, stream.write_all(&line)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a plugin went away before its answer"),
        Err(_) => tracing::debug!("a plugin did not take its answer in time"),
    }
}

async fn question(stream: &mut UnixStream) -> Result<Question, Answer> {
    let bad = |message: String| problem(ProblemKind::BadRequest, message);
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE))
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| bad(format!("cannot read the question: {error}")))?;
    let request: Question = serde_json::from_slice(&line)
        .map_err(|error| bad(format!("cannot understand the question: {error}")))?;
    match request.version {
        protocol::VERSION => Ok(request),
        other => Err(bad(format!(
            "version {other} of the protocol is not spoken here, only {}",
            protocol::VERSION
        ))),
    }
}

async fn look_up(request: &Question, store: &impl PodStore) -> Answer {
    let wait = Duration::from_millis(request.wait_ms).min(MAX_WAIT);
    match store.find(&request.pod, wait).await {
        Ok(Some(details)) => Answer::Pod(details),
        Ok(None) => {
            let message = format!("no pod {} on this node after {wait:.1?}", request.pod);
            problem(ProblemKind::NotFound, message)
        }
        Err(error) => {
            tracing::warn!(pod = %request.pod, %error, "cannot look up a pod");
            problem(ProblemKind::Failed, error.to_string())
        }
    }
}

fn problem(kind: ProblemKind, message: String) -> Answer {
    Answer::Error(Problem { kind, message })
}
