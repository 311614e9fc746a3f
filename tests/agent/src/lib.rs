//! An API server for tests, over TLS: discovery, list, watch with bookmarks and resource versions, 410 Gone,
//! patch, events, bearer tokens. It keeps to what the Kubernetes API conventions promise, so that a real
//! kubectl takes it for one, and it can be unkind on request: cut its connections, throttle,
//! forget history.

mod doors;
mod http;
pub mod kubectl;
mod select;
mod shared;
mod store;
mod tls;
mod watching;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use shared::Shared;
pub use store::{Kind, Refused, Store};

/// A running server. It ends when this goes out of scope.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    certificate: String,
    port: u16,
    // Ends the server's thread when it is dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl ApiServer {
    /// Starts one on a free port of localhost. Bearer token `secret` is let in.
    #[must_use]
    pub fn start() -> ApiServer {
        ApiServer::at(0, None)
    }

    fn at(port: u16, identity: Option<tls::Identity>) -> ApiServer {
        let identity = identity.unwrap_or_else(tls::Identity::generate);
        let certificate = identity.certificate.clone();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a port for the API server");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            store: Store::default(),
            doors: doors::Doors::default(),
            tokens: vec!["secret".to_owned()].into(),
            throttled: AtomicU32::new(0),
            log: std::sync::Mutex::default(),
            bookmarks: Duration::from_millis(500),
            closing: AtomicBool::new(false),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || http::serve(listener, &identity, for_thread, stopped));
        ApiServer { shared, certificate, port, _stop: stop }
    }

    /// Its objects.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Writes a kubeconfig whose token is in a file beside it, and returns its path.
    #[must_use]
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let token = dir.join("token");
        std::fs::write(&token, "secret").expect("write the token");
        std::fs::write(dir.join("ca.crt"), &self.certificate).expect("write the certificate");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://localhost:{}", self.port),
                "certificate-authority": dir.join("ca.crt"),
            } }],
            "users": [{ "name": "test", "user": { "tokenFile": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let path = dir.join("kubeconfig");
        std::fs::write(&path, config.to_string()).expect("write the kubeconfig");
        path
    }

    /// Its port on localhost.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes what a pod finds at `/var/run/secrets/kubernetes.io/serviceaccount` into a folder.
    pub fn service_account(&self, dir: &Path) {
        for (name, text) in
            [("token", "secret"), ("ca.crt", &self.certificate), ("namespace", "istio-system")]
        {
            std::fs::write(dir.join(name), text).expect("write the service account's files");
        }
    }

    /// Lets these tokens in, and no others.
    pub fn let_in(&self, tokens: &[&str]) {
        *self.shared.tokens.lock().expect("tokens") =
            tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// Cuts every connection and takes no new one until [`ApiServer::back`].
    pub fn away(&self) {
        self.shared.doors.close();
    }

    /// Takes connections again.
    pub fn back(&self) {
        self.shared.doors.open();
    }

    /// Cuts every connection; new ones are welcome.
    pub fn cut(&self) {
        self.shared.doors.cut();
    }

    /// The next requests are answered 429 with `Retry-After: 1`.
    pub fn throttle(&self, requests: u32) {
        self.shared.throttled.store(requests, Ordering::SeqCst);
    }

    /// The requests so far, as `METHOD path?query`; forgets them.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.log.lock().expect("log"))
    }

    /// The events about an object, as `(reason, note)`, oldest first.
    #[must_use]
    pub fn events_about(&self, name: &str) -> Vec<(String, String)> {
        let about = |event: &Value| event["involvedObject"]["name"] == name;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = self.store().list(Kind::EVENTS, None);
        events.iter().filter(|e| about(e)).map(|e| (text(&e["reason"]), text(&e["message"]))).collect()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.doors.close();
        self.shared.store.wake();
    }
}
